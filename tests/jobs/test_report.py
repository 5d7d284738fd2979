"""``report.generate``: three forms of one tenant's runs, and nothing of another's."""

from __future__ import annotations

import csv
import io
import json
from uuid import uuid4

import psycopg
import pytest

from jobforge_mcp.types import CallOrigin, NewJob, RunStatus
from tests.jobs.conftest import Runner, result_of
from tests.worker.conftest import Desk


@pytest.mark.requirement("jobs.report")
async def test_a_report_lists_the_runs_of_its_tenant_in_each_form(
    run: Runner, desk: Desk, admin: psycopg.Connection
) -> None:
    counted = await run("demo.countdown", seconds=0)
    failed = await run("connector.http.request", url="http://127.0.0.1:1/")
    admin.execute(
        "select e.status from jobforge.enter_scope('globex') s(tenant_id),"
        " lateral jobforge.enqueue_job(s.tenant_id, 'unknown.type', '{}') e"
    )

    markdown = result_of(await run("report.generate"))
    as_json = result_of(await run("report.generate", format="json", status="failed"))
    as_csv = result_of(await run("report.generate", format="csv", jobName="demo.countdown"))

    assert markdown["counts"] == {"succeeded": 1, "failed": 1}
    assert markdown["mediaType"] == "text/markdown"
    assert f"| {counted.job_id} | demo.countdown | succeeded | 1/3 |" in markdown["content"]
    assert "unknown.type" not in markdown["content"]
    (row,) = json.loads(as_json["content"])
    assert row["runId"] == str(failed.job_id)
    assert row["errorCode"] == "URL_REFUSED"
    (line,) = csv.DictReader(io.StringIO(as_csv["content"]))
    assert (line["runId"], line["status"]) == (str(counted.job_id), "succeeded")


@pytest.mark.requirement("jobs.report")
async def test_a_report_within_a_project_shows_that_project_alone(run: Runner, desk: Desk) -> None:
    for project in ("p1", "p2", None):
        job = NewJob("demo.flaky", '{"failures":0}', project_id=project)
        enqueued = await desk.router.enqueue_job(desk.caller, job, origin=CallOrigin("test"))
        await desk.until_final(enqueued.job_id)
    report = NewJob("report.generate", '{"format":"json"}', project_id="p1")
    enqueued = await desk.router.enqueue_job(desk.caller, report, origin=CallOrigin("test"))

    reported = result_of(await desk.until_final(enqueued.job_id))

    assert [row["projectId"] for row in json.loads(reported["content"])] == ["p1"]


async def test_a_report_says_when_there_are_more_runs(run: Runner) -> None:
    for _ in range(3):
        await run("demo.flaky", failures=0)

    assert result_of(await run("report.generate", limit=2))["truncated"]
    assert not result_of(await run("report.generate", jobName="demo.flaky"))["truncated"]


@pytest.mark.requirement("jobs.report")
async def test_rows_are_read_for_a_living_claim_alone(
    run: Runner, desk: Desk, admin: psycopg.Connection
) -> None:
    ended = await run("demo.flaky", failures=0)
    assert ended.status is RunStatus.SUCCEEDED
    admin.execute("set role jobforge_worker")

    for job_id, epoch in ((ended.job_id, ended.epoch), (uuid4(), 1)):
        with pytest.raises(psycopg.Error) as refused:
            admin.execute("select * from jobforge.read_runs(%s, %s, %s)", ("acme", job_id, epoch))
        assert refused.value.sqlstate == "JF410"
