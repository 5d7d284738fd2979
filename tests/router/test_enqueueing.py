"""Which statement an enqueue is: the short ones wherever nothing has to be looked up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from jobforge_mcp.db.context import ContextKey, ContextSigner
from jobforge_mcp.router.enqueueing import enqueue_call
from jobforge_mcp.types import Caller, CallOrigin, InlineLease, Limits, NewJob, TenantId, WorkerId

CALLER = Caller(tenant_id=TenantId("acme"), subject="agent", scopes=frozenset())
SIGNER = ContextSigner(ContextKey("k1", bytes(range(32))))
ORIGIN = CallOrigin("execute-job", "t1")
LEASE = InlineLease(WorkerId("w1"), 30_000)
JOB = NewJob("demo.echo", '{"a": 1, "b": 2}', received='{"a": 1}', trace_id="t1")


def function_of(
    job: NewJob, *, caller: Caller = CALLER, inline: InlineLease | None = None, is_plan: bool = False
) -> str:  # fmt: skip
    query, values, _ = enqueue_call(caller, [job], ORIGIN, SIGNER, inline=inline, is_plan=is_plan)
    assert query.count("%s") == len(values)
    return query.split("jobforge.")[1].split("(")[0]


def test_a_job_whose_input_was_filled_in_takes_the_short_way() -> None:
    assert function_of(JOB) == "enqueue_plain_jobs"
    assert function_of(JOB, inline=LEASE) == "enqueue_leased_job"


@pytest.mark.parametrize("inline", [None, LEASE], ids=["queued", "leased"])
def test_what_has_to_be_looked_up_takes_the_long_way(inline: InlineLease | None) -> None:
    for job in (
        JOB._replace(idempotency_key="k"),
        JOB._replace(ordering_key="o"),
        JOB._replace(project_id="p1"),
        JOB._replace(labels={"team": "a"}),
        JOB._replace(cost=2),
        JOB._replace(lane_type="demo.lane"),
        JOB._replace(claim_limits="{}"),
    ):
        assert function_of(job, inline=inline) == "enqueue_jobs"
    for caller in (
        replace(CALLER, limits=Limits()),
        replace(CALLER, projects=frozenset({"p1"})),
        replace(CALLER, job_types=("demo.*",)),
        replace(CALLER, deny_types=("other.*",)),
        replace(CALLER, is_single_use=True),
    ):
        assert function_of(JOB, caller=caller, inline=inline) == "enqueue_jobs"
    assert function_of(JOB, inline=inline, is_plan=True) == "enqueue_jobs"
