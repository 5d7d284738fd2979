"""Reads what the database says when a limit is passed: which one, and when to try again."""

from __future__ import annotations

import json
from typing import Final, cast

from psycopg.errors import Diagnostic

from jobforge_mcp.errors import LimitError

RATE_LIMITED: Final = "RATE_LIMITED"
"""Too many calls in too short a time."""
QUEUE_FULL: Final = "QUEUE_FULL"
"""Too many runs are open and not running."""
PAYLOAD_TOO_LARGE: Final = "PAYLOAD_TOO_LARGE"
PRIORITY_TOO_HIGH: Final = "PRIORITY_TOO_HIGH"
BUDGET_USED_UP: Final = "BUDGET_USED_UP"
"""No jobs, units or run-seconds are left."""
TOO_MANY_CHILDREN: Final = "TOO_MANY_CHILDREN"
TOO_DEEP: Final = "TOO_DEEP"
"""The run would stand too many generations below its first ancestor."""

CODES: Final = frozenset(
    {
        RATE_LIMITED,
        QUEUE_FULL,
        PAYLOAD_TOO_LARGE,
        PRIORITY_TOO_HIGH,
        BUDGET_USED_UP,
        TOO_MANY_CHILDREN,
        TOO_DEEP,
    }
)


def limit_error(diagnostics: Diagnostic) -> LimitError:
    """Make our error of a refusal by ``jobforge.refuse_over_limit``: worth repeating where it says when."""
    try:
        said: object = json.loads(diagnostics.message_detail or "{}")
    except ValueError:
        said = {}
    detail = cast("dict[str, object]", said) if isinstance(said, dict) else {}
    code, after = detail.get("code"), detail.get("retryAfterMs")
    return LimitError(
        diagnostics.message_primary or "a limit was passed",
        code=code if isinstance(code, str) and code in CODES else None,
        hint=diagnostics.message_hint,
        retry_after_ms=after if isinstance(after, int) else None,
    )
