"""Bugs to plant: each must be caught by the checker, or the checker proves nothing.

A mutant changes the text of one SQL function where it stands in the database.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString, Protocol, cast


class Plantable(Protocol):
    """A database whose functions may be changed."""

    def fetch(
        self, query: LiteralString, parameters: Sequence[object] = ()
    ) -> list[dict[str, Any]]:
        """Ask as superuser."""
        ...

    def execute(self, script: LiteralString) -> None:
        """Run a script as superuser."""
        ...


@dataclass(frozen=True, slots=True)
class Mutant:
    """One bug: what it is, and the text it changes."""

    what: str
    function: str
    """Name of the SQL function, of which there is one."""
    changes: Mapping[str, str]
    """What stands there, and what is to stand there instead."""
    faults: Mapping[str, float] = field(default_factory=dict[str, float])
    """Faults without which the bug does not show, with their weight."""

    def plant(self, server: Plantable) -> None:
        """Change the function.

        Raises:
            LookupError: the text is not there any more; the mutant has to be written anew.
        """
        (row,) = server.fetch(
            "select pg_get_functiondef(p.oid) as text from pg_proc p"
            " where p.pronamespace = 'jobforge'::regnamespace and p.proname = %s",
            [self.function],
        )
        text = str(row["text"])
        for was, becomes in self.changes.items():
            if was not in text:
                raise LookupError(f"{self.function} has changed: {was!r} is not in it")
            text = text.replace(was, becomes)
        server.execute(cast("LiteralString", text))


_FROZEN = {"worker stopped past its lease": 60.0}
_CRASHES = {"PostgreSQL stopped at once": 40.0, "PostgreSQL killed": 40.0}

MUTANTS: dict[str, Mutant] = {
    "no-fence": Mutant(
        "a settle is accepted from whoever held the job once",
        "leave_leases",
        {
            "where (l.tenant_id, l.lease_id) in (select distinct u.t, u.l from unnest(p_tenant_ids, p_lease_ids) u(t, l))": "where l.job_ids && p_job_ids",
            "on g.tenant_id = l.tenant_id and g.lease_id = l.lease_id and g.job_id = h.job_id and g.epoch = h.epoch": "on g.tenant_id = l.tenant_id and g.job_id = h.job_id",
        },
        _FROZEN,
    ),
    "reap-living": Mutant(
        "leases are reaped before they expire",
        "reap_leases",
        {"l.lease_until <= v_now or": "true or", "e.lease_until <= v_now": "true"},
    ),
    "no-reap-alone": Mutant(
        "a job lost alone is never reaped",
        "reap_leases",
        {"if v_lost.total > 0 then": "if v_lost.total > 1 then"},
    ),
    "lost-is-free": Mutant(
        "an attempt lost with its worker is never charged",
        "reap_leases",
        {"not o.is_lost or o.is_alone": "false"},
    ),
    "attempt-not-counted": Mutant(
        "the claim does not count the attempt",
        "take_ready",
        {"(t.attempt_no + 1)::smallint": "t.attempt_no"},
    ),
    "epoch-reused": Mutant(
        "a claim does not raise the epoch", "take_ready", {"t.epoch + 1": "greatest(t.epoch, 1)"}
    ),
    "early-claim": Mutant(
        "a claim takes what is not due yet",
        "take_ready",
        {"r.run_at <= p_now": "r.run_at <= p_now + interval '1 hour'"},
    ),
    "no-backoff": Mutant(
        "a failed attempt is tried again at once",
        "close_jobs",
        {"else v_now + jobforge.retry_delay": "else v_now + 0 * jobforge.retry_delay"},
    ),
    "dead-too-soon": Mutant(
        "a run is dead with an attempt left",
        "close_jobs",
        {"g.attempt_no >= j.max_attempts": "g.attempt_no + 1 >= j.max_attempts"},
    ),
    "never-dead": Mutant(
        "a run gets one attempt too many",
        "close_jobs",
        {"g.attempt_no >= j.max_attempts": "g.attempt_no > j.max_attempts"},
    ),
    "retry-lost": Mutant(
        "one failed attempt in ten is not queued again",
        "close_jobs",
        {
            "from ended e where e.final_status is null": "from ended e where e.final_status is null and random() < 0.9"
        },
    ),
    "release-charged": Mutant(
        "a job that a worker gave back has used an attempt",
        "release_jobs",
        {"array_fill(false, ": "array_fill(true, "},
        {"worker told to end": 60.0},
    ),
    "neighbours-dropped": Mutant(
        "settling one job drops the others of its lease",
        "leave_leases",
        {"where r.job_ids is null and": "where"},
    ),
    "results-mixed": Mutant(
        "results of a batch go to the wrong jobs",
        "complete_jobs",
        {"on r.ord = g.ord": "on r.ord = g.ord % cardinality(p_results) + 1"},
    ),
    "no-key-lock": Mutant(
        "every job of an ordering key may run at once",
        "join_ordering_keys",
        {
            "from placed p where p.id = p.head_job_id": "from placed p",
            "from placed p where p.id <> p.head_job_id": "from placed p where false",
        },
    ),
    "newest-first": Mutant(
        "the newest of an ordering key goes next",
        "promote_next",
        {"order by x.turn limit 1": "order by x.turn desc limit 1"},
    ),
    "key-stuck": Mutant(
        "a completed head does not let the next one go",
        "complete_jobs",
        {"if v_keys is not null then": "if false then"},
    ),
    "cancel-keeps-place": Mutant(
        "a canceled job stays in ready",
        "cancel_open_job",
        {
            "delete from jobforge.ready r\n    where": "update jobforge.ready r set epoch = r.epoch\n    where"
        },
    ),
    "key-taken-twice": Mutant(
        "a repeated call makes a second job",
        "claim_idempotency_keys",
        {"where k.expires_at <= v_now": "where true"},
    ),
    "ack-before-commit": Mutant(
        "an enqueue is acknowledged before it is on disk",
        "enqueue_jobs",
        {
            "perform jobforge.require_tenant(p_tenant_id);": "perform jobforge.require_tenant(p_tenant_id), pg_catalog.set_config('synchronous_commit', 'off', true);"
        },
        _CRASHES,
    ),
    "settle-before-commit": Mutant(
        "a result is shown before it is on disk",
        "complete_jobs",
        {
            "perform jobforge.require_small_json(p_results": "perform pg_catalog.set_config('synchronous_commit', 'off', true); perform jobforge.require_small_json(p_results"
        },
        _CRASHES,
    ),
    "no-audit": Mutant(
        "one enqueue in ten is not in the audit log",
        "enqueue_jobs",
        {
            "perform jobforge.record_audit(p_tenant_id, 'enqueue', case when": "if random() < 0.1 then null; else perform jobforge.record_audit(p_tenant_id, 'enqueue', case when",
            "coalesce(cardinality(v_new_ids), 0)) end);": "coalesce(cardinality(v_new_ids), 0)) end); end if;",
        },
    ),
    "version-shrinks": Mutant(
        "a retried run has an older version than before",
        "requeue_final_job",
        {
            "values (p_tenant_id, p_job_id, 4)": "values (p_tenant_id, p_job_id, 0)",
            "changes = p.changes + 4": "changes = p.changes",
        },
    ),
}
