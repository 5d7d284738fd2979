"""Durations as people write them, ``"5m"`` or ``timedelta(minutes=5)``, as the milliseconds that everything else counts in."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TypeAlias

from jobforge_mcp.errors import DefinitionError

Duration: TypeAlias = str | timedelta | float
"""``"500ms"``, ``"30s"``, ``"5m"``, ``"2h"``, ``"1d"``; a ``timedelta``; or a number of seconds."""

_FORM = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_MS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def milliseconds(duration: Duration) -> int:
    """Return whole milliseconds.

    Raises:
        DefinitionError: The text has another form, or the duration is negative or not finite.
    """
    if isinstance(duration, str):
        found = _FORM.fullmatch(duration.strip())
        if found is None:
            raise DefinitionError(
                f"{duration[:40]!r} is not a duration", hint='write it like "30s", "5m" or "1h"'
            )
        return round(float(found[1]) * _MS[found[2]])
    seconds = duration.total_seconds() if isinstance(duration, timedelta) else duration
    if not 0 <= seconds < float("inf"):
        raise DefinitionError(f"{duration} is not a duration: it must be finite and not negative")
    return round(seconds * 1_000)
