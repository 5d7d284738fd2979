"""Callers of a soak: several tenants that enqueue, repeat, cancel, retry and poll, and write down what they were told.

An answer that did not come is neither yes nor no: the call is repeated with its key until there is one, as an agent that
lost a connection would. A call without a key is made once, whatever comes of it.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar, cast
from uuid import uuid4

import anyio
import psycopg

from jobforge_mcp.client.options import Options
from jobforge_mcp.client.verbs import Client
from jobforge_mcp.db.context import ContextKey, ContextSigner
from jobforge_mcp.db.pool import Database
from jobforge_mcp.definitions.installed import load_registry
from jobforge_mcp.errors import CallerError
from jobforge_mcp.policy.scopes import ALL_SCOPES
from jobforge_mcp.router.events import EventRouter
from jobforge_mcp.router.jobs import Router
from jobforge_mcp.router.scope import ScopeSigner
from jobforge_mcp.settings import load_settings
from jobforge_mcp.triggers.desk import EventDesk
from jobforge_mcp.types import Caller, JobId, JsonValue, Run, RunStatus, TenantId
from soak.history import History
from soak.planes import Planes

LOAD = float(os.environ.get("SOAK_LOAD", "1"))
"""Share of the usual calls that are made."""
LOOPS = 6
PAUSE_SECONDS = 0.15 / LOAD
BULK, MOST_BULK = 20, 200
"""Jobs of one call in bulk."""
JOBS_A_SECOND = 32 * LOAD
"""Of each tenant; what single calls do not make up is enqueued in bulk."""
POLLED = 200
BURST, BURST_MILLISECONDS = 8, 150
"""Jobs of one limit or one ordering key that come at once, and how long the limited ones work: most have to wait for others."""
POISONS = float(os.environ.get("SOAK_POISONS", "0.001"))
"""Share of the jobs that kill their worker."""
LOOK_SECONDS = 0.1
RETRIED = 0.1
"""Share of the bad ends whose run is tried again by whoever sees them."""
UNKEYED = 0.35
"""Share of the jobs that are enqueued without an idempotency key."""
T = TypeVar("T")


class Crowd:
    """The callers of one tenant in this process."""

    def __init__(
        self,
        client: Client,
        tenant: str,
        history: History,
        url: str,
        signer: ScopeSigner,
        seed: int,
    ) -> None:
        """Act through a client as one tenant."""
        self.client = client
        self.signer = signer
        self.tenant = tenant
        self.history = history
        self.url = url
        self.chance = random.Random(seed)
        self._recent: deque[JobId] = deque(maxlen=POLLED)
        self.is_stopping = False
        self._made = 0
        self._began = anyio.current_time()

    async def run(self) -> None:
        """Call until told to stop."""
        planes = Planes(self)
        async with anyio.create_task_group() as group:
            for loop in (
                planes.submit_events,
                planes.submit_by_sql,
                planes.run_bundles,
                planes.run_chains,
            ):
                group.start_soon(loop)
            for number in range(LOOPS):
                group.start_soon(self._enqueue_loop, number)
            group.start_soon(self._burst_loop)
            group.start_soon(self._order_loop)
            group.start_soon(self._poll_loop)
            group.start_soon(self._retry_loop)
            group.start_soon(self._disturb_loop)

    async def _enqueue_loop(self, number: int) -> None:
        key = f"{os.getpid()}-{number}"
        sequence = 0
        while not self.is_stopping:
            job_id = None
            kind = self.chance.random()
            if kind < 0.25:
                sequence += 1
                job_id = await self._enqueue("soak.quick", ordering_key=key, sequence=sequence)
            elif kind < 0.5 and (behind := self._behind()) > BULK:
                await self._enqueue_bulk("soak.quick", min(behind, MOST_BULK))
            else:
                job_id = await self._enqueue(*self._any_job())
            if job_id is not None:
                self._recent.append(job_id)
            await anyio.sleep(self.chance.random() * PAUSE_SECONDS)

    def _any_job(self) -> tuple[str, dict[str, object]]:
        if self.chance.random() < POISONS:
            return "soak.poison", {}
        draw = self.chance.random()
        if draw < 0.62:
            return "soak.quick", {}
        if draw < 0.80:
            return "soak.flaky", {"fails": self.chance.choice([0, 0, 1, 1, 2, 5])}
        if draw < 0.85:
            return "soak.slow", {"milliseconds": self.chance.randrange(100, 1_500)}
        if draw < 0.89:
            return "soak.blocking", {"milliseconds": self.chance.randrange(10, 100)}
        if draw < 0.93:
            return "soak.limited", {"milliseconds": self.chance.randrange(0, 50)}
        return "soak.hopeless", {}

    async def _enqueue(
        self,
        name: str,
        more: dict[str, object] | None = None,
        *,
        ordering_key: str | None = None,
        sequence: int | None = None,
    ) -> JobId | None:
        self._made += 1
        nonce = uuid4().hex
        work = {"nonce": nonce, **(more or {}), **({"sequence": sequence} if sequence else {})}
        is_keyed = ordering_key is not None or self.chance.random() >= UNKEYED
        run_at = None
        if sequence is None and is_keyed and self.chance.random() < 0.1:
            run_at = datetime.now(UTC) + timedelta(seconds=self.chance.random() * 3)
        chosen = Options(
            idempotency_key=nonce if is_keyed else None,
            run_at=run_at,
            priority=self.chance.choice([0, 1, 2, 2, 2, 3]),
            ordering_key=ordering_key,
        )
        self.history.note(
            "enqueue", tenant=self.tenant, nonce=nonce, name=name, sequence=sequence,
            key=chosen.ordering_key, run_at=run_at.timestamp() if run_at else None, keyed=is_keyed,
        )  # fmt: skip
        enqueued = await self.insist(
            lambda: self.client.enqueue(name, cast("JsonValue", work), chosen),
            nonce,
            is_keyed=is_keyed,
        )
        if enqueued is None:
            return None
        self.told(nonce, enqueued.job_id)
        if is_keyed and self.chance.random() < 0.1:
            again = await self.insist(
                lambda: self.client.enqueue(name, cast("JsonValue", work), chosen), nonce
            )
            if again is not None:
                self.told(nonce, again.job_id)
        return enqueued.job_id

    def _behind(self) -> int:
        """Return how many jobs are missing to the rate that this tenant is to keep up, whatever was out of reach."""
        return int((anyio.current_time() - self._began) * JOBS_A_SECOND) - self._made

    async def _burst_loop(self) -> None:
        """Enqueue more jobs of one limit and of one ordering key at once than may run at once."""
        key, sequence = f"{os.getpid()}-burst", 0
        while not self.is_stopping:
            await self._enqueue_bulk("soak.limited", BURST, milliseconds=BURST_MILLISECONDS)
            await self._enqueue_bulk("soak.quick", BURST, ordering_key=key, sequence=sequence)
            sequence += BURST
            await anyio.sleep(self.chance.uniform(0.5, 2.5) / LOAD)

    async def _enqueue_bulk(
        self,
        name: str,
        count: int,
        *,
        ordering_key: str | None = None,
        sequence: int = 0,
        **more: JsonValue,
    ) -> None:
        self._made += count
        nonces = [uuid4().hex for _ in range(count)]
        is_keyed = ordering_key is not None or self.chance.random() >= UNKEYED
        for nonce in nonces:
            self.history.note(
                "enqueue", tenant=self.tenant, nonce=nonce, name=name, bulk=True, keyed=is_keyed
            )
        works: list[dict[str, JsonValue]] = [{"nonce": nonce, **more} for nonce in nonces]
        if ordering_key is not None:
            works = [{**work, "sequence": sequence + at} for at, work in enumerate(works, 1)]
        jobs = [
            (
                name,
                cast("JsonValue", work),
                Options(idempotency_key=nonce if is_keyed else None, ordering_key=ordering_key),
            )
            for nonce, work in zip(nonces, works, strict=True)
        ]
        answers = await self.insist(
            lambda: self.client.enqueue_many(jobs), nonces[0], is_keyed=is_keyed
        )
        for nonce, answer in zip(nonces, answers or [], strict=False):
            self.told(nonce, answer.job_id)

    async def _order_loop(self) -> None:
        """Place an order and its job in one transaction of the application's, which may be rolled back."""
        while not self.is_stopping:
            nonce = uuid4().hex
            self.history.note("order", tenant=self.tenant, nonce=nonce)
            is_kept = self.chance.random() < 0.7
            try:
                with anyio.move_on_after(10):
                    connection = await psycopg.AsyncConnection.connect(self.url, connect_timeout=3)
                    async with connection:
                        await connection.execute(
                            "insert into soak.orders (nonce) values (%s)", [nonce]
                        )
                        await self.client.enqueue(
                            "soak.quick", {"nonce": nonce}, connection=connection
                        )
                        if not is_kept:
                            await connection.rollback()
                self.history.note("order_ended", nonce=nonce, kept=is_kept)
            except Exception:  # noqa: BLE001 - no answer: neither yes nor no
                self.history.note("order_unknown", nonce=nonce)
            await anyio.sleep(0.2)

    async def _poll_loop(self) -> None:
        while not self.is_stopping:
            for job_id in list(self._recent):
                try:
                    await self._poll(job_id)
                except CallerError as error:
                    self.history.note("poll_refused", run=str(job_id), code=error.code)
                except Exception:  # noqa: BLE001 - whatever the nemesis caused, the next poll tells
                    await anyio.sleep(0.1)
                await anyio.sleep(0.01)
            await anyio.sleep(0.1)

    async def _retry_loop(self) -> None:
        """Enqueue what fails for good, and look at it before and after it is tried again."""
        while not self.is_stopping:
            job_id = await self._enqueue("soak.hopeless")
            with anyio.move_on_after(10):
                while job_id is not None and not self.is_stopping:
                    with suppress(Exception):  # whatever the nemesis caused, the next look tells
                        if await self._poll(job_id, 1):
                            break
                    await anyio.sleep(LOOK_SECONDS)
            await anyio.sleep(self.chance.random())

    async def _poll(self, job_id: JobId, retried: float = RETRIED) -> bool:
        """Look at a run; if it ended badly, have it tried again now and then, see what becomes of it, and say so."""

        def saw(run: Run) -> Run:
            self.history.note("poll", run=str(job_id), status=run.status.value, version=run.version)
            return run

        with anyio.fail_after(10):
            run = saw(await self.client.get(job_id))
            is_bad = run.status in (RunStatus.FAILED, RunStatus.DEAD)
            if is_bad and run.job_type != "soak.poison" and self.chance.random() < retried:
                self.history.note("retry", run=str(job_id))
                saw(await self.client.retry(job_id, if_version=run.version))
                saw(await self.client.get(job_id))
                return True
        return False

    async def _disturb_loop(self) -> None:
        """Cancel some runs."""
        while not self.is_stopping:
            await anyio.sleep(0.3)
            if not self._recent:
                continue
            job_id = self.chance.choice(self._recent)
            try:
                with anyio.fail_after(10):
                    run = await self.client.get(job_id)
                    if not run.status.is_final:
                        self.history.note("cancel", run=str(job_id))
                        after = await self.client.cancel(job_id)
                        self.history.note("canceled", run=str(job_id), status=after.status.value)
            except Exception:  # noqa: BLE001 - unknown is an outcome here
                await anyio.sleep(0.1)

    async def insist(
        self, call: Callable[[], Awaitable[T]], nonce: str, *, is_keyed: bool = True
    ) -> T | None:
        """Repeat a call until it is answered; give up only when the soak does, or at once where nobody would know it again."""
        deadline: float | None = None
        while True:
            try:
                with anyio.fail_after(10):
                    return await call()
            except CallerError as error:
                if not error.retryable:
                    self.history.note("refused", nonce=nonce, code=error.code)
                    return None
            except Exception as error:  # noqa: BLE001 - no answer: neither yes nor no
                self.history.note("unknown", nonce=nonce, error=type(error).__name__)
            if not is_keyed:
                return None
            if self.is_stopping:
                deadline = deadline or anyio.current_time() + 30
                if anyio.current_time() > deadline:
                    return None
            await anyio.sleep(0.1)

    def told(self, nonce: str, job_id: JobId) -> None:
        self.history.note("told", nonce=nonce, run=str(job_id))


async def main() -> None:
    """Run the crowds of some tenants until SIGTERM."""
    folder, seed, *tenants = sys.argv[1:]
    settings = load_settings()
    registry = load_registry(settings)
    history = History(Path(folder), "caller")
    url = os.environ["DATABASE_URL"]
    signer = ContextSigner(ContextKey.parse(os.environ["JOBFORGE_CONTEXT_KEY"]))
    async with Database(url, role="jobforge_api", max_size=10, name="soak") as database:
        desk = EventDesk(EventRouter(database, signer=signer), registry)
        crowds = [
            Crowd(
                Client(
                    Router(database, signer=signer), registry, Caller(TenantId(tenant), "soak", ALL_SCOPES), desk=desk
                ),
                tenant, history, url, signer, int(seed) + number,
            )
            for number, tenant in enumerate(tenants)
        ]  # fmt: skip
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            async with anyio.create_task_group() as group:
                for crowd in crowds:
                    group.start_soon(crowd.run)
                async for _ in signals:
                    break
                for crowd in crowds:
                    crowd.is_stopping = True


if __name__ == "__main__":
    anyio.run(main)
