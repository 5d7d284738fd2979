"""What goes wrong in a soak, at random and as often as told: one fault at a time, each written down."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial

import anyio
import anyio.to_thread
import psycopg
from anyio.abc import TaskGroup

from soak.crew import LEASE_SECONDS, Crew
from soak.history import History
from soak.proxy import Proxy
from soak.server import Server

MADE_UP = 10
"""Faults that may be made up for at once."""
RESTART_SECONDS, CALM_SECONDS = 180.0, 8.0
"""What PostgreSQL gets to come up, and what passes before it goes down again: else where workers take long to start it is mostly
down."""
HOLE_SECONDS = 3.0
"""Between two black holes: where workers take long to start, one on the other would be most of what there is."""
_NEWEST = """
    (select n.id::text, null::integer as ended_at_epoch, false as is_in_memory
    from jobforge.tenants t
    cross join lateral (select j.id from jobforge.jobs j where j.tenant_id = t.tenant_id order by j.id desc limit 10) n)
    union all
    (select a.job_id::text, null, a.lsn > pg_current_wal_flush_lsn() from soak.arrivals a order by a.seq desc limit 10)
    union all
    (select e.job_id::text, e.epoch, e.lsn > pg_current_wal_flush_lsn()
    from soak.ends e where e.after is not null order by e.seq desc limit 30)"""
"""Runs that can be seen, and ends: what anybody could see is there after whatever happens next. Least sure is what can be seen
and is in memory alone, which nothing ever should be."""
AIM_SECONDS = 1.0
"""How long such a moment is looked for."""
_END_SETTLES = """
    select pg_terminate_backend(a.pid) from pg_stat_activity a
    where a.state = 'active' and a.pid <> pg_backend_pid() and a.query ~ 'jobforge.(complete|fail)_jobs'"""
Act = Callable[[], Awaitable[None]]
Fault = Callable[[TaskGroup], Awaitable[bool | None]]


class Nemesis:
    """Breaks things, and leaves everything mended when it stops."""

    def __init__(
        self,
        server: Server,
        proxy: Proxy,
        crew: Crew,
        history: History,
        chance: random.Random,
        emphasis: Mapping[str, float],
    ) -> None:
        """Act on these; ``chance`` decides what and when, and ``emphasis`` changes the weight of some faults."""
        self._server = server
        self._proxy = proxy
        self._crew = crew
        self._history = history
        self._chance = chance
        self.counts: Counter[str] = Counter()
        self._held_until = 0.0
        self._restarted_at = 0.0
        self._calm_seconds = 0.0 if emphasis else CALM_SECONDS
        faults: list[tuple[str, float, Fault]] = [
            ("worker killed", 26, self._kill_worker),
            ("worker stopped past its lease", 14, self._freeze_worker),
            ("worker told to end", 10, self._end_worker),
            ("connections cut", 14, self._cut),
            ("replies swallowed", 14, self._lose_replies),
            ("black hole", 5, self._hold),
            ("backends terminated", 8, self._terminate),
            ("settles terminated", 3, self._terminate_settles),
            ("server killed", 4, partial(self._end_server, signal.SIGKILL)),
            ("server told to end", 2, partial(self._end_server, signal.SIGTERM)),
            ("node killed", 3, partial(self._end_node, signal.SIGKILL)),
            ("node told to end", 1, partial(self._end_node, signal.SIGTERM)),
            ("bridge killed", 4, self._end_bridge),
            ("PostgreSQL restarted", 1.5, partial(self._restart, signal.SIGINT)),
            ("PostgreSQL stopped at once", 1.5, partial(self._restart, signal.SIGQUIT)),
            ("PostgreSQL killed", 1.5, partial(self._restart, signal.SIGKILL)),
        ]
        self._faults = [(name, emphasis.get(name, weight), act) for name, weight, act in faults]

    async def run(
        self, seconds: float, pause: float, phases: Sequence[tuple[float, str, Act]] = ()
    ) -> None:
        """Cause faults for so long, about one each ``pause`` seconds; ``phases`` come at their share of the time.

        What one fault took too long, the next ones make up for.
        """
        began = due = anyio.current_time()
        left = list(phases)
        async with anyio.create_task_group() as group:
            while (passed := anyio.current_time() - began) < seconds:
                if left and passed >= left[0][0] * seconds:
                    _, name, act = left.pop(0)
                    self._history.note("phase", name=name)
                    await act()
                    self._history.note("phase_ended", name=name)
                    continue
                await self._fault(group)
                now = anyio.current_time()
                due = max(due + pause * self._chance.uniform(0.4, 1.6), now - MADE_UP * pause)
                await anyio.sleep(max(due - now, pause / 4))
        self._crew.thaw()

    async def _fault(self, group: TaskGroup) -> None:
        """Do something, or something else where nobody is there for it yet."""
        names, weights, acts = zip(*self._faults, strict=True)
        for _ in range(20):
            (place,) = self._chance.choices(range(len(names)), weights)
            if await acts[place](group) is not False:
                self._history.note("fault", name=names[place])
                self.counts[names[place]] += 1
                return

    async def _kill_worker(self, _: TaskGroup) -> bool:
        return self._crew.replace(self._chance, signal.SIGKILL)

    async def _freeze_worker(self, group: TaskGroup) -> bool:
        worker = self._crew.pick(self._chance)
        if worker is None:
            return False
        worker.send_signal(signal.SIGSTOP)

        async def thaw() -> None:
            await anyio.sleep(LEASE_SECONDS * self._chance.uniform(1.2, 2.5))
            with suppress(ProcessLookupError):
                worker.send_signal(signal.SIGCONT)

        group.start_soon(thaw)  # it lasts longer than the pause
        return True

    async def _end_worker(self, _: TaskGroup) -> bool:
        return self._crew.replace(self._chance, signal.SIGTERM)

    async def _end_server(self, number: signal.Signals, _: TaskGroup) -> bool:
        return self._crew.replace_server(number)

    async def _end_node(self, number: signal.Signals, _: TaskGroup) -> bool:
        end = partial(self._crew.end_node, number, is_young=False)
        return await anyio.to_thread.run_sync(end)

    async def _end_bridge(self, _: TaskGroup) -> bool:
        return await anyio.to_thread.run_sync(self._crew.end_bridge, self._chance)

    async def _cut(self, _: TaskGroup) -> None:
        self._proxy.cut(self._chance.choice([0.2, 0.5, 1.0]), self._chance)

    async def _lose_replies(self, _: TaskGroup) -> None:
        self._proxy.lose_replies(self._chance.choice([0.2, 0.5]), self._chance)

    async def _hold(self, _: TaskGroup) -> bool:
        if anyio.current_time() < self._held_until + HOLE_SECONDS:
            return False
        seconds = self._chance.uniform(0.5, 2.5)
        self._held_until = anyio.current_time() + seconds
        self._history.note("out_of_reach", seconds=seconds)
        self._proxy.hold(seconds)
        return True

    async def _terminate(self, _: TaskGroup) -> None:
        with suppress(psycopg.Error):
            self._server.fetch(
                """
                select pg_terminate_backend(a.pid) from pg_stat_activity a
                where a.datname = current_database() and a.pid <> pg_backend_pid() and random() < 0.4"""
            )

    async def _terminate_settles(self, _: TaskGroup) -> None:
        await anyio.to_thread.run_sync(self._end_settles)

    def _end_settles(self) -> None:
        """Let no settle through for a moment: each is to be repeated for as long as its lease lives."""
        until = time.monotonic() + AIM_SECONDS
        with (
            suppress(psycopg.Error),
            psycopg.connect(self._server.url(), autocommit=True, connect_timeout=5) as connection,
        ):
            while time.monotonic() < until:
                connection.execute(_END_SETTLES)

    def _look_and_stop(self, number: signal.Signals) -> None:
        """Look what is newest, and stop the server before anything else can bring that to its disk."""
        with (
            suppress(psycopg.Error),
            psycopg.connect(self._server.url(), autocommit=True, connect_timeout=5) as connection,
        ):
            until = time.monotonic() + AIM_SECONDS
            while True:
                rows = connection.execute(_NEWEST).fetchall()
                if any(is_in_memory for _, _, is_in_memory in rows) or time.monotonic() > until:
                    break
            self._server.tell(number)
            self._history.note("seen", rows=[(run, epoch) for run, epoch, _ in rows])
        self._server.stop(number)

    async def _restart(self, number: signal.Signals, _: TaskGroup) -> bool:
        began = anyio.current_time()
        if began < self._restarted_at + self._calm_seconds:
            return False
        await anyio.to_thread.run_sync(self._look_and_stop, number)
        await anyio.sleep(self._chance.uniform(0, 1))
        self._server.start()
        with anyio.fail_after(RESTART_SECONDS):
            while not await anyio.to_thread.run_sync(self._server.wait_until_ready):
                await anyio.sleep(0.5)  # what is left of a killed one ends by itself
                self._server.start()
        self._restarted_at = anyio.current_time()
        self._history.note("was_out_of_reach", seconds=self._restarted_at - began)
        return True
