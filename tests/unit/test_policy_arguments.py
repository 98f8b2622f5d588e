"""A policy's arguments: TOML's types are kept apart, and everything wrong is told at once."""

from __future__ import annotations

from typing import Literal

import attrs
import pytest

from supervisor.policy.arguments import ArgumentsError, Duration, Size, nearest, structure


@attrs.frozen
class Inner:
    path: str
    size: Size = Size(0)  # noqa: RUF009


@attrs.frozen
class Arguments:
    max: Size = Size("8G")  # noqa: RUF009
    after: Duration = Duration("1m")  # noqa: RUF009
    factor: float = attrs.field(default=2.0, validator=attrs.validators.gt(1))
    live: bool = True
    count: int = 3
    mode: Literal["soft", "hard"] = "soft"
    names: tuple[str, ...] = ()
    inner: Inner | None = None
    within: Duration | None = None


def problems(**table: object) -> dict[str, str]:
    with pytest.raises(ArgumentsError) as caught:
        structure(Arguments, table)
    return {".".join(path): text for path, text in caught.value.problems}


def test_sizes_and_durations_are_numbers_in_the_units_of_the_configuration() -> None:
    read = structure(Arguments, {"max": "1.5G", "after": "500ms", "within": "2h"})
    assert (read.max, read.after, read.within) == (1536 * 1024**2, 0.5, 7200.0)
    assert (type(read.max), type(read.after)) == (Size, Duration)
    assert structure(Arguments, {"max": 4096, "after": 3}).max == 4096
    assert structure(Arguments, {}) == Arguments()


def test_nested_classes_and_arrays_are_read() -> None:
    read = structure(Arguments, {"names": ["a", "b"], "inner": {"path": "/x", "size": "1K"}})
    assert (read.names, read.inner) == (("a", "b"), Inner("/x", Size(1024)))


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("max", "8X", 'must be a size like "512M", not "8X"'),
        ("max", True, 'must be a size like "512M", not true'),
        ("max", -1, "out of range"),
        ("max", 1.5, "neither a number nor a string"),
        ("max", [], "not an array"),
        ("max", 2**70, "out of range"),
        ("after", "soon", 'must be a duration like "10s", not "soon"'),
        ("after", float("nan"), "out of range"),
        ("after", float("inf"), "out of range"),
        ("after", "-5s", "out of range"),
        ("live", "false", 'must be true or false, not "false"'),
        ("live", 1, "must be true or false, not 1"),
        ("count", True, "must be an integer, not true"),
        ("count", 1.0, "must be an integer, not 1.0"),
        ("count", "3", 'must be an integer, not "3"'),
        ("factor", "2", 'must be a number, not "2"'),
        ("factor", 1, "must be > 1"),
        ("mode", "sotf", 'did you mean "soft"?'),
        ("mode", 3, "3 is not allowed"),
        ("within", "x", 'must be a duration like "10s"'),
        ("names", 3, "must be an array, not 3"),
        ("names", "abc", 'must be an array, not "abc"'),
        ("inner", 3, "has the wrong type"),
        ("inner", "path", "has the wrong type"),
    ],
)
def test_a_wrong_value_is_told_with_its_key(key: str, value: object, told: str) -> None:
    found = problems(**{key: value})
    assert list(found) == [key]
    assert told in found[key]
    assert "cattrs" not in found[key]
    assert "object" not in found[key]


def test_every_problem_is_told_at_once_with_the_nearest_key() -> None:
    found = problems(maxx="1G", live="no", after="x", names=["a", 3], inner={"size": "x"})
    assert set(found) == {"maxx", "live", "after", "names.1", "inner.path", "inner.size"}
    assert found["maxx"] == 'no such argument; did you mean "max"?'
    assert found["inner.path"] == "is required"


def test_a_type_that_nothing_can_be_read_as_is_the_authors_mistake() -> None:
    odd = attrs.make_class("Odd", {"x": attrs.field(type=type(structure))})
    with pytest.raises(ArgumentsError, match="its class Arguments has a type"):
        structure(odd, {"x": {}})


def test_an_unknown_key_does_not_hide_what_a_validator_says() -> None:
    assert set(problems(maxx=1, factor=0.5)) == {"maxx", "factor"}


def test_a_validator_may_complain_of_what_it_likes() -> None:
    def check(_instance: object, _attribute: object, _value: object) -> None:
        raise ValueError("'nobody' is at home", "x")

    odd = attrs.make_class("Odd", {"x": attrs.field(default=1, validator=check)})
    with pytest.raises(ArgumentsError) as caught:
        structure(odd, {"x": 1})
    assert caught.value.problems == ((("nobody",), "is at home"),)


def test_nearest_says_what_is_allowed_where_nothing_is_near() -> None:
    assert nearest("zzz", ["b", "a"]) == "allowed: a, b"
    assert nearest("zzz", []) == "nothing is allowed here"
