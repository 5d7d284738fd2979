"""What a handler took from outside its input: clock readings, random numbers, ids. Recorded, so that a run can be replayed.

Random numbers and ids come from a generator seeded with run id and epoch: the same attempt draws the same values again.
They are therefore guessable by whoever knows a run id, and no material for secrets.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from jobforge_mcp.types import JsonValue

MAX_ENTRIES = 1_000
"""Readings kept per attempt; a handler that draws a million numbers is replayed by its seed."""


@dataclass(slots=True)
class Evidence:
    """The recorder of one attempt."""

    run_id: UUID
    epoch: int
    origin: datetime
    """Time of the claim by the database's clock, from which :meth:`now` counts on."""
    entries: list[tuple[str, JsonValue]] = field(default_factory=list[tuple[str, JsonValue]])
    """Kind and value of each reading, oldest first."""
    dropped: int = 0
    """Readings beyond ``MAX_ENTRIES``."""
    _random: random.Random | None = field(default=None, repr=False)
    _started: float = field(default_factory=time.monotonic, repr=False)

    @property
    def seed(self) -> str:
        """What random numbers and ids follow from."""
        return f"{self.run_id}:{self.epoch}"

    def now(self) -> datetime:
        """Read the database's clock, as it was at the claim and has run on since."""
        value = self.origin + timedelta(seconds=time.monotonic() - self._started)
        self._record("now", value.isoformat())
        return value

    def random(self) -> float:
        """Draw a number of [0, 1)."""
        value = self._generator().random()
        self._record("random", value)
        return value

    def uuid(self) -> UUID:
        """Draw a version 4 UUID."""
        value = UUID(int=self._generator().getrandbits(128), version=4)
        self._record("uuid", str(value))
        return value

    def _generator(self) -> random.Random:
        # Made when it is first needed: seeding costs more than everything else about a short attempt.
        self._random = self._random or random.Random(self.seed)
        return self._random

    def _record(self, kind: str, value: JsonValue) -> None:
        if len(self.entries) < MAX_ENTRIES:
            self.entries.append((kind, value))
        else:
            self.dropped += 1
