"""Bundles before the database: order, circles, and what falls with a refused request."""

from __future__ import annotations

import pytest

from jobforge_mcp.definitions.bundle import Place, arrange
from jobforge_mcp.errors import CallerError, InvalidInputError, LimitError, NotFoundError
from jobforge_mcp.types import NewJob

JOB = NewJob("demo.echo", "{}")


def test_requests_are_put_after_what_they_depend_on() -> None:
    places = [Place("c", ("a", "b")), Place("b", ("a",)), Place("d"), Place("a")]

    arranged = arrange(places, [JOB] * 4)

    assert arranged.ids == ["d", "a", "b", "c"]
    assert [item.needs for item in arranged.items] == [(), (), (1,), (1, 2)]


def test_what_is_refused_takes_with_it_all_that_depends_on_it() -> None:
    refusal: CallerError = NotFoundError("there is no such job", code="JOB_NOT_FOUND")
    places = [Place("a"), Place("b", ("a",)), Place("c", ("b",)), Place("d")]

    arranged = arrange(places, [refusal, JOB, JOB, JOB])

    assert arranged.ids == ["d"]
    assert {name: error.code for name, error in arranged.refused.items()} == {
        "a": "JOB_NOT_FOUND",
        "b": "DEPENDENCY_REFUSED",
        "c": "DEPENDENCY_REFUSED",
    }


@pytest.mark.parametrize(
    "places",
    [
        [],
        [Place("a", ("a",))],
        [Place("a", ("b",)), Place("b", ("a",))],
        [Place("a"), Place("a")],
        [Place("a", ("z",))],
    ],
)
def test_circles_strangers_and_twins_are_refused_whole(places: list[Place]) -> None:
    with pytest.raises(InvalidInputError) as refused:
        arrange(places, [JOB] * len(places))

    assert refused.value.code == "BUNDLE_INVALID"


def test_a_bundle_has_a_hundred_requests_at_most() -> None:
    with pytest.raises(LimitError):
        arrange([Place(str(n)) for n in range(101)], [JOB] * 101)
