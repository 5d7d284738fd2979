"""A real pgbouncer in transaction mode before the server of the tests, with one connection behind it for each login."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Generator
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from urllib.parse import urlencode

import psycopg
import pytest

from jobforge_mcp.embedded.places import find_account
from tests.postgres import ADMIN, Cluster, ScratchDatabase

PORT = 6432
LOGINS = ("jobforge_api", "jobforge_worker", "jobforge_readonly", ADMIN)
CONFIG = """\
[databases]
* = host={server}
[pgbouncer]
listen_addr =
listen_port = {port}
unix_socket_dir = {folder}
auth_type = trust
auth_file = {folder}/users.txt
pool_mode = transaction
default_pool_size = 1
reserve_pool_size = 0
ignore_startup_parameters = extra_float_digits
logfile = {folder}/pgbouncer.log
"""


@pytest.fixture(scope="session")
def bouncer(cluster: Cluster) -> Generator[str]:
    """Run pgbouncer; the folder of its socket."""
    program = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("pgbouncer is not installed: apt-get install pgbouncer")
    account = find_account(None)
    with TemporaryDirectory(prefix="jobforge-bouncer-") as name:
        folder = Path(name)
        (folder / "users.txt").write_text("".join(f'"{login}" ""\n' for login in LOGINS))
        config = folder / "pgbouncer.ini"
        config.write_text(CONFIG.format(server=cluster.socket, folder=folder, port=PORT))
        command = [program, str(config)]
        if account is not None:  # it refuses to run as root
            for path in (folder, *folder.iterdir()):
                os.chown(path, account.uid, account.gid)
            command += ["-u", account.name]
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            deadline = monotonic() + 60
            while not (folder / f".s.PGSQL.{PORT}").exists():
                said = folder / "pgbouncer.log"
                assert process.poll() is None, said.read_text() if said.exists() else "it ended"
                assert monotonic() < deadline
                sleep(0.02)
            try:
                yield name
            finally:
                process.terminate()
                process.wait(60)


@pytest.fixture
def pooled(bouncer: str, database: ScratchDatabase) -> Callable[[str], str]:
    """Name the test's database through pgbouncer, for a login."""

    def url(login: str) -> str:
        where = {"host": bouncer, "port": PORT, "user": login}
        return f"postgresql:///{database.name}?{urlencode(where)}"

    with psycopg.connect(url("jobforge_api")) as connection:
        connection.execute("select 1")
    return url
