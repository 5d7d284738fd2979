"""The scratch server of one run: an embedded PostgreSQL of its own with fsync on, and a fresh database for each measure."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString

import psycopg
from psycopg import sql
from psycopg.rows import dict_row

from benchmarks.processes import tree_cpu_seconds
from jobforge_mcp import embedded
from jobforge_mcp.embedded import Cluster

SUPERUSER = "jobforge_superuser"


@dataclass(frozen=True, slots=True)
class Vitals:
    """Counters of the server; differences of two readings are what a measure caused."""

    commits: int
    """Transactions of one database, whether they wrote or not."""
    flushes: int
    """Times the log was forced to disk: what a durable commit waits for."""
    log_bytes: int


@dataclass(frozen=True, slots=True)
class Stage:
    """A running server."""

    cluster: Cluster

    def url(self, database: str, role: str = SUPERUSER) -> str:
        return self.cluster.url(role, database)

    def fresh_database(self, name: str) -> str:
        """Make an empty database and return its URL; the disk is quiet afterwards."""
        with self._connect("postgres") as connection:
            named = sql.Identifier(name)
            connection.execute(sql.SQL("drop database if exists {} with (force)").format(named))
            connection.execute(sql.SQL("create database {}").format(named))
            connection.execute("checkpoint")
        return self.url(name)

    def fetch(self, database: str, query: LiteralString) -> list[dict[str, Any]]:
        with self._connect(database) as connection:
            return connection.execute(query).fetchall()

    def server_cpu(self) -> float:
        return tree_cpu_seconds(self.cluster.postmaster_pid)

    def vitals(self, database: str) -> Vitals:
        """Read the counters; backends tell theirs when they are idle, so let them be."""
        with self._connect(database) as connection:
            row = connection.execute(
                """
                select d.xact_commit as commits, pg_current_wal_insert_lsn() - '0/0' as log_bytes,
                  (select sum(i.fsyncs) from pg_stat_io i where i.object = 'wal') as flushes
                from pg_stat_database d where d.datname = current_database()"""
            ).fetchone()
        assert row is not None
        return Vitals(int(row["commits"]), int(row["flushes"]), int(row["log_bytes"]))

    def _connect(self, database: str) -> psycopg.Connection[dict[str, Any]]:
        connect = psycopg.Connection[dict[str, Any]].connect
        return connect(self.url(database), autocommit=True, row_factory=dict_row)


@contextmanager
def open_stage() -> Generator[Stage]:
    """Start the server, and leave nothing of it."""
    state_dir = embedded.scratch_state_directory()
    try:
        with embedded.ensure_running(state_dir) as cluster:
            yield Stage(cluster)
    finally:
        remove_state(state_dir)


def remove_state(state_dir: Path) -> None:
    """Stop what runs on a state directory, and remove it."""
    embedded.stop(state_dir)
    shutil.rmtree(state_dir, ignore_errors=True)
