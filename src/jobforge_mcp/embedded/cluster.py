"""Creates the database cluster with its roles, whole or not at all."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jobforge_mcp.embedded.binaries import major_of
from jobforge_mcp.embedded.places import Account
from jobforge_mcp.embedded.processes import die_with_parent, end_orphans
from jobforge_mcp.errors import OperatorError

# Whoever may be a superuser passes every row level security policy, so nothing connects as this one; it exists because
# a cluster needs one. The admin owns the database and may make roles; the others get their rights from the migrations.
_ROLES = """\
create role jobforge_admin login createrole nosuperuser nobypassrls;
create role jobforge_api login nosuperuser nobypassrls;
create role jobforge_worker login nosuperuser nobypassrls;
grant jobforge_api, jobforge_worker to jobforge_admin with admin option;
create database jobforge owner jobforge_admin;
revoke all on database jobforge from public;
grant connect on database jobforge to jobforge_api, jobforge_worker;
"""

SUPERUSER = "jobforge_superuser"

_INITDB_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Programs:
    """The programs of PostgreSQL and the account they run as, if not this process's own."""

    folder: Path
    version: str
    account: Account | None

    @property
    def major(self) -> int:
        """The major version, which the data directory is bound to."""
        return major_of(self.version)

    def start(
        self,
        program: str,
        arguments: Sequence[str],
        *,
        stdin: int,
        output: int,
        death_signal: signal.Signals,
    ) -> subprocess.Popen[bytes]:
        """Start a program that dies with this process, with nothing of its environment or open files."""
        account = self.account
        return subprocess.Popen(
            [str(self.folder / program), *arguments],
            stdin=stdin,
            stdout=output,
            stderr=output if output != subprocess.PIPE else subprocess.STDOUT,
            cwd="/",
            env=_environment(),
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
            umask=0o077,
            preexec_fn=die_with_parent(death_signal),  # noqa: PLW1509 - the keeper has one thread
        )


def create_cluster(programs: Programs, data_dir: Path) -> None:
    """Create the data directory: made beside its place, with roles and database, then renamed.

    What an earlier attempt left half made is thrown away. Only the holder of the keeper's lock may call it.

    Raises:
        OperatorError: a program of PostgreSQL failed; the message ends with what it said.
    """
    fresh = data_dir.with_name(f"{data_dir.name}.new")
    if fresh.exists():
        end_orphans(fresh)
        shutil.rmtree(fresh)
    fresh.mkdir(mode=0o700)
    if programs.account:
        os.chown(fresh, programs.account.uid, programs.account.gid)
    _run(programs, "initdb", _initdb_arguments(programs, fresh))
    single = [
        "--single",
        "-D",
        str(fresh),
        "-c",
        "exit_on_error=on",
        "-c",
        "log_checkpoints=off",
        "postgres",
    ]
    _run(programs, "postgres", single, _ROLES)
    fresh.rename(data_dir)
    _sync(data_dir.parent)


def _initdb_arguments(programs: Programs, data_dir: Path) -> list[str]:
    arguments = [
        f"--pgdata={data_dir}",
        f"--username={SUPERUSER}",
        "--auth-local=trust",
        "--auth-host=reject",
        "--encoding=UTF8",
        # Never a locale of the host, which may not exist there tomorrow, or sort differently.
        "--locale=C",
        "--data-checksums",
        # Small segments: a laptop's cluster is 31 MB instead of 40, and is created faster.
        "--wal-segsize=4",
    ]
    if programs.major >= 17:
        arguments += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    return arguments


def _run(programs: Programs, program: str, arguments: Sequence[str], text: str = "") -> None:
    process = programs.start(
        program,
        arguments,
        stdin=subprocess.PIPE,
        output=subprocess.PIPE,
        death_signal=signal.SIGKILL,
    )
    try:
        said = process.communicate(text.encode(), timeout=_INITDB_SECONDS)[0].decode(
            errors="replace"
        )
    except subprocess.TimeoutExpired:
        process.kill()
        said = process.communicate()[0].decode(errors="replace")
    if process.returncode != 0:
        raise OperatorError(
            f"{program} of PostgreSQL {programs.version} could not create the database cluster: {said.strip()[-1500:]}",
            hint="see that the state directory's disk has 100 MB free and may be written to",
        )


def _environment() -> dict[str, str]:
    # Nothing of ours: tokens and passwords of the environment are no business of the server.
    return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
