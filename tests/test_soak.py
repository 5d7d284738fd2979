"""The bugs that the soak's checker must catch can still be planted: a function that changed takes its mutants along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString

import pytest
from psycopg.rows import dict_row

from soak.mutants import MUTANTS
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
def test_every_bug_can_be_planted(database: ScratchDatabase) -> None:
    server = _Planting(database)

    for mutant in MUTANTS.values():
        mutant.plant(server)

    assert len(MUTANTS) >= 20
