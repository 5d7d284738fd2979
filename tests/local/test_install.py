"""What ``jobforge install`` writes, and what it leaves alone."""

from __future__ import annotations

import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from jobforge_mcp.errors import OperatorError
from jobforge_mcp.local.install import (
    ClientName,
    InstallOutcome,
    config_path,
    find_command,
    install,
)

JSON_CLIENTS = [client for client in ClientName if client is not ClientName.CODEX]


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    monkeypatch.setenv("HOME", str(tmp_path))
    return {"APPDATA": str(tmp_path / "AppData")}


def read(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    return tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)


def servers(config: dict[str, Any]) -> dict[str, Any]:
    (key,) = config.keys() & {"mcpServers", "servers", "mcp_servers"}
    return config[key]


@pytest.mark.requirement("install.clients")
@pytest.mark.skipif(sys.platform != "linux", reason="names Linux's places")
@pytest.mark.parametrize(
    ("client", "place", "key", "says_type"),
    [
        (ClientName.CLAUDE_CODE, ".claude.json", "mcpServers", True),
        (
            ClientName.CLAUDE_DESKTOP,
            ".config/Claude/claude_desktop_config.json",
            "mcpServers",
            False,
        ),
        (ClientName.CURSOR, ".cursor/mcp.json", "mcpServers", False),
        (ClientName.VSCODE, ".config/Code/User/mcp.json", "servers", True),
        (ClientName.CODEX, ".codex/config.toml", "mcp_servers", False),
    ],
)
def test_each_client_s_own_file_gets_an_absolute_command(
    client: ClientName,
    place: str,
    key: str,
    says_type: bool,
    environ: dict[str, str],
    tmp_path: Path,
) -> None:
    done = install(client, environ=environ)

    entry = read(tmp_path / place)[key]["jobforge"]
    assert done.path == tmp_path / place
    assert done.outcome is InstallOutcome.WRITTEN
    assert Path(entry["command"]).is_absolute()
    assert Path(entry["command"]).exists()
    assert entry["args"] == []
    assert "env" not in entry
    assert entry.get("type") == ("stdio" if says_type else None)
    assert (tmp_path / place).stat().st_mode & 0o777 == 0o600


def test_other_homes_of_claude_code_and_codex_are_respected(
    environ: dict[str, str], tmp_path: Path
) -> None:
    environ |= {"CLAUDE_CONFIG_DIR": str(tmp_path / "c"), "CODEX_HOME": str(tmp_path / "x")}

    assert config_path(ClientName.CLAUDE_CODE, environ) == tmp_path / "c" / ".claude.json"
    assert config_path(ClientName.CODEX, environ) == tmp_path / "x" / "config.toml"


@pytest.mark.requirement("install.nothing-lost")
@pytest.mark.parametrize("client", JSON_CLIENTS)
def test_what_else_a_json_file_holds_stays(client: ClientName, environ: dict[str, str]) -> None:
    path = config_path(client, environ)
    key = "servers" if client is ClientName.VSCODE else "mcpServers"
    before = {"théme": "dark", key: {"other": {"command": "x"}}, "inputs": [1, {"a": None}]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(before), encoding="utf-8")
    path.chmod(0o640)

    done = install(client, environ=environ)

    after = read(path)
    del after[key]["jobforge"]
    assert after == before
    assert done.backup is not None
    assert read(done.backup) == before
    assert path.stat().st_mode & 0o777 == 0o640


CODEX_BEFORE = """\
model = "o9" # the big one

[mcp_servers.jobforge]
command = "/old/jobforge"
startup_timeout_sec = 20

[mcp_servers.jobforge.env]
JOBFORGE_TOKEN = "kept"

[mcp_servers.other]
command = "x" # keep me
"""


@pytest.mark.requirement("install.nothing-lost")
def test_a_codex_file_keeps_its_comments_and_the_user_s_additions(
    environ: dict[str, str],
) -> None:
    path = config_path(ClientName.CODEX, environ)
    path.parent.mkdir()
    path.write_text(CODEX_BEFORE)

    install(ClientName.CODEX, environ={**environ, "JOBFORGE_STATE_DIR": "/srv/ü \\ x"})

    text = path.read_text(encoding="utf-8")
    entry = servers(read(path))["jobforge"]
    assert "# the big one" in text
    assert "# keep me" in text
    assert servers(read(path))["other"] == {"command": "x"}
    assert entry["command"] == find_command().program
    assert entry["startup_timeout_sec"] == 20
    assert entry["env"] == {"JOBFORGE_TOKEN": "kept", "JOBFORGE_STATE_DIR": "/srv/ü \\ x"}


@pytest.mark.parametrize("client", list(ClientName))
def test_a_second_installation_changes_nothing(client: ClientName, environ: dict[str, str]) -> None:
    install(client, environ=environ)
    text = config_path(client, environ).read_text()

    again = install(client, environ=environ)

    assert again.outcome is InstallOutcome.UNCHANGED
    assert again.backup is None
    assert config_path(client, environ).read_text() == text


@pytest.mark.requirement("install.nothing-lost")
@pytest.mark.parametrize(
    ("client", "text"),
    [
        (ClientName.VSCODE, '{\n  // mine\n  "servers": {}\n}'),
        (ClientName.CURSOR, "[]"),
        (ClientName.CURSOR, '{"mcpServers": []}'),
        (ClientName.CURSOR, '{"mcpServers": '),
        (ClientName.CODEX, "= broken"),
        (ClientName.CODEX, 'mcp_servers = { jobforge = { command = "x" } }'),
        (ClientName.CODEX, 'mcp_servers.jobforge.command = "x"'),
    ],
)
def test_a_file_that_is_not_understood_is_left_alone_and_the_way_out_is_shown(
    client: ClientName, text: str, environ: dict[str, str]
) -> None:
    path = config_path(client, environ)
    path.parent.mkdir(parents=True)
    path.write_text(text)

    with pytest.raises(OperatorError) as refusal:
        install(client, environ=environ)

    assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]
    assert refusal.value.hint is not None
    assert find_command().program in refusal.value.hint


@pytest.mark.requirement("install.no-secrets-shown")
@pytest.mark.parametrize("client", list(ClientName))
def test_print_writes_nothing_and_shows_no_secret(
    client: ClientName, environ: dict[str, str]
) -> None:
    environ |= {"JOBFORGE_TOKEN": "s3cret", "DATABASE_URL": "postgresql://u:s3cret@db/x"}

    shown = install(client, print_only=True, environ=environ)

    assert shown.outcome is InstallOutcome.SHOWN
    assert not shown.path.exists()
    assert "s3cret" not in shown.snippet
    assert "<JOBFORGE_TOKEN>" in shown.snippet


def test_settings_of_this_shell_go_into_the_entry_and_nothing_else(
    environ: dict[str, str],
) -> None:
    environ |= {"JOBFORGE_TOKEN": "t", "JOBFORGE_NODE": "", "AWS_SECRET": "x"}

    install(ClientName.CURSOR, environ=environ)

    entry = servers(read(config_path(ClientName.CURSOR, environ)))["jobforge"]
    assert entry["env"] == {"JOBFORGE_TOKEN": "t"}


def test_a_linked_file_stays_a_link(environ: dict[str, str], tmp_path: Path) -> None:
    path = config_path(ClientName.CURSOR, environ)
    path.parent.mkdir(parents=True)
    real = tmp_path / "dotfiles.json"
    real.write_text("{}")
    path.symlink_to(real)

    install(ClientName.CURSOR, environ=environ)

    assert path.is_symlink()
    assert "jobforge" in servers(read(real))


def test_paths_in_settings_become_absolute_and_names_of_modules_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jobs.py").touch()
    monkeypatch.chdir(tmp_path)

    settings = find_command(
        {"JOBFORGE_JOBS": "jobs.py, my.module", "JOBFORGE_PORT": "1"}
    ).environment

    assert settings == {"JOBFORGE_JOBS": f"{tmp_path}/jobs.py,my.module", "JOBFORGE_PORT": "1"}
