"""What the connectors share: the operator's policy, and how long a receiver asks to be left alone."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache

from jobforge_mcp.egress.client import EgressPolicy
from jobforge_mcp.settings import load_settings

_LONGEST_RETRY_AFTER = 3_600.0


@cache
def policy() -> EgressPolicy:
    """Read the operator's policy, once per process."""
    settings = load_settings()
    return EgressPolicy(
        settings.http_allow_hosts, settings.http_allow_ports, settings.http_allow_private
    )


def retry_after(value: str | None) -> float | None:
    """Read seconds or a date, and never wait longer than an hour."""
    if value is None:
        return None
    if value.strip().isdecimal():
        return min(float(value.strip()[:9]), _LONGEST_RETRY_AFTER)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    aware = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return min(max((aware - datetime.now(UTC)).total_seconds(), 0.0), _LONGEST_RETRY_AFTER)
