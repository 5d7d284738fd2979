"""What a soak is given before anybody calls: triggers, schedules, registered jobs, and the tokens of its agents."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from uuid import uuid4

from jobforge_mcp.client.options import Options
from jobforge_mcp.client.verbs import Client
from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.loader import load_jobs
from jobforge_mcp.definitions.registry import Registry
from jobforge_mcp.policy.keys import KeyFolder
from jobforge_mcp.policy.scopes import ALL_SCOPES
from jobforge_mcp.policy.tokens import Grant, issue_token
from jobforge_mcp.router.events import EventRouter
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.scope import ScopeSigner
from jobforge_mcp.settings import load_settings
from jobforge_mcp.triggers.desk import EventDesk
from jobforge_mcp.types import Caller, JsonObject, TenantId, TriggerKind, TriggerSpec
from soak.history import History

CHAIN = "chain.of-three"
POISON = "soak.poison"
EVENT = "soak.order"
EVENT_TRIGGERS = {"each": False, "big": True}
"""Triggers of every tenant, and whether they want big orders alone."""

CATCH_UPS = ("all", "one", "none")
"""What the schedules of a tenant do about times that were missed: one of each."""

_MAPPING: JsonObject = {"nonce": {"$ref": "/event/payload/nonce"}}

CHAIN_DEFINITION: JsonObject = {
    "name": CHAIN,
    "description": "Runs one job, then two at once.",
    "inputSchema": {"type": "object"},
    "timeoutMs": 3_600_000,  # five minutes are soon over where half the time there is no database
    "retry": {
        "maxAttempts": 25,
        "backoffMs": 100,
    },  # and so are three attempts where workers are killed by the dozen
    "chain": [
        {
            "name": "first",
            "handler": "soak.quick",
            "input": {"nonce": {"$ref": "/input/steps/0"}},
        },
        {
            "name": "rest",
            "map": {
                "items": {"$ref": "/input/rest"},
                "do": {"handler": "soak.quick", "input": {"nonce": {"$ref": "/item"}}},
            },
        },
    ],
}


async def prepare(url: str, jobs: Path, tenants: list[str], scheduled: list[str]) -> None:
    """Register what the tenants have, and schedules for some of them."""
    registry = Registry(load_jobs([jobs]))
    async with Database(url, role="jobforge_api", max_size=2, name="soak") as database:
        desk = EventDesk(EventRouter(database), registry)
        for tenant in tenants:
            caller = Caller(TenantId(tenant), "soak", ALL_SCOPES)
            client = Client(Router(database), registry, caller, desk=desk)
            await client.register_job(CHAIN_DEFINITION)
            for name, is_big in EVENT_TRIGGERS.items():
                await client.events.register_trigger(
                    TriggerSpec(
                        name,
                        TriggerKind.EVENT,
                        "soak.event",
                        event_type=EVENT,
                        match={"$ref": "/event/payload/big", "equals": True} if is_big else None,
                        input_mapping={**_MAPPING, "trigger": name},
                    )
                )
            if tenant not in scheduled:
                continue
            for catch_up in CATCH_UPS:
                await client.events.register_trigger(
                    TriggerSpec(
                        f"tick-{catch_up}",
                        TriggerKind.CRON,
                        "soak.tick",
                        input={"nonce": f"tick-{catch_up}"},
                        cron="* * * * *",
                        catch_up=catch_up,
                        catch_up_most=1_000 if catch_up == "all" else None,
                        overlap="queue",
                    )
                )


async def enqueue_last(
    url: str, jobs: Path, tenant: str, history: History, signer: ScopeSigner
) -> None:
    """Enqueue a job that kills its worker while nothing else is there."""
    nonce = uuid4().hex
    history.note("enqueue", tenant=tenant, nonce=nonce, name=POISON)
    async with Database(url, role="jobforge_api", max_size=1, name="soak") as database:
        caller = Caller(TenantId(tenant), "soak", ALL_SCOPES)
        client = Client(Router(database, signer=signer), Registry(load_jobs([jobs])), caller)
        enqueued = await client.enqueue(POISON, {"nonce": nonce}, Options(idempotency_key=nonce))
    history.note("told", nonce=nonce, run=str(enqueued.job_id))


def issue_tokens(folder: Path, tenants: list[str]) -> dict[str, str]:
    """Make keys and a token for an agent of each tenant."""
    key = KeyFolder(folder).ensure()
    settings = load_settings(token_keys=str(folder))
    return {
        tenant: issue_token(
            key,
            Grant(tenant, ALL_SCOPES, subject=f"agent@{tenant}", lifetime=timedelta(hours=12)),
            issuer=settings.token_issuer,
            audience=settings.token_audience,
        )
        for tenant in tenants
    }
