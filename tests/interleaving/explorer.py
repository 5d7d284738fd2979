"""Runs two acts at once in every way that their locks allow, and a third beside them.

An experiment stops the first act in its middle: a gate, held by a session of the test, lets it run to the first statement that
locks or writes in a table (``lock table … in exclusive mode``), or to the first row of it that it would change (``for update`` on
all of them), and no further. There it stands with all that it has locked so far, and the second act runs until it ends or
waits. Then the gate is opened. Without a gate the first act runs to its end, the second runs beside its open transaction, and
the first commits or rolls back.

After each experiment both must have ended, nothing may have been a deadlock or an anomaly, and the truth must be the truth.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import product
from random import Random
from time import monotonic, sleep

import psycopg
from psycopg import sql

from tests.interleaving.acts import ACTS, PASSING_OVER, Act
from tests.interleaving.truth import DIGEST, TRUTH, breaches, digest
from tests.interleaving.world import World, define, settle_in
from tests.postgres import ScratchDatabase
from tests.sql.acting import SUPERUSER, Connection, Queue, logged_in, meanwhile

WAIT_SECONDS = 60.0
COMMIT, ROLLBACK = "commits", "rolls back"
ROWS_OF = "rows of "
CHANGED = {
    "claim_counters", "events", "job_dependencies", "jobs", "leases", "limit_usage", "ordering_keys", "ready", "run_progress",
    "triggers", "waiting",
}  # fmt: skip
"""Tables whose rows are changed or removed while others look at them: their rows are gates of their own."""
REFUSALS = "JF"
"""Errors raised on purpose: a refusal is an outcome."""


class Session:
    """One login of each role, of which one is used at a time."""

    def __init__(self, database: ScratchDatabase, opened: ExitStack) -> None:
        self._database, self._opened = database, opened
        self._connections: dict[str, Connection] = {}

    def of(self, role: str) -> Connection:
        if role not in self._connections:
            made = (
                self._database.connect(autocommit=False)
                if role == SUPERUSER
                else self._database.connect(role, autocommit=False)
            )
            made.prepare_threshold = 1
            self._connections[role] = self._opened.enter_context(made)
        return self._connections[role]


@dataclass
class Explorer:
    """Makes experiments in one database."""

    world: World
    looking: Queue
    sessions: tuple[Session, Session, Session]
    keeper: Connection
    """Holds the gates."""
    experiments: int = 0
    waits: int = 0
    """Experiments in which the second act waited for the first or for the gate."""
    failures: list[str] = field(default_factory=list[str])
    _gates: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    _serial: dict[tuple[str, str], tuple[str, ...]] = field(
        default_factory=dict[tuple[str, str], tuple[str, ...]]
    )

    def gates(self, act: Act) -> list[str]:
        """Name the tables in which an act locks or writes rows, and those whose rows it may meet."""
        if act.name not in self._gates:
            connection = self.sessions[0].of(act.role)
            try:
                act.on(connection, self.world)
                rows = connection.execute(
                    """select distinct c.relname::text from pg_locks l join pg_class c on c.oid = l.relation
                    where l.pid = pg_backend_pid() and c.relkind = 'r' and c.relnamespace = 'jobforge'::regnamespace
                      and l.mode in ('RowShareLock', 'RowExclusiveLock') order by 1"""
                ).fetchall()
                tables = [row[0] for row in rows]
                changed = [f"{ROWS_OF}{table}" for table in tables if table in CHANGED]
                self._gates[act.name] = tables + changed
            finally:
                connection.rollback()
        return self._gates[act.name]

    # --- experiments

    def alone(self, act: Act) -> str | None:
        """Call it with nobody beside it, and tell how it was refused."""
        connection = self.sessions[0].of(act.role)
        told = self._call(act, connection)
        connection.rollback()
        return told

    def beside(self, first: Act, second: Act, end: str) -> None:
        """Let the second run beside the open transaction of the first."""
        story = f"{first.name} | {second.name} | the first {end}"
        one = self.sessions[0].of(first.role)
        told = [self._call(first, one)]
        future = self._start(second, 1)
        self._settle_down([(second, 1, future)])
        (one.commit if end == COMMIT else one.rollback)()
        told.append(self._result(future))
        self._judge(story, told, [first, second] if end == COMMIT else [second])

    def through_gate(self, first: Act, second: Act, gate: str) -> None:
        """Stop the first at a gate, run the second as far as it goes, and open the gate."""
        with self._closed(gate):
            one = self._start(first, 0)
            self._settle_down([(first, 0, one)])
            other = self._start(second, 1)
            self._settle_down([(first, 0, one), (second, 1, other)])
        self._judge(
            f"{first.name} at {gate} | {second.name}",
            [self._result(one), self._result(other)],
            [first, second],
        )

    def three(self, acts: tuple[Act, Act, Act], gates: tuple[str, str]) -> None:
        """Stop the first at one gate and the second at another, run a third, open both."""
        with self._closed(*gates):
            started: list[tuple[Act, int, Future[str | None]]] = []
            for place, act in enumerate(acts):
                started.append((act, place, self._start(act, place)))
                self._settle_down(started)
        told = [self._result(future) for _, _, future in started]
        self._judge(" | ".join(act.name for act in acts) + f" at {gates}", told, [])

    # --- steps

    @contextmanager
    def _closed(self, *gates: str) -> Generator[None]:
        for gate in sorted(set(gates)):
            table = sql.Identifier(gate.removeprefix(ROWS_OF))
            if gate.startswith(ROWS_OF):
                close = sql.SQL("select from jobforge.{} for update").format(table)
            else:
                close = sql.SQL("lock table jobforge.{} in exclusive mode").format(table)
            self.keeper.execute(close)
        try:
            yield
        finally:
            self.keeper.rollback()

    def _start(self, act: Act, place: int) -> Future[str | None]:
        connection = self.sessions[place].of(act.role)

        def work() -> str | None:
            told = self._call(act, connection)
            connection.commit()
            return told

        return meanwhile(work)

    def _call(self, act: Act, connection: Connection) -> str | None:
        """Call in the open transaction; a refusal is told, and leaves the transaction to be rolled back."""
        try:
            act.on(connection, self.world)
        except psycopg.Error as error:
            connection.rollback()
            return f"{error.sqlstate} {error.diag.message_primary}"
        return None

    def _settle_down(self, started: Iterable[tuple[Act, int, Future[str | None]]]) -> None:
        """Wait until each has ended or waits for a lock."""
        for act, place, future in started:
            pid = self.sessions[place].of(act.role).info.backend_pid
            deadline = monotonic() + WAIT_SECONDS
            while not future.done():
                if self.looking.look(
                    "select 1 as one from pg_locks where pid = %s and not granted", pid
                ):
                    self.waits += 1
                    break
                assert monotonic() < deadline, f"{act.name} neither ends nor waits"
                sleep(0.0005)

    def _result(self, future: Future[str | None]) -> str | None:
        return future.result(WAIT_SECONDS)

    # --- judgement

    def _judge(self, story: str, told: list[str | None], committed: list[Act]) -> None:
        self.experiments += 1
        try:
            for said in told:
                if said is not None and not said.startswith(REFUSALS):
                    self.failures.append(f"{story}: {said}")
            self._tend()
            self.failures += [f"{story}: {breach}" for breach in breaches(self.looking)]
            if len(committed) == 2 and self._is_comparable(*committed):
                self._compare(story, committed)
        finally:
            self.world.put_back()
            if self.experiments % 200 == 0:
                self.world.sweep()

    def _tend(self) -> None:
        """Do what every worker does every few seconds: what was passed over is found then."""
        self.looking.work("tend_lanes")

    def _is_comparable(self, first: Act, second: Act) -> bool:
        """Whether they meet at all, and neither passes over what the other holds."""
        meeting = {*self.gates(first)} & ({*self.gates(second)} - {"audit_log"})
        return bool(meeting) and not {first.function, second.function} & PASSING_OVER

    def _compare(self, story: str, acts: list[Act]) -> None:
        """Compare with the two orders in which one comes after the other."""
        found = digest(self.looking)
        self.world.put_back()
        orders = [self._in_order(*acts), self._in_order(*acts[::-1])]
        if found not in orders:
            nearest = min(orders, key=lambda order: len(set(order) ^ set(found)))
            more = "; ".join(sorted(set(found) - set(nearest)))
            less = "; ".join(sorted(set(nearest) - set(found)))
            self.failures.append(f"{story}: neither order gives {more or 'less'} instead of {less}")

    def _in_order(self, first: Act, second: Act) -> tuple[str, ...]:
        key = (first.name, second.name)
        if key not in self._serial:
            for act in (first, second):
                connection = self.sessions[0].of(act.role)
                self._call(act, connection)
                connection.commit()
            self._tend()
            self._serial[key] = digest(self.looking)
            self.world.put_back()
        return self._serial[key]


@contextmanager
def exploring(database: ScratchDatabase) -> Generator[Explorer]:
    """Make a world in a database and everything that explores it."""
    with ExitStack() as opened:
        looking = Queue(logged_in(database, opened))
        world = settle_in(looking)
        define(looking, TRUTH)
        define(looking, DIGEST)
        sessions = (
            Session(database, opened),
            Session(database, opened),
            Session(database, opened),
        )
        keeper = opened.enter_context(database.connect(autocommit=False))
        yield Explorer(world, looking, sessions, keeper)


# --- what to do


@dataclass(frozen=True, slots=True)
class Case:
    """One experiment: two acts with a gate or an end of the first, or three with two gates."""

    acts: tuple[Act, ...]
    how: tuple[str, ...]

    def run(self, explorer: Explorer) -> None:
        """Make it."""
        if len(self.acts) == 3:
            explorer.three(self.acts, self.how)  # pyright: ignore[reportArgumentType]  # three acts, two gates
        elif self.how[0] in (COMMIT, ROLLBACK):
            explorer.beside(self.acts[0], self.acts[1], self.how[0])
        else:
            explorer.through_gate(self.acts[0], self.acts[1], self.how[0])


def all_pairs(explorer: Explorer) -> list[Case]:
    """Every pair of acts, in both orders, with each way to hold the first up."""
    return [
        Case((first, second), (how,))
        for first, second in product(ACTS, repeat=2)
        for how in (COMMIT, ROLLBACK, *explorer.gates(first))
    ]


def one_of_each_pair(explorer: Explorer) -> list[Case]:
    """Of every pair of functions one experiment, stopped at a gate that both know where there is one."""
    found: dict[frozenset[str], list[Case]] = {}
    for case in all_pairs(explorer):
        first, second = case.acts
        if case.how[0] != ROLLBACK:
            both = case.how[0] in explorer.gates(second) and case.how[0] != "audit_log"
            found.setdefault(frozenset((first.function, second.function)), []).append(case)
            if both:
                found[frozenset((first.function, second.function))] += [case] * 4
    return [Random(place).choice(cases) for place, cases in enumerate(found.values())]


def some_threes(explorer: Explorer, count: int, seed: int) -> list[Case]:
    """So many of the triples, by chance."""
    random, cases = Random(seed), list[Case]()
    while len(cases) < count:
        acts = tuple(random.choices(ACTS, k=3))
        ways = [explorer.gates(act) for act in acts[:2]]
        if all(ways):
            cases.append(Case(acts, tuple(random.choice(way) for way in ways)))
    return cases
