"""Write jobforge into the configuration of an MCP client, and leave everything else in there as it was.

A client's file belongs to its user: it is read before it is written, replaced whole or not at all, and kept beside its
successor. What cannot be understood (JSON with comments, an entry written in an unusual way) is not touched; then the
person is shown what to paste.

The command is an absolute path, because programs with a window start their servers with a short PATH.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import cast

from jobforge_mcp.errors import OperatorError
from jobforge_mcp.types import JsonObject, JsonValue

SERVER_NAME = "jobforge"
"""Under which name clients list this server, and hosts prefix its tools."""

_SECRETS = re.compile(r"TOKEN$|DATABASE_URL$")
_HEADER = re.compile(rf"\s*\[mcp_servers\.{SERVER_NAME}(\.[^\]]+)?\]\s*(#.*)?")
_ANY_HEADER = re.compile(r"\s*\[")


class ClientName(StrEnum):
    """MCP clients whose configuration can be written."""

    CLAUDE_CODE = "claude-code"
    CLAUDE_DESKTOP = "claude-desktop"
    CURSOR = "cursor"
    VSCODE = "vscode"
    CODEX = "codex"


class InstallOutcome(StrEnum):
    """What an installation did."""

    WRITTEN = "written"
    UNCHANGED = "unchanged"
    """The file said the same already."""
    SHOWN = "shown"
    """Nothing was to be written."""


@dataclass(frozen=True, slots=True)
class Command:
    """How a client starts the server."""

    program: str
    """An absolute path."""
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    """Settings of this shell that the client's own environment lacks."""

    def masked(self) -> Command:
        """Return the same without secrets, to be shown."""
        shown = {
            name: f"<{name}>" if _SECRETS.search(name) else value
            for name, value in self.environment.items()
        }
        return Command(self.program, self.arguments, shown)


@dataclass(frozen=True, slots=True)
class Installation:
    """What was written, or is to be pasted, and where."""

    client: ClientName
    path: Path
    snippet: str
    """The entry as the client's file wants it, secrets replaced by their names."""
    outcome: InstallOutcome
    backup: Path | None = None
    """The file as it was before, if there was one and it was changed."""


def install(
    client: ClientName | str, *, print_only: bool = False, environ: Mapping[str, str] = os.environ
) -> Installation:
    """Make a client start this server, or only say how.

    Raises:
        OperatorError: The client's file cannot be understood or written; it was not touched.
    """
    client = ClientName(client)
    path = config_path(client, environ)
    command = find_command(environ)
    shape = _put_toml if client is ClientName.CODEX else _json_shape(client)
    snippet = shape("", command.masked())
    if print_only:
        return Installation(client, path, snippet, InstallOutcome.SHOWN)
    before = _read(path)
    try:
        after = shape(before, command)
    except _NotUnderstoodError as error:
        raise OperatorError(
            f"{path} was not changed: {error}",
            hint=f"add this to it by hand:\n{snippet}",
        ) from error
    if after == before:
        return Installation(client, path, snippet, InstallOutcome.UNCHANGED)
    return Installation(client, path, snippet, InstallOutcome.WRITTEN, _replace(path, after))


def config_path(client: ClientName, environ: Mapping[str, str] = os.environ) -> Path:
    """Name the file in which a client keeps the servers of its user, on this platform."""
    home = Path.home()
    match client:
        case ClientName.CLAUDE_CODE:
            return Path(environ.get("CLAUDE_CONFIG_DIR") or home) / ".claude.json"
        case ClientName.CLAUDE_DESKTOP:
            return _application_data(environ) / "Claude" / "claude_desktop_config.json"
        case ClientName.CURSOR:
            return home / ".cursor" / "mcp.json"
        case ClientName.VSCODE:
            return _application_data(environ) / "Code" / "User" / "mcp.json"
        case ClientName.CODEX:
            return Path(environ.get("CODEX_HOME") or home / ".codex") / "config.toml"


_PATH_SETTINGS = frozenset({"JOBFORGE_JOBS", "JOBFORGE_STATE_DIR", "JOBFORGE_TOKEN_KEYS"})
"""Settings that may be relative to where they were typed; a module's name or a key's text is no file and stays."""


def find_command(environ: Mapping[str, str] = os.environ) -> Command:
    """Find the console script of this very installation, and the settings that were made for it."""
    settings = {
        name: _from_anywhere(name, value)
        for name, value in sorted(environ.items())
        if value and (name.startswith("JOBFORGE_") or name == "DATABASE_URL")
    }
    # Not resolved: a virtual environment's interpreter is a link out of it.
    folder = Path(sys.executable).absolute().parent
    script = shutil.which("jobforge", path=str(folder)) or shutil.which("jobforge")
    if script:
        return Command(str(Path(script).absolute()), (), settings)
    return Command(sys.executable, ("-P", "-m", "jobforge_mcp.entry"), settings)


def _from_anywhere(name: str, value: str) -> str:
    """Make the paths in a setting absolute: the client starts us in a folder of its own choice."""
    if name not in _PATH_SETTINGS:
        return value
    parts = [part.strip() for part in value.split(",")]
    return ",".join(str(Path(part).absolute()) if Path(part).exists() else part for part in parts)


class _NotUnderstoodError(Exception):
    """The file is not what can be changed safely."""


_Shape = Callable[[str, Command], str]
"""Puts a command into the text of a configuration file, and returns the new text."""


def _json_shape(client: ClientName) -> _Shape:
    is_vscode = client is ClientName.VSCODE
    says_type = is_vscode or client is ClientName.CLAUDE_CODE
    key = "servers" if is_vscode else "mcpServers"

    def put(text: str, command: Command) -> str:
        config = _read_json(text)
        servers = config.setdefault(key, {})
        if not isinstance(servers, dict):
            raise _NotUnderstoodError(f"its {key!r} is not an object")
        known = servers.get(SERVER_NAME)
        merged = _merge(known if isinstance(known, dict) else {}, command)
        entry: JsonObject = {"type": "stdio", **merged} if says_type else merged
        if entry == known:
            return text
        servers[SERVER_NAME] = entry
        return json.dumps(config, indent=2, ensure_ascii=False) + "\n"

    return put


def _put_toml(text: str, command: Command) -> str:
    try:
        before: JsonObject = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _NotUnderstoodError(f"it is not valid TOML ({error})") from error
    servers = before.get("mcp_servers", {})
    known = servers.get(SERVER_NAME) if isinstance(servers, dict) else None
    entry = _merge(known if isinstance(known, dict) else {}, command)
    if entry == known:
        return text
    kept = _without_entry(text).rstrip("\n")
    lines = [f"{_toml_key(key)} = {_toml_value(value)}" for key, value in entry.items()]
    block = "\n".join([f"[mcp_servers.{SERVER_NAME}]", *lines])
    after = (f"{kept}\n\n" if kept.strip() else "") + block + "\n"
    _refuse_other_changes(before, after, entry)
    return after


def _merge(known: JsonObject, command: Command) -> JsonObject:
    """Put the command into an entry; what the user set beside it, and variables not set now, stay."""
    environment = known.get("env")
    kept = environment if isinstance(environment, dict) else {}
    merged: JsonObject = {**kept, **command.environment}
    entry: JsonObject = {
        **known,
        "command": command.program,
        "args": list[JsonValue](command.arguments),
    }
    entry.pop("env", None)
    if merged:
        entry["env"] = merged
    return entry


def _read_json(text: str) -> JsonObject:
    if not text.strip():
        return {}
    try:
        config = cast("JsonValue", json.loads(text))
    except ValueError as error:
        raise _NotUnderstoodError(f"it is not plain JSON ({error})") from error
    if not isinstance(config, dict):
        raise _NotUnderstoodError("it is not a JSON object")
    return config


def _without_entry(text: str) -> str:
    """Cut our table and its sub-tables out, wherever they stand."""
    kept: list[str] = []
    is_ours = False
    for line in text.splitlines(keepends=True):
        if _ANY_HEADER.match(line):
            is_ours = _HEADER.fullmatch(line.rstrip("\n")) is not None
        if not is_ours:
            kept.append(line)
    return "".join(kept)


def _refuse_other_changes(before: JsonObject, after: str, entry: JsonObject) -> None:
    """Refuse an edit that a reader of TOML would not see as ours alone."""
    servers = before.get("mcp_servers", {})
    expected = {
        **before,
        "mcp_servers": {**(servers if isinstance(servers, dict) else {}), SERVER_NAME: entry},
    }
    try:
        found = tomllib.loads(after)
    except tomllib.TOMLDecodeError:
        found = None
    if found != expected:
        raise _NotUnderstoodError("it has an entry for this server in a form that is not edited")


def _toml_key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: object) -> str:
    match value:
        case str():
            # JSON's escapes are TOML's too, except that TOML has no surrogate pairs.
            return json.dumps(value, ensure_ascii=False)
        case bool() | int() | float():
            return json.dumps(value)
        case list():
            return f"[{', '.join(map(_toml_value, cast('list[object]', value)))}]"
        case dict():
            pairs = cast("dict[str, object]", value).items()
            return f"{{ {', '.join(f'{_toml_key(k)} = {_toml_value(v)}' for k, v in pairs)} }}"
        case _:
            raise _NotUnderstoodError("its entry for this server holds a date")


def _application_data(environ: Mapping[str, str]) -> Path:
    if sys.platform == "win32":
        return Path(environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support"
    return Path(environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(
            f"{path} cannot be read: {error}", hint="see what it is, then try again"
        ) from error


def _replace(path: Path, text: str) -> Path | None:
    """Replace the file whole, through a link if it is one, and keep what was there beside it."""
    try:
        path = path.resolve()
        path.parent.mkdir(parents=True, exist_ok=True)
        backup: Path | None = None
        mode = 0o600
        if path.exists():
            mode = path.stat().st_mode & 0o777
            backup = path.with_name(f"{path.name}.before-jobforge")
            shutil.copy2(path, backup)
        descriptor, fresh = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        Path(fresh).chmod(mode)
        Path(fresh).replace(path)
    except OSError as error:
        raise OperatorError(
            f"{path} cannot be written: {error.strerror}",
            hint="jobforge install <client> --print shows what to paste",
        ) from error
    return backup
