"""Says whether a trigger is one: names, patterns, templates and schedules, before anything of it is stored.

The database checks shapes once more; what only Python can read, templates and schedules, is checked here alone, and again
whenever it is used.
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import Final, NoReturn

from pydantic.alias_generators import to_camel

from jobforge_mcp.definitions.json_limits import dump_limited
from jobforge_mcp.definitions.mapping import check, check_condition
from jobforge_mcp.errors import InvalidInputError
from jobforge_mcp.router.patterns import is_pattern
from jobforge_mcp.triggers.schedule import Schedule
from jobforge_mcp.types import TriggerKind, TriggerSpec

CATCH_UPS: Final = ("none", "one", "all")
OVERLAPS: Final = ("skip", "queue", "cancel-previous")
MOST_STARS: Final = 4

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_CRON_ONLY: Final = ("cron", "timezone", "catch_up", "catch_up_most", "overlap", "jitter_ms")
_EVENT_ONLY: Final = (
    *("event_type", "event_source", "match", "input_mapping", "dedupe_key"),
    *("cooldown_ms", "max_per_hour"),
)
_RANGES: Final = {
    "catch_up_most": (1, 1_000),
    "jitter_ms": (0, 3_600_000),
    "cooldown_ms": (0, 604_800_000),
    "max_per_hour": (1, 1_000_000),
}


def check_spec(spec: TriggerSpec) -> None:
    """Refuse what is no trigger.

    Raises:
        InvalidInputError: ``TRIGGER_INVALID``, or what is wrong with a template: ``MAPPING_INVALID``.
    """
    if not _NAME.fullmatch(spec.name):
        _refuse(
            "a trigger's name has 1 to 64 lower-case letters, digits, dots, hyphens or underscores"
        )
    is_cron = spec.kind is TriggerKind.CRON
    for name in _EVENT_ONLY if is_cron else _CRON_ONLY:
        if getattr(spec, name) is not None:
            _refuse(f"a trigger of kind {spec.kind} takes no {to_camel(name)}")
    for name, (least, most) in _RANGES.items():
        value: int | None = getattr(spec, name)
        if value is not None and not least <= value <= most:
            _refuse(f"{to_camel(name)} must be from {least} to {most}")
    if spec.input is not None:
        dump_limited(spec.input)
    if is_cron:
        _check_cron(spec)
    else:
        _check_event(spec)


def first_time(spec: TriggerSpec, now: datetime) -> datetime | None:
    """Return when a schedule is due next after a moment; ``None`` for what has no schedule."""
    if spec.kind is not TriggerKind.CRON or spec.cron is None:
        return None
    return Schedule(spec.cron, spec.timezone or "UTC").next_after(now)


def _check_cron(spec: TriggerSpec) -> None:
    if spec.cron is None:
        _refuse("a trigger of kind cron needs a schedule", "pass cron, such as 0 9 * * 1-5")
    Schedule(spec.cron, spec.timezone or "UTC")
    if spec.catch_up is not None and spec.catch_up not in CATCH_UPS:
        _refuse(f"catchUp is one of {', '.join(CATCH_UPS)}")
    if spec.overlap is not None and spec.overlap not in OVERLAPS:
        _refuse(f"overlap is one of {', '.join(OVERLAPS)}")


def _check_event(spec: TriggerSpec) -> None:
    if spec.event_type is None or not is_pattern(spec.event_type):
        _refuse(
            "a trigger of kind event needs a pattern of event types",
            "pass eventType: literal segments, * for one, a last ** for the rest, such as order.*",
        )
    source = spec.event_source
    if source is not None and (
        not 1 <= len(source.encode(errors="replace")) <= 255 or source.count("*") > MOST_STARS
    ):
        _refuse(f"a pattern of sources has 1 to 255 bytes and at most {MOST_STARS} stars")
    if spec.match is not None:
        check_condition(spec.match)
    for template in (spec.input_mapping, spec.dedupe_key):
        if template is not None:
            check(template)
    for name, most in (("match", 16_384), ("input_mapping", 65_536), ("dedupe_key", 4_096)):
        if len(json.dumps(getattr(spec, name), ensure_ascii=False).encode(errors="replace")) > most:
            _refuse(f"{to_camel(name)} is larger than {most} bytes")


def _refuse(message: str, hint: str | None = None) -> NoReturn:
    raise InvalidInputError(
        message, code="TRIGGER_INVALID", hint=hint or "docs/triggers.md describes every member"
    )
