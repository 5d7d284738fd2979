"""``ops.database.scan``: looks over the Postgres that jobforge runs on, and says what to do about what it finds.

The facts come from the ``jobforge.scan_*`` functions, in one read-only transaction; what is healthy is judged by the rules
in ``_rules.py``. No finding repeats an input, a result or a query.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import LiteralString

from pydantic import Field

from jobforge_mcp import JobContext, Retry, job

from ._rules import (  # noqa: TID252 - a file of job definitions has no other name for its neighbours
    RULES,
    Area,
    CamelModel,
    Facts,
    Finding,
    Severity,
    ended_runs,
    number,
    settings_of,
)


class ScanInput(CamelModel):
    """What to look at."""

    areas: list[Area] = Field(
        default=["health", "security", "cost"],
        min_length=1,
        max_length=3,
        description="Areas to scan.",
    )
    min_severity: Severity = Field(default=Severity.INFO, description="Leave out lesser findings.")


class TableSize(CamelModel):
    """What one table costs."""

    table: str
    total_bytes: int
    index_bytes: int
    live_rows: int
    dead_rows: int


class Cost(CamelModel):
    """What is stored."""

    database_bytes: int
    tables_bytes: int
    indexes_bytes: int
    unused_index_bytes: int
    biggest_tables: list[TableSize]


class Work(CamelModel):
    """What is under way, over all tenants."""

    due: int
    scheduled: int
    waiting: int
    running: int
    workers: int
    ended_last_day: dict[str, int]


class ScanOutput(CamelModel):
    """Findings, the gravest first, and the figures behind them."""

    scanned_at: datetime
    server_version: str
    summary: str
    counts: dict[str, int]
    findings: list[Finding]
    cost: Cost
    work: Work


@job(
    name="ops.database.scan",
    title="Database scan",
    description="Scans the Postgres that jobforge runs on for health, security and cost: settings, dead rows and bloat, "
    "indexes, row level security, rights, stuck runs, backlog. Returns findings with severity and advice.",
    timeout="2m",
    retry=Retry(max_attempts=2),
    tags=["ops", "database"],
    scopes=["ops:read"],
    effects="none",
    idempotent=True,
)
async def scan(input: ScanInput, job: JobContext) -> ScanOutput:
    """Read all facts in one transaction, then judge them without holding it."""
    facts: Facts = {}
    async with job.transaction(read_only=True) as tx:
        for done, (name, query) in enumerate(_QUERIES.items()):
            job.progress(done, len(_QUERIES), f"reading {name}")
            facts[name] = await tx.fetch(query)
    job.progress(len(_QUERIES), len(_QUERIES), "judging")
    now = job.now()
    return judge(facts, now, areas=input.areas, min_severity=input.min_severity)


_QUERIES: dict[str, LiteralString] = {
    "settings": "select * from jobforge.scan_settings()",
    "database": "select * from jobforge.scan_database()",
    "tables": "select * from jobforge.scan_tables()",
    "indexes": "select * from jobforge.scan_indexes()",
    "foreign_keys": "select * from jobforge.scan_foreign_keys()",
    "sessions": "select * from jobforge.scan_sessions()",
    "rights": "select * from jobforge.scan_rights()",
    "work": "select * from jobforge.scan_work()",
}


def judge(
    facts: Facts, now: datetime, *, areas: list[Area], min_severity: Severity = Severity.INFO
) -> ScanOutput:
    """Apply every rule to the facts."""
    order = list(Severity)
    found = [
        finding
        for rule in RULES
        for finding in rule(facts, now)
        if finding.area in areas and order.index(finding.severity) <= order.index(min_severity)
    ]
    found.sort(key=lambda finding: (order.index(finding.severity), finding.id))
    counts = {str(severity): sum(f.severity is severity for f in found) for severity in Severity}
    return ScanOutput(
        scanned_at=now.astimezone(UTC),
        server_version=_version(facts),
        summary=_summary(counts),
        counts=counts,
        findings=found[:200],
        cost=_cost(facts),
        work=_work(facts),
    )


def _cost(facts: Facts) -> Cost:
    tables = facts["tables"]
    unused = [
        row
        for row in facts["indexes"]
        if number(row, "scans") == 0 and not row["is_needed"] and not row["is_ours"]
    ]
    return Cost(
        database_bytes=sum(number(row, "bytes") for row in facts["database"]),
        tables_bytes=sum(number(row, "table_bytes") for row in tables),
        indexes_bytes=sum(number(row, "index_bytes") for row in tables),
        unused_index_bytes=sum(number(row, "bytes") for row in unused),
        biggest_tables=[
            TableSize(
                table=str(row["table_name"]),
                total_bytes=number(row, "total_bytes"),
                index_bytes=number(row, "index_bytes"),
                live_rows=number(row, "live_rows"),
                dead_rows=number(row, "dead_rows"),
            )
            for row in tables[:10]
        ],
    )


def _work(facts: Facts) -> Work:
    def total(kind: str) -> int:
        return sum(number(row, "quantity") for row in facts["work"] if row["kind"] == kind)

    alive = sum(row["kind"] == "worker" and row["detail"] == "alive" for row in facts["work"])
    return Work(
        due=total("due"), scheduled=total("scheduled"), waiting=total("waiting"), running=total("running"),
        workers=alive, ended_last_day=ended_runs(facts),
    )  # fmt: skip


def _version(facts: Facts) -> str:
    number = int(settings_of(facts).get("server_version_num", "0"))
    return f"{number // 10_000}.{number % 10_000}"


def _summary(counts: dict[str, int]) -> str:
    named = [f"{count} {severity}" for severity, count in counts.items() if count]
    return f"Findings: {', '.join(named)}." if named else "Nothing found."
