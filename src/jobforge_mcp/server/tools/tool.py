"""What a tool is to the server: a name, a scope, its words for a model, and one function from checked arguments to an answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

from jobforge_mcp.definitions.features import Feature
from jobforge_mcp.policy.scopes import Scope
from jobforge_mcp.server import arguments as args
from jobforge_mcp.server import wire
from jobforge_mcp.server.parts import Call, ServerParts

ArgumentsT = TypeVar("ArgumentsT", bound=args.Arguments)


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
    feature: Feature | None = None
    """What has to be on for a caller who is to see and call it; ``None`` is always on."""
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
