"""Queues to act on: one that is rolled back, and some that commit."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack
from typing import TypeAlias

import psycopg
import pytest

from tests.postgres import ScratchDatabase
from tests.sql.acting import Queue, logged_in, within

MakeQueue: TypeAlias = Callable[[], Queue]


@pytest.fixture
def queue(rollback: Callable[[str], psycopg.Connection]) -> Queue:
    """Act in one transaction that is rolled back: fast, and nobody else sees it."""
    return Queue(within(rollback("jobforge_api")))


@pytest.fixture
def make_queue(database: ScratchDatabase) -> Generator[MakeQueue]:
    """Make queues with sessions of their own on a database of this test's own; every call commits."""
    with ExitStack() as opened:
        yield lambda: Queue(logged_in(database, opened))
