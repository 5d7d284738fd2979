"""Measure jobforge-mcp and print a table: ``python3 dev.py bench [--only ROW,ROW] [--against pgqueuer] [--json FILE]``.

Everything runs on this machine, against an embedded PostgreSQL that is made for the run and removed after it. README.md
beside this file says how the measures are made and what was found.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TypeAlias

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import (
    flat_rows,
    key_rows,
    limit_rows,
    node_rows,
    plane_rows,
    policy,
    policy_rows,
    queue_rows,
    server_rows,
)
from benchmarks.contenders import jobforge, pgqueuer
from benchmarks.figures import TINY, Figure, Sizes, machine, table
from benchmarks.stage import Stage, open_stage

Row: TypeAlias = Callable[[Stage, Sizes], list[Figure]]

ROWS: dict[str, Row] = {
    "enqueue": queue_rows.enqueue,
    "bulk": queue_rows.bulk,
    "drain": queue_rows.drain,
    "pickup": queue_rows.pickup,
    "idle": queue_rows.idle,
    "embedded": plane_rows.embedded,
    "horizon": flat_rows.horizon,
    "newcomer": flat_rows.newcomer,
    "crowd": flat_rows.crowd,
    "backlog": flat_rows.backlog,
    "limits": limit_rows.limits,
    "keys": key_rows.keys,
    "beside": key_rows.beside,
    "events": plane_rows.events,
    "definitions": plane_rows.definitions,
    "policy": policy_rows.policy,
    "verify": policy.verify,
    "http": server_rows.roundtrip,
    "flushes": server_rows.flushes,
    "stdio": node_rows.stdio,
    "initialize": node_rows.initialize,
    "memory": node_rows.memory,
}


def main(arguments: list[str]) -> int:
    options = _parse(arguments)
    sizes = TINY if options.tiny else replace(Sizes(), jobs=options.jobs, passes=options.passes)
    chosen = list(ROWS) if options.only is None else options.only.split(",")
    if options.against and options.only is None:
        chosen = []
    for name in [name for name in os.environ if name.startswith(("JOBFORGE_", "DATABASE_"))]:
        del os.environ[name]
    figures: list[Figure] = []
    with open_stage() as stage:
        facts = machine(stage.cluster.version)
        for name in chosen:
            say(f"measuring {name} …")
            figures += ROWS[name](stage, sizes)
        if options.against:
            ours = jobforge(stage, options.concurrency)
            theirs = pgqueuer(stage)
            facts |= {
                each.name: f"{each.meta()['version']}; {each.meta()['config']}"
                for each in (ours, theirs)
            }
            say(f"measuring against {options.against} …")
            figures += queue_rows.compare(ours, theirs, sizes)
    print(table(figures, facts))
    if options.json:
        content = {"machine": facts, "figures": [asdict(figure) for figure in figures]}
        Path(options.json).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0 if options.tiny or all(figure.is_good for figure in figures) else 1


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Options(argparse.Namespace):
    only: str | None
    against: str | None
    json: str | None
    jobs: int
    passes: int
    concurrency: int
    tiny: bool


def _parse(arguments: list[str]) -> Options:
    parser = argparse.ArgumentParser(
        prog="dev.py bench", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--only", metavar="ROW,ROW", help=f"some of: {', '.join(ROWS)}")
    parser.add_argument(
        "--against", choices=["pgqueuer"], help="drain and pickup beside another queue"
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers there as well")
    parser.add_argument("--jobs", type=int, default=Sizes().jobs, help="jobs of a drain")
    parser.add_argument("--passes", type=int, default=Sizes().passes, help="passes of a comparison")
    parser.add_argument(
        "--concurrency", type=int, default=0, help="of our worker in a comparison; 0: its default"
    )
    parser.add_argument("--tiny", action="store_true", help="a run that only shows that it works")
    options = parser.parse_args(arguments, Options())
    unknown = set((options.only or "drain").split(",")) - set(ROWS)
    if unknown:
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
