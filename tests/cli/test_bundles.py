"""``jobforge bundle``: jobs that depend on each other, from a file."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Runner

COUNT = {"name": "demo.countdown", "input": {"seconds": 0.1}}
REQUESTS = [
    {"id": "then", **COUNT, "dependsOn": ["first"]},
    {"id": "first", **COUNT},
    {"id": "never", "name": "demo.countdown", "input": {"seconds": "x"}},
    {"id": "after", **COUNT, "dependsOn": ["never"]},
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "bundle.json"
    path.write_text(json.dumps({"idempotencyKey": "b1", "requests": REQUESTS}))
    return path


@pytest.mark.requirement("bundles.idempotent")
def test_a_bundle_runs_and_each_request_has_its_verdict(
    installed: Runner, worker_process: subprocess.Popen[str], file: Path
) -> None:
    ran = installed("bundle", str(file), "--json")
    again = installed("bundle", str(file), "--json")

    assert ran.code == 1  # because something was refused
    items = {item["id"]: item for item in ran.document["items"]}
    assert [item["outcome"] for item in items.values()] == [
        "created",
        "created",
        "refused",
        "refused",
    ]
    assert items["never"]["error"]["code"] == "INVALID_INPUT"
    assert items["after"]["error"]["code"] == "DEPENDENCY_REFUSED"
    assert again.document["items"][0] == {
        **items["then"],
        "outcome": "replayed",
        "status": again.document["items"][0]["status"],
    }
    shown = installed("status", items["then"]["runId"], "--wait", "60", "--json")
    assert shown.document["status"] == "succeeded"


def test_a_dry_run_of_a_bundle_enqueues_nothing(installed: Runner, file: Path) -> None:
    planned = installed("bundle", str(file), "--dry-run", "--json")
    people = installed("bundle", str(file), "--dry-run")
    listed = installed("runs", "--json")

    assert planned.document["dryRun"] is True
    assert planned.document["items"][0]["outcome"] == "created"
    assert "DEPENDENCY" not in people.out
    assert "then" in people.out
    assert listed.document["runs"] == []


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "{}",
        "[1]",
        '[{"id": "a"}]',
        '[{"id": "a", "name": "b", "colour": 1}]',
        '[{"id": "a", "name": "b", "dependsOn": "a"}]',
        '[{"id": "a", "name": "b", "onFailure": "explode"}]',
        '[{"id": "a", "name": "b", "dependsOn": ["a"]}]',
    ],
)
def test_a_wrong_file_is_refused_in_words(installed: Runner, tmp_path: Path, text: str) -> None:
    path = tmp_path / "bundle.json"
    path.write_text(text)

    ran = installed("bundle", str(path))

    assert ran.code == 1
    assert ran.err.startswith("jobforge: ")
