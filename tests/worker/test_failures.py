"""What is told of an exception, and what travels between a worker and its children."""

from __future__ import annotations

from datetime import timedelta

import pytest

from jobforge_mcp.errors import InvalidInputError, PermanentError, RetryLater
from jobforge_mcp.types import FailureKind
from jobforge_mcp.worker.evidence import capped
from jobforge_mcp.worker.failures import MAX_DELAY_MS, tell
from jobforge_mcp.worker.framing import MAX_FRAME_BYTES, FrameError, FrameReader, encode_frame


class AskedToWaitError(Exception):
    def __init__(self, retry_after: object) -> None:
        super().__init__("wait")
        self.retry_after = retry_after


@pytest.mark.parametrize(
    ("retry_after", "delay_ms"),
    [
        (2, 2_000),
        (0.5, 500),
        (timedelta(minutes=1), 60_000),
        (-1, 0),
        (1e12, MAX_DELAY_MS),
        (float("nan"), None),
        (float("inf"), MAX_DELAY_MS),
        ("soon", None),
        (True, None),
        (None, None),
    ],
)
def test_a_receivers_delay_is_read_in_every_form_and_bounded(
    retry_after: object, delay_ms: int | None
) -> None:
    told = tell(AskedToWaitError(retry_after))

    assert (told.kind, told.delay_ms) == (FailureKind.FAILED, delay_ms)


def test_errors_that_no_retry_mends_are_permanent() -> None:
    kinds = [tell(error).kind for error in (PermanentError("no"), InvalidInputError("no"))]

    assert kinds == [FailureKind.PERMANENT, FailureKind.PERMANENT]


def test_a_wish_to_run_later_is_found_in_a_nested_group() -> None:
    error = ExceptionGroup("outer", [ExceptionGroup("inner", [RetryLater(1)])])

    told = tell(error)

    assert (told.kind, told.delay_ms, told.traceback) == (FailureKind.DEFERRED, 1_000, None)


def test_an_exception_that_cannot_be_printed_is_told_all_the_same() -> None:
    class UnprintableError(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    told = tell(UnprintableError())

    assert "UnprintableError" in told.error.message


def test_capped_text_is_storable_and_within_its_bytes() -> None:
    text = capped("\0\ud800" + "ü" * 100, 21)

    assert text.encode() == text.encode("utf-8", "strict")
    assert "\0" not in text
    assert len(text.encode()) <= 21


def test_messages_survive_any_cut() -> None:
    messages = [{"op": "log", "message": f"line {n} \ud800 ü"} for n in range(3)]
    stream = b"".join(encode_frame(dict(message)) for message in messages)
    reader = FrameReader()

    heard = [message for byte in stream for message in reader.feed(bytes([byte]))]

    assert heard == messages


@pytest.mark.parametrize(
    "data",
    [
        (MAX_FRAME_BYTES + 1).to_bytes(4, "big"),
        b"\0\0\0\2[]",
        b"\0\0\0\1{",
        b"\0\0\0\1\xff",
    ],
)
def test_what_is_no_message_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError):
        FrameReader().feed(data)
