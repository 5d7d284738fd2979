"""Which directories are used, which are refused, and that none of another's is changed."""

from __future__ import annotations

import os
import socket
import stat
import sys
from pathlib import Path

import pytest

from jobforge_mcp.embedded import scratch_state_directory, state_directory
from jobforge_mcp.embedded.places import (
    Account,
    fits_socket,
    prepare_state_directory,
    socket_directory,
)
from jobforge_mcp.errors import OperatorError
from tests.embedded.conftest import IS_ROOT


def test_the_named_state_directory_is_used(tmp_path: Path) -> None:
    assert state_directory({"JOBFORGE_STATE_DIR": str(tmp_path)}) == tmp_path


def test_root_keeps_its_state_in_a_system_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(sys, "platform", "linux")

    assert state_directory({"XDG_DATA_HOME": "/data"}) == Path("/var/lib/jobforge")


@pytest.mark.parametrize(
    ("platform", "environ", "expected"),
    [
        ("linux", {"XDG_DATA_HOME": "/data"}, "/data/jobforge"),
        ("linux", {"XDG_DATA_HOME": "relative"}, "/home/alice/.local/share/jobforge"),
        ("linux", {}, "/home/alice/.local/share/jobforge"),
        (
            "darwin",
            {"XDG_DATA_HOME": "/data"},
            "/home/alice/Library/Application Support/jobforge",
        ),
    ],
)
def test_an_ordinary_account_keeps_its_state_where_the_platform_says(
    monkeypatch: pytest.MonkeyPatch, platform: str, environ: dict[str, str], expected: str
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("HOME", "/home/alice")

    assert state_directory(environ) == Path(expected)


def test_a_state_directory_is_made_for_its_owner_and_never_listed_by_others(tmp_path: Path) -> None:
    made = prepare_state_directory(tmp_path / "a" / "b")

    assert stat.S_IMODE(made.stat().st_mode) == (0o711 if IS_ROOT else 0o700)


@pytest.mark.requirement("embedded.not-ours")
@pytest.mark.parametrize("mode", [0o700, 0o755, 0o750])
def test_the_mode_of_a_directory_that_was_there_is_kept(tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)

    prepare_state_directory(tmp_path)

    assert stat.S_IMODE(tmp_path.stat().st_mode) == mode


def test_a_directory_open_to_everybody_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)

    with pytest.raises(OperatorError) as refused:
        prepare_state_directory(tmp_path)

    assert "everybody may write" in refused.value.message


@pytest.mark.skipif(not IS_ROOT, reason="only root can give a directory away")
def test_a_directory_of_somebody_else_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)

    with pytest.raises(OperatorError) as refused:
        prepare_state_directory(tmp_path)

    assert "belongs to user 65534" in refused.value.message


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(OperatorError) as refused:
        prepare_state_directory(tmp_path / "file" / "state")

    assert "cannot be made or used" in refused.value.message


@pytest.mark.requirement("embedded.socket")
def test_the_longest_path_that_fits_can_be_bound_and_one_more_byte_cannot() -> None:
    base = scratch_state_directory()
    room = 107 - len(os.fsencode(base)) - len("/") - len("/.s.PGSQL.5432")
    longest, longer = base / ("x" * room), base / ("x" * (room + 1))

    assert (fits_socket(longest), fits_socket(longer)) == (True, False)
    for path in (longest, longer):
        path.mkdir()
        with socket.socket(socket.AF_UNIX) as listener:
            if path == longer:
                with pytest.raises(OSError, match="too long"):
                    listener.bind(str(path / ".s.PGSQL.5432"))
            else:
                listener.bind(str(path / ".s.PGSQL.5432"))
                (path / ".s.PGSQL.5432").unlink()
        path.rmdir()
    base.rmdir()


@pytest.mark.requirement("embedded.socket")
def test_the_runtime_directory_is_next_for_an_ordinary_account(tmp_path: Path) -> None:
    too_long = tmp_path / ("x" * 100)
    runtime = scratch_state_directory()

    found = socket_directory(too_long, None, {"XDG_RUNTIME_DIR": str(runtime)})

    assert found.parent == runtime
    found.rmdir()
    runtime.rmdir()


@pytest.mark.requirement("embedded.socket")
@pytest.mark.parametrize("trap", ["open", "link", "file"])
def test_a_directory_somebody_else_may_have_prepared_is_neither_used_nor_touched(
    tmp_path: Path, trap: str
) -> None:
    too_long = tmp_path / ("x" * 100)
    runtime = scratch_state_directory()
    environ = {"XDG_RUNTIME_DIR": str(runtime)}
    path = socket_directory(too_long, None, environ)
    path.rmdir()
    if trap == "open":
        path.mkdir()
        path.chmod(0o755)
    elif trap == "link":
        path.symlink_to(tmp_path)
    else:
        path.touch()
    before = path.lstat()

    elsewhere = socket_directory(too_long, None, environ)

    assert elsewhere.parent != runtime
    assert path.lstat() == before
    elsewhere.rmdir()
    path.unlink() if trap != "open" else path.rmdir()
    runtime.rmdir()


@pytest.mark.skipif(not IS_ROOT, reason="only root makes directories for another account")
def test_the_socket_directory_of_root_belongs_to_the_servers_account() -> None:
    base = scratch_state_directory()

    found = socket_directory(base, Account("nobody", 65534, 65534), {})

    assert (found, found.stat().st_uid) == (base / "socket", 65534)
    found.rmdir()
    base.rmdir()
