"""Callers of what stands above single jobs: events with triggers, bundles, and chains of registered jobs."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from random import Random
from typing import Protocol, TypeVar, cast
from uuid import UUID, uuid4

import anyio
import psycopg

from jobforge_mcp.client.bundles import BundleRequest
from jobforge_mcp.client.options import Options
from jobforge_mcp.client.verbs import Client
from jobforge_mcp.router.scope import ScopeSigner
from jobforge_mcp.types import JobId, JsonValue
from soak.history import History
from soak.stage import CHAIN, EVENT

T = TypeVar("T")


class Tenant(Protocol):
    """Who calls: `soak.callers.Crowd`."""

    client: Client
    tenant: str
    history: History
    url: str
    signer: ScopeSigner
    chance: Random
    is_stopping: bool

    async def insist(self, call: Callable[[], Awaitable[T]], nonce: str) -> T | None:
        """Repeat a call until it is answered."""
        ...

    def told(self, nonce: str, job_id: JobId) -> None:
        """Write down which run was told."""
        ...


class Planes:
    """Loops of one tenant."""

    def __init__(self, caller: Tenant) -> None:
        """Call as this one."""
        self._caller = caller

    async def submit_events(self) -> None:
        """Submit events to a server, whose triggers decide in the same transaction; some of them twice."""
        me = self._caller
        while not me.is_stopping:
            nonce, payload = self._order()
            for _ in range(2 if me.chance.random() < 0.2 else 1):
                told = await me.insist(
                    lambda nonce=nonce, payload=payload: me.client.events.submit(
                        EVENT, payload, idempotency_key=nonce
                    ),
                    nonce,
                )
                if told is not None and told.event_id is not None:
                    self._told_event(nonce, told.event_id)
            await anyio.sleep(me.chance.random() * 0.6)

    async def submit_by_sql(self) -> None:
        """Submit events as an application does in its own transaction: whoever maintains asks their triggers later."""
        me = self._caller

        async def submit(nonce: str, payload: dict[str, JsonValue]) -> UUID:
            connection = await psycopg.AsyncConnection.connect(me.url, connect_timeout=3)
            async with connection:
                signature = me.signer.sign(me.tenant, "soak", None, None, None, None)
                await connection.execute(
                    "select jobforge.enter_scope(%s, 'soak', p_signature => %s)",
                    [me.tenant, signature],
                )
                cursor = await connection.execute(
                    "select event_id from jobforge.submit_event(%s, %s, %s::jsonb, p_idempotency_key => %s)",
                    [me.tenant, EVENT, json.dumps(payload), nonce],
                )
                row = await cursor.fetchone()
                assert row is not None
            return cast("UUID", row[0])

        while not me.is_stopping:
            nonce, payload = self._order()
            event_id = await me.insist(
                lambda nonce=nonce, payload=payload: submit(nonce, payload), nonce
            )
            if event_id is not None:
                self._told_event(nonce, event_id)
            await anyio.sleep(me.chance.random() * 2)

    async def run_bundles(self) -> None:
        """Enqueue three jobs of which the second needs the first, and the third comes last whatever happens."""
        me = self._caller
        while not me.is_stopping:
            first, second, last = (uuid4().hex for _ in range(3))
            fails = 5 if me.chance.random() < 0.3 else 0
            me.history.note("bundle", tenant=me.tenant, nonces=[first, second, last])
            for nonce in (first, second, last):
                me.history.note(
                    "enqueue", tenant=me.tenant, nonce=nonce, name="soak.flaky", bulk=True
                )
            requests = [
                _request("first", first, fails=fails),
                _request("second", second, depends_on=("first",)),
                _request("last", last, depends_on=("second",), is_anyway=True),
            ]
            verdicts = await me.insist(
                lambda requests=requests, key=first: me.client.enqueue_bundle(
                    requests, idempotency_key=f"bundle-{key}"
                ),
                first,
            )
            for nonce, verdict in zip((first, second, last), verdicts or [], strict=False):
                if verdict.run_id is not None:
                    me.told(nonce, verdict.run_id)
            await anyio.sleep(me.chance.random() * 3)

    async def run_chains(self) -> None:
        """Run a registered chain, whose steps no worker keeps in mind."""
        me = self._caller
        while not me.is_stopping:
            nonce = uuid4().hex
            steps = [f"{nonce}/{number}" for number in range(3)]
            work: JsonValue = {
                "nonce": nonce,
                "steps": cast("JsonValue", steps),
                "rest": cast("JsonValue", steps[1:]),
            }
            me.history.note("enqueue", tenant=me.tenant, nonce=nonce, name=CHAIN)
            me.history.note("chain", tenant=me.tenant, nonce=nonce, steps=steps)
            enqueued = await me.insist(
                lambda nonce=nonce, work=work: me.client.enqueue(
                    CHAIN, work, Options(idempotency_key=nonce)
                ),
                nonce,
            )
            if enqueued is not None:
                me.told(nonce, enqueued.job_id)
            await anyio.sleep(me.chance.random() * 3)

    def _order(self) -> tuple[str, dict[str, JsonValue]]:
        me = self._caller
        nonce = uuid4().hex
        is_big = me.chance.random() < 0.3
        me.history.note("event", tenant=me.tenant, nonce=nonce, big=is_big)
        return nonce, {"nonce": nonce, "big": is_big}

    def _told_event(self, nonce: str, event_id: UUID) -> None:
        self._caller.history.note("event_told", nonce=nonce, event=str(event_id))


def _request(
    id: str,
    nonce: str,
    *,
    fails: int = 0,
    depends_on: tuple[str, ...] = (),
    is_anyway: bool = False,
) -> BundleRequest:
    return BundleRequest(
        id,
        "soak.flaky",
        {"nonce": nonce, "fails": fails},
        depends_on=depends_on,
        on_failure="continue" if is_anyway else "cancel",
    )
