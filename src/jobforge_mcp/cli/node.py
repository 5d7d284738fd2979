"""``node status``, ``start``, ``stop`` and ``install``: the local node and the clients that use it."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Protocol, TypeGuard

import typer

from jobforge_mcp.cli.options import Json
from jobforge_mcp.cli.output import show
from jobforge_mcp.cli.session import read_settings
from jobforge_mcp.errors import SettingsError

if TYPE_CHECKING:
    from jobforge_mcp.local.node import NodeStatus
    from jobforge_mcp.types import JsonObject, JsonValue


def status(json: Json = False) -> None:
    """Show the local node and the embedded Postgres, without starting either."""
    from jobforge_mcp import embedded
    from jobforge_mcp.local.node import node_status

    _require_sockets()
    settings = read_settings()
    found = node_status(settings)
    document = _document(found)
    if settings.is_embedded:
        document["database"] = embedded.status(settings.state_dir).state
    _show(found, document, is_json=json)


def start(
    keep: Annotated[
        bool, typer.Option("--keep", help="Let it stay when nothing is left to do.")
    ] = False,
    json: Json = False,
) -> None:
    """Have the local node running."""
    from jobforge_mcp.local.node import start_node

    _require_sockets()
    found = start_node(read_settings(), keep=keep)
    _show(found, _document(found), is_json=json)


def stop(json: Json = False) -> None:
    """End the local node in order: calls are answered, running jobs finish or are released."""
    from jobforge_mcp.local.node import stop_node

    _require_sockets()
    was_running = stop_node(read_settings())
    text = "the local node has ended" if was_running else "no local node was running"
    show({"wasRunning": was_running}, is_json=json, people=lambda console: console.print(text))


def install(
    client: Annotated[
        str, typer.Argument(help="claude-code, claude-desktop, cursor, vscode or codex.")
    ],
    print_only: Annotated[
        bool, typer.Option("--print", help="Only show what would be written.")
    ] = False,
    json: Json = False,
) -> None:
    """Make an MCP client start this server."""
    from jobforge_mcp.errors import InvalidInputError
    from jobforge_mcp.local.install import ClientName
    from jobforge_mcp.local.install import install as write

    try:
        name = ClientName(client)
    except ValueError:
        raise InvalidInputError(
            f"{client[:40]!r} is no client whose configuration is known",
            code="UNKNOWN_CLIENT",
            hint=f"known are {', '.join(ClientName)}; for others, start: jobforge",
        ) from None
    done = write(name, print_only=print_only)
    document: dict[str, JsonValue] = {
        "client": done.client.value,
        "path": str(done.path),
        "outcome": done.outcome.value,
        "snippet": done.snippet,
    }
    if done.backup is not None:
        document["backup"] = str(done.backup)
    text = done.snippet if print_only else f"{done.path}: {done.outcome.value}"
    show(
        document,
        is_json=json,
        people=lambda console: console.print(text, markup=False, soft_wrap=True),
    )


class NodeTrouble(Protocol):
    """What the node's own error looks like: it is no `JobForgeError`, because the bridge imports nothing of ours."""

    message: str
    hint: str


def is_node_error(error: object) -> TypeGuard[NodeTrouble]:
    """Whether this is the local node's error; never loads the node to find out."""
    rendezvous = sys.modules.get("jobforge_mcp.local.rendezvous")
    return rendezvous is not None and isinstance(error, rendezvous.NodeError)


def _require_sockets() -> None:
    if sys.platform == "win32":
        raise SettingsError(
            "there is no local node on Windows", hint="each process works alone there"
        )


def _document(found: NodeStatus) -> JsonObject:
    document: JsonObject = {"state": found.state, "log": str(found.log_path)}
    if found.state == "running":
        document |= {
            "pid": found.pid,
            "version": found.version,
            "chats": found.chats,
            "runningJobs": found.running_jobs,
            "isKept": found.is_kept,
        }
        if found.started_at is not None:
            document["startedAt"] = datetime.fromtimestamp(found.started_at, UTC).isoformat()
        if found.postgres is not None:
            document["postgres"] = found.postgres
    return document


def _show(found: NodeStatus, document: JsonObject, *, is_json: bool) -> None:
    lines = [f"the local node is {found.state}"]
    lines += [f"  {name}: {value}" for name, value in document.items() if name != "state"]
    show(
        document,
        is_json=is_json,
        people=lambda console: console.print("\n".join(lines), markup=False),
    )
