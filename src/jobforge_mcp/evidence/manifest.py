"""The manifest of an attempt: what it got, made, measured and decided, and what it ran with, as one JSON document.

Nothing is stored for it that follows from the run, so a plain success costs nothing until somebody asks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

from jobforge_mcp.router.jobs import Router
from jobforge_mcp.types import Artifact, Caller, JsonObject, JsonValue, ManifestFacts, Run

MANIFEST_VERSION = "1.0"

SHOWN = 20
"""Outputs and decisions of a manifest that is part of an answer; the resource has all of them."""

_PENDING = frozenset({"running", "queued", "waiting"})


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of one attempt, and what it made."""

    run: Run
    facts: ManifestFacts
    artifacts: Sequence[Artifact]

    def document(self, *, is_short: bool = False) -> JsonObject:
        """Return the manifest; a short one leaves out readings, and what is beyond the first of long lists."""
        run, facts = self.run, self.facts
        status = (
            "complete"
            if facts.outcome == "succeeded"
            else "pending"
            if facts.outcome in _PENDING
            else "failed"
        )
        said: dict[str, JsonValue] = {
            "manifestVersion": MANIFEST_VERSION,
            "runId": str(run.job_id),
            "jobName": run.job_type,
            "jobVersion": run.job_version,
            "projectId": run.project_id,
            "traceId": run.trace_id,
            "attempt": facts.attempt_no,
            "status": status,
            "outcome": facts.outcome,
            "startedAt": _iso(facts.started_at),
            "finishedAt": _iso(facts.finished_at),
            "input": {"sha256": facts.input_hash, "bytes": facts.input_bytes},
            "logs": {"ref": f"jobforge://runs/{run.job_id}/logs", "lines": facts.log_lines},
            "outputs": self._outputs(SHOWN if is_short else None),
            "metrics": self._metrics(),
            "environment": self._environment(),
            "toolVersions": facts.environment.get("tools"),
            **_own_words(facts.facts, is_short=is_short),
            "error": _error(facts),
        }
        return {name: value for name, value in said.items() if value is not None}

    def _outputs(self, most: int | None) -> list[JsonValue]:
        run, facts = self.run, self.facts
        outputs: list[JsonValue] = []
        if facts.result_hash is not None:
            outputs.append(
                {
                    "name": "result",
                    "type": "result",
                    "ref": f"jobforge://runs/{run.job_id}/result",
                    "size": facts.result_bytes,
                    "sha256": facts.result_hash,
                    "mimeType": "application/json",
                }
            )
        for made in self.artifacts:
            output: JsonObject = {
                "name": made.name,
                "type": "artifact",
                "ref": artifact_uri(run, made),
                "size": made.size,
                "sha256": made.sha256,
                "mimeType": made.mime_type,
            }
            outputs.append(output)
        return outputs[:most]

    def _metrics(self) -> JsonObject:
        facts = self.facts
        metrics: JsonObject = {}
        if facts.started_at is not None and facts.finished_at is not None:
            seconds = (facts.finished_at - facts.started_at).total_seconds()
            metrics["durationMs"] = round(seconds * 1_000)
        measured = facts.facts.get("metrics")
        return {**metrics, **measured} if isinstance(measured, dict) else metrics

    def _environment(self) -> JsonObject | None:
        if not self.facts.environment:
            return None
        known = {k: v for k, v in self.facts.environment.items() if k != "tools"}
        return {"sha256": self.facts.environment_hash, **known}


async def load_manifest(
    router: Router, caller: Caller, run: Run, *, attempt_no: int | None = None
) -> Manifest:
    """Read what is known of the newest attempt of a run, or of one that is named.

    Raises:
        NotFoundError: there is no such attempt.
    """
    facts = await router.evidence.get_manifest(caller, run.job_id, attempt_no=attempt_no)
    made = await router.evidence.list_artifacts(caller, run.job_id)
    return Manifest(run, facts, own_artifacts(made, facts))


def own_artifacts(made: Sequence[Artifact], facts: ManifestFacts) -> list[Artifact]:
    """Keep the artifacts of one attempt, without those that are ours."""
    return [one for one in made if one.epoch == facts.epoch and not one.name.startswith("$")]


def artifact_uri(run: Run, artifact: Artifact) -> str:
    """Return the address of an artifact: of this attempt, where the run may have made others after it."""
    uri = f"jobforge://runs/{run.job_id}/artifacts/{artifact.name}"
    return uri if artifact.attempt_no == run.attempt_no else f"{uri}?attempt={artifact.attempt_no}"


def _own_words(facts: JsonObject, *, is_short: bool) -> JsonObject:
    """Return what the attempt said of itself."""
    said: JsonObject = {}
    decisions, readings = facts.get("decisions"), facts.get("readings")
    if isinstance(decisions, list):
        said["decisions"] = decisions[:SHOWN] if is_short else decisions
        dropped = cast("int", facts.get("decisionsDropped", 0))
        if missing := dropped + (max(len(decisions) - SHOWN, 0) if is_short else 0):
            said["decisionsLeftOut"] = missing
    if isinstance(readings, list) and not is_short:
        said["seed"] = facts.get("seed")
        said["readings"] = readings
        if "readingsDropped" in facts:
            said["readingsLeftOut"] = facts["readingsDropped"]
    return said


def _error(facts: ManifestFacts) -> JsonObject | None:
    if facts.error is None:
        return None
    error = facts.error
    return {"code": error.code, "message": error.message, "retryable": error.retryable}


def _iso(time: datetime | None) -> str | None:
    if time is None:
        return None
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
