"""The long form: ``python -m tests.interleaving.run [--share 1.0] [--threes 500] [--minutes 20] [--seed 1] [--only claim_jobs]``.

Every pair of acts in both orders, with every gate, and triples by chance, in an order by chance, so that what there is
no time for is no corner of it. Ends with 1 when anything was found.
"""

from __future__ import annotations

import argparse
import sys
from random import Random
from time import monotonic

import psycopg

from tests.interleaving.explorer import all_pairs, exploring, some_threes
from tests.postgres import DatabaseMaker, choose_binaries, running_cluster


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=1.0, help="of the pairs, by chance")
    parser.add_argument("--threes", type=int, default=500, help="triples, by chance")
    parser.add_argument("--minutes", type=float, default=1_000.0, help="after which to stop")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", help="experiments with acts whose name holds this")
    asked = parser.parse_args(arguments)
    with (
        running_cluster(choose_binaries()) as cluster,
        psycopg.connect(cluster.url(), autocommit=True) as connection,
    ):
        databases = DatabaseMaker(cluster, connection, "explore")
        databases.ensure_template()
        with exploring(databases.create_migrated()) as explorer:
            random, began = Random(asked.seed), monotonic()
            cases = all_pairs(explorer) + some_threes(explorer, asked.threes, asked.seed)
            if asked.only:
                cases = [case for case in cases if any(asked.only in act.name for act in case.acts)]
            random.shuffle(cases)
            for case in cases[: round(len(cases) * asked.share)]:
                if monotonic() - began > asked.minutes * 60:
                    break
                shown = len(explorer.failures)
                case.run(explorer)
                for failure in explorer.failures[shown:]:
                    print(failure, flush=True)  # noqa: T201 - talks to people
            print(  # noqa: T201
                f"{explorer.experiments} experiments of {len(cases)}, {explorer.waits} waits,"
                f" {len(explorer.failures)} failures, {monotonic() - began:.0f} s, seed {asked.seed}"
            )
            return 1 if explorer.failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
