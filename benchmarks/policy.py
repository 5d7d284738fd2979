"""How long it takes to verify a policy token: cold, narrowed, and from the gate's cache.

Times are the thread's own: what other processes take of the machine is left out, or a p99 would be theirs.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.figures import Figure, Sizes, median, percentile
from benchmarks.stage import Stage
from jobforge_mcp.policy.gate import Credential, Gate
from jobforge_mcp.policy.keys import KeyFolder, KeySource
from jobforge_mcp.policy.narrowing import Narrowing, narrow_token
from jobforge_mcp.policy.scopes import ALL_SCOPES
from jobforge_mcp.policy.tokens import Grant, TokenVerifier, issue_token
from jobforge_mcp.types import Limits

COLD_MICROSECONDS = 400
CACHED_MICROSECONDS = 20


def verify(stage: Stage, sizes: Sizes) -> list[Figure]:
    """Verify one token many times; nothing of the stage is asked."""
    del stage
    with tempfile.TemporaryDirectory() as folder:
        key = KeyFolder(Path(folder) / "issuer").ensure()
        holder = KeyFolder(Path(folder) / "holder").ensure()
    grant = Grant(
        "acme",
        ALL_SCOPES,
        projects=["p1", "p2"],
        job_types=["connector.http.*", "report.generate"],
        deny_types=["*.delete"],
        limits=Limits(rps=10, burst=20, max_running=5),
        holder=holder.public,
    )
    token = issue_token(key, grant, issuer="jobforge", audience="jobforge")
    child = narrow_token(token, holder, Narrowing(job_types=["report.generate"]))
    keys = KeySource(json.dumps({"keys": [key.public.to_jwk()]}))
    verifier = TokenVerifier(keys, issuer="jobforge", audience="jobforge")
    gate = Gate(lambda: verifier, has_local_tenant=False)
    credential = Credential(token)
    gate.identify(credential)
    rounds = sizes.calls * 15
    figures: list[Figure] = []
    for name, work, most in (
        (
            f"verify a token of {len(token)} characters",
            lambda: verifier.verify(token),
            COLD_MICROSECONDS,
        ),
        ("verify it with a link", lambda: verifier.verify(child), None),
        (
            "identify its caller from the cache",
            lambda: gate.identify(credential),
            CACHED_MICROSECONDS,
        ),
    ):
        times = _measure(work, rounds)
        figures += [
            Figure("verify", f"{name}, p50", median(times), "µs"),
            Figure("verify", f"{name}, p99", percentile(times, 0.99), "µs", most=most),
        ]
    return figures


def _measure(work: Callable[[], object], rounds: int) -> list[float]:
    """Return microseconds of this thread in each round, once it has run some times."""
    for _ in range(min(rounds, 100)):
        work()
    times: list[float] = []
    for _ in range(rounds):
        started = time.thread_time_ns()
        work()
        times.append((time.thread_time_ns() - started) / 1_000)
    return times
