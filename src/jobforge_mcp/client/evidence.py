"""What runs left behind, for the Python client: manifest, report, artifacts, and results however long."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, cast

from anyio.from_thread import BlockingPortal

from jobforge_mcp.client.answers import RunRef, to_job_id
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.evidence.manifest import load_manifest
from jobforge_mcp.evidence.reading import Part, Range, read_artifact, read_result
from jobforge_mcp.evidence.references import reference_of
from jobforge_mcp.evidence.report import REPORT_BYTES, load_report
from jobforge_mcp.evidence.stores import ContentStore
from jobforge_mcp.policy.permissions import require_scope
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.server.next import next_step
from jobforge_mcp.types import Artifact, Caller, JsonObject, JsonValue, Run, RunStatus

WHOLE = Range()


class EvidenceVerbs:
    """The verbs about what runs left behind, of the asynchronous client."""

    caller: Caller
    registry: Registry
    _router: Router
    _open_store: Callable[[], ContentStore]

    async def manifest(self, run_id: RunRef, *, attempt: int | None = None) -> JsonObject:
        """Return the manifest of the newest attempt of a run, or of one that is named.

        Raises:
            NotFoundError: there is no such run, or no such attempt.
        """
        run = await self._evident(run_id)
        loaded = await load_manifest(self._router, self.caller, run, attempt_no=attempt)
        return loaded.document()

    async def report(self, run_id: RunRef, *, most_bytes: int = REPORT_BYTES) -> str:
        """Return the report of a run as Markdown: what it did, why it failed and what to do next."""
        run = await self._evident(run_id)
        bound = self.registry.by_name.get(run.job_type)
        is_held = run.status in {RunStatus.QUEUED, RunStatus.WAITING}
        causes = await self._router.explain_run(self.caller, run.job_id) if is_held else []
        return await load_report(
            self._router,
            self.caller,
            run,
            next=next_step(run, self.caller, cause=causes[0] if causes else None),
            effects=bound.effects.value if bound is not None else None,
            most_bytes=most_bytes,
        )

    async def artifacts(self, run_id: RunRef) -> Sequence[Artifact]:
        """Return what the attempts of a run left, oldest first, without the content."""
        run = await self._evident(run_id)
        made = await self._router.evidence.list_artifacts(self.caller, run.job_id)
        return [one for one in made if not one.name.startswith("$")]

    async def read_artifact(
        self, run_id: RunRef, name: str, *, attempt: int | None = None, range: Range = WHOLE
    ) -> Part:
        """Read an artifact, or a range of its bytes; ``next_offset`` of what comes back is where the next range begins.

        Raises:
            NotFoundError: ``ARTIFACT_NOT_FOUND``.
            InvalidInputError: ``RANGE_INVALID``, also when the whole is too much for one call.
            ConflictError: its content is not in the store of this client, or was changed.
        """
        run = await self._evident(run_id)
        _, part = await read_artifact(
            self._router,
            self._open_store(),
            self.caller,
            run.job_id,
            name,
            attempt_no=attempt,
            range=range,
        )
        return part

    async def read_result(self, run_id: RunRef, *, range: Range = WHOLE) -> Part:
        """Read the JSON text of a run's result, or a range of its bytes, wherever the whole of it lies.

        Raises:
            ConflictError: the run has no result.
        """
        run = await self._evident(run_id)
        text = run.result if run.result is not None else "null"
        return await read_result(
            self._router, self._open_store(), self.caller, run.job_id, text, range=range
        )

    async def whole_result(self, run: Run) -> JsonValue:
        """Return the result of a run that was read, from where it lies when it is too large for its row."""
        data, offset = b"", 0
        while True:
            part = await self.read_result(run.job_id, range=Range(offset, 4 * 1024 * 1024))
            data += part.data
            if part.next_offset is None:
                return cast("JsonValue", json.loads(data))
            offset = part.next_offset

    async def _evident(self, run_id: RunRef) -> Run:
        require_scope(self.caller, Scope.JOBS_READ)
        return await self._router.get_run(self.caller, to_job_id(run_id))


class BlockingEvidenceVerbs:
    """The same verbs, each of which blocks its thread."""

    _portal: BlockingPortal
    _client: Any

    def manifest(self, run_id: RunRef, *, attempt: int | None = None) -> JsonObject:
        """Return the manifest of a run; see `EvidenceVerbs.manifest`."""
        client: EvidenceVerbs = self._client
        return self._portal.call(functools.partial(client.manifest, run_id, attempt=attempt))

    def report(self, run_id: RunRef, *, most_bytes: int = REPORT_BYTES) -> str:
        """Return the report of a run; see `EvidenceVerbs.report`."""
        client: EvidenceVerbs = self._client
        return self._portal.call(functools.partial(client.report, run_id, most_bytes=most_bytes))

    def artifacts(self, run_id: RunRef) -> Sequence[Artifact]:
        """Return what the attempts of a run left, without the content."""
        client: EvidenceVerbs = self._client
        return self._portal.call(client.artifacts, run_id)

    def read_artifact(
        self, run_id: RunRef, name: str, *, attempt: int | None = None, range: Range = WHOLE
    ) -> Part:
        """Read an artifact, or a range of it; see `EvidenceVerbs.read_artifact`."""
        client: EvidenceVerbs = self._client
        read = functools.partial(client.read_artifact, run_id, name, attempt=attempt, range=range)
        return self._portal.call(read)

    def read_result(self, run_id: RunRef, *, range: Range = WHOLE) -> Part:
        """Read the JSON text of a run's result, or a range of it."""
        client: EvidenceVerbs = self._client
        return self._portal.call(functools.partial(client.read_result, run_id, range=range))


def is_elsewhere(run: Run) -> bool:
    """Whether a run's result lies in an artifact."""
    return reference_of(run.result) is not None
