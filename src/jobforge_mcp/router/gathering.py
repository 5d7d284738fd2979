"""Jobs of calls that come at the same time, enqueued by one statement.

While a statement is under way later calls gather, and go together in the next: a lone call is sent at once, and under load
each flush of the log is shared. Where there are several, whoever sends first lets everybody run who can run at this moment:
callers that were answered together come back together. There is no timer and no task of its own: a call that was answered lets the first of those who
gathered send for all of them. What is refused for several is asked again one by one, so that nobody is refused for what a
neighbour sent.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import anyio
import anyio.lowlevel

from jobforge_mcp.errors import CallerError
from jobforge_mcp.types import Caller, CallOrigin, Enqueued, NewJob

MOST_UNDER_WAY = 2
"""Statements of one caller at a time: while the database works on one, this process makes the next."""

ENOUGH = 16
"""Calls that wait before a second statement goes out beside the first: a statement costs what a dozen jobs in one cost."""

MOST_JOBS = 500
"""Jobs of one statement."""

MOST_CHARACTERS = 1_000_000
"""Of inputs in one statement: large ones go alone rather than keep small ones waiting."""

_Key: TypeAlias = tuple[str, str | None, str, str | None]

Send = Callable[[Caller, Sequence[NewJob], Sequence[CallOrigin]], Awaitable[list[Enqueued]]]


@dataclass(eq=False, slots=True)
class _Call:
    """One call that waits for its turn, or for whoever sends it along."""

    job: NewJob
    origin: CallOrigin
    turn: anyio.Event | None = None
    """Of one that waits: set when there is an answer, or when this call is to send for all that wait."""
    leads: bool = False
    """It was chosen to send, and waits no longer."""
    answer: Enqueued | Exception | None = None


@dataclass(eq=False, slots=True)
class _Line:
    """The calls of one caller."""

    caller: Caller
    under_way: int = 0
    leaders: int = 0
    """Of those under way: how many have not been sent yet. They share out who waits."""
    waiting: list[_Call] = field(default_factory=list[_Call])


class Gatherer:
    """Sends the jobs of concurrent calls together."""

    def __init__(self, send: Send) -> None:
        """Have jobs of one caller sent by this."""
        self._send = send
        self._lines: dict[_Key, _Line] = {}
        self._was_alone = False
        """Nobody went along with the last statement or came meanwhile: a caller who is alone lets nobody run first."""

    async def enqueue(self, caller: Caller, job: NewJob, origin: CallOrigin) -> Enqueued:
        """Enqueue one job with whatever else of the same caller and tool gathers meanwhile."""
        # not the caller itself: its hash is made of all that its token says, at every look
        key = (caller.tenant_id, caller.token_id, caller.subject, origin.tool)
        line = self._lines.get(key)
        if line is None:
            line = self._lines[key] = _Line(caller)
        elif line.caller is not caller and line.caller != caller:
            return (await self._send(caller, [job], [origin]))[0]
        call = _Call(job, origin)
        if line.under_way == 0 or (line.under_way < MOST_UNDER_WAY and len(line.waiting) >= ENOUGH):
            line.under_way += 1
            call.leads = True
        else:
            line.waiting.append(call)
            call.turn = anyio.Event()
            try:
                await call.turn.wait()
            except anyio.get_cancelled_exc_class():
                await self._leave(key, line, call, call.turn)
                raise
        if call.leads:
            await self._lead(key, line, call)
        if isinstance(call.answer, Exception):
            raise call.answer
        assert call.answer is not None
        return call.answer

    async def _lead(self, key: _Key, line: _Line, call: _Call) -> None:
        """Send for this call and all that wait, to the end, cancelled or not; then let the next go."""
        try:
            with anyio.CancelScope(shield=True):
                line.leaders += 1
                if not self._was_alone:
                    await anyio.lowlevel.checkpoint()
                others = _take(line, len(call.job.payload))
                line.leaders -= 1
                self._was_alone = not others
                await self._ask(line.caller, [call, *others])
        finally:
            self._pass_on(key, line)

    def _pass_on(self, key: _Key, line: _Line) -> None:
        if line.waiting:
            self._was_alone = False
            following = line.waiting.pop(0)
            following.leads = True
            _wake(following)
            return
        line.under_way -= 1
        if not line.under_way:
            self._lines.pop(key, None)

    async def _leave(self, key: _Key, line: _Line, call: _Call, turn: anyio.Event) -> None:
        """Let a call go that was cancelled: one that waits was never there, one that was sent ends first."""
        if call in line.waiting:
            line.waiting.remove(call)
        elif call.leads:
            self._pass_on(key, line)
        else:
            with anyio.CancelScope(shield=True):
                await turn.wait()

    async def _ask(self, caller: Caller, calls: list[_Call]) -> None:
        """Have these calls answered: together, or one by one when they are refused together."""
        try:
            answers = await self._send(
                caller, [call.job for call in calls], [call.origin for call in calls]
            )
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
            await self._ask(caller, [call])


def _take(line: _Line, size: int) -> list[_Call]:
    """Take those that wait, or a share of them, as many as fit with an input of this size."""
    count = 0
    share = -(-len(line.waiting) // line.leaders)
    for call in line.waiting[: min(share, MOST_JOBS - 1)]:
        size += len(call.job.payload)
        if size > MOST_CHARACTERS:
            break
        count += 1
    taken = line.waiting[:count]
    del line.waiting[:count]
    return taken


def _answer(call: _Call, answer: Enqueued | Exception) -> None:
    call.answer = answer
    _wake(call)


def _wake(call: _Call) -> None:
    if call.turn is not None:
        call.turn.set()
