"""The rules of ``ops.database.scan``: each looks at the facts and yields what deserves attention, with what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Literal, TypeAlias, cast

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

Row: TypeAlias = dict[str, object]
Facts: TypeAlias = dict[str, list[Row]]
"""Rows of the ``jobforge.scan_*`` functions, by the rest of their names."""

_MIB = 1024 * 1024
_MINUTE_MS = 60_000
_FEW_ROWS = 10_000
_MANY_DEAD_ROWS = 10_000


class Severity(StrEnum):
    """How soon somebody should act."""

    CRITICAL = "critical"
    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    INFO = "info"


Area: TypeAlias = Literal["health", "security", "cost"]


class CamelModel(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Finding(CamelModel):
    """One thing that deserves attention."""

    id: str
    area: Area
    severity: Severity
    title: str
    detail: str
    advice: str


def _durability(facts: Facts, _: datetime) -> Iterator[Finding]:
    settings = settings_of(facts)
    for name, severity, why in (
        ("fsync", Severity.CRITICAL, "a crash of the machine can destroy the whole database"),
        ("full_page_writes", Severity.HIGH, "a crash in the middle of a write can corrupt pages"),
        (
            "synchronous_commit",
            Severity.HIGH,
            "a crash can lose jobs that callers were told are committed",
        ),
    ):
        if settings.get(name) == "off":
            yield Finding(
                id=f"settings.{name}", area="health", severity=severity, title=f"{name} is off",
                detail=f"With {name} = off, {why}.",
                advice=f"alter system set {name} = on; then select pg_reload_conf();",
            )  # fmt: skip
    if settings.get("data_checksums") == "off":
        yield Finding(
            id="settings.data_checksums", area="health", severity=Severity.LOW, title="Data checksums are off",
            detail="Damage by disks is noticed late, or never.",
            advice="Stop the server and run pg_checksums --enable, or initialise the next cluster with them.",
        )  # fmt: skip


def _upkeep(facts: Facts, _: datetime) -> Iterator[Finding]:
    settings = settings_of(facts)
    for name in ("autovacuum", "track_counts"):
        if settings.get(name) == "off":
            yield Finding(
                id=f"settings.{name}", area="health", severity=Severity.HIGH, title=f"{name} is off",
                detail="Dead rows are never removed, and claims grow slower until transaction ids run out.",
                advice=f"alter system set {name} = on; then select pg_reload_conf();",
            )  # fmt: skip
    freeze = int(settings.get("autovacuum_freeze_max_age", "200000000"))
    for row in facts["database"]:
        age = number(row, "xid_age")
        if age > freeze * 3 // 2:
            severity = Severity.CRITICAL if age > 1_500_000_000 else Severity.HIGH
            yield Finding(
                id="database.wraparound", area="health", severity=severity, title="Freezing is far behind",
                detail=f"The oldest unfrozen transaction is {age:,} ago; autovacuum should act at {freeze:,}.",
                advice="End what holds the horizon back (see sessions.*), then run vacuum (freeze) on this database.",
            )  # fmt: skip
    for row in facts["settings"]:
        if row["is_restart_pending"]:
            yield Finding(
                id=f"settings.{row['name']}.pending", area="health", severity=Severity.LOW,
                title=f"{row['name']} waits for a restart",
                detail="The file was changed; the running server still uses the old value.",
                advice="Restart Postgres at a quiet moment.",
            )  # fmt: skip


def _dead_rows(facts: Facts, _: datetime) -> Iterator[Finding]:
    for row in facts["tables"]:
        dead, live, size = (
            number(row, "dead_rows"),
            number(row, "live_rows"),
            number(row, "table_bytes"),
        )
        if dead >= _MANY_DEAD_ROWS and dead > live:
            severity = Severity.HIGH if dead > 10 * max(live, _FEW_ROWS) else Severity.MEDIUM
            yield Finding(
                id=f"table.{row['table_name']}.dead", area="health", severity=severity,
                title=f"{row['table_name']} holds more dead rows than living ones",
                detail=f"{dead:,} dead, {live:,} living; last vacuumed {_time(row['last_vacuum_at'])}.",
                advice=f"See whether a long transaction holds them (sessions.*), then vacuum {row['table_name']};",
            )  # fmt: skip
        # An estimate: what a row of ordinary width would need, doubled for the room that updates leave.
        elif size > 64 * _MIB and size > 4_000 * max(live + dead, 1):
            yield Finding(
                id=f"table.{row['table_name']}.bloat", area="cost", severity=Severity.LOW,
                title=f"{row['table_name']} is probably bloated",
                detail=f"{_mib(size)} for about {live:,} rows. An estimate: wide rows look the same.",
                advice=f"If rows are small, vacuum full {row['table_name']}; in a maintenance window (it locks the table).",
            )  # fmt: skip


def _indexes(facts: Facts, _: datetime) -> Iterator[Finding]:
    for row in facts["indexes"]:
        if not row["is_valid"]:
            yield Finding(
                id=f"index.{row['index_name']}.invalid", area="health", severity=Severity.HIGH,
                title=f"Index {row['index_name']} is invalid",
                detail="A build or rebuild of it failed: it is maintained by every write and used by no query.",
                advice=f"reindex index concurrently {row['index_name']};",
            )  # fmt: skip
        elif (
            not row["is_needed"]
            and not row["is_ours"]
            and number(row, "scans") == 0
            and number(row, "bytes") > 8 * _MIB
        ):
            yield Finding(
                id=f"index.{row['index_name']}.unused", area="cost", severity=Severity.LOW,
                title=f"Index {row['index_name']} was never used",
                detail=f"{_mib(number(row, 'bytes'))}, and every write to {row['table_name']} maintains it.",
                advice=f"If statistics are old enough to tell: drop index concurrently {row['index_name']};",
            )  # fmt: skip
    for row in facts["tables"]:
        scans, live = number(row, "seq_scans"), number(row, "live_rows")
        per_scan = number(row, "seq_rows") // max(scans, 1)
        if (
            live > _FEW_ROWS
            and scans > 1_000
            and per_scan > _FEW_ROWS
            and scans > number(row, "index_scans")
        ):
            yield Finding(
                id=f"table.{row['table_name']}.scanned", area="health", severity=Severity.MEDIUM,
                title=f"{row['table_name']} is mostly read from end to end",
                detail=f"{scans:,} sequential scans of about {per_scan:,} rows; an index is probably missing.",
                advice="Find the query with pg_stat_statements and index its conditions; analyze the table first.",
            )  # fmt: skip
    for row in facts["foreign_keys"]:
        if not row["is_indexed"]:
            yield Finding(
                id=f"constraint.{row['table_name']}.{row['constraint_name']}", area="health", severity=Severity.LOW,
                title=f"Foreign key {row['constraint_name']} has no index",
                detail=f"Each delete of a referenced row reads all of {row['table_name']}.",
                advice="Create an index that leads with the columns of the foreign key.",
            )  # fmt: skip


def _sessions(facts: Facts, _: datetime) -> Iterator[Finding]:
    for row in facts["sessions"]:
        kind, subject = str(row["kind"]), str(row["subject"])
        age = number(row, "age_ms")
        if kind == "transaction" and age > 5 * _MINUTE_MS:
            state = "idle" if row["is_idle"] else "open"
            yield Finding(
                id=f"sessions.{subject.replace(' ', '.')}", area="health",
                severity=Severity.HIGH if age > 60 * _MINUTE_MS else Severity.MEDIUM,
                title=f"A transaction of {row['role_name']} has been {state} for {age // _MINUTE_MS} minutes",
                detail=f"{subject}: no dead row younger than it can be removed anywhere in the database.",
                advice="End it with pg_terminate_backend, and set idle_in_transaction_session_timeout.",
            )  # fmt: skip
        elif kind == "prepared":
            yield Finding(
                id="sessions.prepared", area="health", severity=Severity.HIGH,
                title=f"A prepared transaction of {row['role_name']} is {age // _MINUTE_MS} minutes old",
                detail="It holds its locks and the horizon, even over a restart.",
                advice="commit prepared or rollback prepared it (pg_prepared_xacts has its name).",
            )  # fmt: skip
        elif kind == "slot" and row["is_idle"]:
            yield Finding(
                id=f"sessions.slot.{subject}", area="health", severity=Severity.HIGH,
                title=f"Replication slot {subject} is not connected",
                detail="WAL piles up until the disk is full.",
                advice="Reconnect its consumer, or pg_drop_replication_slot it.",
            )  # fmt: skip
    for row in facts["database"]:
        used, most = number(row, "sessions"), max(number(row, "max_sessions"), 1)
        if used * 10 > most * 8:
            yield Finding(
                id="database.connections", area="health", severity=Severity.MEDIUM,
                title=f"{used} of {most} connections are in use",
                detail="New workers and servers will be refused soon.",
                advice="Lower JOBFORGE_DATABASE_POOL_SIZE, raise max_connections, or add a pooler.",
            )  # fmt: skip
        if not row["sees_all_sessions"]:
            yield Finding(
                id="sessions.hidden", area="health", severity=Severity.INFO,
                title="Transactions of other roles cannot be seen",
                detail="Their age is hidden from the role that scans; long ones are not reported.",
                advice="As a superuser: grant pg_read_all_stats to jobforge_sys;",
            )  # fmt: skip


def _row_security(facts: Facts, _: datetime) -> Iterator[Finding]:
    for row in facts["tables"]:
        # the migrator's own record has no tenant
        if not row["is_ours"] or row["table_name"] == "jobforge.schema_migrations":
            continue
        missing = [
            word
            for word, is_there in (
                ("enabled", row["is_rls_enabled"]),
                ("forced", row["is_rls_forced"]),
            )
            if not is_there
        ]
        if missing:
            yield Finding(
                id=f"rls.{row['table_name']}", area="security", severity=Severity.CRITICAL,
                title=f"Row level security of {row['table_name']} is not {' and not '.join(missing)}",
                detail="Tenants are no longer kept apart on this table.",
                advice="Run jobforge migrate: it applies sql/policies/rls.sql again. Then find out who changed it.",
            )  # fmt: skip


_RIGHTS: dict[str, tuple[Severity, str, str, str]] = {
    "role_bypasses_rls": (
        Severity.HIGH, "Role {0} passes row level security ({1})",
        "Nothing that connects as it is confined to a tenant.",
        "alter role {0} nosuperuser nobypassrls; or connect as jobforge_api and jobforge_worker.",
    ),
    "public_can_execute": (
        Severity.HIGH, "Everybody may execute {0}", "Any login of the cluster can call it.",
        "revoke execute on function {0} from public;",
    ),
    "login_has_table_rights": (
        Severity.HIGH, "A login has rights on table {0}: {1}",
        "Logins are meant to call functions only; direct access passes their checks and the audit.",
        "Revoke it, or run jobforge migrate.",
    ),
    "unsafe_search_path": (
        Severity.HIGH, "Function {0} runs as its owner without a fixed search_path",
        "Whoever can create objects can make it call theirs.",
        "Run jobforge migrate; a function of your own needs: set search_path = jobforge, pg_temp.",
    ),
    "definer_bypasses_rls": (
        Severity.CRITICAL, "Function {0} runs as {1}, which passes row level security",
        "It sees every tenant's rows.", "alter function {0} owner to jobforge_rpc;",
    ),
    "public_can_create": (
        Severity.MEDIUM, "Everybody may create objects in schema {0}",
        "Objects there can be made to stand in for others.", "revoke create on schema {0} from public;",
    ),
}  # fmt: skip


def _rights(facts: Facts, _: datetime) -> Iterator[Finding]:
    for row in facts["rights"]:
        severity, title, detail, advice = _RIGHTS[str(row["kind"])]
        subject, more = str(row["subject"]), str(row["detail"] or "")
        yield Finding(
            id=f"rights.{row['kind']}.{subject}"[:200], area="security", severity=severity,
            title=title.format(subject, more), detail=detail, advice=advice.format(subject, more),
        )  # fmt: skip


def _stuck_work(facts: Facts, now: datetime) -> Iterator[Finding]:
    for row in facts["work"]:
        kind, subject, count = str(row["kind"]), str(row["subject"]), number(row, "quantity")
        age = _age_ms(row["oldest_at"], now)
        if kind == "expired" and age > 5_000:
            yield Finding(
                id=f"work.expired.{subject}", area="health", severity=Severity.HIGH,
                title=f"{count} runs of a lost worker wait to be taken over",
                detail=f"The lease of {subject} ended {age // 1_000} s ago and nobody has reclaimed it.",
                advice="Start a worker: any living one takes them over within a second.",
            )  # fmt: skip
        elif kind == "overdue" and age > 60_000:
            yield Finding(
                id=f"work.overdue.{subject}", area="health", severity=Severity.MEDIUM,
                title=f"Worker {subject} keeps runs past their timeout",
                detail=f"The oldest should have been stopped {age // 1_000} s ago.",
                advice="Look at that worker's log for a handler that blocks; restart it if it does not recover.",
            )  # fmt: skip
        elif kind == "due" and row["detail"] == "no_worker":
            yield Finding(
                id=f"work.no_worker.{subject}", area="health", severity=Severity.HIGH,
                title=f"{count} due runs of {subject} have no worker",
                detail="No living worker knows this job; the runs stay queued and spend no attempt.",
                advice="Start a worker that loads the definition (JOBFORGE_JOBS), or cancel the runs.",
            )  # fmt: skip
        elif kind == "due" and age > _MINUTE_MS:
            severity = Severity.HIGH if age > 10 * _MINUTE_MS else Severity.MEDIUM
            yield Finding(
                id=f"work.backlog.{subject}", area="health", severity=severity,
                title=f"{count} runs of {subject} are late by up to {age // _MINUTE_MS} minutes",
                detail="They are due, and the workers are busy with others.",
                advice="Add workers or raise JOBFORGE_WORKER_CONCURRENCY.",
            )  # fmt: skip
    dead = ended_runs(facts).get("dead", 0)
    if dead:
        yield Finding(
            id="work.dead", area="health", severity=Severity.LOW,
            title=f"{dead} runs ran out of attempts within a day",
            detail="Each keeps its last error.",
            advice="List them with list-runs status dead; retry-job with resetAttempts once the cause is gone.",
        )  # fmt: skip


def _cache(facts: Facts, _: datetime) -> Iterator[Finding]:
    for row in facts["database"]:
        hits, reads = number(row, "cache_hits"), number(row, "cache_reads")
        if hits + reads > 1_000_000 and hits < 0.95 * (hits + reads):
            yield Finding(
                id="database.cache", area="cost", severity=Severity.LOW,
                title=f"Only {100 * hits // (hits + reads)} % of pages come from memory",
                detail="The rest is read from the disk or the system's cache.",
                advice="Raise shared_buffers to about a quarter of the memory.",
            )  # fmt: skip
        if number(row, "temp_bytes") > 1024 * _MIB:
            yield Finding(
                id="database.temp", area="cost", severity=Severity.LOW,
                title=f"{_mib(number(row, 'temp_bytes'))} were written to temporary files",
                detail="Sorts and hashes did not fit into work_mem.",
                advice="Find the queries with log_temp_files, and raise work_mem for their role.",
            )  # fmt: skip


RULES: tuple[Callable[[Facts, datetime], Iterator[Finding]], ...] = (
    _durability, _upkeep, _dead_rows, _indexes, _sessions, _row_security, _rights, _stuck_work, _cache,
)  # fmt: skip


def ended_runs(facts: Facts) -> dict[str, int]:
    return {
        str(row["subject"]): number(row, "quantity")
        for row in facts["work"]
        if row["kind"] == "ended"
    }


def settings_of(facts: Facts) -> dict[str, str]:
    return {str(row["name"]): str(row["setting"]) for row in facts["settings"]}


def number(row: Row, name: str) -> int:
    """Read a count; an aggregate of nothing is null, and a sum of bigints comes as a Decimal."""
    return int(cast("int | None", row[name]) or 0)


def _age_ms(at: object, now: datetime) -> int:
    return round((now - at).total_seconds() * 1_000) if isinstance(at, datetime) else 0


def _time(at: object) -> str:
    return (
        at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC") if isinstance(at, datetime) else "never"
    )


def _mib(size: int) -> str:
    return f"{size / _MIB:,.0f} MiB"
