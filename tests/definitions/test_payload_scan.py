"""Inputs that hold an obvious key."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, JsonValue
from structlog.testing import capture_logs

from jobforge_mcp import JobContext, job
from jobforge_mcp.definitions.registry import PayloadScan, Registry
from jobforge_mcp.errors import InvalidInputError
from tests.test_redaction import KEYS


class Anything(BaseModel):
    """Input that takes anything."""

    value: JsonValue = None


@job(name="scan.anything")
async def anything(input: Anything, job: JobContext) -> None: ...


def registry(scan: PayloadScan = "refuse") -> Registry:
    return Registry([anything], payload_scan=scan)


@pytest.mark.requirement("secrets.payload-scan")
@pytest.mark.parametrize("kind", KEYS)
def test_a_key_is_refused_with_its_place_and_without_its_value(kind: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        registry().prepare("scan.anything", {"value": {"auth": [f"Bearer {KEYS[kind]}"]}})

    assert caught.value.code == "SECRET_IN_INPUT"
    assert "/value/auth/0" in caught.value.message
    assert kind in caught.value.message
    assert KEYS[kind] not in str(caught.value) + str(caught.value.hint)


def test_it_may_be_a_warning_or_nothing() -> None:
    given: JsonValue = {"value": KEYS["GitHub token"]}

    with capture_logs() as logs:
        registry("warn").prepare("scan.anything", given)
        registry("off").prepare("scan.anything", given)

    (line,) = logs
    assert (line["event"], line["path"]) == ("key_in_input", "/value")
    assert KEYS["GitHub token"] not in repr(line)


def test_a_reference_to_a_secret_is_no_key() -> None:
    registry().prepare("scan.anything", {"value": "Bearer secret://github"})
