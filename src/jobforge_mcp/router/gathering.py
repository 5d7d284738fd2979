"""Jobs of calls that come at the same time, enqueued by one statement.

While as many statements are under way as may be, later calls gather, and go together in the next: a lone call is sent at
once, and under load each flush of the log is shared. There is no timer and no task of its own: a call that was answered
lets the first of those who gathered send for all of them. What is refused for several is asked again one by one, so that
nobody is refused for what a neighbour sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field

import anyio

from jobforge_mcp.errors import CallerError
from jobforge_mcp.types import CallOrigin, Enqueued, NewJob

MOST_UNDER_WAY = 3
"""Statements of one caller at a time: while the database works on one, this process makes the next, and eight callers are no
slower than on a connection each."""

MOST_JOBS = 500
"""Jobs of one statement."""

MOST_CHARACTERS = 1_000_000
"""Of inputs in one statement: large ones go alone rather than keep small ones waiting."""

Send = Callable[[Sequence[NewJob], Sequence[CallOrigin]], Awaitable[list[Enqueued]]]


@dataclass(eq=False, slots=True)
class _Call:
    """One call that waits for its turn, or for whoever sends it along."""

    job: NewJob
    origin: CallOrigin
    turn: anyio.Event = field(default_factory=anyio.Event)
    """Set when there is an answer, or when this call is to send for all that wait."""
    leads: bool = False
    """It was chosen to send, and waits no longer."""
    answer: Enqueued | Exception | None = None


@dataclass(eq=False, slots=True)
class _Line:
    """The calls of one caller."""

    under_way: int = 0
    waiting: list[_Call] = field(default_factory=list[_Call])


class Gatherer:
    """Sends the jobs of concurrent calls together."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, _Line] = {}

    async def enqueue(self, key: Hashable, job: NewJob, origin: CallOrigin, send: Send) -> Enqueued:
        """Enqueue one job with whatever else of the same key gathers meanwhile."""
        line = self._lines.setdefault(key, _Line())
        call = _Call(job, origin)
        if line.under_way < MOST_UNDER_WAY:
            line.under_way += 1
            call.leads = True
        else:
            line.waiting.append(call)
            try:
                await call.turn.wait()
            except anyio.get_cancelled_exc_class():
                await self._leave(key, line, call)
                raise
        if call.leads:
            await self._lead(key, line, call, send)
        if isinstance(call.answer, Exception):
            raise call.answer
        assert call.answer is not None
        return call.answer

    async def _lead(self, key: Hashable, line: _Line, call: _Call, send: Send) -> None:
        """Send for this call and all that wait, to the end, cancelled or not; then let the next go."""
        try:
            with anyio.CancelScope(shield=True):
                await _ask([call, *_take(line, len(call.job.payload))], send)
        finally:
            self._pass_on(key, line)

    def _pass_on(self, key: Hashable, line: _Line) -> None:
        if line.waiting:
            following = line.waiting.pop(0)
            following.leads = True
            following.turn.set()
            return
        line.under_way -= 1
        if not line.under_way:
            self._lines.pop(key, None)

    async def _leave(self, key: Hashable, line: _Line, call: _Call) -> None:
        """Let a call go that was cancelled: one that waits was never there, one that was sent ends first."""
        if call in line.waiting:
            line.waiting.remove(call)
        elif call.leads:
            self._pass_on(key, line)
        else:
            with anyio.CancelScope(shield=True):
                await call.turn.wait()


def _take(line: _Line, size: int) -> list[_Call]:
    """Take those that wait, as many as fit with an input of this size."""
    count = 0
    for call in line.waiting[: MOST_JOBS - 1]:
        size += len(call.job.payload)
        if size > MOST_CHARACTERS:
            break
        count += 1
    taken = line.waiting[:count]
    del line.waiting[:count]
    return taken


async def _ask(calls: list[_Call], send: Send) -> None:
    """Have these calls answered: together, or one by one when they are refused together."""
    try:
        answers = await send([call.job for call in calls], [call.origin for call in calls])
    except CallerError as error:
        if len(calls) == 1:
            _answer(calls[0], error)
            return
    except Exception as error:  # noqa: BLE001 - it is for every one of these callers
        for call in calls:
            _answer(call, error)
        return
    else:
        for call, answer in zip(calls, answers, strict=True):
            _answer(call, answer)
        return
    for call in calls:
        await _ask([call], send)


def _answer(call: _Call, answer: Enqueued | Exception) -> None:
    call.answer = answer
    call.turn.set()
