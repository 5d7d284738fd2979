"""What the audit row costs an enqueue: the function as it is, and with its audit row taken out, take turns.

Run: python -m tests.measure.audit_cost
"""

from __future__ import annotations

import statistics
import sys
import time

import psycopg

from tests.postgres import DatabaseMaker, choose_binaries, running_cluster

ROUNDS = 40
CALLS = 50
AUDITED = "with audited as ("
NEXT = "queued as ("


def main() -> None:
    """Measure, and print medians of the rounds."""
    with (
        running_cluster(choose_binaries()) as cluster,
        psycopg.connect(cluster.url(), autocommit=True) as raw,
    ):
        maker = DatabaseMaker(cluster, raw, "measure")
        maker.ensure_template()
        # Two databases of one server: one with the audit row, one without.
        kept, bare = maker.create_migrated(), maker.create_migrated()
        with bare.connect() as changed:
            take_audit_out(changed)
        with kept.connect("jobforge_api") as one, bare.connect("jobforge_api") as other:
            for connection in (one, other):
                batch(connection)
            times = [(batch(one), batch(other)) for _ in range(ROUNDS)]
        ratios = [audited / without - 1 for audited, without in times]
        sys.stdout.write(
            f"with {statistics.median(a for a, _ in times) * 1e6:.0f} us, without {statistics.median(b for _, b in times) * 1e6:.0f} us\n"
        )
        sys.stdout.write(
            f"more by {statistics.median(ratios):.1%} (median of {ROUNDS} rounds of {CALLS} calls)\n"
        )
        maker.drop(kept)
        maker.drop(bare)


def take_audit_out(connection: psycopg.Connection) -> None:
    """Make the function of this database write no audit row for a job that was created."""
    row = connection.execute(
        "select pg_get_functiondef('jobforge.enqueue_jobs'::regproc)"
    ).fetchone()
    assert row is not None
    text: str = row[0]
    start = text.index(AUDITED)
    changed = text[:start] + "with " + text[text.index(NEXT, start) :]
    connection.execute(changed.encode())


def batch(connection: psycopg.Connection) -> float:
    """Return the seconds of one enqueue, of many."""
    started = time.perf_counter()
    for _ in range(CALLS):
        connection.execute(
            "select r.* from jobforge.enter_scope('acme', 'a', 't', 'x', 'y') as s(tenant_id), lateral"
            " jobforge.enqueue_jobs(s.tenant_id, array['demo.echo'], array['{}']) as r"
        )
    return (time.perf_counter() - started) / CALLS


if __name__ == "__main__":
    main()
