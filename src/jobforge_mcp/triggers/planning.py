"""Works out what a schedule that is due would do: which of its times are taken, which are caught up, and when it is due next.

A time is missed when it passed more than a minute ago: nobody looked then, because no process ran, or the database was away.
As with events, whatever goes wrong is a reason, and the database has the last word.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from jobforge_mcp.definitions.catalog import BoundDefinitions
from jobforge_mcp.errors import CallerError, DefinitionError
from jobforge_mcp.triggers.evaluating import prepare_job
from jobforge_mcp.triggers.schedule import Schedule, delay_of
from jobforge_mcp.types import DuePlan, DueTime, DueTrigger, Fire, FireDecision

GRACE = timedelta(minutes=1)
"""A time that passed longer ago was missed."""
LOOK_BACK = timedelta(days=7)
"""How far back missed times are told one by one; before that only the first of them."""
MOST_TOLD = 1_000
"""Missed times of one plan that get a row each, the newest ones."""

_log = structlog.stdlib.get_logger(__name__)


def plan_due(definitions: BoundDefinitions, due: DueTrigger) -> DuePlan:
    """Say what a schedule that is due would do; never raises."""
    try:
        schedule = Schedule(due.cron, due.timezone)
    except CallerError as error:
        problem = f"{error.code}: {error.message}"
        fire = _refusal(due, FireDecision.ERROR, problem)
        return DuePlan(due, (DueTime(due.due_at, fire, due.due_at),), None, problem)
    times, next_at = _times(schedule, due)
    fire = _fire(definitions, due)
    return DuePlan(due, tuple(_decide(due, times, fire)), next_at)


def _times(schedule: Schedule, due: DueTrigger) -> tuple[list[datetime], datetime]:
    """List the times that have come, and tell the one that has not."""
    times = [due.due_at]
    following = schedule.next_after(max(due.due_at, due.observed_at - LOOK_BACK))
    while following <= due.observed_at:
        times.append(following)
        following = schedule.next_after(following)
    return times, following


def _fire(definitions: BoundDefinitions, due: DueTrigger) -> Fire:
    try:
        given = due.candidate.input or {}
        job = prepare_job(definitions, due.tenant_id, due.candidate, given)
    except (CallerError, DefinitionError) as error:
        return _refusal(due, FireDecision.ERROR, f"{error.code}: {error.message}")
    except Exception:  # noqa: BLE001  # a rule that breaks in a way nobody thought of must not stop the others
        _log.exception(
            "trigger_failed", tenant_id=due.tenant_id, trigger=due.candidate.trigger_name
        )
        return _refusal(due, FireDecision.ERROR, "INTERNAL: it could not be evaluated")
    return Fire(due.candidate.trigger_name, due.candidate.version, job)


def _decide(due: DueTrigger, times: list[datetime], fire: Fire) -> list[DueTime]:
    """Choose what is fired, what is caught up and what is let go by."""
    missed = [at for at in times if due.observed_at - at > GRACE]
    on_time = times[len(missed) :]
    match due.catch_up:
        case "all":
            taken = missed[-due.catch_up_most :]
        case "one":
            taken = [] if on_time else missed[-1:]
        case _:
            taken = []
    passed = missed[: len(missed) - len(taken)]
    decided = [
        DueTime(at, _pass(due, is_none=due.catch_up == "none"), at) for at in passed[-MOST_TOLD:]
    ]
    if len(passed) > MOST_TOLD or times[0] < due.observed_at - LOOK_BACK:
        first = _pass(due, is_none=due.catch_up == "none")
        note = replace(first, reason=f"{first.reason}, as do others before them")
        if decided:
            decided[0] = replace(decided[0], fire=note)
    decided += [DueTime(at, fire, at, is_late=True) for at in taken]
    for at in on_time:
        delay = delay_of(due.tenant_id, due.candidate.trigger_name, at, due.jitter_ms)
        decided.append(DueTime(at, fire, at + delay))
    return decided


def _pass(due: DueTrigger, *, is_none: bool) -> Fire:
    if is_none:
        return _refusal(due, FireDecision.LATE, "it was missed, and nothing is caught up")
    return _refusal(due, FireDecision.SKIPPED, "it was missed, and later times stand for it")


def _refusal(due: DueTrigger, decision: FireDecision, reason: str) -> Fire:
    candidate = due.candidate
    return Fire(candidate.trigger_name, candidate.version, None, decision=decision, reason=reason)
