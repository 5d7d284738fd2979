"""Bugs to plant: each must be caught by the checker, or the checker proves nothing.

A mutant changes the text of SQL functions where they stand in the database, or of a copy of the package's sources that the
processes of the soak then run. It is found by names and texts, not by files and lines, so that code may move.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString, Protocol, cast

from jobforge_mcp import resources

PACKAGE = Path(resources.__file__).parent
CHECKOUT = Path(__file__).parents[1]


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
    """Name of the SQL function, of which there is one; empty for a bug in Python alone."""
    changes: Mapping[str, str]
    """What stands there, and what is to stand there instead."""
    faults: Mapping[str, float] = field(default_factory=dict[str, float])
    """Faults without which the bug does not show, with their weight."""
    by: Set[str] = frozenset()
    """Promises that it breaks: one of them has to be found broken."""
    seconds: float = 15.0
    """How long it may show itself."""
    needs_agents: bool = False
    """Whether it shows only through MCP."""
    poisons: float = 0.001
    """Share of the jobs that kill their worker."""
    load: float = 1.0
    """Share of the usual calls: where slots are seldom free no job is inserted already leased."""
    timeout: str = "30s"
    """What a job may take: what is stuck is taken from its worker then, and goes on."""
    also: Mutant | None = None
    """A second function that has to be changed for one bug."""
    source: str = ""
    """File of the package, for a bug in Python."""

    def plant(self, server: Plantable) -> None:
        """Change the functions.

        Raises:
            LookupError: the text is not there any more; the mutant has to be written anew.
        """
        if self.also is not None:
            self.also.plant(server)
        if not self.function:
            return
        (row,) = server.fetch(
            "select pg_get_functiondef(p.oid) as text from pg_proc p"
            " where p.pronamespace = 'jobforge'::regnamespace and p.proname = %s",
            [self.function],
        )
        server.execute(cast("LiteralString", self._changed(str(row["text"]), self.function)))

    def change_sources(self, folder: Path) -> dict[str, str]:
        """Copy the package with the bug in it, and return what environment makes processes run the copy.

        Raises:
            LookupError: the text is not there any more.
        """
        if not self.source:
            return {}
        copy = folder / "src" / PACKAGE.name
        shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
        for data in (resources.sql_folder(), resources.job_definitions_folder()):
            if not data.is_relative_to(PACKAGE):
                (folder / data.name).symlink_to(data)
        file = copy / self.source
        file.write_text(self._changed(file.read_text(), self.source))
        return {"PYTHONPATH": os.pathsep.join([str(copy.parent), str(CHECKOUT)])}

    def _changed(self, text: str, where: str) -> str:
        for was, becomes in self.changes.items():
            if was not in text:
                raise LookupError(f"{where} has changed: {was!r} is not in it")
            text = text.replace(was, becomes)
        return text


_FROZEN = {"worker stopped past its lease": 60.0}
_CRASHES = {"PostgreSQL stopped at once": 100.0, "PostgreSQL killed": 20.0}
_LOST_ANSWERS = {"replies swallowed": 100.0, "connections cut": 40.0}
_SERVER_STAYS = {
    "server killed": 0.0,
    "server told to end": 0.0,
    "PostgreSQL restarted": 0.0,
    "PostgreSQL stopped at once": 0.0,
    "PostgreSQL killed": 0.0,
}
_NO_WORKER_ENDS: dict[str, float] = {
    "worker killed": 0.0,
    "worker told to end": 0.0,
    "worker stopped past its lease": 0.0,
}


def _inline(what: str, changes: Mapping[str, str], by: Set[str]) -> Mutant:
    """Plant a bug in the jobs that begin where an agent asks for them: for these a server has to live and slots to be free."""
    return Mutant(
        what,
        "enqueue_leased_job",
        changes,
        _SERVER_STAYS,
        by=by,
        needs_agents=True,
        load=0.1,
        seconds=25,
        poisons=0,
    )


MUTANTS: dict[str, Mutant] = {
    "no-fence": Mutant(
        "a settle is accepted from whoever held the job once",
        "leave_leases",
        {
            "where (l.tenant_id, l.lease_id) in (select distinct u.t, u.l from unnest(p_tenant_ids, p_lease_ids) u(t, l))": "where l.job_ids && p_job_ids",
            "on g.tenant_id = l.tenant_id and g.lease_id = l.lease_id and g.job_id = h.job_id and g.epoch = h.epoch": "on g.tenant_id = l.tenant_id and g.job_id = h.job_id",
        },
        _FROZEN,
        by=frozenset({"fence", "stale answers", "one end", "claims"}),
    ),
    "reap-living": Mutant(
        "leases are reaped before they expire",
        "reap_leases",
        {"l.lease_until <= v_now or": "true or", "e.lease_until <= v_now": "true"},
        by=frozenset({"attempts"}),
    ),
    "no-reap-alone": Mutant(
        "a job lost alone is never reaped",
        "reap_leases",
        {"if v_lost.total > 0 then": "if v_lost.total > 1 then"},
        # The last job of all is lost alone; others would only be in its way.
        _NO_WORKER_ENDS,
        poisons=0,
        seconds=3,
        by=frozenset({"no loss"}),
    ),
    "lost-is-free": Mutant(
        "an attempt lost with its worker is never charged",
        "reap_leases",
        {"not o.is_lost or o.is_alone": "false"},
        poisons=0.02,
        by=frozenset({"no loss", "attempts"}),
    ),
    "attempt-not-counted": Mutant(
        "the claim does not count the attempt",
        "take_ready",
        {"(t.attempt_no + 1)::smallint": "t.attempt_no"},
        by=frozenset({"attempts", "claims"}),
    ),
    "epoch-reused": Mutant(
        "a claim does not raise the epoch",
        "take_ready",
        {"t.epoch + 1": "greatest(t.epoch, 1)"},
        by=frozenset({"claims", "fence", "no loss"}),
    ),
    "early-claim": Mutant(
        "a claim takes what is not due yet",
        "take_ready",
        {"r.run_at <= p_now": "r.run_at <= p_now + interval '1 hour'"},
        by=frozenset({"not early"}),
    ),
    "no-backoff": Mutant(
        "a failed attempt is tried again at once",
        "close_jobs",
        {"else v_now + jobforge.retry_delay": "else v_now + 0 * jobforge.retry_delay"},
        by=frozenset({"not early"}),
    ),
    "dead-too-soon": Mutant(
        "a run is dead with an attempt left",
        "close_jobs",
        {"g.attempt_no >= j.max_attempts": "g.attempt_no + 1 >= j.max_attempts"},
        by=frozenset({"claims"}),
    ),
    "never-dead": Mutant(
        "a run gets one attempt too many",
        "close_jobs",
        {"g.attempt_no >= j.max_attempts": "g.attempt_no > j.max_attempts"},
        by=frozenset({"claims"}),
    ),
    "retry-lost": Mutant(
        "one failed attempt in ten is not queued again",
        "close_jobs",
        {
            "from ended e where e.final_status is null": "from ended e where e.final_status is null and random() < 0.9"
        },
        by=frozenset({"no loss"}),
    ),
    "release-charged": Mutant(
        "a job that a worker gave back has used an attempt",
        "release_jobs",
        {"array_fill(false, ": "array_fill(true, "},
        {"worker told to end": 60.0},
        by=frozenset({"attempts"}),
    ),
    "neighbours-dropped": Mutant(
        "settling one job drops the others of its lease",
        "leave_leases",
        # The update as well: of a delete and an update of one row in one statement, the update happens to come first.
        {
            "where r.job_ids is null and": "where",
            "where r.job_ids is not null and": "where false and",
        },
        by=frozenset({"no loss"}),
    ),
    "results-mixed": Mutant(
        "results of a batch go to the wrong jobs",
        "complete_jobs",
        {"on r.ord = g.ord": "on r.ord = g.ord % cardinality(p_results) + 1"},
        by=frozenset({"fence"}),
    ),
    "no-key-lock": Mutant(
        "every job of an ordering key may run at once",
        "join_ordering_keys",
        {
            "from placed p where p.id = p.head_job_id": "from placed p",
            "from placed p where p.id <> p.head_job_id": "from placed p where false",
        },
        by=frozenset({"order"}),
    ),
    "newest-first": Mutant(
        "the newest of an ordering key goes next",
        "promote_next",
        {"order by x.turn limit 1": "order by x.turn desc limit 1"},
        by=frozenset({"order"}),
    ),
    "key-stuck": Mutant(
        "a completed head does not let the next one go",
        "complete_jobs",
        {"if v_keys is not null then": "if false then"},
        by=frozenset({"no loss"}),
    ),
    "cancel-keeps-place": Mutant(
        "a canceled job stays in ready",
        "cancel_open_job",
        {
            "delete from jobforge.ready r\n    where": "update jobforge.ready r set epoch = r.epoch\n    where"
        },
        by=frozenset({"no loss", "canceled stays canceled", "one end"}),
    ),
    "key-taken-twice": Mutant(
        "a repeated call makes a second job",
        "claim_idempotency_keys",
        {"where k.expires_at <= v_now": "where true"},
        by=frozenset({"no ghosts", "one run per key"}),
    ),
    "ack-before-commit": Mutant(
        "an enqueue is acknowledged before it is on disk",
        "enqueue_jobs",
        {
            "if p_signature is not null then": "perform pg_catalog.set_config('synchronous_commit', 'off', true); if p_signature is not null then"
        },
        _CRASHES,
        by=frozenset({"no loss", "atomic enqueue"}),
    ),
    "short-ack-before-commit": Mutant(
        "a job that asks for nothing is acknowledged before it is on disk",
        "enqueue_plain_jobs",
        {
            "if p_token_claims <> '' then": "perform pg_catalog.set_config('synchronous_commit', 'off', true); if p_token_claims <> '' then"
        },
        _CRASHES,
        by=frozenset({"no loss", "atomic enqueue"}),
    ),
    "settle-before-commit": Mutant(
        "a result is shown before it is on disk",
        "complete_jobs",
        {
            "perform jobforge.require_small_json(p_results": "perform pg_catalog.set_config('synchronous_commit', 'off', true); perform jobforge.require_small_json(p_results"
        },
        _CRASHES,
        by=frozenset({"polls", "one end"}),
    ),
    "no-audit": Mutant(
        "one enqueue in ten is not in the audit log",
        "enqueue_any_jobs",
        {
            "perform jobforge.record_audit(p_tenant_id, 'enqueue', case when": "if random() < 0.1 then null; else perform jobforge.record_audit(p_tenant_id, 'enqueue', case when",
            "coalesce(cardinality(v_new_ids), 0)) end);": "coalesce(cardinality(v_new_ids), 0)) end); end if;",
        },
        by=frozenset({"audit"}),
    ),
    "short-no-audit": Mutant(
        "one job in ten that asks for nothing is not in the audit log",
        "enqueue_plain_jobs",
        {
            "case when p_call_traces is not null then v_count else 0 end": "case when p_call_traces is not null then v_count - (random() < 0.1)::integer else 0 end"
        },
        by=frozenset({"audit"}),
    ),
    "bulk-no-audit": Mutant(
        "a bulk of jobs that ask for nothing is not in the audit log",
        "enqueue_plain_jobs",
        {"    if p_call_traces is null then\n      insert": "    if false then\n      insert"},
        by=frozenset({"audit"}),
    ),
    "leased-no-audit": _inline(
        "an inline job is not in the audit log",
        {
            "values (p_tenant_id, enqueue_leased_job.job_id, v_now, 'enqueue'": "select p_tenant_id, enqueue_leased_job.job_id, v_now, 'enqueue'",
            "enqueue_leased_job.job_id, p_job_type)": "enqueue_leased_job.job_id, p_job_type where false",
        },
        by=frozenset({"audit"}),
    ),
    "leased-nowhere": _inline(
        "an inline job is inserted without its lease",
        {
            "values (p_tenant_id, enqueue_leased_job.lease_id": "select p_tenant_id, enqueue_leased_job.lease_id",
            "array[v_deadline])": "array[v_deadline] where false",
        },
        by=frozenset({"no loss"}),
    ),
    "leased-not-counted": _inline(
        "the attempt of an inline job is not counted",
        {"array[1::smallint]": "array[0::smallint]"},
        by=frozenset({"attempts", "claims"}),
    ),
    "lanes-passed-over": Mutant(
        "a claim passes over the first tenant of those that have anything",
        "claim_jobs",
        {"coalesce(v_busy.tenant_ids, '{}')": "coalesce(v_busy.tenant_ids[2:], '{}')"},
        by=frozenset({"no loss"}),
        poisons=0,
        seconds=5,
    ),
    "backlog-forgets": Mutant(
        "a worker forgets what it fetched ahead beyond three jobs of one tenant",
        "",
        {
            "        queue.append(attempt)\n        self._count += 1": "        if len(queue) < 3:\n            queue.append(attempt)\n            self._count += 1"
        },
        _NO_WORKER_ENDS,
        timeout="10m",
        source="worker/backlog.py",
        by=frozenset({"no loss"}),
        poisons=0,
        seconds=8,
    ),
    "version-shrinks": Mutant(
        "a retried run has an older version than before",
        "requeue_final_job",
        {
            "values (p_tenant_id, p_job_id, 4)": "values (p_tenant_id, p_job_id, 0)",
            "changes = p.changes + 4": "changes = p.changes",
        },
        by=frozenset({"polls"}),
    ),
    "late-report": Mutant(
        "progress is taken from whoever held the job once",
        "report_progress",
        {
            "where (l.tenant_id, l.lease_id) in (select u.t, u.l from unnest(p_tenant_ids, p_lease_ids) u(t, l)) and l.lease_until > v_now": "where l.job_ids && p_job_ids",
            "on l.tenant_id = g.tenant_id and l.lease_id = g.lease_id": "on l.tenant_id = g.tenant_id",
            "where h.job_id = g.job_id and h.epoch = g.epoch": "where h.job_id = g.job_id",
        },
        _FROZEN,
        by=frozenset({"stale answers", "fence"}),
    ),
    "progress-back": Mutant(
        "progress goes back",
        "report_progress",
        {"greatest(p.done, excluded.done)": "p.done - 1"},
        by=frozenset({"progress"}),
    ),
    "over-the-limit": Mutant(
        "one run more than its limit allows may hold a slot",
        "admit_jobs",
        {"<= r.most_slots": "<= r.most_slots + 1"},
        by=frozenset({"limits"}),
    ),
    "bundle-early": Mutant(
        "what depends on a failed run starts all the same",
        "after_final",
        {"v_has_failed and g.on_failure = 'cancel'": "false"},
        by=frozenset({"bundles"}),
    ),
    "event-twice": Mutant(
        "a repeated event is stored again",
        "submit_event",
        {"p_redaction_hints, p_idempotency_key, v_hash": "p_redaction_hints, null, v_hash"},
        by=frozenset({"events", "one run per key"}),
    ),
    "event-forgotten": Mutant(
        "the triggers of one stored event in three are not asked",
        "process_event",
        {
            "perform jobforge.enter_trusted_scope": "if random() < 0.3 then return; end if; perform jobforge.enter_trusted_scope"
        },
        by=frozenset({"events"}),
    ),
    "cron-twice": Mutant(
        "two schedulers start a run each for one time",
        "decide_schedule_fires",
        {
            "v_key := 'at:' ||": "perform pg_catalog.pg_sleep(0.1); v_key := 'at:' || random()::text ||"
        },
        by=frozenset({"schedules"}),
        also=Mutant(
            "",
            "fire_due_triggers",
            {
                "and t.next_fire_at = (v_due.element ->> 'due')::timestamptz": "",
                "for no key update skip locked": "",
            },
        ),
    ),
    "cron-skips": Mutant(
        "a time of a schedule that is looked at late is forgotten",
        "",
        {"        times.append(following)\n": ""},
        source="triggers/planning.py",
        by=frozenset({"schedules"}),
    ),
    "settle-given-up": Mutant(
        "an outcome whose answer was lost is not written again",
        "",
        {
            "            await anyio.sleep(backoff)\n            backoff": "            return\n            backoff"
        },
        # Whatever ends the worker that gave up brings the job back.
        {**_NO_WORKER_ENDS, "settles terminated": 400.0},
        timeout="10m",
        source="worker/settling.py",
        by=frozenset({"no loss"}),
        poisons=0,
        seconds=8,
    ),
    "client-key-lost": Mutant(
        "the client does not pass the idempotency key on",
        "",
        {"idempotency_key=options.idempotency_key": "idempotency_key=None"},
        _LOST_ANSWERS,
        source="client/verbs.py",
        by=frozenset({"no ghosts", "one run per key"}),
    ),
    "tool-key-lost": Mutant(
        "execute-job does not pass the idempotency key on",
        "",
        {"        idempotency_key=given.idempotency_key": "        idempotency_key=None"},
        _LOST_ANSWERS,
        source="server/tools/executing.py",
        by=frozenset({"no ghosts", "one run per key"}),
        needs_agents=True,
    ),
    "own-transaction": Mutant(
        "a job enqueued in the application's transaction is committed in another",
        "",
        {"if connection is not None:": "if connection is None and connection is not None:"},
        source="client/verbs.py",
        by=frozenset({"atomic enqueue"}),
    ),
}
CHOSEN = ("no-fence", "newest-first", "event-forgotten", "client-key-lost")
"""Those that CI plants: of claims, of order, of events, and of Python."""
