"""Lets schedules live sixty times as fast: they read a clock of the soak, and everything else goes on by the real one."""

from __future__ import annotations

from soak.mutants import Mutant, Plantable

_FAST = [
    Mutant("", "due_triggers", {"select jobforge.now() as": "select soak.fast_now() as"}),
    Mutant("", "fire_due_triggers", {"t.next_fire_at <= jobforge.now()": "t.next_fire_at <= soak.fast_now()"}),
    Mutant("", "decide_schedule_fires", {"v_now timestamptz := jobforge.now()": "v_now timestamptz := soak.fast_now()"}),
    Mutant("", "next_due_at", {"select min(s.due_at)": "select jobforge.now() + (min(s.due_at) - soak.fast_now()) / 60"}),
]  # fmt: skip


def speed_up(server: Plantable) -> None:
    """Change the functions that ask what a schedule's time is."""
    for change in _FAST:
        change.plant(server)


def start_schedules(server: Plantable) -> None:
    """Let all schedules begin with the next minute of the fast clock."""
    server.execute("update soak.clock set began = clock_timestamp()")
    server.execute(
        "update jobforge.triggers set next_fire_at = date_trunc('minute', soak.fast_now()) + interval '1 minute'"
        " where kind = 'cron'"
    )


def stop_schedules(server: Plantable) -> None:
    """Let no schedule be due any more; what is due now stays undone."""
    server.execute("update jobforge.triggers set next_fire_at = null where kind = 'cron'")
