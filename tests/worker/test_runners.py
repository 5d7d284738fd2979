from __future__ import annotations

import contextvars
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from uuid import uuid4

import anyio
import anyio.abc
import anyio.lowlevel

from jobforge_mcp.types import ClaimedJob, Fence, JobId, LeaseId, TenantId
from jobforge_mcp.worker.attempt import Attempt, LeaseHold
from jobforge_mcp.worker.runners import Runners

VARIABLE = contextvars.ContextVar("VARIABLE", default="clean")


def an_attempt(job_type: str = "t", tenant_id: str = "acme") -> Attempt:
    now = datetime.now(UTC)
    fence = Fence(TenantId(tenant_id), LeaseId(uuid4()), JobId(uuid4()), 1)
    claimed = ClaimedJob(
        fence, job_type, "1", "{}", None, None, 1, 3, 1_000, False, False, now, now
    )
    return Attempt(claimed, LeaseHold(fence.tenant_id, fence.lease_id, 0.0))


class Crew:
    """Runners whose tasks are counted."""

    def __init__(
        self,
        tasks: anyio.abc.TaskGroup,
        run: Callable[[Attempt], Coroutine[object, object, None]],
        started: list[int] | None = None,
    ) -> None:
        self._started = [] if started is None else started
        self._tasks = tasks
        self.runners = Runners(run, self._start)

    def _start(self, task: Callable[[], Coroutine[object, object, None]]) -> None:
        self._started.append(1)
        self._tasks.start_soon(task)


async def test_attempts_that_never_wait_share_a_task_and_keep_their_order() -> None:
    ran: list[str] = []

    async def run(attempt: Attempt) -> None:
        ran.append(attempt.claimed.job_type)

    started: list[int] = []
    async with anyio.create_task_group() as tasks:
        crew = Crew(tasks, run, started)
        for number in range(50):
            crew.runners.put(an_attempt(str(number)))

    assert ran == [str(number) for number in range(50)]
    assert len(started) == 1


async def test_an_attempt_that_waits_holds_up_no_other() -> None:
    ran: list[str] = []
    gate = anyio.Event()

    async def run(attempt: Attempt) -> None:
        if attempt.claimed.job_type == "waits":
            await gate.wait()
        ran.append(attempt.claimed.job_type)
        if attempt.claimed.job_type == "opens":
            gate.set()

    started: list[int] = []
    async with anyio.create_task_group() as tasks:
        crew = Crew(tasks, run, started)
        for name in ("waits", "waits", "first", "opens"):
            crew.runners.put(an_attempt(name))

    assert ran == ["first", "opens", "waits", "waits"]
    assert len(started) == 3


async def test_context_variables_and_task_groups_belong_to_one_attempt() -> None:
    seen: list[str] = []

    async def run(attempt: Attempt) -> None:
        seen.append(VARIABLE.get())
        VARIABLE.set(attempt.claimed.job_type)
        async with anyio.create_task_group() as own:
            own.start_soon(anyio.lowlevel.checkpoint)
            with anyio.fail_after(60):
                await anyio.sleep(0.001)
        seen.append(VARIABLE.get())

    async with anyio.create_task_group() as tasks:
        crew = Crew(tasks, run)
        crew.runners.put(an_attempt("a"))
        crew.runners.put(an_attempt("b"))

    assert sorted(seen) == ["a", "b", "clean", "clean"]
    assert VARIABLE.get() == "clean"


async def test_cancelling_one_attempt_leaves_those_after_it_alone() -> None:
    ended: list[str] = []
    waiting = anyio.Event()

    async def run(attempt: Attempt) -> None:
        if attempt.claimed.job_type == "waits":
            waiting.set()
            try:
                await anyio.sleep_forever()
            finally:
                ended.append("cancelled")
        await anyio.lowlevel.checkpoint()
        ended.append(attempt.claimed.job_type)

    async with anyio.create_task_group() as tasks:
        crew = Crew(tasks, run)
        first = an_attempt("waits")
        crew.runners.put(first)
        with anyio.fail_after(60):
            await waiting.wait()
        assert first.scope is not None
        first.scope.cancel()
        crew.runners.put(an_attempt("after"))

    assert sorted(ended) == ["after", "cancelled"]


async def test_a_scope_that_was_cancelled_without_waiting_is_not_used_again() -> None:
    ended: list[str] = []

    async def run(attempt: Attempt) -> None:
        if attempt.claimed.job_type == "cancels":
            assert attempt.scope is not None
            attempt.scope.cancel()
            return
        await anyio.lowlevel.checkpoint()
        ended.append(attempt.claimed.job_type)

    async with anyio.create_task_group() as tasks:
        crew = Crew(tasks, run)
        crew.runners.put(an_attempt("cancels"))
        crew.runners.put(an_attempt("after"))

    assert ended == ["after"]


async def test_the_rest_of_the_worker_gets_its_turn() -> None:
    turns = 0
    is_over = False

    async def run(attempt: Attempt) -> None:
        nonlocal is_over
        started = anyio.current_time()
        while anyio.current_time() < started + 0.001:
            pass
        is_over = attempt.claimed.job_type == "last"

    async def neighbour() -> None:
        nonlocal turns
        while not is_over:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        crew = Crew(tasks, run)
        for _ in range(30):
            crew.runners.put(an_attempt())
        crew.runners.put(an_attempt("last"))
        tasks.start_soon(neighbour)

    assert turns > 5
