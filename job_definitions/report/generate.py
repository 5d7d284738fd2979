"""``report.generate``: writes the runs of a tenant as Markdown, JSON or CSV, into its result and as an artifact."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from datetime import UTC, datetime
from typing import Literal, cast

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from jobforge_mcp import JobContext, Retry, job

Format = Literal["markdown", "json", "csv"]

_MEDIA_TYPES = {"markdown": "text/markdown", "json": "application/json", "csv": "text/csv"}
_ENDINGS = {"markdown": "md", "json": "json", "csv": "csv"}
_LARGEST_CONTENT = 512 * 1024


class _Model(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class ReportInput(_Model):
    """Which runs, and how they are written."""

    format: Format = Field(default="markdown", description="Form of the report.")
    status: (
        Literal["queued", "running", "waiting", "succeeded", "failed", "dead", "canceled"] | None
    ) = Field(default=None, description="Only runs of this status.")
    job_name: str | None = Field(default=None, max_length=100, description="Only runs of this job.")
    since: AwareDatetime | None = Field(default=None, description="Only runs created since then.")
    limit: int = Field(default=100, ge=1, le=500, description="Most runs, newest first.")


class ReportOutput(_Model):
    """The report."""

    format: Format
    media_type: str
    generated_at: datetime
    rows: int
    truncated: bool = Field(description="Whether more runs fit the filter than are listed.")
    counts: dict[str, int] = Field(description="Listed runs by status.")
    content: str
    artifact: str = Field(description="Address of the same report as an artifact of this run.")


class RunRow(_Model):
    """One line of the report."""

    run_id: str
    job_name: str
    status: str
    attempt: int
    max_attempts: int
    project_id: str | None
    trace_id: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    duration_ms: int | None
    error_code: str | None


@job(
    name="report.generate",
    title="Report of runs",
    description="Writes this tenant's runs, newest first, as Markdown, JSON or CSV, filtered by status, job and time. "
    "Returns the report as text with counts by status, and leaves it as an artifact.",
    timeout="2m",
    retry=Retry(max_attempts=3),
    tags=["report"],
    effects="none",
    idempotent=True,
)
async def generate(input: ReportInput, job: JobContext) -> ReportOutput:
    """Read the rows in one short transaction, then write them out."""
    async with job.transaction(read_only=True) as tx:
        found = await tx.fetch(
            "select * from jobforge.read_runs(%s, %s, %s, %s, %s, %s, %s)",
            (
                job.tenant_id,
                job.run_id,
                job.epoch,
                input.job_name,
                input.status,
                input.since,
                input.limit + 1,
            ),
        )
    rows = [_row(row) for row in found[: input.limit]]
    job.progress(1, 2, f"{len(rows)} runs")
    content, listed = write(rows, input.format)
    made = await job.artifact(
        f"report.{_ENDINGS[input.format]}", content.encode(), _MEDIA_TYPES[input.format]
    )
    job.progress(2, 2)
    return ReportOutput(
        format=input.format,
        media_type=_MEDIA_TYPES[input.format],
        generated_at=job.now(),
        rows=listed,
        truncated=listed < len(found),
        counts=dict(Counter(row.status for row in rows[:listed])),
        content=content,
        artifact=made.uri,
    )


def write(rows: list[RunRow], form: Format) -> tuple[str, int]:
    """Return the text and how many rows are in it: fewer than given where all would be too large for a result."""
    listed = rows
    while True:
        content = _WRITERS[form](listed)
        if len(content.encode()) <= _LARGEST_CONTENT or not listed:
            return content, len(listed)
        listed = listed[: len(listed) // 2]


def _markdown(rows: list[RunRow]) -> str:
    counts = Counter(row.status for row in rows)
    lines = [
        "# Runs",
        "",
        *(f"- {status}: {count}" for status, count in sorted(counts.items())),
        "",
    ]
    lines += [
        "| Run | Job | Status | Attempt | Created | Duration | Error |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = (
            row.run_id, row.job_name, row.status, f"{row.attempt}/{row.max_attempts}", _stamp(row.created_at),
            "" if row.duration_ms is None else f"{row.duration_ms / 1_000:.1f} s", row.error_code or "",
        )  # fmt: skip
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _json(rows: list[RunRow]) -> str:
    documents = [row.model_dump(mode="json", by_alias=True, exclude_none=True) for row in rows]
    return json.dumps(documents, ensure_ascii=False, indent=1) + "\n"


def _csv(rows: list[RunRow]) -> str:
    target = io.StringIO()
    names = [to_camel(name) for name in RunRow.model_fields]
    writer = csv.DictWriter(target, names, lineterminator="\r\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {
                name: _harmless(value)
                for name, value in row.model_dump(mode="json", by_alias=True).items()
            }
        )
    return target.getvalue()


_WRITERS = {"markdown": _markdown, "json": _json, "csv": _csv}


def _row(row: dict[str, object]) -> RunRow:
    started, finished = (
        cast("datetime | None", row["started_at"]),
        cast("datetime | None", row["finished_at"]),
    )
    error = cast("dict[str, object] | None", row["error"])
    return RunRow(
        run_id=str(row["job_id"]),
        job_name=str(row["job_type"]),
        status=str(row["status"]),
        attempt=cast("int", row["attempt_no"]),
        max_attempts=cast("int", row["max_attempts"]),
        project_id=cast("str | None", row["project_id"]),
        trace_id=cast("str | None", row["trace_id"]),
        created_at=cast("datetime", row["created_at"]),
        started_at=started,
        finished_at=finished,
        duration_ms=round((finished - started).total_seconds() * 1_000)
        if started and finished
        else None,
        error_code=str(error["code"]) if error and error.get("code") else None,
    )


def _stamp(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def _cell(text: str) -> str:
    """Keep a value inside its cell."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _harmless(value: object) -> object:
    """Stop a spreadsheet from reading a caller's text as a formula."""
    return (
        f"'{value}"
        if isinstance(value, str) and value[:1] in {"=", "+", "-", "@", "\t", "\r"}
        else value
    )
