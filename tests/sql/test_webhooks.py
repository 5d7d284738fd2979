"""Completion webhooks: which runs are told of, once for each time they end, and what is told."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import psycopg
import pytest

from tests.sql.acting import ECHO, Queue, Row, refused

DELIVER = "connector.webhook.deliver"


def set_up(queue: Queue, name: str = "erp", tenant: str = "acme", **config: Any) -> None:
    project = config.pop("project", None)
    given = json.dumps({
        "url": "https://erp.example/", "secrets": ["erp-key", "new.key"], "scope": "tenant", **config
    })  # fmt: skip
    queue.look(
        "select jobforge.set_completion_webhook(%s, %s, %s, %s)", tenant, name, given, project
    )


def told(queue: Queue) -> list[Row]:
    return queue.look("select * from jobforge.jobs where job_type = %s order by id", DELIVER)


def ended(queue: Queue, **named: Any) -> UUID:
    run = queue.enqueue(**named)
    queue.complete(queue.claim_one())
    return run.job_id


@pytest.mark.requirement("webhooks.completion")
def test_a_run_that_ends_is_told_of_in_the_same_transaction(queue: Queue) -> None:
    set_up(queue)

    job_id = ended(queue, project_id="p1", trace_id="t1")

    (delivery,) = told(queue)
    run = queue.look("select * from jobforge.jobs where id = %s", job_id)[0]
    assert (delivery.tenant_id, delivery.project_id, delivery.trace_id) == ("acme", "p1", "t1")
    assert (delivery.created_by, delivery.labels) == ("webhook:erp", {"completionOf": str(job_id)})
    message = delivery.payload.pop("payload")
    assert delivery.payload == {
        "url": "https://erp.example/",
        "secrets": ["secret://erp-key", "secret://new.key"],
        "messageId": f"completion_erp_{job_id}_{run.epoch}",
        "timeoutSeconds": 20,
    }
    assert message.pop("timestamp") == message["data"].pop("finishedAt")
    assert message["data"].pop("createdAt") < message["data"].pop("startedAt")
    assert message == {
        "type": "run.succeeded",
        "data": {
            "runId": str(job_id), "jobName": ECHO, "jobVersion": "1", "projectId": "p1", "traceId": "t1",
            "status": "succeeded", "attempt": 1,
        },
    }  # fmt: skip
    (claimed,) = queue.claim(types=[DELIVER])
    assert claimed.job_id == delivery.id


@pytest.mark.requirement("webhooks.completion")
def test_every_way_to_end_is_told_of_once_for_each_time(queue: Queue) -> None:
    set_up(queue)
    canceled = queue.enqueue(run_at="2999-01-01").job_id
    queue.ask("cancel_job", "acme", canceled, "not needed")
    queue.enqueue(max_attempts=1)
    queue.fail(queue.claim_one())
    failed = queue.enqueue(max_attempts=3).job_id
    queue.fail(queue.claim_one(), kind="permanent")
    queue.ask("retry_job", "acme", failed)
    queue.complete(queue.claim_one())

    messages = [row.payload for row in told(queue)]

    kinds = ["run.canceled", "run.dead", "run.failed", "run.succeeded"]
    assert [message["payload"]["type"] for message in messages] == kinds
    assert messages[1]["payload"]["data"]["errorCode"] == "OOPS"
    assert len({message["messageId"] for message in messages}) == 4


@pytest.mark.requirement("webhooks.completion")
def test_deliveries_and_dry_runs_are_not_told_of(queue: Queue) -> None:
    set_up(queue)
    queue.ask("enqueue_jobs", "acme", [ECHO], ["{}"], dry_runs=[True])
    queue.complete(queue.claim_one())
    assert told(queue) == []
    ended(queue)

    queue.complete(*queue.claim(types=[DELIVER]))

    assert len(told(queue)) == 1


@pytest.mark.parametrize(
    ("config", "is_told"),
    [
        ({"jobs": ["demo.**"]}, True),
        ({"jobs": ["shop.*", "demo.echo"]}, True),
        ({"jobs": ["shop.**"]}, False),
        ({"statuses": ["succeeded"]}, True),
        ({"statuses": ["failed", "dead"]}, False),
        ({"project": "p1"}, True),
        ({"project": "p2"}, False),
        ({"scope": "label"}, False),
        ({"tenant": "globex"}, False),
    ],
)
def test_only_runs_that_were_asked_for_are_told_of(
    queue: Queue, config: dict[str, Any], is_told: bool
) -> None:
    tenant = str(config.pop("tenant", "acme"))
    set_up(queue, tenant=tenant, **config)

    ended(queue, project_id="p1")

    assert (len(told(queue)) == 1) is is_told


def test_a_label_chooses_a_webhook_and_no_address(queue: Queue) -> None:
    set_up(queue, "one", scope="label")
    set_up(queue, "two", scope="label")

    ended(queue, labels='{"webhook": "two"}')
    ended(queue, labels='{"webhook": "https://elsewhere.example/"}')

    assert [row.created_by for row in told(queue)] == ["webhook:two"]


@pytest.mark.parametrize(("has_result", "is_large"), [(False, False), (True, False), (True, True)])
def test_a_result_is_sent_only_if_asked_for_and_small(
    queue: Queue, has_result: bool, is_large: bool
) -> None:
    set_up(queue, includeResult=has_result)
    queue.enqueue()
    result = {"total": None, "text": "x" * 40_000 if is_large else "x"}

    queue.complete(queue.claim_one(), result=json.dumps(result))

    data = told(queue)[0].payload["payload"]["data"]
    assert data.get("result") == (result if has_result and not is_large else None)


def test_limits_and_bounds_on_callers_keep_no_run_from_ending(queue: Queue) -> None:
    set_up(queue)
    job_id = queue.enqueue().job_id
    queue.look("select jobforge.set_limit('acme', 'tenant', null, '{\"max_queued\": 0}')")

    queue.ask("cancel_job", "acme", job_id, "no")

    assert len(told(queue)) == 1


@pytest.mark.parametrize(
    "config",
    [
        {"url": "ftp://a"}, {"url": None}, {"secrets": []}, {"secrets": ["a b"]}, {"secrets": "a"}, {"secrets": ["a"] * 5},
        {"scope": "all"}, {"jobs": ["**.a"]}, {"jobs": [1]}, {"statuses": ["running"]}, {"statuses": "dead"},
        {"includeResult": "yes"}, {"unknown": 1}, {"project": "no project"},
    ],
    ids=str,
)  # fmt: skip
def test_a_webhook_that_could_not_be_delivered_is_refused(
    queue: Queue, config: dict[str, Any]
) -> None:
    with pytest.raises(psycopg.Error) as caught:
        set_up(queue, **config)

    assert caught.value.sqlstate == "JF400"


def test_a_tenant_has_twenty_webhooks_at_most(queue: Queue) -> None:
    for number in range(20):
        set_up(queue, f"hook{number}")
    set_up(queue, "hook1", scope="label")

    with pytest.raises(psycopg.Error) as caught:
        set_up(queue, "one-more")

    assert caught.value.sqlstate == "JF400"


def received(queue: Queue, delivery: str = "d1", tenant: str = "acme") -> Row:
    (row,) = queue.ask("receive_webhook", tenant, "hub", delivery, "hub.push", "{}")
    return row


@pytest.mark.requirement("webhooks.in")
def test_a_delivery_is_known_for_a_day_by_its_id(queue: Queue) -> None:
    given = '{"scheme": "github", "secrets": ["k"]}'
    for tenant in ("acme", "globex"):
        queue.look("select jobforge.set_incoming_webhook(%s, 'hub', %s, 'p1')", tenant, given)
    first = received(queue)
    again = received(queue)
    other, foreign = received(queue, "d2"), received(queue, tenant="globex")
    queue.look("update jobforge.webhook_receipts set expires_at = jobforge.now()")
    later = received(queue)

    assert (first.outcome, again.outcome, again.event_id) == ("created", "replayed", first.event_id)
    assert (other.outcome, foreign.outcome, later.outcome) == ("created",) * 3
    assert len({row.event_id for row in (first, other, foreign, later)}) == 4
    events = queue.look("select * from jobforge.events where id = %s", later.event_id)
    assert [(row.source, row.project_id) for row in events] == [("webhook:hub", "p1")]
    kept = queue.look("select * from jobforge.webhook_receipts where tenant_id = 'acme'")
    assert [row.delivery_id for row in kept] == ["d1"]
    assert queue.ask("get_webhook", "initech", "hub")[0].get_webhook is None
    with refused("JF404"):
        queue.ask("receive_webhook", "initech", "hub", "d1", "hub.push", "{}")
