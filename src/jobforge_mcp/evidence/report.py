"""The report of a run: what ran, with what, what it did, why it failed and what to do next, as Markdown within a budget.

It is made of facts, in one order, without the time of its making: the same run gives the same report. Words that are not
ours (inputs, messages, names that handlers chose) stand in code spans on one line, without characters that cannot be
seen: they can forge neither a heading nor a link, and nobody takes them for ours. Secrets and what looks like one are
struck out.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

from jobforge_mcp.evidence.manifest import artifact_uri, own_artifacts
from jobforge_mcp.evidence.references import reference_of
from jobforge_mcp.redaction import redact_text
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.types import (
    Artifact,
    Attempt,
    Caller,
    ChildRun,
    JsonValue,
    LogLine,
    ManifestFacts,
    Run,
    RunError,
    RunStatus,
)

REPORT_BYTES = 8_000
"""About 2,000 tokens: what a model can read besides everything else."""

_SCALES = (1.0, 0.5, 0.25, 0.1, 0.03)
_LOG_LINES = 200

_SECRET_NAME = re.compile(
    r"pass(word|wd|phrase)|secret|token|authorization|api[-_]?key|private[-_]?key|credential|cookie|session[-_]?id",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class ReportFacts:
    """What a report is made of."""

    run: Run
    payload: str | None
    """The input as JSON text; ``None`` for whoever may not see it."""
    attempts: Sequence[Attempt]
    """Those that did not succeed, oldest first."""
    facts: ManifestFacts
    artifacts: Sequence[Artifact]
    children: Sequence[ChildRun]
    warnings: Sequence[LogLine]
    """Log lines of level warning and error, oldest first."""
    effects: str | None
    """What the definition says of its effects."""
    next: str
    """What to do now, in one sentence of ours."""


async def load_report(
    router: Router,
    caller: Caller,
    run: Run,
    *,
    next: str,
    effects: str | None = None,
    most_bytes: int = REPORT_BYTES,
) -> str:
    """Read what there is to tell of a run, and write its report."""
    evidence = router.evidence
    facts = ReportFacts(
        run=run,
        payload=await router.get_payload(caller, run.job_id),
        attempts=await router.list_attempts(caller, run.job_id),
        facts=await evidence.get_manifest(caller, run.job_id),
        artifacts=await evidence.list_artifacts(caller, run.job_id),
        children=await evidence.list_child_runs(caller, run.job_id, limit=50),
        warnings=[
            line
            for line in await router.list_logs(caller, run.job_id, limit=_LOG_LINES)
            if line.level in {"warning", "error"}
        ],
        effects=effects,
        next=next,
    )
    return write_report(facts, most_bytes=most_bytes)


def write_report(facts: ReportFacts, *, most_bytes: int = REPORT_BYTES) -> str:
    """Write the report, with less of everything that is long until it fits."""
    text = ""
    for scale in _SCALES:
        text = _Writer(facts, scale).write()
        if len(text.encode()) <= most_bytes:
            return text
    data = text.encode()[: max(most_bytes - 4, 0)].decode(errors="ignore")
    # A cut inside a code span would let the rest of a line out of it: cut at a whole line.
    return f"{data.rpartition(chr(10))[0]}\n…\n"


def quoted(text: str, most: int) -> str:
    """Return words that are not ours as a code span: one line, nothing hidden, nothing that ends the span."""
    plain = _visible(redact_text(text)).strip()
    if len(plain) > most:
        plain = plain[: max(most - 1, 1)].rstrip() + "…"
    if not plain:
        return "(empty)"
    longest = max((len(run) for run in re.findall(r"`+", plain)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if plain[0] == "`" or plain[-1] == "`" else ""
    return f"{fence}{pad}{plain}{pad}{fence}"


def _visible(text: str) -> str:
    """Replace what moves the cursor, ends a line, or cannot be seen."""
    return " ".join("".join(_seen(char) for char in text).split())


def _seen(char: str) -> str:
    if char in "\t\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029":
        return " "
    return "\ufffd" if unicodedata.category(char).startswith("C") else char


@dataclass(frozen=True, slots=True)
class _Writer:
    """One try to write a report: ``scale`` says how much of what is long."""

    facts: ReportFacts
    scale: float

    def write(self) -> str:
        run = self.facts.run
        parts = [
            f"# Run of {quoted(run.job_type, 100)}: {run.status.value}",
            self._part("What ran", self._what_ran()),
            self._part("Input", self._input()),
            self._part("Attempts", self._attempts()),
            self._part("What it changed", self._changes()),
            self._part("Artifacts", self._artifacts()),
            self._part("What failed and why", self._failure()),
            self._part("What to do next", [_visible(self.facts.next)]),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"

    def _part(self, title: str, lines: Sequence[str]) -> str:
        return f"## {title}\n\n" + "\n".join(lines) if lines else ""

    def _most(self, number: int, least: int = 1) -> int:
        return max(int(number * self.scale), least)

    def _what_ran(self) -> list[str]:
        run, facts = self.facts.run, self.facts.facts
        lines = [
            f"- run: {quoted(str(run.job_id), 40)}, version {run.version}",
            f"- job: {quoted(run.job_type, 100)}, version {quoted(run.job_version, 60)}",
            f"- attempt: {run.attempt_no} of {run.max_attempts}",
            f"- created: {_stamp(run.created_at)}",
        ]
        if run.started_at is not None:
            lines.append(f"- started: {_stamp(run.started_at)}")
        if run.finished_at is not None:
            lines.append(f"- finished: {_stamp(run.finished_at)}{_took(run)}")
        if run.created_by is not None:
            lines.append(f"- asked for by: {quoted(run.created_by, 100)}")
        if run.project_id is not None:
            lines.append(f"- project: {quoted(run.project_id, 63)}")
        if run.trace_id is not None:
            lines.append(f"- trace: {quoted(run.trace_id, 64)}")
        if run.parent_id is not None:
            lines.append(f"- enqueued by run: {quoted(str(run.parent_id), 40)}")
        runtime = facts.environment.get("runtime")
        if isinstance(runtime, str):
            where = ", ".join(
                str(facts.environment[name]) for name in ("os", "arch") if name in facts.environment
            )
            lines.append(f"- with: {quoted(f'{runtime}, {where}', 120)}")
        return lines

    def _input(self) -> list[str]:
        payload = self.facts.payload
        if payload is None:
            return []
        try:
            shown = json.dumps(
                _without_secrets(json.loads(payload)), ensure_ascii=False, separators=(", ", ": ")
            )
        except (ValueError, RecursionError):
            shown = "(not readable)"
        digest = self.facts.facts.input_hash[:12]
        return [
            quoted(shown, self._most(1_500, 60)),
            "",
            f"{self.facts.facts.input_bytes} bytes, SHA-256 {digest}…",
        ]

    def _attempts(self) -> list[str]:
        attempts, most = self.facts.attempts, self._most(10)
        # The last ones say most; how many there were before them is said as well.
        shown = attempts[-most:]
        lines = (
            [f"- {len(attempts) - len(shown)} earlier ones"] if len(shown) < len(attempts) else []
        )
        lines += [
            f"- attempt {attempt.attempt_no}: {attempt.outcome}, {_stamp(attempt.finished_at)}"
            + (f": {self._error(attempt.error, 200)}" if attempt.error is not None else "")
            for attempt in shown
        ]
        run = self.facts.run
        if run.status is RunStatus.SUCCEEDED:
            lines.append(f"- attempt {run.attempt_no}: succeeded")
        elif not run.status.is_final and run.status is RunStatus.RUNNING:
            lines.append(f"- attempt {run.attempt_no}: running")
        return lines or ["None yet."]

    def _changes(self) -> list[str]:
        facts = self.facts
        lines: list[str] = []
        if facts.run.is_dry_run:
            lines.append("- It was a rehearsal: its handler was told to leave out its effects.")
        elif facts.effects == "external":
            lines.append("- Its job acts outside this installation.")
        elif facts.effects == "none":
            lines.append("- Its job changes nothing outside its run.")
        lines += self._result()
        most = self._most(20)
        lines += [
            f"- enqueued run {quoted(str(child.job_id), 40)} of {quoted(child.job_type, 100)}: {child.status.value}"
            for child in facts.children[:most]
        ]
        if len(facts.children) > most:
            lines.append(f"- and {len(facts.children) - most} runs more")
        lines += self._decisions()
        return lines or ["Nothing is known."]

    def _result(self) -> list[str]:
        run = self.facts.run
        if run.result is None:
            return []
        reference = reference_of(run.result)
        text = run.result if reference is None else reference.preview
        size = len(run.result.encode()) if reference is None else reference.size
        uri = f"jobforge://runs/{run.job_id}/result"
        shown = quoted(text, self._most(800, 40))
        return [f"- result, {size} bytes, all of it at {quoted(uri, 80)}: {shown}"]

    def _decisions(self) -> list[str]:
        decisions = self.facts.facts.facts.get("decisions")
        if not isinstance(decisions, list):
            return []
        most = self._most(10)
        lines: list[str] = []
        for made in decisions[:most]:
            if isinstance(made, dict):
                choice = json.dumps(made.get("choice"), ensure_ascii=False)
                reason = made.get("reason")
                because = (
                    f", because {quoted(reason, self._most(200, 20))}"
                    if isinstance(reason, str)
                    else ""
                )
                name = quoted(str(made.get("name")), 100)
                lines.append(f"- decided {name}: {quoted(choice, self._most(200, 20))}{because}")
        if len(decisions) > most:
            lines.append(f"- and {len(decisions) - most} decisions more, in the manifest")
        return lines

    def _artifacts(self) -> list[str]:
        made = own_artifacts(self.facts.artifacts, self.facts.facts)
        most = self._most(20)
        lines = [
            f"- {quoted(one.name, 100)}, {one.mime_type}, {one.size} bytes, SHA-256 {one.sha256[:12]}…, "
            f"at {quoted(artifact_uri(self.facts.run, one), 220)}"
            for one in made[:most]
        ]
        if len(made) > most:
            lines.append(f"- and {len(made) - most} more, in the manifest")
        return lines

    def _failure(self) -> list[str]:
        run = self.facts.run
        lines: list[str] = []
        if run.error is not None:
            lines.append(f"- {self._error(run.error, 1_200)}")
            if run.error.hint:
                lines.append(f"- hint: {quoted(run.error.hint, self._most(400, 40))}")
            lines.append(
                "- Trying again may help."
                if run.error.retryable
                else "- Trying again as it is will not help."
            )
        if run.cancel_requested_at is not None:
            why = f": {quoted(run.cancel_reason, self._most(300, 30))}" if run.cancel_reason else ""
            lines.append(f"- cancellation was asked for at {_stamp(run.cancel_requested_at)}{why}")
        most = self._most(10)
        lines += [
            f"- {line.level}, attempt {line.attempt_no}: {quoted(line.message, self._most(200, 30))}"
            for line in self.facts.warnings[-most:]
        ]
        return lines

    def _error(self, error: RunError, most: int) -> str:
        kind = f" ({quoted(error.type, 80)})" if error.type else ""
        return f"{quoted(error.code, 80)}{kind}: {quoted(error.message, self._most(most, 40))}"


def _without_secrets(value: JsonValue) -> JsonValue:
    """Hide what is called a secret, whatever it looks like."""
    match value:
        case dict():
            return {
                name: "[hidden]"
                if _SECRET_NAME.search(name) and isinstance(member, str | int | float | list)
                else _without_secrets(member)
                for name, member in value.items()
            }
        case list():
            return [_without_secrets(member) for member in cast("list[JsonValue]", value)]
        case _:
            return value


def _took(run: Run) -> str:
    if run.started_at is None or run.finished_at is None:
        return ""
    return f", after {(run.finished_at - run.started_at).total_seconds():.1f} s"


def _stamp(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
