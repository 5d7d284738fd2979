"""Patterns of dotted names: what they admit, and which lies within which."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies

from jobforge_mcp.router.patterns import allows_type, covers, is_pattern, matches
from jobforge_mcp.types import Caller, TenantId

NAMES = strategies.lists(strategies.sampled_from("ab"), min_size=1, max_size=4).map(".".join)
PATTERNS = strategies.tuples(
    strategies.lists(strategies.sampled_from(["a", "b", "*"]), max_size=3),
    strategies.sampled_from(["a", "b", "*", "**"]),
).map(lambda parts: ".".join([*parts[0], parts[1]]))


@pytest.mark.parametrize(
    ("pattern", "admitted", "others"),
    [
        (
            "report.generate",
            ["report.generate"],
            ["report", "report.generate.now", "xreport.generate"],
        ),
        ("connector.http.*", ["connector.http.request"], ["connector.http", "connector.http.a.b"]),
        ("*.delete", ["user.delete"], ["delete", "a.user.delete"]),
        ("*", ["echo"], ["demo.echo"]),
        ("**", ["echo", "demo.echo", "a.b.c.d"], []),
        ("demo.**", ["demo.echo", "demo.a.b"], ["demo", "demos.echo"]),
        ("demo.*.**", ["demo.a.b", "demo.a.b.c"], ["demo.a"]),
    ],
)
def test_a_pattern_admits_whole_segments(
    pattern: str, admitted: list[str], others: list[str]
) -> None:
    assert [name for name in admitted + others if matches(pattern, name)] == admitted


@pytest.mark.parametrize(
    "text", ["", ".", "a.", "a*", "**.a", "***", "a b", "(a+)+$", "a\n", "a" * 101]
)
def test_what_is_no_pattern_is_told(text: str) -> None:
    assert not is_pattern(text)


@given(PATTERNS, PATTERNS, NAMES)
def test_what_lies_within_a_pattern_admits_nothing_that_it_does_not(
    wide: str, narrow: str, name: str
) -> None:
    assert is_pattern(wide)
    if covers(wide, narrow) and matches(narrow, name):
        assert matches(wide, name)


@given(PATTERNS)
def test_a_pattern_lies_within_itself_and_everything(pattern: str) -> None:
    assert covers(pattern, pattern)
    assert covers("**", pattern)


@pytest.mark.parametrize(
    ("job_types", "deny_types", "is_allowed"),
    [
        (None, (), True),
        (("demo.*",), (), True),
        (("report.*",), (), False),
        (("demo.*",), ("demo.echo",), False),
        (None, ("*.echo",), False),
        (("demo.echo",), ("**",), False),
    ],
)
def test_deny_beats_allow(
    job_types: tuple[str, ...] | None, deny_types: tuple[str, ...], is_allowed: bool
) -> None:
    caller = Caller(TenantId("acme"), "a", frozenset(), job_types=job_types, deny_types=deny_types)

    assert allows_type(caller, "demo.echo") is is_allowed
