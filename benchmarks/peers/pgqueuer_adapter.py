"""PgQueuer as a contender, in the set-up its own benchmark uses: five consumers a process, one connection each."""

# It runs in an environment of its own, which the type checker of this one cannot see.
# pyright: reportMissingImports=false, reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUntypedFunctionDecorator=false, reportUnusedFunction=false

from __future__ import annotations

import json
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import anyio
import asyncpg
from contract import CONCURRENCY, DSN, Contender, Counter, main
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries

CONSUMERS = 5
BATCH = CONCURRENCY or 200


def _version() -> str:
    try:
        return version("pgqueuer")
    except PackageNotFoundError:
        return "unknown"


class Pgqueuer(Contender):
    name = "pgqueuer"
    version = _version()
    config = (
        f"asyncpg, uvloop, {CONSUMERS} consumers a process, batch_size {BATCH}, default durability"
    )
    pending_sql = "select count(*) from pgqueuer"

    def __init__(self) -> None:
        self._connections: list[Any] = []

    async def setup(self) -> None:
        connection = await asyncpg.connect(DSN)
        await Queries(AsyncpgDriver(connection)).install()
        await connection.close()

    async def open(self, clients: int) -> None:
        self._connections = [await asyncpg.connect(DSN) for _ in range(clients)]
        self._queries = [Queries(AsyncpgDriver(each)) for each in self._connections]

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()

    async def enqueue(self, client: int, number: int, sent_at: float) -> None:
        await self._queries[client].enqueue("noop", _payload(number, sent_at), 0)

    async def bulk(self, count: int) -> None:
        payloads = [_payload(number, 0.0) for number in range(count)]
        await self._queries[0].enqueue(["noop"] * count, payloads, [0] * count)

    async def work(self, counter: Counter, stop: anyio.Event) -> None:
        consumers: list[Any] = []
        for _ in range(CONSUMERS):
            consumer = PgQueuer(AsyncpgDriver(await asyncpg.connect(DSN)))

            @consumer.entrypoint("noop")
            async def noop(job: Any) -> None:
                counter.hit(json.loads(job.payload)["t"])

            consumers.append(consumer)
        async with anyio.create_task_group() as tasks:
            for consumer in consumers:
                tasks.start_soon(_consume, consumer)
            await stop.wait()
            for consumer in consumers:
                consumer.shutdown.set()
            await anyio.sleep(1)
            tasks.cancel_scope.cancel()


async def _consume(consumer: Any) -> None:
    await consumer.run(batch_size=BATCH)


def _payload(number: int, sent_at: float) -> bytes:
    return json.dumps({"i": number, "t": sent_at}).encode()


if __name__ == "__main__":
    main(Pgqueuer())
