"""The short form of the exploration: of every pair of functions one experiment. ``run.py`` makes all of them."""

from __future__ import annotations

import pytest

from tests.interleaving.acts import ACTS, EXCUSED, PASSING_OVER
from tests.interleaving.explorer import COMMIT, exploring, one_of_each_pair, some_threes
from tests.interleaving.world import define
from tests.postgres import ScratchDatabase
from tests.sql.acting import Queue

PARTS = 4
FOUND = [
    # a run that waits for the one that ends, and nothing for itself: its ordering key was taken before its place
    ("cancel_job second", "complete one", "rows of ordering_keys"),
]


@pytest.mark.requirement("sql.interleavings")
def test_every_function_that_changes_something_takes_part(queue: Queue) -> None:
    rows = queue.look(
        """select p.proname::text as name from pg_proc p
        where p.pronamespace = 'jobforge'::regnamespace and p.provolatile = 'v' and exists (
          select from pg_roles r where r.rolname in ('jobforge_api', 'jobforge_worker', 'jobforge_scheduler', 'jobforge_auditor')
            and has_function_privilege(r.oid, p.oid, 'execute'))"""
    )
    offered = {row.name for row in rows}
    acted = {act.function for act in ACTS}

    assert offered - acted - EXCUSED.keys() == set(), "say in acts.py how it is called"
    assert EXCUSED.keys() - offered == set()
    assert PASSING_OVER - acted == set()
    assert len({act.name for act in ACTS}) == len(ACTS)


def test_no_act_is_refused_when_nothing_else_happens(database: ScratchDatabase) -> None:
    """What is always refused meets nobody: neither at first nor after a minute of experiments."""
    with exploring(database) as explorer:
        refusals = {act.name: told for act in ACTS if (told := explorer.alone(act)) is not None}

    assert refusals == {}


@pytest.mark.timeout(900)
@pytest.mark.requirement("sql.interleavings", "sql.lock-order")
@pytest.mark.parametrize("part", range(PARTS))
def test_no_two_calls_at_once_deadlock_or_leave_what_is_not_true(
    database: ScratchDatabase, part: int
) -> None:
    """Some twenty seconds each: between them the parts try every pair of functions."""
    with exploring(database) as explorer:
        for case in one_of_each_pair(explorer)[part::PARTS]:
            case.run(explorer)
        for case in some_threes(explorer, 20, seed=part):
            case.run(explorer)

    print(f"{explorer.experiments} experiments, {explorer.waits} waits")  # noqa: T201 - shown with -s
    assert explorer.failures == []
    functions = len({act.function for act in ACTS})
    assert explorer.experiments >= functions * (functions + 1) / 2 // PARTS + 20
    assert explorer.waits > explorer.experiments / 5  # both sides were in flight


@pytest.mark.requirement("sql.lock-order")
def test_what_the_long_form_found_once_is_found_no_more(database: ScratchDatabase) -> None:
    acts = {act.name: act for act in ACTS}
    with exploring(database) as explorer:
        for first, second, gate in FOUND:
            explorer.through_gate(acts[first], acts[second], gate)

    assert explorer.failures == []


def test_the_world_is_put_back_and_found_true(database: ScratchDatabase) -> None:
    with exploring(database) as explorer:
        first = next(act for act in ACTS if act.name == "complete slots")
        second = next(act for act in ACTS if act.name == "cancel_job next")

        explorer.beside(first, second, COMMIT)
        changed = explorer.looking.look(
            "(table jobforge.jobs except all table explore.jobs) union all (table explore.jobs except all table jobforge.jobs)"
        )

    assert changed == []
    assert explorer.failures == []


def test_a_deadlock_and_a_wrong_head_that_are_planted_are_found(database: ScratchDatabase) -> None:
    """What the exploration could not find it would not be missing."""
    plant = """
        create or replace function jobforge.record_denial(p_tenant_id text, p_action text, p_reason text, p_job_type text default null,
          p_job_id uuid default null, p_count integer default 1) returns void language plpgsql security definer as $$
        begin
          update jobforge.ordering_keys k set head_job_id = jobforge.new_id() where k.tenant_id = p_tenant_id;
          perform from jobforge.policy_tokens t where t.tenant_id = p_tenant_id for update;
          perform from jobforge.jobs j where j.tenant_id = p_tenant_id for update;
        end $$"""
    acts = {act.name: act for act in ACTS}
    with exploring(database) as explorer:
        define(explorer.looking, plant)

        explorer.through_gate(acts["record_denial"], acts["complete slots"], "policy_tokens")
        explorer.beside(acts["record_denial"], acts["heartbeat turn"], COMMIT)

    said = " ".join(explorer.failures)
    assert "40P01" in said
    assert "at the head" in said
