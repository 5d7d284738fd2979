"""How this process logs: structlog, once, to stderr, because stdout belongs to stdio and to commands' results.

Lines of other libraries, which use the standard library's logging, take the same way. Nothing here decides what is
logged; that no payload and no token is, is the duty of whoever logs. Secrets that this process resolved, and what looks
like a well-known key, are struck out of every line, tracebacks included.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import ModuleType
from typing import Literal, cast

if not {"structlog", "rich"} & sys.modules.keys():
    # structlog loads rich for tracebacks that are never asked for here: 5 MB and 50 ms of every worker. To it there is none.
    sys.modules["rich"] = cast("ModuleType", None)
    try:
        import structlog
    finally:
        del sys.modules["rich"]
else:
    import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from jobforge_mcp.redaction import redact_event, redact_line

whose: ContextVar[Callable[[], Mapping[str, object]] | None] = ContextVar("whose", default=None)
"""Tells whose a line is. Asked only when one is logged, because most jobs log nothing."""


def configure_logging(
    level: str = "info", form: Literal["auto", "json", "console"] = "auto"
) -> None:
    """Set up logging for the whole process; the last call counts.

    ``auto`` writes text for people on a terminal and one JSON object a line elsewhere.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    is_console = form == "console" or (form == "auto" and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _say_whose,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
    ]
    renderer: list[Processor] = (
        [
            # Without locals: they hold inputs and tokens.
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            ),
            redact_line,
        ]
        if is_console
        else [
            structlog.processors.format_exc_info,
            _put_first,
            redact_event,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ]
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *renderer],
        )
    )
    logging.basicConfig(handlers=[handler], level=max(number, logging.INFO), force=True)
    # What libraries say at debug level may hold statements, headers or payloads: it is never wanted.
    logging.getLogger("jobforge_mcp").setLevel(number)
    logging.getLogger("jobforge").setLevel(number)
    # Sessions' ids are as good as keys to them, and the rest is noise.
    for name in ("psycopg.pool", "httpx", "httpx2", "mcp", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # It warns of connections that are closed while they wait, which is how a listener ends.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    # It logs each message that it cannot read, whole and with a traceback; whoever sent it is told so.
    logging.getLogger("mcp.server.sse").setLevel(logging.CRITICAL)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared[:-1],
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        # Tests and nodes configure anew; the cost is one lookup per line.
        cache_logger_on_first_use=False,
    )


def _say_whose(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    tell = whose.get()
    return event if tell is None else {**tell(), **event}


def _put_first(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Begin each line with what a person looks for."""
    first = {name: event[name] for name in ("timestamp", "level", "event") if name in event}
    return {**first, **event}
