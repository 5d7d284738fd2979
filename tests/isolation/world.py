"""Three tenants with a run in every state, and everything that could be shown of them marked as theirs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from tests.sql.acting import ECHO, Queue, fences, leave_artifact, leave_event

WEBHOOK = '{"scheme": "github", "secrets": ["key"]}'
TENANTS = ("acme", "globex", "initech")


def canary(tenant: str) -> str:
    """The mark that everything of a tenant carries."""
    return f"canary-{tenant}"


@dataclass(frozen=True, slots=True)
class Belongings:
    """What a tenant has, by what identifies it."""

    tenant: str
    succeeded: UUID
    failed: UUID
    running: UUID
    queued: UUID
    waiting: UUID
    lease: UUID
    epoch: int

    @property
    def runs(self) -> tuple[UUID, ...]:
        return self.succeeded, self.failed, self.running, self.queued, self.waiting


def settle_in(queue: Queue, tenants: Iterable[str] = TENANTS) -> dict[str, Belongings]:
    """Give each tenant its runs."""
    return {tenant: _belongings(queue, tenant) for tenant in tenants}


def _belongings(queue: Queue, tenant: str) -> Belongings:
    mark = canary(tenant)
    payload = json.dumps({"mark": mark})

    def enqueue(**named: object) -> UUID:
        labels = json.dumps({"mark": mark})
        return queue.enqueue(
            tenant, ECHO, payload, project_id=mark, labels=labels, trace_id=mark, **named
        ).job_id

    leave_event(queue, tenant, mark)
    queue.look("select jobforge.set_incoming_webhook(%s, %s, %s)", tenant, mark, WEBHOOK)
    succeeded = enqueue()
    done = queue.claim_one(tenant_ids=[tenant])
    leave_artifact(queue, done, content=mark.encode())
    facts = json.dumps({"decisions": [{"name": "mark", "choice": mark}]})
    queue.work("complete_jobs", *fences([done]), [json.dumps(mark)], [facts])
    failed = enqueue(max_attempts=1)
    lost = queue.claim_one(tenant_ids=[tenant])
    error = json.dumps({"code": "OOPS", "message": mark, "retryable": False})
    queue.work("fail_jobs", *fences([lost]), ["failed"], [error], [mark], [None])
    running = enqueue()
    held = queue.claim_one(tenant_ids=[tenant])
    leave_artifact(queue, held, name=f"{mark}.txt", content=mark.encode(), store="directory")
    queue.report(held, 1, 2, mark, json.dumps([["info", mark]]))
    rest = [None, None, None, 2, None, None, "1", 3, 0, 1.0, 0, 1000]
    queue.work("enqueue_child", *[part[0] for part in fences([held])], ECHO, payload, *rest)
    queued = enqueue(ordering_key=mark, idempotency_key=mark)
    waiting = enqueue(ordering_key=mark)
    definition = json.dumps({"name": mark, "handler": ECHO, "description": mark})
    queue.ask("register_definition", tenant, definition, ECHO)
    queue.ask("pause_queue", tenant, "type", f"nobody.runs.{mark}", mark)
    return Belongings(
        tenant, succeeded, failed, running, queued, waiting, held.lease_id, held.epoch
    )
