"""How attempts that have ended are divided into statements."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

from jobforge_mcp.types import ClaimedJob, Completion, Fence, JobId, LeaseId, TenantId
from jobforge_mcp.worker.attempt import Attempt, LeaseHold
from jobforge_mcp.worker.settling import WHOLE_LEASE, divide


def ended(count: int, tenant: str = "acme") -> list[Attempt]:
    """Make the attempts of one lease, in the order in which they were claimed."""
    now = datetime.now(UTC)
    lease = LeaseHold(TenantId(tenant), LeaseId(uuid4()), 0.0)
    attempts: list[Attempt] = []
    for _ in range(count):
        fence = Fence(lease.tenant_id, lease.lease_id, JobId(uuid4()), 1)
        claimed = ClaimedJob(fence, "t", "1", "{}", None, None, 1, 3, 1_000, False, False, now, now)
        attempt = Attempt(claimed, lease)
        attempt.verdict = Completion(fence, "null")
        lease.attempts[fence.job_id.int] = attempt
        attempts.append(attempt)
    return attempts


def test_a_large_lease_that_has_ended_is_settled_alone_in_its_own_order() -> None:
    whole, few = ended(WHOLE_LEASE), ended(3)

    assert divide([*few, *reversed(whole)]) == [whole, few]


def test_what_remains_of_a_lease_goes_with_the_others() -> None:
    partial, few = ended(WHOLE_LEASE + 1), ended(3, "globex")

    assert divide([*partial[1:], *few]) == [[*partial[1:], *few]]


def test_two_tenants_of_one_claim_are_two_leases() -> None:
    first, second = ended(WHOLE_LEASE), ended(WHOLE_LEASE, "globex")
    mixed = [attempt for pair in zip(first, second, strict=True) for attempt in pair]

    assert divide(mixed) == [first, second]


def test_nothing_is_no_statement() -> None:
    assert divide([]) == []
