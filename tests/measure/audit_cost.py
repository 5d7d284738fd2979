"""What parts of an enqueue cost: the function as it is, and with that part taken out of it, take turns.

The parts are the audit row, and the look for limits of those who have none. The smallest fifth of the rounds is compared:
on a machine that others use, what is added to the rest is theirs. The server holds its data in memory and flushes nothing.

Run: python -m tests.measure.audit_cost
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import psycopg

from tests.postgres import DatabaseMaker, choose_binaries, running_cluster

ROUNDS = 100
CALLS = 20
LOOK = " or exists (select from jobforge.rate_limits l where l.tenant_id = p_tenant_id)"


def without_audit(text: str) -> str:
    """Take out the row of a job that was created."""
    start = text.index("with audited as (")
    return text[:start] + "with " + text[text.index("queued as (", start) :]


def without_look(text: str) -> str:
    """Take out the look at the operator's limits."""
    assert LOOK in text
    return text.replace(LOOK, "")


PARTS: dict[str, Callable[[str], str]] = {
    "the audit row": without_audit,
    "the look for limits": without_look,
}


def main() -> None:
    """Measure, and print."""
    with (
        running_cluster(choose_binaries()) as cluster,
        psycopg.connect(cluster.url(), autocommit=True) as raw,
    ):
        maker = DatabaseMaker(cluster, raw, "measure")
        maker.ensure_template()
        for name, taken_out in PARTS.items():
            _compare(maker, name, taken_out)


def _compare(maker: DatabaseMaker, name: str, taken_out: Callable[[str], str]) -> None:
    kept, bare = maker.create_migrated(), maker.create_migrated()
    with bare.connect() as changed:
        row = changed.execute(
            "select pg_get_functiondef('jobforge.enqueue_jobs'::regproc)"
        ).fetchone()
        assert row is not None
        changed.execute(taken_out(row[0]).encode())
    whole: list[float] = []
    less: list[float] = []
    with kept.connect("jobforge_api") as one, bare.connect("jobforge_api") as other:
        for number in range(ROUNDS + 2):
            for connection, times in ((one, whole), (other, less))[:: 1 if number % 2 else -1]:
                times.append(_batch(connection))
    with_it, without_it = (sorted(times[2:])[ROUNDS // 5] for times in (whole, less))
    sys.stdout.write(
        f"{name}: with {with_it * 1e6:.0f} us, without {without_it * 1e6:.0f} us,"
        f" {with_it / without_it - 1:+.1%} ({ROUNDS} rounds of {CALLS} calls)\n"
    )
    maker.drop(kept)
    maker.drop(bare)


def _batch(connection: psycopg.Connection) -> float:
    """Return the seconds of one enqueue, of many."""
    started = time.perf_counter()
    for _ in range(CALLS):
        connection.execute(
            "select r.* from jobforge.enter_scope('acme', 'a', 't', 'x', 'y') as s(tenant_id), lateral"
            " jobforge.enqueue_jobs(s.tenant_id, array['demo.echo'], array['{}']) as r"
        )
        connection.commit()
    return (time.perf_counter() - started) / CALLS


if __name__ == "__main__":
    main()
