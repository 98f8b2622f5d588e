"""What a writable layer changes of the layers below it, as `docker diff` tells it.

May import: `errors`, `image.overlay`.  The trees are read through descriptors, and no link in them
is followed: a job wrote them.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from attrs import frozen

from supervisor.errors import ImageError
from supervisor.image import overlay


@frozen
class Change:
    """`A` added, `C` changed (a directory: perhaps only what is in it), `D` deleted."""

    kind: Literal["A", "C", "D"]
    path: str


def changes(upper: Path, lowers: Sequence[Path]) -> Iterator[Change]:
    """Each change, paths absolute and in order; `lowers` are the layers below, top first.

    Raises ImageError where it cannot be told, OSError where a tree cannot be read.
    """
    with ExitStack() as stack:
        below = [_open(str(lower), None, stack) for lower in lowers]
        yield from _directory(_open(str(upper), None, stack), below, "", 0)


def _directory(upper: int, lowers: list[int], path: str, depth: int) -> Iterator[Change]:
    if depth > overlay.DEEPEST:
        raise ImageError(f"lies more than {overlay.DEEPEST} directories deep", path)
    names = set(os.listdir(upper))
    gone = _merged(lowers) - names if lowers and overlay.is_opaque(upper) else set()
    for name in sorted(names | gone):
        if name in gone:
            yield Change("D", f"{path}/{name}")
        else:
            yield from _entry(upper, lowers, name, f"{path}/{name}", depth)


def _entry(upper: int, lowers: list[int], name: str, path: str, depth: int) -> Iterator[Change]:
    status = os.stat(name, dir_fd=upper, follow_symlinks=False)
    overlay.check_whole(upper, name, path)
    with ExitStack() as stack:
        there, below = _look_up(lowers, name, stack)
        if not overlay.is_whiteout(status):
            yield Change("C" if there else "A", path)
        elif there:
            yield Change("D", path)
        if stat.S_ISDIR(status.st_mode):
            yield from _directory(_open(name, upper, stack), below, path, depth + 1)


def _look_up(lowers: list[int], name: str, stack: ExitStack) -> tuple[bool, list[int]]:
    """Whether the layers have it, and its directories that are seen as one, top first."""
    found: list[int] = []
    for lower in lowers:
        try:
            status = os.stat(name, dir_fd=lower, follow_symlinks=False)
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(status.st_mode):
            return bool(found) or not overlay.is_whiteout(status), found
        found.append(_open(name, lower, stack))
        if overlay.is_opaque(found[-1]):
            break
    return bool(found), found


def _merged(directories: list[int]) -> set[str]:
    """The names in directories that are seen as one."""
    there: dict[str, bool] = {}
    for directory in directories:
        for name in os.listdir(directory):
            if name not in there:
                status = os.stat(name, dir_fd=directory, follow_symlinks=False)
                there[name] = not overlay.is_whiteout(status)
    return {name for name, is_there in there.items() if is_there}


def _open(name: str, at: int | None, stack: ExitStack) -> int:
    fd = overlay.open_directory(name, at)
    stack.callback(os.close, fd)
    return fd
