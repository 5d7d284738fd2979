from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


@pytest.mark.timeout(600)
def test_every_row_of_the_benchmarks_still_measures_something(tmp_path: Path) -> None:
    written = tmp_path / "figures.json"

    done = subprocess.run(
        [sys.executable, REPOSITORY / "benchmarks" / "run.py", "--tiny", "--json", str(written)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=570,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3_000:]
    assert "| measure | value | bound | |" in done.stdout
    content = json.loads(written.read_text())
    rows = {figure["row"] for figure in content["figures"]}
    assert rows == {
        "enqueue",
        "bulk",
        "drain",
        "pickup",
        "idle",
        "embedded",
        "horizon",
        "newcomer",
        "crowd",
        "backlog",
        "limits",
        "keys",
        "beside",
        "events",
        "definitions",
        "policy",
        "verify",
        "http",
        "flushes",
        "stdio",
        "initialize",
        "memory",
    }
    assert all(
        figure["value"] >= 0
        for figure in content["figures"]
        if figure["row"] not in {"http", "stdio", "policy", "flushes"}  # differences
    )
    assert content["machine"]["postgres"]


def test_an_unknown_row_is_refused_before_anything_starts() -> None:
    done = subprocess.run(
        [sys.executable, REPOSITORY / "benchmarks" / "run.py", "--only", "nonsense"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert done.returncode == 2
    assert "no such row: nonsense" in done.stderr
