"""Platforms: which one this host is, and which of an index's images runs on it.

Pure but for `host`, which asks uname(2); may import attrs only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from attrs import frozen

# GOARCH names, as images use them; what uname -m says
_MACHINES = {
    "x86_64": ("amd64", ""), "i386": ("386", ""), "i686": ("386", ""),
    "aarch64": ("arm64", "v8"), "armv7l": ("arm", "v7"), "armv6l": ("arm", "v6"),
    "riscv64": ("riscv64", ""), "ppc64le": ("ppc64le", ""), "s390x": ("s390x", ""),
    "loongarch64": ("loong64", ""),
}  # fmt: skip
# What a processor runs beside its own.
_ALSO = {"amd64": ("386",), "arm64": ("arm",)}
# The variant that is meant where none is told.
_USUAL = {"arm64": "v8", "arm": "v7", "amd64": "v1"}


@frozen
class Platform:
    """As in an index: os, architecture, and a variant or ""."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        parts = (self.os, self.architecture, self.variant)
        return "/".join(part for part in parts if part)

    @property
    def level(self) -> int:
        """The number of the variant: what runs v7 runs v6."""
        variant = self.variant or _USUAL.get(self.architecture, "")
        digits = variant.removeprefix("v")
        return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 4 else 0


def host() -> Platform:
    """The platform of this kernel."""
    machine = os.uname().machine
    architecture, variant = _MACHINES.get(machine, (machine, ""))
    return Platform("linux", architecture, variant)


def parse(text: str) -> Platform:
    """ "linux/arm64", "linux/arm/v7"; raises ValueError."""
    parts = text.split("/")
    if not 2 <= len(parts) <= 3 or not all(part.isascii() and part.isalnum() for part in parts):
        raise ValueError(f'"{text}" is no platform like "linux/amd64" or "linux/arm/v7"')
    return Platform(*parts)


def runs(wanted: Platform, offered: Platform) -> bool:
    """Whether what is made for `offered` runs on `wanted`."""
    return _rank(wanted, offered) is not None


def choose(wanted: Platform, offered: Sequence[Platform | None]) -> int | None:
    """The place of the one that fits best, None if none does.

    One that does not say its platform is taken if it is the only one there is: its configuration
    tells, and is looked at later.
    """
    ranks = [
        (rank, -at)
        for at, one in enumerate(offered)
        if one is not None and (rank := _rank(wanted, one)) is not None
    ]
    if ranks:
        return -max(ranks)[1]
    return 0 if list(offered) == [None] else None


def _rank(wanted: Platform, offered: Platform) -> tuple[int, int] | None:
    """How well it fits (more is better): its own architecture first, then the highest variant."""
    own = offered.architecture == wanted.architecture
    also = offered.architecture in _ALSO.get(wanted.architecture, ())
    if offered.os != wanted.os or not (own or also):
        return None
    if own and offered.level > wanted.level:
        return None
    return int(own), offered.level
