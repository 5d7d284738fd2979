"""Patterns of dotted names: literal segments, ``*`` for one segment, a last ``**`` for one or more.

No regular expression and nothing to backtrack: matching and containment walk both sides once. Whatever names a job type or
an event type in a token is written so, and deny beats allow.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from jobforge_mcp.types import Caller

_PATTERN = re.compile(r"(?:(?:[A-Za-z0-9_-]+|\*)\.)*(?:[A-Za-z0-9_-]+|\*\*?)")

LONGEST_PATTERN = 100
"""Characters, as the longest name of a job type."""


def is_pattern(text: str) -> bool:
    """Whether a text is a pattern: a segment is literal, or ``*``, or at the end ``**``."""
    return len(text) <= LONGEST_PATTERN and _PATTERN.fullmatch(text) is not None


@lru_cache(maxsize=16_384)
def matches(pattern: str, name: str) -> bool:
    """Whether a pattern admits a name."""
    return _walk(pattern.split("."), name.split("."), is_name=True)


def covers(pattern: str, narrower: str) -> bool:
    """Whether a pattern admits every name that another pattern admits."""
    return _walk(pattern.split("."), narrower.split("."), is_name=False)


def matches_any(patterns: Iterable[str], name: str) -> bool:
    """Whether one of the patterns admits a name."""
    return any(matches(pattern, name) for pattern in patterns)


def allows_type(caller: Caller, job_type: str) -> bool:
    """Whether the caller's token lets it name this job type."""
    if caller.deny_types and matches_any(caller.deny_types, job_type):
        return False
    return caller.job_types is None or matches_any(caller.job_types, job_type)


def allows_event(caller: Caller, event_type: str) -> bool:
    """Whether the caller's token lets it submit events of this type."""
    return caller.events is None or matches_any(caller.events, event_type)


def may_see_type(caller: Caller, job_type: str) -> bool:
    """Whether runs of this type exist for the caller."""
    return job_type not in caller.hidden_types and allows_type(caller, job_type)


def is_confined(caller: Caller) -> bool:
    """Whether there may be runs of its tenant that the caller does not see."""
    return (
        caller.projects is not None
        or caller.job_types is not None
        or bool(caller.deny_types)
        or bool(caller.hidden_types)
    )


def _walk(wide: list[str], narrow: list[str], *, is_name: bool) -> bool:
    for place, segment in enumerate(wide):
        if place >= len(narrow):
            return False
        if segment == "**":
            return True
        if not is_name and narrow[place] == "**":
            return False
        if segment != "*" and segment != narrow[place]:
            return False
    return len(wide) == len(narrow)
