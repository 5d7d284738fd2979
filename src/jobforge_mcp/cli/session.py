"""How a command gets its settings, its caller and its client."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from jobforge_mcp.cli.output import say
from jobforge_mcp.settings import Settings, load_settings

if TYPE_CHECKING:
    from jobforge_mcp.client import Client
    from jobforge_mcp.types import Caller

AnswerT = TypeVar("AnswerT")


def read_settings(**overrides: object) -> Settings:
    """Read the settings, and have this command log as they say, but only what matters to a person."""
    from jobforge_mcp.logs import configure_logging

    settings = load_settings(**overrides)
    configure_logging("warning", settings.log_format)
    return settings


def admin_url() -> str:
    """Return the URL of whoever administers the schema, with the embedded server started if that is meant."""
    from jobforge_mcp.db.installation import open_installation

    settings = read_settings()
    # The embedded server stays up for its keeper's while, long enough for one statement.
    with open_installation(settings, on_progress=say) as installation:
        return installation.admin_url


def call(work: Callable[[], Awaitable[AnswerT]]) -> AnswerT:
    """Run a command's work on an event loop."""
    import anyio

    return anyio.run(work)


@asynccontextmanager
async def open_client(
    settings: Settings, command: str, *, is_waiting: bool = False, needs_worker: bool = False
) -> AsyncGenerator[Client]:
    """Connect as the holder of the settings' token.

    With ``needs_worker`` the local node is started first where there is one: it has the workers, and it stays for them.
    """
    import anyio.to_thread

    from jobforge_mcp.client import Client

    if needs_worker and uses_node(settings):
        from jobforge_mcp.local.node import start_node

        await anyio.to_thread.run_sync(start_node, settings)
    async with Client.connect(
        settings,
        tool=f"cli {command}",
        is_listening=is_waiting,
        on_progress=say if sys.stderr.isatty() else None,
    ) as client:
        yield client


async def require_living(settings: Settings, caller: Caller) -> None:
    """Refuse a token that was revoked, for commands that ask the database nothing else.

    Raises:
        PolicyDeniedError: ``TOKEN_REVOKED``.
    """
    import anyio.to_thread

    from jobforge_mcp.db.installation import open_installation
    from jobforge_mcp.db.pool import Database
    from jobforge_mcp.policy.living import LivingTokens
    from jobforge_mcp.router.tokens import TokenRouter

    opening = open_installation(settings)
    installation = await anyio.to_thread.run_sync(opening.__enter__)
    try:
        async with Database(installation.api_url, role="jobforge_api", max_size=1) as database:
            router = TokenRouter(database, signer=installation.signer)
            await LivingTokens(router).require(caller)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(opening.__exit__, None, None, None)


def uses_node(settings: Settings) -> bool:
    """Whether jobs of this installation are run by the local node."""
    return settings.is_embedded and settings.node == "auto" and sys.platform != "win32"
