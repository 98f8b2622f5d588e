"""Sizes and durations: what people write, exactly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.model import units


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("64K", 65536),
        ("64k", 65536),
        ("1.5G", 3 * 2**29),
        ("2GiB", 2**31),
        ("1T", 2**40),
        (" 7 M ", 7 * 2**20),
        ("9007199254740993", 9007199254740993),
        ("100B", 100),
    ],
)
def test_sizes(text, size):
    assert units.size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "M",
        "-1M",
        "1X",
        "1e3",
        "0x10",
        "1 000",
        "٣M",
        "nan",
        "1.M",
        "9" * 21,
        "8388608T",
        "5i",
        "5iB",
        "iB",
    ],
)
def test_what_is_no_size(text):
    with pytest.raises(ValueError):
        units.size(text)


def test_decimal_units_are_refused_rather_than_guessed():
    with pytest.raises(ValueError, match='write "5M"'):
        units.size("5MB")


@pytest.mark.parametrize(("text", "share"), [("80%", 0.8), ("100 %", 1.0), ("0.5%", 0.005)])
def test_shares(text, share):
    assert units.percent(text) == pytest.approx(share)


@pytest.mark.parametrize("text", ["0%", "101%", "999%"])
def test_impossible_shares(text):
    with pytest.raises(ValueError):
        units.percent(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("10s", 10), ("5m", 300), ("2h", 7200), ("1d", 86400), ("1h30m", 5400),
     ("-5m", -300), ("0.1s", 0.1), ("1m500ms", 60.5)],
)  # fmt: skip
def test_durations(text, seconds):
    assert units.duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "-", "10", "10x", "s", "1s2", "--1s", "1 s", "inf", "999999999d", "1s-1s"]
)
def test_what_is_no_duration(text):
    with pytest.raises(ValueError):
        units.duration(text)


@given(st.integers(0, units.LARGEST_SIZE))
def test_a_size_reads_back_as_it_was_written(size):
    assert units.size(units.size_text(size)) == size


@given(st.floats(-units.LONGEST, units.LONGEST))
def test_a_duration_reads_back_as_it_was_written(seconds):
    text = units.duration_text(seconds)
    assert (units.duration(text) if isinstance(text, str) else text) == seconds


def test_durations_are_written_short():
    assert [units.duration_text(value) for value in (90.0, 60.0, 0.5, 86400.0, 5400.0)] == [
        "90s", "1m", "500ms", "1d", "90m",
    ]  # fmt: skip
