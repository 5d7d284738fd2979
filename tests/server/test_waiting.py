from __future__ import annotations

from jobforge_mcp.server.waiting import ProgressMeter


def test_what_is_sent_always_grows_whatever_the_job_says() -> None:
    meter = ProgressMeter()
    said: list[tuple[float | None, float | None]] = [
        (None, None), (0, 10), (3, 10), (3, 10), (1, 10), (None, 10), (10, 10), (10, 10), (None, None),
        (1e300, None), (1e300, None), (0, 1),
    ]  # fmt: skip

    sent = [meter.advance(done, total) for done, total in said]

    assert sent == sorted(set(sent))
    assert sent[2] == 3
    assert sent[6] == 10


def test_beats_stay_below_the_total() -> None:
    meter = ProgressMeter()
    meter.advance(0.2, 1)

    sent = [meter.advance(None, 1) for _ in range(1_000)]

    assert max(sent) < 1
