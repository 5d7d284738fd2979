"""Where bridge and node look for each other; they must agree without the settings class."""

from __future__ import annotations

import os
import socket
from importlib.metadata import version
from pathlib import Path

import pytest

from jobforge_mcp.embedded import state_directory
from jobforge_mcp.local import rendezvous
from jobforge_mcp.local.node import place_of
from jobforge_mcp.local.place import Place, find_place
from jobforge_mcp.settings import load_settings


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("JOBFORGE_") or name == "DATABASE_URL":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def test_the_version_is_the_package_s() -> None:
    assert version("jobforge-mcp") == rendezvous.VERSION


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"JOBFORGE_STATE_DIR": "/srv/jobforge"},
        {"JOBFORGE_STATE_DIR": "~/jobs"},
        {"XDG_DATA_HOME": "/data"},
        {"DATABASE_URL": "postgresql://db/one"},
        {"DATABASE_URL": "postgresql://db/one", "JOBFORGE_DATABASE_URL": "postgresql://db/two"},
        {
            "DATABASE_URL": "postgresql://db/one",
            "JOBFORGE_WORKER_DATABASE_URL": "postgresql://db/w",
        },
    ],
)
def test_bridge_and_settings_name_the_same_place(
    environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)

    place = find_place()

    assert place.directory == place_of(load_settings()).directory
    assert place.state_dir == str(state_directory().resolve())


def test_a_settings_file_counts_for_the_bridge_as_well(tmp_path: Path) -> None:
    Path("jobforge.toml").write_text(
        f'state_dir = "{tmp_path}/elsewhere"\ndatabase_url = "postgresql://db/x"'
    )

    assert find_place().directory == place_of(load_settings()).directory
    assert find_place().directory.startswith(f"{tmp_path}/elsewhere/nodes/db-")


@pytest.mark.requirement("local.one-node")
def test_another_database_has_another_node_and_shows_no_password(tmp_path: Path) -> None:
    one = Place(str(tmp_path), "postgresql://user:secret@db/one")
    two = Place(str(tmp_path), "postgresql://user:secret@db/two")

    assert len({one.directory, two.directory, Place(str(tmp_path), "").directory}) == 3
    assert "secret" not in one.directory


def test_a_path_too_long_for_a_socket_gets_a_short_one_elsewhere(tmp_path: Path) -> None:
    place = Place(str(tmp_path / ("x" * 120)), "")

    rendezvous.prepare(place)
    listener = rendezvous.bind(place)

    try:
        assert listener.getsockname().endswith("new")
        assert Path(place.socket_path).is_socket()
        assert place.socket_path == Place(str(tmp_path / ("x" * 120)), "").socket_path
    finally:
        listener.close()
        Path(place.socket_path).unlink()
        Path(place.socket_path).parent.rmdir()


def test_only_one_can_hold_the_lock(tmp_path: Path) -> None:
    place = Place(str(tmp_path), "")
    rendezvous.prepare(place)

    first = rendezvous.take_lock(place)
    second = rendezvous.take_lock(place)
    assert first is not None
    os.close(first)
    third = rendezvous.take_lock(place)

    assert second is None
    assert third is not None
    os.close(third)


def test_the_kernel_says_who_the_peer_is() -> None:
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        assert rendezvous.peer_uid(here) == os.geteuid()


@pytest.mark.parametrize(
    ("version", "than", "is_newer"),
    [
        ("0.2.0", "0.1.0", True),
        ("0.10.0", "0.9.0", True),
        ("0.1.0", "0.1.0", False),
        ("0.1.0", "0.2.0", False),
        ("1.0.0", "1.0.0rc1", True),
        ("nonsense", "0.1.0", False),
        (None, "0.1.0", False),
    ],
)
def test_versions_are_compared_by_their_numbers(version: object, than: str, is_newer: bool) -> None:
    assert rendezvous.is_newer(version, than) is is_newer
