"""Bundles as the client takes them: requests with ids, what each depends on, and what became of each."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from jobforge_mcp.client.options import DEFAULTS, Options
from jobforge_mcp.definitions.bundle import Arranged, OnFailure, Place, arrange
from jobforge_mcp.definitions.json_limits import check_key
from jobforge_mcp.errors import CallerError
from jobforge_mcp.types import Bundled, JobId, JsonValue, NewJob, RunStatus


@dataclass(frozen=True, slots=True)
class BundleRequest:
    """One job of a bundle."""

    id: str
    """By which others of the bundle name it."""
    name: str
    """Job to run."""
    input: JsonValue = None
    depends_on: tuple[str, ...] = ()
    """Ids of requests that must end before it starts."""
    on_failure: OnFailure = "cancel"
    """Whether it is canceled when one of these does not succeed, or runs all the same."""
    options: Options = DEFAULTS


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one request of a bundle."""

    id: str
    outcome: str
    """``created``, ``replayed``, ``conflict`` (its key was used with another input) or ``refused``."""
    run_id: JobId | None = None
    status: RunStatus | None = None
    error: CallerError | None = None
    """Why it was refused."""


async def arranged_of(
    requests: Sequence[BundleRequest],
    prepare: Callable[[str, JsonValue, Options], Awaitable[NewJob]],
    key: str | None,
) -> Arranged:
    """Check every request, and put them in the order in which they are enqueued."""
    if key is not None:
        check_key(key, "idempotency key")
    prepared = [await _prepared(request, prepare, key) for request in requests]
    places = [Place(r.id, tuple(r.depends_on), r.on_failure) for r in requests]
    return arrange(places, prepared)


def verdicts_of(
    requests: Sequence[BundleRequest], arranged: Arranged, found: Sequence[Bundled]
) -> list[Verdict]:
    """Say of each request what became of it."""
    verdicts = {
        name: Verdict(name, row.outcome.value, row.job_id, row.status)
        for name, row in zip(arranged.ids, found, strict=True)
    }
    verdicts |= {
        name: Verdict(name, "refused", error=error) for name, error in arranged.refused.items()
    }
    return [verdicts[request.id] for request in requests]


async def _prepared(
    request: BundleRequest,
    prepare: Callable[[str, JsonValue, Options], Awaitable[NewJob]],
    key: str | None,
) -> NewJob | CallerError:
    options = request.options
    if options.idempotency_key is None and key is not None:
        options = replace(options, idempotency_key=f"{key}/{request.id}")
    try:
        return await prepare(request.name, request.input, options)
    except CallerError as error:
        return error
