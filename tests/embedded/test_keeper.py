"""The embedded server through every death and race that its design names."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

from jobforge_mcp.embedded import Cluster, ensure_running, find_binaries, status, stop
from jobforge_mcp.embedded.places import find_account
from jobforge_mcp.embedded.processes import is_postmaster_of, read_pid_file
from jobforge_mcp.errors import OperatorError
from tests.embedded.conftest import (
    IS_ROOT,
    LINGER,
    MYSELF,
    Person,
    eventually,
    is_alive,
    processes_of,
    query,
)

as_root = pytest.mark.skipif(not IS_ROOT, reason="only root has to change to another account")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="asks the Linux kernel")


@pytest.fixture
def cluster(state_dir: Path) -> Iterator[Cluster]:
    with ensure_running(state_dir, linger_seconds=LINGER) as running:
        yield running


def data_directory(state_dir: Path) -> Path:
    return next(path for path in state_dir.glob("pg*") if path.suffix == "")


def server_account() -> int:
    account = find_account(None)
    return account.uid if account else os.geteuid()


@contextmanager
def child(*command: str | Path, of_server: bool = True) -> Generator[subprocess.Popen[bytes]]:
    """Run a program, as the server's account where this is root, and end it whatever happens."""
    uid = server_account() if IS_ROOT and of_server else None
    groups: list[int] | None = [] if IS_ROOT and of_server else None
    with subprocess.Popen(
        command, user=uid, extra_groups=groups, stderr=subprocess.DEVNULL, cwd="/"
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def write_pid_file(data_dir: Path, pid: int) -> None:
    """Leave a ``postmaster.pid`` as a postmaster that was killed leaves it."""
    path = data_dir / "postmaster.pid"
    path.write_text(
        f"{pid}\n{data_dir}\n1700000000\n5432\n/nowhere\n\n  1234567         0\nready   \n"
    )
    os.chown(path, server_account(), -1)


# --- Start and stop


@pytest.mark.requirement("embedded.start")
def test_the_first_start_creates_a_cluster_with_the_three_roles(
    empty_state_dir: Path, binaries: Path
) -> None:
    """Takes a second: initdb."""
    said: list[str] = []

    with ensure_running(
        empty_state_dir, linger_seconds=LINGER, binaries=binaries, on_progress=said.append
    ) as cluster:
        roles = query(
            cluster,
            "select rolname, rolcanlogin, rolsuper, rolcreaterole, rolbypassrls, rolcreatedb"
            " from pg_roles where rolname not like 'pg\\_%' order by rolname",
        )
        owner = query(
            cluster, "select pg_get_userbyid(datdba) from pg_database where datname = 'jobforge'"
        )
        settings = query(
            cluster,
            "select name, setting from pg_settings where name in"
            " ('data_checksums', 'fsync', 'full_page_writes', 'listen_addresses', 'server_encoding')"
            " order by name",
        )
        version = query(cluster, "show server_version")[0][0]

    assert roles == [
        ("jobforge_admin", True, False, True, False, False),
        ("jobforge_api", True, False, False, False, False),
        ("jobforge_superuser", True, True, True, True, True),
        ("jobforge_worker", True, False, False, False, False),
    ]
    assert owner == [("jobforge_admin",)]
    assert settings == [
        ("data_checksums", "on"),
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("listen_addresses", ""),
        ("server_encoding", "UTF8"),
    ]
    assert str(version).startswith(cluster.version)
    # a loaded machine may add that it is still starting
    assert said[:1] == [f"Creating the embedded PostgreSQL {cluster.version} in {empty_state_dir}"]


@pytest.mark.requirement("embedded.roles")
@pytest.mark.parametrize("role", ["jobforge_api", "jobforge_worker"])
def test_a_serving_role_may_connect_and_nothing_else(cluster: Cluster, role: str) -> None:
    who = query(cluster, "select current_user, pg_has_role('jobforge_admin', 'member')", role)
    may_create = query(cluster, "select has_database_privilege('jobforge', 'create')", role)

    assert who == [(role, False)]
    assert may_create == [(False,)]


@pytest.mark.requirement("embedded.start")
def test_what_was_committed_is_there_after_a_stop_and_a_later_start(
    state_dir: Path, person: Person
) -> None:
    first = person.uses(state_dir)
    with psycopg.connect(str(first.answer["url"]), autocommit=True) as connection:
        connection.execute("drop table if exists kept")
        connection.execute("create table kept as select 42 as answer")
    assert stop(state_dir)
    assert status(state_dir).state == "stopped"

    second = person.uses(state_dir)
    with psycopg.connect(str(second.answer["url"])) as connection:
        kept = connection.execute("select answer from kept").fetchall()

    assert kept == [(42,)]
    assert second.postmaster != first.postmaster
    first.close()
    second.close()


@pytest.mark.requirement("embedded.one-server")
def test_twelve_users_who_start_at_once_get_one_server(state_dir: Path, person: Person) -> None:
    """Takes two seconds on two cores: twelve interpreters."""
    users = [person.uses(state_dir) for _ in range(12)]

    assert len({(user.postmaster, user.keeper) for user in users}) == 1
    for user in users:
        user.close()


def test_a_second_user_finds_the_server_without_a_word(cluster: Cluster) -> None:
    said: list[str] = []

    with ensure_running(cluster.state_dir, on_progress=said.append) as second:
        assert second.postmaster_pid == cluster.postmaster_pid
        assert second.url() == cluster.url()

    assert said == []


def test_stop_ends_the_server_under_its_users_and_says_whether_there_was_one(
    cluster: Cluster,
) -> None:
    was_running = stop(cluster.state_dir)
    again = stop(cluster.state_dir)

    assert (was_running, again) == (True, False)
    eventually(lambda: processes_of(cluster.state_dir) == [], "all processes end")


def test_a_user_of_a_stopped_server_can_have_it_back_under_the_same_url(cluster: Cluster) -> None:
    before = cluster.url()
    stop(cluster.state_dir)

    cluster.ensure_alive()

    assert cluster.url() == before
    assert query(cluster, "select 1") == [(1,)]


def test_status_says_what_is_there(state_dir: Path) -> None:
    stopped = status(state_dir)
    with ensure_running(state_dir, linger_seconds=LINGER) as cluster:
        running = status(state_dir)

    assert (stopped.state, stopped.running, stopped.has_users) == ("stopped", None, False)
    assert (running.state, running.has_users) == ("running", True)
    assert running.running is not None
    assert running.running.postmaster_pid == cluster.postmaster_pid


def test_status_and_stop_leave_no_trace_in_a_directory_that_is_not_ours(tmp_path: Path) -> None:
    seen = status(tmp_path), stop(tmp_path), stop(tmp_path / "absent")

    assert (seen[0].state, seen[1], seen[2]) == ("stopped", False, False)
    assert list(tmp_path.iterdir()) == []


# --- Deaths


@pytest.mark.requirement("embedded.no-leak")
def test_the_server_stops_by_itself_when_every_user_was_killed(
    state_dir: Path, person: Person
) -> None:
    users = [person.uses(state_dir) for _ in range(3)]
    postmaster = users[0].postmaster
    assert {user.postmaster for user in users} == {postmaster}

    for user in users:
        user.kill()

    eventually(lambda: not is_alive(postmaster), "the server stops")
    eventually(lambda: processes_of(state_dir) == [], "all processes end")


def test_the_server_stays_while_one_user_lives(state_dir: Path) -> None:
    first, second = MYSELF.uses(state_dir), MYSELF.uses(state_dir)
    assert first.postmaster == second.postmaster

    first.kill()
    with pytest.raises(AssertionError):
        eventually(lambda: not is_alive(second.postmaster), "it stops", 3 * LINGER)

    assert is_alive(second.postmaster)
    second.close()


def test_short_visits_between_two_looks_of_the_keeper_keep_the_server(state_dir: Path) -> None:
    """Takes some seconds: longer than the linger time, which no pause of a busy machine may reach."""
    linger = 2.0
    with ensure_running(state_dir, linger_seconds=linger) as first:
        postmaster = first.postmaster_pid
    end = time.monotonic() + 2.5 * linger

    while time.monotonic() < end:
        with ensure_running(state_dir) as visit:
            assert visit.postmaster_pid == postmaster


@pytest.mark.requirement("embedded.keeper-killed")
@on_linux
def test_the_server_follows_a_killed_keeper_and_the_next_user_gets_a_new_one(
    state_dir: Path, person: Person
) -> None:
    live = person.uses(state_dir)

    os.kill(live.keeper, signal.SIGKILL)
    following = person.uses(state_dir)

    assert following.postmaster != live.postmaster
    assert following.answer["url"] == live.answer["url"]
    assert not is_alive(live.postmaster)
    with psycopg.connect(str(following.answer["url"])) as connection:
        assert connection.execute("select 1").fetchall() == [(1,)]
    following.close()
    live.close()


@pytest.mark.requirement("embedded.keeper-killed")
@on_linux
def test_the_server_follows_a_killed_keeper_even_if_nobody_comes(
    state_dir: Path, person: Person
) -> None:
    live = person.uses(state_dir)

    os.kill(live.keeper, signal.SIGKILL)

    eventually(lambda: not is_alive(live.postmaster), "the server follows")
    live.close()


@pytest.mark.requirement("embedded.keeper-killed")
def test_an_orphan_is_recognised_and_replaced(state_dir: Path) -> None:
    data_dir = data_directory(state_dir)
    sockets = state_dir / "socket"
    command = (find_binaries() / "postgres", "-D", data_dir)
    pid_file = data_dir / "postmaster.pid"
    with child(*command, "-c", f"unix_socket_directories={sockets}") as orphan:
        eventually(lambda: pid_file.exists() and "ready" in pid_file.read_text(), "the orphan runs")
        seen = status(state_dir).state

        with ensure_running(state_dir, linger_seconds=LINGER) as cluster:
            ended = orphan.wait(60)
            answer = query(cluster, "select 1")

    assert (seen, ended, answer) == ("orphaned", 0, [(1,)])


def test_stop_ends_an_orphan_too(state_dir: Path) -> None:
    with ensure_running(state_dir, linger_seconds=LINGER) as cluster:
        # Stopped, it cannot follow its keeper; the signal that tells it to is kept for it.
        os.kill(cluster.postmaster_pid, signal.SIGSTOP)
        try:
            os.kill(cluster.keeper_pid, signal.SIGKILL)
            eventually(lambda: status(state_dir).state == "orphaned", "the keeper is gone")
        finally:
            os.kill(cluster.postmaster_pid, signal.SIGCONT)

        stop(state_dir)

        assert not is_alive(cluster.postmaster_pid)


@pytest.mark.requirement("embedded.postmaster-killed")
def test_a_killed_postmaster_comes_back_with_every_committed_row(
    state_dir: Path, person: Person
) -> None:
    user = person.uses(state_dir)
    url = str(user.answer["url"])
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("drop table if exists kept")
        connection.execute("create table kept (id int primary key)")
        for number in range(1_000):
            connection.execute("insert into kept values (%s)", [number])

        os.kill(user.postmaster, signal.SIGKILL)
        eventually(lambda: rows_of(url) == 1_000, "the rows are back")

    user.close()


def rows_of(url: str) -> int | None:
    try:
        with psycopg.connect(url) as connection:
            row = connection.execute("select count(*) from kept").fetchone()
            return row[0] if row else None
    except psycopg.OperationalError:
        return None


@pytest.mark.requirement("embedded.whole-or-nothing")
def test_what_a_killed_keeper_left_half_made_is_thrown_away(empty_state_dir: Path) -> None:
    """Takes two seconds: initdb, twice."""
    half_made = empty_state_dir / "pg18.new"
    first = MYSELF.uses(empty_state_dir)
    eventually((half_made / "PG_VERSION").exists, "initdb is at work")
    # Stopped first: a keeper that outlived initdb by a moment would tell its user that initdb failed.
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in processes_of(empty_state_dir):
            if pid != first.process.pid:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
    (half_made / "leftover").touch()
    second = MYSELF.uses(empty_state_dir)

    assert second.postmaster == first.postmaster
    assert not half_made.exists()
    assert not (empty_state_dir / "pg18" / "leftover").exists()
    first.close()
    second.close()


# --- What is not ours


@pytest.mark.requirement("embedded.strangers")
def test_a_stranger_who_got_the_postmasters_number_is_left_alone(state_dir: Path) -> None:
    with child("/bin/sleep", "600") as stranger:
        write_pid_file(data_directory(state_dir), stranger.pid)

        with ensure_running(state_dir, linger_seconds=LINGER) as cluster:
            answer = query(cluster, "select 1")

        assert answer == [(1,)]
        assert stop(state_dir) in {True, False}
        assert stranger.poll() is None


@pytest.mark.requirement("embedded.strangers")
def test_a_postmaster_of_another_directory_is_a_stranger(state_dir: Path, cluster: Cluster) -> None:
    other = state_dir / "pg14"
    other.mkdir(mode=0o700)
    write_pid_file(other, cluster.postmaster_pid)

    assert not is_orphaned(other)
    assert is_alive(cluster.postmaster_pid)
    shutil.rmtree(other)


def is_orphaned(data_dir: Path) -> bool:
    claim = read_pid_file(data_dir)
    assert claim is not None
    return is_postmaster_of(claim.pid, data_dir)


@pytest.mark.requirement("embedded.strangers")
def test_a_zombie_is_no_running_postmaster(state_dir: Path) -> None:
    with child("/bin/true", of_server=False) as zombie:
        eventually(lambda: not is_alive(zombie.pid), "it ends, unreaped")
        write_pid_file(data_directory(state_dir), zombie.pid)

        with ensure_running(state_dir, linger_seconds=LINGER) as cluster:
            answer = query(cluster, "select 1")

    assert answer == [(1,)]


@pytest.mark.parametrize("text", ["", "12", "not a number\n"], ids=["empty", "cut", "garbled"])
def test_a_damaged_pid_file_does_not_stand_in_the_way(state_dir: Path, text: str) -> None:
    path = data_directory(state_dir) / "postmaster.pid"
    path.write_text(text)
    os.chown(path, server_account(), -1)

    with ensure_running(state_dir, linger_seconds=LINGER) as cluster:
        assert query(cluster, "select 1") == [(1,)]


def test_a_link_in_place_of_the_pid_file_is_not_written_through(
    state_dir: Path, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text(f"{os.getpid()}\n/somewhere\nprecious\n")
    (data_directory(state_dir) / "postmaster.pid").symlink_to(victim)

    with ensure_running(state_dir, linger_seconds=LINGER) as cluster:
        assert query(cluster, "select 1") == [(1,)]

    assert victim.read_text().endswith("precious\n")


@pytest.mark.requirement("embedded.not-ours")
@as_root
def test_binaries_in_a_closed_directory_are_copied_and_the_directory_stays_closed(
    state_dir: Path, tmp_path: Path
) -> None:
    """Takes a second: 30 MB are copied."""
    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)
    (closed / "pg").symlink_to(find_binaries().parent)

    started: list[Path] = []
    for _ in range(2):
        with ensure_running(
            state_dir, linger_seconds=LINGER, binaries=closed / "pg/bin"
        ) as cluster:
            started.append(Path(f"/proc/{cluster.postmaster_pid}/exe").readlink())
        stop(state_dir)

    assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    assert started[0] == started[1]
    assert started[0].is_relative_to(state_dir / "binaries")
    shutil.rmtree(state_dir / "binaries")


@pytest.mark.requirement("embedded.not-ours")
@as_root
def test_root_runs_the_server_as_nobody_when_told_to(empty_state_dir: Path) -> None:
    """Takes a second: initdb."""
    nobody = pwd.getpwnam("nobody").pw_uid

    with ensure_running(empty_state_dir, linger_seconds=LINGER, account="nobody") as cluster:
        process = Path(f"/proc/{cluster.postmaster_pid}").stat()
        answer = query(cluster, "select 1")

    assert (process.st_uid, cluster.data_dir.stat().st_uid) == (nobody, nobody)
    assert answer == [(1,)]


@as_root
def test_root_is_told_of_an_account_that_does_not_exist(state_dir: Path) -> None:
    with pytest.raises(OperatorError) as refused:
        ensure_running(state_dir, account="no-such-account")

    assert "no-such-account" in refused.value.message
    assert "JOBFORGE_PGUSER_OS" in str(refused.value.hint)


@pytest.mark.requirement("embedded.not-ours")
@as_root
def test_a_state_directory_behind_a_closed_one_is_refused_and_nothing_is_opened(
    tmp_path: Path,
) -> None:
    closed = tmp_path / "home"
    closed.mkdir(mode=0o700)

    with pytest.raises(OperatorError) as refused:
        ensure_running(closed / "state")

    assert "cannot enter" in refused.value.message
    assert "JOBFORGE_STATE_DIR" in str(refused.value.hint)
    assert stat.S_IMODE(closed.stat().st_mode) == 0o700


@on_linux
def test_the_servers_environment_holds_nothing_of_ours(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JOBFORGE_TOKEN", "very-secret")

    with ensure_running(state_dir, linger_seconds=LINGER) as cluster:
        environments = [
            Path(f"/proc/{pid}/environ").read_bytes()
            for pid in (cluster.keeper_pid, cluster.postmaster_pid)
        ]

    assert [b"very-secret" in environment for environment in environments] == [False, False]


def test_what_a_failed_statement_held_is_in_no_log(cluster: Cluster) -> None:
    query(
        cluster,
        "create table if not exists strict (name text primary key check (length(name) < 20))",
    )
    query(cluster, "insert into strict values ('confidential-1')")
    for statement in (
        "insert into strict values ('confidential-1')",
        "insert into strict values ('confidential-2-too-long')",
    ):
        with pytest.raises(psycopg.errors.IntegrityError):
            query(cluster, statement)

    log = (cluster.state_dir / "postgres.log").read_text()

    assert "strict" in log
    assert "confidential" not in log


# --- Where things are


@pytest.mark.requirement("embedded.socket")
def test_only_the_servers_account_reaches_its_socket(cluster: Cluster) -> None:
    found = cluster.socket_dir.stat()

    assert stat.S_IMODE(found.st_mode) == 0o700
    assert found.st_uid == server_account()


@pytest.mark.requirement("embedded.socket")
@pytest.mark.parametrize(
    "name", ["long" * 25, "with, comma"], ids=["too long for a socket", "with a comma"]
)
def test_an_unfit_path_gets_its_socket_in_a_private_directory_elsewhere(
    state_dir: Path, name: str
) -> None:
    unfit = state_dir / name

    with (
        moved_cluster(state_dir, unfit),
        ensure_running(unfit, linger_seconds=LINGER) as cluster,
    ):
        elsewhere = cluster.socket_dir
        mode = stat.S_IMODE(elsewhere.stat().st_mode)
        answer = query(cluster, "select 1")

    assert not elsewhere.is_relative_to(state_dir)
    assert (mode, answer) == (0o700, [(1,)])
    assert not elsewhere.exists()


def test_a_path_with_blanks_and_quotes_works(state_dir: Path) -> None:
    odd = state_dir / "a \"quoted\" 'path' & more %20"

    with moved_cluster(state_dir, odd), ensure_running(odd, linger_seconds=LINGER) as cluster:
        inside = cluster.socket_dir == odd / "socket"
        answer = query(cluster, "select 1")

    assert (inside, answer) == (True, [(1,)])


@contextmanager
def moved_cluster(old: Path, new: Path) -> Generator[None]:
    new.mkdir(mode=0o711 if IS_ROOT else 0o700)
    data_dir = data_directory(old)
    data_dir.rename(new / data_dir.name)
    try:
        yield
    finally:
        stop(new)
        (new / data_dir.name).rename(data_dir)
        shutil.rmtree(new)


@pytest.mark.requirement("embedded.versions")
def test_data_of_a_version_without_programs_is_not_passed_over(empty_state_dir: Path) -> None:
    (empty_state_dir / "pg99").mkdir()

    with pytest.raises(OperatorError) as refused:
        ensure_running(empty_state_dir)

    assert "holds data of PostgreSQL 99" in refused.value.message
    assert [path.name for path in empty_state_dir.glob("pg*")] == ["pg99"]


# --- Failing


@pytest.mark.requirement("embedded.failure")
def test_everybody_who_waits_learns_why_it_does_not_start_and_a_repair_is_enough(
    state_dir: Path,
) -> None:
    control = data_directory(state_dir) / "global" / "pg_control"
    control.rename(control.with_name("aside"))

    with pytest.raises(OperatorError) as refused:
        ensure_running(state_dir)
    control.with_name("aside").rename(control)
    with ensure_running(state_dir, linger_seconds=LINGER) as cluster:
        answer = query(cluster, "select 1")

    assert "pg_control" in refused.value.message
    assert str(state_dir / "postgres.log") in str(refused.value.hint)
    assert answer == [(1,)]


def test_the_log_of_the_run_before_is_kept_beside_the_new_one(state_dir: Path) -> None:
    for _ in range(5):
        ensure_running(state_dir, linger_seconds=LINGER).close()
        stop(state_dir)

    logs = sorted(path.name for path in state_dir.glob("postgres.log*"))

    assert logs == ["postgres.log", "postgres.log.1", "postgres.log.2", "postgres.log.3"]
