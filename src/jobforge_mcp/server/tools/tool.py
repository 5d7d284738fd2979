"""What a tool is to the server: a name, a scope, its words for a model, and one function from checked arguments to an answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.server import arguments as args
from jobforge_mcp.server import wire
from jobforge_mcp.server.parts import Call, ServerParts
from jobforge_mcp.settings import Settings
from jobforge_mcp.types import Caller

ArgumentsT = TypeVar("ArgumentsT", bound=args.Arguments)


def always(settings: Settings, caller: Caller) -> bool:
    """Say that a tool needs no feature."""
    return True


@dataclass(frozen=True, slots=True)
class Tool(Generic[ArgumentsT]):
    """One tool as the server knows it."""

    name: str
    scope: Scope
    title: str
    description: str
    arguments: type[ArgumentsT]
    answers: tuple[type[wire.WireModel], ...]
    """What comes back when the call succeeds."""
    run: Callable[[ServerParts, Call, ArgumentsT], Awaitable[wire.Answer]]
    is_on: Callable[[Settings, Caller], bool] = always
    """Whether this installation lists it for this caller; calling it anyway is refused by what it does."""
    setting: str | None = None
    """Field of the settings that switches it off for everybody; ``None`` is always on."""
    is_read_only: bool = False
    is_destructive: bool = False
    is_idempotent: bool = False

    def prepare(self, given: Mapping[str, object] | None) -> Prepared:
        """Check the arguments of one call; what comes back only has to be told who calls.

        Raises:
            InvalidInputError: An argument does not fit.
        """
        checked = args.parse(self.arguments, given)

        async def run(parts: ServerParts, call: Call) -> wire.Answer:
            return await self.run(parts, call, checked)

        return run


Prepared = Callable[[ServerParts, Call], Awaitable[wire.Answer]]
