"""The bugs that the soak's checker must catch can still be planted: a function that changed takes its mutants along."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, LiteralString

import pytest
from psycopg.rows import dict_row

from soak.checker import PROMISES
from soak.clock import speed_up
from soak.mutants import CHOSEN, MUTANTS
from tests.postgres import ScratchDatabase


class _Planting:
    """Stands where the soak has its server: a database whose changes are rolled back."""

    def __init__(self, database: ScratchDatabase) -> None:
        self._database = database

    def fetch(
        self, query: LiteralString, parameters: Sequence[object] = ()
    ) -> list[dict[str, Any]]:
        with (
            self._database.connect() as connection,
            connection.cursor(row_factory=dict_row) as cursor,
        ):
            cursor.execute(query, parameters)
            return cursor.fetchall()

    def execute(self, script: LiteralString) -> None:
        with self._database.connect(autocommit=False) as connection:
            connection.execute(script)
            connection.rollback()


@pytest.mark.requirement("soak.mutants")
def test_every_bug_can_be_planted(database: ScratchDatabase, tmp_path: Path) -> None:
    server = _Planting(database)
    with database.connect() as connection:
        connection.execute("create schema soak")
        connection.execute("create function soak.fast_now() returns timestamptz return now()")
    speed_up(_Planting(database))

    for name, mutant in MUTANTS.items():
        mutant.plant(server)
        mutant.change_sources(tmp_path / name)

    assert len(MUTANTS) >= 20


def test_every_bug_names_a_promise_that_is_checked() -> None:
    assert [name for name, mutant in MUTANTS.items() if not mutant.by <= PROMISES.keys()] == []
    assert [name for name, mutant in MUTANTS.items() if not mutant.by] == []
    assert set(CHOSEN) <= MUTANTS.keys()
