"""What a handler took from outside its input, and what it decided: clock readings, random numbers, ids, choices.

Recorded, so that a run can be understood and replayed; the attempt's manifest holds it.

Random numbers and ids come from a generator seeded with run id and epoch: the same attempt draws the same values again.
They are therefore guessable by whoever knows a run id, and no material for secrets.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from jobforge_mcp.definitions.json_limits import check_value
from jobforge_mcp.errors import CallerError, PermanentError
from jobforge_mcp.types import JsonObject, JsonValue

MAX_ENTRIES = 1_000
"""Readings kept per attempt; a handler that draws a million numbers is replayed by its seed."""

MAX_DECISIONS = 500
"""Decisions kept per attempt; further ones are counted."""

MAX_CHOICE_BYTES = 2_048
"""Of one decision's choice, as JSON text: what was chosen, not what was chosen from."""

MAX_REASON_BYTES = 1_000


@dataclass(slots=True)
class Evidence:
    """The recorder of one attempt."""

    run_id: UUID
    epoch: int
    origin: datetime
    """Time of the claim by the database's clock, from which :meth:`now` counts on."""
    started: float = field(default_factory=time.monotonic, repr=False)
    """The same by the monotonic clock."""
    entries: list[tuple[str, JsonValue]] = field(default_factory=list[tuple[str, JsonValue]])
    """Kind and value of each reading, oldest first."""
    dropped: int = 0
    """Readings beyond ``MAX_ENTRIES``."""
    decisions: list[Decision] = field(default_factory=list["Decision"])
    """Oldest first."""
    decisions_dropped: int = 0
    """Decisions beyond ``MAX_DECISIONS``."""
    metrics: dict[str, JsonValue] = field(default_factory=dict[str, JsonValue])
    """What was measured of the handler, where it runs alone: ``cpuMs``, ``memoryMb``."""
    _random: random.Random | None = field(default=None, repr=False)

    @property
    def seed(self) -> str:
        """What random numbers and ids follow from."""
        return f"{self.run_id}:{self.epoch}"

    def now(self) -> datetime:
        """Read the database's clock, as it was at the claim and has run on since."""
        value = self.origin + timedelta(seconds=time.monotonic() - self.started)
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

    def decide(self, decision: Decision) -> None:
        """Keep a decision."""
        if len(self.decisions) < MAX_DECISIONS:
            self.decisions.append(decision)
        else:
            self.decisions_dropped += 1

    def facts(self) -> str | None:
        """Write what follows from nothing else as a JSON object; nothing for an attempt without."""
        if not (self.entries or self.decisions or self.metrics):
            return None
        said: JsonObject = {}
        if self.decisions:
            said["decisions"] = [
                {"name": made.name, "choice": made.choice, "reason": made.reason}
                for made in self.decisions
            ]
        if self.decisions_dropped:
            said["decisionsDropped"] = self.decisions_dropped
        if self.entries:
            said["seed"] = self.seed
            said["readings"] = [[kind, value] for kind, value in self.entries]
        if self.dropped:
            said["readingsDropped"] = self.dropped
        if self.metrics:
            said["metrics"] = dict(self.metrics)
        return json.dumps(said, ensure_ascii=False)

    def _generator(self) -> random.Random:
        # Made when it is first needed: seeding costs more than everything else about a short attempt.
        self._random = self._random or random.Random(self.seed)
        return self._random

    def _record(self, kind: str, value: JsonValue) -> None:
        if len(self.entries) < MAX_ENTRIES:
            self.entries.append((kind, value))
        else:
            self.dropped += 1


@dataclass(frozen=True, slots=True)
class Decision:
    """A choice that a handler made, and why."""

    name: str
    choice: JsonValue
    reason: str | None = None


def decision_of(name: str, choice: JsonValue, reason: str | None) -> Decision:
    """Check a decision and make it storable.

    Raises:
        PermanentError: ``DECISION_INVALID``: its choice is no JSON, or too large.
    """
    try:
        check_value(choice)
        size = len(json.dumps(choice, ensure_ascii=False).encode())
    except CallerError as error:
        raise PermanentError(
            f"the choice of the decision {name[:100]!r} cannot be stored: {error.message}",
            code="DECISION_INVALID",
            hint="give a JSON value: a text, a number, a small object",
        ) from None
    if size > MAX_CHOICE_BYTES:
        raise PermanentError(
            f"the choice of the decision {name[:100]!r} has {size} bytes, and at most {MAX_CHOICE_BYTES} are kept",
            code="DECISION_INVALID",
            hint="name what was chosen, and keep the rest in an artifact",
        )
    return Decision(
        capped(name, 100), choice, None if reason is None else capped(reason, MAX_REASON_BYTES)
    )


def capped(text: str, limit: int) -> str:
    """Return text that the database can store: no NUL, no lone surrogate, at most so many bytes of UTF-8."""
    data = text.replace("\0", "\ufffd").encode("utf-8", errors="replace")
    if len(data) <= limit:
        return data.decode()
    return data[: limit - 3].decode(errors="ignore") + "…"
