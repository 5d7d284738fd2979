"""A worker that was lost and does not know it: it says what it has to say about attempts that have ended long since.

It speaks through all five calls of a worker, with the true names of true claims, and does not look at any clock. Nothing
of it may be accepted, and nothing may change.
"""

from __future__ import annotations

from typing import Any

import anyio
import psycopg
from psycopg.rows import dict_row

from soak.history import History
from soak.server import Server

_CLAIMS = """
    select c.tenant_id, c.job_id, c.epoch, c.lease_id, c.worker_id, a.outcome::text as outcome
    from soak.claims c
    join jobforge.job_attempts a on a.tenant_id = c.tenant_id and a.job_id = c.job_id and a.epoch = c.epoch
    join jobforge.jobs j on j.tenant_id = c.tenant_id and j.id = c.job_id
    where c.at > clock_timestamp() - interval '15 seconds' and j.final_status is null
      and not exists (select from jobforge.leases l where l.tenant_id = c.tenant_id and l.lease_id = c.lease_id)
    order by random() limit 20"""
_NAMES = "%s::text[], %s::uuid[], %s::uuid[], %s::int[]"
_CALLS = {
    "complete": f"select outcome from jobforge.complete_jobs({_NAMES}, %s::text[])",
    "fail": f"select outcome from jobforge.fail_jobs({_NAMES}, %s::text[], %s::text[], %s::text[], %s::int[])",
    "release": f"select outcome from jobforge.release_jobs({_NAMES})",
    "report": "select case when is_accepted then 'accepted' else 'stale' end as outcome from"
    f" jobforge.report_progress({_NAMES}, %s::float8[], %s::float8[], %s::text[], %s::text[])",
    "heartbeat": "select 'accepted' as outcome from jobforge.heartbeat(%s, %s::text[], %s::uuid[], 60000)",
}
RESULT = '{"impostor": true, "run_id": "", "tenant_id": "", "epoch": 0, "process": 0, "nonce": ""}'


async def impersonate(server: Server, history: History) -> None:
    """Do so until cancelled."""
    while True:
        await anyio.to_thread.run_sync(lambda: _once(server, history))
        await anyio.sleep(0.3)


def _once(server: Server, history: History) -> None:
    try:
        claims: list[dict[str, Any]] = server.fetch(_CLAIMS)
        if not claims:
            return
        with psycopg.Connection[dict[str, Any]].connect(
            server.url("jobforge_worker"), autocommit=True, row_factory=dict_row, connect_timeout=5
        ) as connection:
            for call, answers in _speak(connection, claims).items():
                history.note("impostor", call=call, answers=answers)
    except psycopg.Error:
        return


def _speak(
    connection: psycopg.Connection[dict[str, Any]], claims: list[dict[str, Any]]
) -> dict[str, list[str]]:
    """Make the five calls, and return what they answered."""
    count = len(claims)
    names = [
        [claim[name] for claim in claims] for name in ("tenant_id", "lease_id", "job_id", "epoch")
    ]
    error = '{"code": "IMPOSTOR", "message": "not so", "retryable": false}'
    more: dict[str, list[object]] = {
        "report": [[99.0] * count, [100.0] * count, ["impostor"] * count, [None] * count],
        "fail": [["permanent"] * count, [error] * count, [None] * count, [None] * count],
        "release": [],
        "complete": [[RESULT] * count],
    }
    answers: dict[str, list[str]] = {}
    for call, rest in more.items():
        rows = connection.execute(_CALLS[call].encode(), [*names, *rest]).fetchall()
        answers[call] = [row["outcome"] for row in rows]
    beaten = [
        row["outcome"]
        for claim in claims[:5]
        for row in connection.execute(
            _CALLS["heartbeat"].encode(),
            [claim["worker_id"], [claim["tenant_id"]], [claim["lease_id"]]],
        ).fetchall()
    ]
    answers["heartbeat"] = beaten
    return answers
