"""The claim ``jf`` of a policy token: tenant, what confines it, and what makes one token narrower than another.

::

    "jf": {"v": 1, "tenant": "acme", "projects": ["p1"], "job_types": ["connector.http.*", "report.generate"],
           "deny_types": ["*.delete"], "events": ["order.**"], "roles": ["ops"], "limits": {"rps": 10, "max_running": 5},
           "once": false, "epoch": 1800000000000, "act": {"sub": "user-9"}}

All but ``v`` and ``tenant`` may be absent: then the token is not confined in that way. What is not known is refused, and so
is an empty list, which could mean none or all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields
from typing import Final

from jobforge_mcp.router.patterns import covers, is_pattern
from jobforge_mcp.types import JsonObject, JsonValue, Limits, TenantId

CLAIM_VERSION: Final = 1
MOST_PROJECTS: Final = 100
MOST_PATTERNS: Final = 64
MOST_ROLES: Final = 32
MOST_ACTORS: Final = 4
"""How many stand in a chain of those for whom somebody acts."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,62}")
_LARGEST: Final = 2**53 - 1
_LARGEST_LIMITS: Final = {
    "burst": 1_000_000,
    "max_queued": 1_000_000,
    "max_depth": 1_000,
    "budget_jobs": _LARGEST,
    "budget_units": _LARGEST,
    "budget_run_seconds": _LARGEST,
}
"""What the database can count; the others fit a Postgres integer."""
_LIMIT_NAMES: Final = {"max_payload": "max_payload_bytes"}
"""Where the claim is named otherwise than the field."""
LIMITS: Final = {
    next((claim for claim, name in _LIMIT_NAMES.items() if name == field.name), field.name): field
    for field in fields(Limits)
}
"""The fields of `Limits` by the names they have in a token."""

_KNOWN: Final = frozenset(
    {
        *("v", "tenant", "projects", "job_types", "deny_types", "events", "roles", "limits"),
        *("once", "epoch", "act"),
    }
)


class BadClaimError(ValueError):
    """The claim is not of its form. Says which member, never its value."""


@dataclass(frozen=True, slots=True)
class Confinement:
    """What the claim ``jf`` says."""

    tenant_id: TenantId
    projects: frozenset[str] | None = None
    job_types: tuple[str, ...] | None = None
    deny_types: tuple[str, ...] = ()
    events: tuple[str, ...] | None = None
    roles: frozenset[str] = frozenset()
    limits: Limits | None = None
    is_single_use: bool = False
    epoch: int | None = None
    """``None``: the moment of issue counts."""
    actors: tuple[str, ...] = ()
    """Nearest first."""

    def to_claim(self) -> JsonObject:
        """Write it as it stands in a token."""
        claim: JsonObject = {"v": CLAIM_VERSION, "tenant": self.tenant_id}
        if self.projects is not None:
            claim["projects"] = [*sorted(self.projects)]
        if self.job_types is not None:
            claim["job_types"] = [*self.job_types]
        if self.deny_types:
            claim["deny_types"] = [*self.deny_types]
        if self.events is not None:
            claim["events"] = [*self.events]
        if self.roles:
            claim["roles"] = [*sorted(self.roles)]
        if self.limits is not None:
            claim["limits"] = limits_to_claim(self.limits)
        if self.is_single_use:
            claim["once"] = True
        if self.epoch is not None:
            claim["epoch"] = self.epoch
        if self.actors:
            claim["act"] = _nested(self.actors)
        return claim


def parse_confinement(value: JsonValue) -> Confinement:
    """Read the claim ``jf``.

    Raises:
        BadClaimError: it is not exactly of our form.
    """
    if not isinstance(value, dict) or not value.keys() <= _KNOWN:
        raise BadClaimError("jf")
    version = value.get("v")
    if type(version) is not int or version != CLAIM_VERSION:
        raise BadClaimError("v")
    projects = _list(value, "projects", MOST_PROJECTS, is_name)
    roles = _list(value, "roles", MOST_ROLES, is_name)
    epoch = value.get("epoch")
    if "epoch" in value and not _is_count(epoch):
        raise BadClaimError("epoch")
    return Confinement(
        tenant_id=TenantId(_one_name(value.get("tenant"), "tenant")),
        projects=None if projects is None else frozenset(projects),
        job_types=_list(value, "job_types", MOST_PATTERNS, is_pattern),
        deny_types=_list(value, "deny_types", MOST_PATTERNS, is_pattern) or (),
        events=_list(value, "events", MOST_PATTERNS, is_pattern),
        roles=frozenset(roles or ()),
        limits=_parse_limits(value["limits"]) if "limits" in value else None,
        is_single_use=_flag(value, "once"),
        epoch=epoch if isinstance(epoch, int) else None,
        actors=_parse_actors(value["act"]) if "act" in value else (),
    )


def is_name(text: str) -> bool:
    """Whether a text can name a tenant, a project or a role."""
    return _NAME.fullmatch(text) is not None


def limits_to_claim(limits: Limits) -> JsonObject:
    """Write the limits that are set, under the names they have in a token."""
    return {
        claim: value
        for claim, field in LIMITS.items()
        if (value := _value_of(limits, field.name)) is not None
    }


def check_limit(claim: str, value: object) -> float | int:
    """Return the value of a limit if it is one.

    Raises:
        BadClaimError: there is no such limit, or the value is not one of its.
    """
    if claim not in LIMITS:
        raise BadClaimError("limits")
    if claim == "rps":
        if type(value) not in (int, float) or not isinstance(value, int | float):
            raise BadClaimError(claim)
        if not 0 < value <= 1_000_000:
            raise BadClaimError(claim)
        return value
    lowest = 0 if claim in {"max_priority", "max_children", "max_depth"} else 1
    highest = 3 if claim == "max_priority" else _LARGEST_LIMITS.get(claim, 2**31 - 1)
    if type(value) is not int or not lowest <= value <= highest:
        raise BadClaimError(claim)
    return value


def find_widening(parent: Confinement, child: Confinement) -> str | None:
    """Name the first member in which the child allows something that the parent does not; ``None`` if it is within."""
    checks = {
        "tenant": child.tenant_id == parent.tenant_id,
        "projects": _is_subset(child.projects, parent.projects),
        "job_types": _are_covered(child.job_types, parent.job_types),
        "deny_types": all(
            any(covers(mine, theirs) for mine in child.deny_types) for theirs in parent.deny_types
        ),
        "events": _are_covered(child.events, parent.events),
        "roles": child.roles <= parent.roles,
        "limits": _are_tighter(child.limits, parent.limits),
        "once": child.is_single_use or not parent.is_single_use,
        "epoch": _is_at_most(child.epoch, parent.epoch),
        "act": child.actors[len(child.actors) - len(parent.actors) :] == parent.actors,
    }
    return next((name for name, is_within in checks.items() if not is_within), None)


def _is_subset(mine: frozenset[str] | None, theirs: frozenset[str] | None) -> bool:
    return theirs is None or (mine is not None and mine <= theirs)


def _are_covered(mine: tuple[str, ...] | None, theirs: tuple[str, ...] | None) -> bool:
    """Whether each pattern lies within one of the parent's: stricter than need be, and easy to see through."""
    if theirs is None:
        return True
    return mine is not None and all(any(covers(wide, one) for wide in theirs) for one in mine)


def _are_tighter(mine: Limits | None, theirs: Limits | None) -> bool:
    if theirs is None:
        return True
    for field in LIMITS.values():
        cap = _value_of(theirs, field.name)
        if cap is None:
            continue
        own = None if mine is None else _value_of(mine, field.name)
        # 0 is the most urgent priority, so there a higher number is the tighter one
        if own is None or (own < cap if field.name == "max_priority" else own > cap):
            return False
    return True


def _is_at_most(mine: int | None, theirs: int | None) -> bool:
    return theirs is None or (mine is not None and mine <= theirs)


def _parse_limits(value: JsonValue) -> Limits:
    if not isinstance(value, dict) or not value:
        raise BadClaimError("limits")
    return make_limits({claim: check_limit(claim, given) for claim, given in value.items()})


def make_limits(values: dict[str, float | int]) -> Limits:
    """Make limits of checked values by the names they have in a token."""
    return Limits(**{LIMITS[claim].name: value for claim, value in values.items()})  # pyright: ignore[reportArgumentType]  # check_limit saw to the types


def _value_of(limits: Limits, name: str) -> float | int | None:
    value: float | int | None = getattr(limits, name)
    return value


def _parse_actors(value: JsonValue) -> tuple[str, ...]:
    """Read ``act`` as RFC 8693 nests it: the innermost acted first."""
    actors: list[str] = []
    while value is not None:
        if not isinstance(value, dict) or not {"sub"} <= value.keys() <= {"sub", "act"}:
            raise BadClaimError("act")
        subject = value["sub"]
        if not isinstance(subject, str) or not is_subject(subject) or len(actors) >= MOST_ACTORS:
            raise BadClaimError("act")
        actors.append(subject)
        if "act" in value and value["act"] is None:
            raise BadClaimError("act")
        value = value.get("act")
    if not actors:
        raise BadClaimError("act")
    return tuple(actors)


def is_subject(text: str) -> bool:
    """Whether a text can say who holds a token: printable, so that it can stand in SQL, logs and terminals."""
    return 1 <= len(text) <= 255 and text.isprintable()


def _nested(actors: Collection[str]) -> JsonObject:
    nested: JsonObject = {}
    for actor in reversed([*actors]):
        nested = {"sub": actor, "act": nested} if nested else {"sub": actor}
    return nested


def _list(
    value: JsonObject, name: str, most: int, is_good: Callable[[str], bool]
) -> tuple[str, ...] | None:
    if name not in value:
        return None
    found = value[name]
    if not isinstance(found, list) or not 1 <= len(found) <= most:
        raise BadClaimError(name)
    texts = [item for item in found if isinstance(item, str) and is_good(item)]
    if len(texts) != len(found):
        raise BadClaimError(name)
    return tuple(texts)


def _flag(value: JsonObject, name: str) -> bool:
    found = value.get(name, False)
    if not isinstance(found, bool):
        raise BadClaimError(name)
    return found


def _one_name(value: JsonValue, member: str) -> str:
    if not isinstance(value, str) or not is_name(value):
        raise BadClaimError(member)
    return value


def _is_count(value: JsonValue) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST
