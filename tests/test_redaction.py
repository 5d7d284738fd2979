"""Secrets are struck out wherever and however they come out, and what only looks like one is left alone."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable
from urllib.parse import quote

import pytest
import structlog

from jobforge_mcp.logs import configure_logging
from jobforge_mcp.redaction import KNOWN, Redactor, find_shape, redact_text, shape_of
from jobforge_mcp.types import JsonValue

# Put together here, so that no scanner of this repository takes them for real.
KEYS = {
    "AWS access key": "AKIA" + "IOSFODNN7EXAMPLE".replace("8", "2"),
    "GitHub token": "ghp_" + "a1B2" * 9,
    "Slack token": "xoxb-" + "123456789012-abcdefABCDEF",
    "Google API key": "AIza" + "a" * 35,
    "Stripe key": "sk_live_" + "4eC39HqLyjWDarjtT1",
    "JSON web token": "eyJhbGciOiJFZERTQSJ9" + ".eyJzdWIiOiJhZ2VudCJ9." + "c2lnbmF0dXJlLW9mLXRoaXM",
    "webhook secret": "whsec_" + "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    "private key": "-----BEGIN " + "PRIVATE KEY-----\nMC4CAQAwBQYDK2Vw\n-----END PRIVATE KEY-----",
    "OpenAI or Anthropic key": "sk-ant-" + "api03-" + "x" * 24,
}
PLAIN = ["secret://stripe", "AKIA", "eyJ", "sk-learn", "ghp_short", "a plain text", "x" * 5_000]


@pytest.mark.parametrize("kind", KEYS)
def test_well_known_keys_are_known(kind: str) -> None:
    assert shape_of(f"it is {KEYS[kind]} indeed") == kind
    assert KEYS[kind] not in redact_text(f"it is {KEYS[kind]} indeed")


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_no_key_is_left_alone(text: str) -> None:
    assert shape_of(text) is None
    assert redact_text(text) == text


def test_a_key_is_found_with_its_place_and_not_its_value() -> None:
    value: JsonValue = {"headers": [{"a/b": "x"}, {"a/b": KEYS["GitHub token"]}]}

    assert find_shape(value) == ("/headers/1/a~1b", "GitHub token")


WAYS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "repr": repr,
    "json": json.dumps,
    "url": lambda value: quote(value, safe=""),
    "base64": lambda value: base64.b64encode(value.encode()).decode(),
    "hex": lambda value: value.encode().hex(),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_value_is_struck_out_however_it_is_written(way: str) -> None:
    value = 'p"ass\\wörd/+&=\n2'
    redactor = Redactor()
    redactor.learn("db", value)

    struck = redactor.text(f"before {WAYS[way](value)} after")

    assert "[secret db]" in struck
    assert "ass" not in struck


def test_json_stays_json() -> None:
    redactor = Redactor()
    redactor.learn("pin", "73914")

    struck = json.loads(redactor.json_text('{"a":73914,"73914":["x73914",true,null,1.5]}'))

    assert struck == {"a": "[secret pin]", "[secret pin]": ["x[secret pin]", True, None, 1.5]}


@pytest.mark.requirement("secrets.redacted")
@pytest.mark.parametrize("form", ["json", "console"])
def test_logs_hold_no_secret_not_even_in_a_traceback(
    form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = logging.root.handlers[:]
    KNOWN.learn("canary", "canary-5d1f-value")
    try:
        configure_logging("info", "json" if form == "json" else "console")
        log = structlog.stdlib.get_logger("jobforge_mcp.test")
        try:
            raise ValueError("refused canary-5d1f-value")
        except ValueError:
            log.exception(
                "broke", where={"key": ["canary-5d1f-value"]}, token=KEYS["JSON web token"]
            )
        logging.getLogger("jobforge_mcp.other").warning("plain %s", "canary-5d1f-value")
    finally:
        logging.root.handlers[:] = handlers
        structlog.reset_defaults()
    written = capsys.readouterr().err

    assert "broke" in written
    assert "[secret canary]" in written
    assert "canary-5d1f-value" not in written
    assert KEYS["JSON web token"] not in written
