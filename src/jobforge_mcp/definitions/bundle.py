"""Bundles: up to a hundred requests in one call, some of which wait for others of the same call.

Here the requests are put in an order in which each comes after what it depends on, and those that cannot be run are set
aside together with all that stand on them. The rest is one call of the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Literal, TypeAlias

from jobforge_mcp.errors import CallerError, ConflictError, InvalidInputError, LimitError
from jobforge_mcp.types import BundleItem, NewJob

MAX_REQUESTS = 100
"""Requests of one bundle."""

OnFailure: TypeAlias = Literal["cancel", "continue"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a request stands in its bundle."""

    id: str
    """By which others of the bundle name it."""
    depends_on: tuple[str, ...] = ()
    """Ids of those that must end first."""
    on_failure: OnFailure = "cancel"
    """What becomes of it when one of these does not succeed."""


@dataclass(frozen=True, slots=True)
class Arranged:
    """A bundle, ready for the database."""

    items: list[BundleItem] = field(default_factory=list[BundleItem])
    """In the order in which they are enqueued."""
    ids: list[str] = field(default_factory=list[str])
    """Of the items, in the same order."""
    refused: dict[str, CallerError] = field(default_factory=dict[str, CallerError])
    """What is not enqueued, and why."""


def arrange(places: Sequence[Place], prepared: Sequence[NewJob | CallerError]) -> Arranged:
    """Put the requests of a bundle in order.

    Raises:
        InvalidInputError: ``BUNDLE_INVALID``: an id is there twice or unknown, or requests depend on each other in a circle.
        LimitError: ``BUNDLE_TOO_LARGE``.
    """
    _check(places)
    arranged = Arranged()
    by_id = {place.id: (place, job) for place, job in zip(places, prepared, strict=True)}
    for name in _order(places):
        place, job = by_id[name]
        needed = [other for other in place.depends_on if other in arranged.refused]
        if isinstance(job, CallerError):
            arranged.refused[name] = job
        elif needed:
            arranged.refused[name] = ConflictError(
                f"the request {needed[0]!r}, which it depends on, was refused",
                code="DEPENDENCY_REFUSED",
            )
        else:
            needs = tuple(arranged.ids.index(other) for other in dict.fromkeys(place.depends_on))
            arranged.items.append(BundleItem(job, needs, place.on_failure))
            arranged.ids.append(name)
    return arranged


def _check(places: Sequence[Place]) -> None:
    if not places:
        raise InvalidInputError("the bundle is empty", code="BUNDLE_INVALID")
    if len(places) > MAX_REQUESTS:
        raise LimitError(
            f"the bundle has {len(places)} requests and the limit is {MAX_REQUESTS}",
            code="BUNDLE_TOO_LARGE",
            hint="split it where nothing depends on the other part",
        )
    ids = [place.id for place in places]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise InvalidInputError(
            f"two requests of the bundle have the id {twice[:100]!r}", code="BUNDLE_INVALID"
        )
    for place in places:
        unknown = [name for name in place.depends_on if name not in ids]
        if unknown:
            raise InvalidInputError(
                f"the request {place.id[:100]!r} depends on {unknown[0][:100]!r}, which is not in the bundle",
                code="BUNDLE_INVALID",
                hint="dependsOn names ids of requests of the same bundle",
            )


def _order(places: Sequence[Place]) -> list[str]:
    """Keep the order of the caller as far as dependencies allow it."""
    sorter = TopologicalSorter({place.id: place.depends_on for place in places})
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " → ".join(str(name)[:100] for name in error.args[1])
        raise InvalidInputError(
            f"requests of the bundle depend on each other in a circle: {circle}",
            code="BUNDLE_INVALID",
            hint="nothing of it was enqueued",
        ) from None
    rank = {place.id: number for number, place in enumerate(places)}
    ordered: list[str] = []
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=rank.__getitem__)
        ordered += ready
        sorter.done(*ready)
    return ordered
