"""Which image of an index a host gets."""

from __future__ import annotations

import pytest

from supervisor.image import platforms
from supervisor.image.platforms import Platform, choose, parse, runs


def several(*texts: str) -> list[Platform | None]:
    return [None if text == "?" else parse(text) for text in texts]


@pytest.mark.parametrize(
    ("wanted", "offered", "at"),
    [
        ("linux/amd64", ("linux/arm64/v8", "linux/amd64"), 1),
        ("linux/amd64", ("linux/386", "linux/amd64"), 1),
        ("linux/amd64", ("linux/386", "linux/arm64"), 0),
        ("linux/amd64", ("linux/amd64/v3", "linux/amd64"), 1),
        ("linux/amd64", ("linux/amd64/v3",), None),
        ("linux/amd64", ("windows/amd64",), None),
        ("linux/amd64", ("unknown/unknown", "linux/amd64"), 1),
        ("linux/amd64", ("linux/amd64", "linux/amd64"), 0),
        ("linux/arm64", ("linux/arm64",), 0),
        ("linux/arm64/v8", ("linux/arm64",), 0),
        ("linux/arm64", ("linux/arm64/v8",), 0),
        ("linux/arm/v7", ("linux/arm/v5", "linux/arm/v6", "linux/arm64"), 1),
        ("linux/arm/v6", ("linux/arm/v7",), None),
        ("linux/riscv64", ("linux/amd64",), None),
        ("linux/amd64", (), None),
        ("linux/amd64", ("?",), 0),
        ("linux/amd64", ("?", "?"), None),
        ("linux/amd64", ("?", "linux/amd64"), 1),
    ],
)
def test_the_one_that_fits_best_is_chosen(
    wanted: str, offered: tuple[str, ...], at: int | None
) -> None:
    assert choose(parse(wanted), several(*offered)) == at


@pytest.mark.parametrize("text", ["", "amd64", "linux/", "linux/amd64/v1/x", "linux/../etc", "a/²"])
def test_what_is_no_platform(text: str) -> None:
    with pytest.raises(ValueError, match="no platform"):
        parse(text)


def test_this_host_runs_its_own() -> None:
    host = platforms.host()
    assert runs(host, host)
    assert parse(str(host)) == host
    assert not runs(host, Platform("linux", "pdp11"))
