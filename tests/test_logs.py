"""Logging: to stderr, one way for all libraries, and silent about what others should not read."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator

import pytest
import structlog

from jobforge_mcp.logs import configure_logging


@pytest.fixture(autouse=True)
def restored() -> Generator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    structlog.reset_defaults()


def test_a_line_is_one_json_object_on_stderr_that_begins_with_time_level_and_event(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("info", "json")

    structlog.stdlib.get_logger("jobforge_mcp.test").info("run_started", job_id="j1")

    captured = capsys.readouterr()
    line = json.loads(captured.err)
    assert captured.out == ""
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert (line["event"], line["job_id"], line["level"]) == ("run_started", "j1", "info")


def test_what_is_less_severe_than_the_level_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("warning", "json")

    structlog.stdlib.get_logger("jobforge_mcp.test").info("run_started")
    structlog.stdlib.get_logger("jobforge_mcp.test").warning("lease_lost")

    assert [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()] == [
        "lease_lost"
    ]


def test_debug_is_ours_alone(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug", "console")

    logging.getLogger("psycopg").debug("select canary")
    logging.getLogger("mcp.server").info("session canary")
    structlog.stdlib.get_logger("jobforge_mcp.test").debug("claimed_batch")

    shown = capsys.readouterr().err
    assert "canary" not in shown
    assert "claimed_batch" in shown


def test_an_exception_is_logged_with_its_trace(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")

    try:
        raise ValueError("broken")
    except ValueError:
        structlog.stdlib.get_logger("jobforge_mcp.test").exception("attempt_failed")

    assert "ValueError: broken" in json.loads(capsys.readouterr().err)["exception"]
