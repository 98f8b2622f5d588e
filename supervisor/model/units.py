"""Sizes and durations: from what people write to numbers, and back.

Pure; `front` and `policy` both read them.  May import: nothing of ours.  Everything here raises
ValueError with a readable reason.
"""

from __future__ import annotations

import math
import re

KIB = 1024
SIZE_UNITS = {"": 1, "K": KIB, "M": KIB**2, "G": KIB**3, "T": KIB**4}
LARGEST_SIZE = 2**63 - 1
"""The kernel keeps sizes in a signed 64-bit number (page counters a little less)."""

LEAST_DISK = 1 << 20
"""The smallest size of a writable layer, in bytes."""

DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LONGEST = 100 * 365 * 86400.0
"""A hundred years, in seconds: further than any clock here is asked to count."""

_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*(?:([KMGT])(i?B)?|B)?", re.IGNORECASE | re.ASCII)
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)\s*%", re.ASCII)
_DURATION = re.compile(r"(\d{1,15}(?:\.\d{1,15})?)(ms|s|m|h|d)", re.ASCII)


def size(text: str) -> int:
    """Bytes from "512", "64K", "1.5G" or "2GiB"; the units' base is 1024."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError("not a number with one of the units K, M, G, T")
    number, unit, suffix = match[1], (match[2] or "").upper(), match[3] or ""
    if suffix.upper() == "B":
        raise ValueError(f'the base is 1024 here: write "{number}{unit}"')
    scale = SIZE_UNITS[unit]
    result = int(float(number) * scale) if "." in number else int(number) * scale
    if result > LARGEST_SIZE:
        raise ValueError("larger than 2^63 - 1 bytes")
    return result


def percent(text: str) -> float | None:
    """The share (0 < share <= 1) that "80%" stands for; None where `text` is no percentage."""
    match = _PERCENT.fullmatch(text.strip())
    if match is None:
        return None
    share = float(match[1]) / 100
    if not 0 < share <= 1:
        raise ValueError("a percentage lies above 0% and at most at 100%")
    return share


def size_text(size: int) -> str:
    """The shortest exact way to write a size: 67108864 is "64M"."""
    for unit in ("T", "G", "M", "K"):
        if size and size % SIZE_UNITS[unit] == 0:
            return f"{size // SIZE_UNITS[unit]}{unit}"
    return str(size)


def duration(text: str) -> float:
    """Seconds from "500ms", "10s", "5m", "2h", "1d", several of them ("1h30m"), or "-5m"."""
    digits = text.strip()
    sign, digits = (-1.0, digits[1:]) if digits.startswith("-") else (1.0, digits)
    at, seconds = 0, 0.0
    while at < len(digits) or not digits:
        match = _DURATION.match(digits, at)
        if match is None:
            raise ValueError("not a number with one of the units ms, s, m, h, d")
        seconds += _scaled(match[1], match[2])
        at = match.end()
    return bounded(sign * seconds)


def _scaled(number: str, unit: str) -> float:
    # 500 / 1000 is the nearest double to a half second; 500 * 0.001 need not be.
    return float(number) / 1000 if unit == "ms" else float(number) * DURATION_UNITS[unit]


def bounded(seconds: float) -> float:
    """`seconds`, if it is a finite time within a hundred years either way."""
    if not math.isfinite(seconds) or abs(seconds) > LONGEST:
        raise ValueError("longer than a hundred years")
    return float(seconds)


def duration_text(seconds: float) -> str | float:
    """The shortest exact way to write a duration (90.0 is "90s"); itself where no unit is exact."""
    for unit in ("d", "h", "m", "s"):
        count = seconds / DURATION_UNITS[unit]
        if count == int(count) and count and int(count) * DURATION_UNITS[unit] == seconds:
            return f"{int(count)}{unit}"
    milliseconds = f"{seconds * 1000:.0f}ms"
    return milliseconds if duration(milliseconds) == seconds else seconds
