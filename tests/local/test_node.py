"""How a node begins, whom it serves, and when it ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobforge_mcp.db.context import create_key, enforce_keys
from jobforge_mcp.local import node, rendezvous
from jobforge_mcp.local.place import Place
from jobforge_mcp.local.rendezvous import NodeError
from jobforge_mcp.policy.keys import KeyFolder
from jobforge_mcp.policy.scopes import ALL_SCOPES
from jobforge_mcp.policy.tokens import Grant, issue_token
from jobforge_mcp.settings import load_settings
from tests.local.conftest import Home, environment_of, is_alive, until
from tests.postgres import ADMIN, ScratchDatabase

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


@pytest.mark.requirement("local.token")
def test_each_chat_acts_as_its_own_token_says(home: Home) -> None:
    token = token_of(home, "acme")

    with home.chat() as local, home.chat(JOBFORGE_TOKEN=token) as acme:
        local.initialize()
        acme.initialize()
        run = acme.call("execute-job", name="demo.countdown", input={"seconds": 0})
        seen_by_acme = acme.call("get-job-status", runId=run["runId"])
        seen_by_local = local.call("get-job-status", runId=run["runId"])

    assert seen_by_acme["status"] == "succeeded"
    assert seen_by_local["error"]["code"] == "RUN_NOT_FOUND"


@pytest.mark.requirement("local.token")
def test_a_token_in_the_settings_file_counts_as_well(home: Home) -> None:
    file = home.state_dir / "jobforge.toml"
    file.write_text('token = "no.such.token"')
    try:
        with home.chat() as chat:
            answer = chat.ask("initialize")
    finally:
        file.unlink()

    assert "TOKEN_INVALID" in answer["error"]["message"]


@pytest.mark.requirement("local.token")
def test_a_bad_token_is_refused_in_words_at_the_start(home: Home) -> None:
    with home.chat(JOBFORGE_TOKEN="no.such.token") as chat:
        answer = chat.ask("initialize")
        code = chat.close()

    assert "TOKEN_INVALID" in answer["error"]["message"]
    assert code == 1


@pytest.mark.requirement("local.token")
def test_a_token_reaches_neither_the_node_s_environment_nor_its_log(home: Home) -> None:
    home.stop_node()
    token = token_of(home, "acme")

    with home.chat(JOBFORGE_TOKEN=token) as chat:
        chat.initialize()
        pid = home.node.pid
        assert pid is not None
        environment = environment_of(pid)

    assert token.encode() not in environment
    assert token not in home.log


@pytest.mark.requirement("local.token", "sql.signed-scope")
def test_a_node_signs_what_a_database_asks_to_be_signed(
    home: Home, database: ScratchDatabase
) -> None:
    """A database of one's own that refuses unsigned scopes, and a chat that has the key."""
    key = create_key(database.url(ADMIN))
    enforce_keys(database.url(ADMIN))
    environment = {
        "JOBFORGE_TOKEN": token_of(home, "acme"),
        "JOBFORGE_TOKEN_KEYS": str(home.settings.keys_dir),
        "JOBFORGE_CONTEXT_KEY": key.text(),
        "DATABASE_URL": database.url("jobforge_api"),
        "JOBFORGE_WORKER_DATABASE_URL": database.url("jobforge_worker"),
    }
    settings = load_settings(
        state_dir=home.state_dir,
        database_url=environment["DATABASE_URL"],
        worker_database_url=environment["JOBFORGE_WORKER_DATABASE_URL"],
    )

    try:
        with home.chat(**environment) as chat:
            chat.initialize()
            run = chat.call("execute-job", name="demo.countdown", input={"seconds": 0})
            log = Path(node.place_of(settings).log_path).read_text()
    finally:
        node.stop_node(settings)

    assert run["status"] == "succeeded"
    assert key.text() not in log


@pytest.mark.requirement("local.own-user-only")
@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("is_directory_open", [False, True])
def test_another_user_gets_no_answer(home: Home, is_directory_open: bool) -> None:
    with home.chat() as chat:
        chat.initialize()
        path = Path(home.place.socket_path)
        if is_directory_open:
            path.parent.chmod(0o711)
            path.chmod(0o666)
        try:
            heard = ask_as_nobody(path)
        finally:
            path.parent.chmod(0o700)
            path.chmod(0o600)

    assert heard == (b"" if is_directory_open else b"PermissionError")


@pytest.mark.requirement("local.own-user-only")
def test_a_directory_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    place = Place(str(tmp_path), "")
    Path(place.directory).mkdir(parents=True, mode=0o755)

    with pytest.raises(NodeError, match="not a directory of this user alone"):
        rendezvous.prepare(place)


@pytest.mark.requirement("local.upgrade")
def test_a_newer_bridge_makes_an_older_node_give_way(home: Home) -> None:
    with home.chat() as chat:
        chat.initialize()
        old = home.node.pid
        assert old is not None
        answer = greet(home, version="99.0")
        until(lambda: not is_alive(old))
        # The chat of the older version goes on with whatever node there is now.
        listed = chat.ask("tools/list")

    assert answer == {"protocol": 1, "restarting": True}
    assert "result" in listed
    assert home.node.pid != old


@pytest.mark.requirement("local.upgrade")
def test_a_stranger_protocol_is_refused_in_words(home: Home) -> None:
    with home.chat() as chat:
        chat.initialize()
        answer = greet(home, protocol=2)

    assert "speaks protocol 1" in str(answer["error"])


@pytest.mark.requirement("local.idle-end")
def test_a_node_ends_when_nobody_needs_it_but_not_before_work_that_is_due(home: Home) -> None:
    home.stop_node()
    with home.chat(JOBFORGE_NODE_LINGER_SECONDS="0.2") as chat:
        chat.initialize()
        due = datetime.now(UTC) + timedelta(seconds=1.5)
        run = chat.call(
            "execute-job",
            name="demo.countdown",
            input={"seconds": 0},
            runAt=due.isoformat(),
            background=True,
        )
        pid = home.node.pid
        chat.close()
    assert pid is not None

    until(lambda: not is_alive(pid))

    assert datetime.now(UTC) > due
    assert "idle" in home.log.splitlines()[-3]
    with home.chat() as chat:
        chat.initialize()
        assert chat.call("get-job-status", runId=run["runId"])["status"] == "succeeded"


@pytest.mark.requirement("local.idle-end")
def test_a_node_that_is_kept_stays(home: Home) -> None:
    home.stop_node()

    started = home.start_node(keep=True)

    assert started.is_kept
    assert started.pid == home.node.pid
    assert home.node.is_kept


def test_sigterm_ends_a_node_in_order_and_frees_its_place(home: Home) -> None:
    pid = home.start_node().pid
    assert pid is not None

    os.kill(pid, signal.SIGTERM)
    until(lambda: not is_alive(pid))

    assert home.node.state == "stopped"
    assert not Path(home.place.socket_path).exists()
    assert '"event": "node_ended"' in home.log.splitlines()[-1]


def test_a_node_whose_place_was_removed_ends(home: Home) -> None:
    pid = home.start_node().pid
    assert pid is not None

    Path(home.place.socket_path).unlink()

    until(lambda: not is_alive(pid))


def test_stopping_what_does_not_run_says_so(home: Home) -> None:
    home.stop_node()

    assert home.stop_node() is False
    assert home.node.state == "stopped"


def token_of(home: Home, tenant: str) -> str:
    settings = home.settings
    grant = Grant(tenant, ALL_SCOPES, (), subject=f"agent@{tenant}", lifetime=timedelta(hours=1))
    return issue_token(
        KeyFolder(settings.keys_dir).ensure(),
        grant,
        issuer=settings.token_issuer,
        audience=settings.token_audience,
    )


def greet(home: Home, **changed: object) -> dict[str, Any]:
    """Say hello by hand and return the answer."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(home.place.socket_path)
        connection.sendall(rendezvous.write_object({**rendezvous.say_hello("mcp"), **changed}))
        return json.loads(connection.recv(65536))


def ask_as_nobody(path: Path) -> bytes:
    """Say hello as another user, from a child process, and return what was heard."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(60)
                connection.connect(str(path))
                connection.sendall(rendezvous.write_object(rendezvous.say_hello("mcp")))
                os.write(writing, connection.recv(65536))
        except ConnectionError:
            pass
        except OSError as error:
            os.write(writing, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as heard:
        return heard.read()
