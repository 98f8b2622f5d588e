"""Collecting what is wrong with a configuration, so that all of it is told at once.

May import: `errors`, `front.toml_lines`.  A parser raises `Wrong` for one value; whoever called
it knows the value's path and adds it to `Problems`, which knows the line.
"""

from __future__ import annotations

import datetime
import difflib
import itertools
from collections.abc import Callable, Iterable

from supervisor.errors import ConfigError
from supervisor.front.toml_lines import Path

_LONGEST_SHOWN = 60
_MOST_LISTED = 24
_MOST_COMPARED = 200


class Wrong(Exception):
    """A value is not what it must be; each problem may lie deeper, at a path below the value."""

    def __init__(self, message: str, at: Path = ()) -> None:
        super().__init__(message)
        self.problems: list[tuple[Path, str]] = [(at, message)]

    @classmethod
    def all(cls, problems: list[tuple[Path, str]]) -> Wrong:
        """Several at once; `problems` is not empty."""
        wrong = cls(problems[0][1])
        wrong.problems = problems
        return wrong


class Problems:
    """The list under construction.  `place` turns a path into its text and a number to sort by."""

    def __init__(self, place: Callable[[Path], tuple[int, str]]) -> None:
        self._place = place
        self._found: dict[str, int] = {}
        self._paths: set[Path] = set()

    def add(self, path: Path, message: str) -> None:
        """Note `message` about the value at `path`; the same line twice counts once."""
        order, where = self._place(path)
        self._paths.add(path)
        self._found.setdefault(f"{where}: {message}", order)

    def add_all(self, path: Path, wrong: Wrong) -> None:
        for deeper, message in wrong.problems:
            self.add(path + deeper, message)

    def about(self, path: Path) -> bool:
        """Whether something was noted about the very value at `path`, or the table it is in."""
        return path in self._paths or path[:-1] in self._paths

    def __bool__(self) -> bool:
        return bool(self._found)

    def raise_any(self) -> None:
        """Raise ConfigError with every problem, in the order of the lines, if there is one."""
        if self._found:
            raise ConfigError(sorted(self._found, key=lambda text: self._found[text]))


def collect(problems: list[tuple[Path, str]]) -> None:
    """Raise what was collected, if anything."""
    if problems:
        raise Wrong.all(problems)


def dotted(path: Path) -> str:
    """A path as people write it: jobs.compress.mounts[0].source."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + (part if is_bare(part) else _quoted(part))
    return text


def is_bare(key: str) -> bool:
    """Whether a key needs no quotes in TOML."""
    return bool(key) and all(c.isascii() and (c.isalnum() or c in "-_") for c in key)


def _quoted(key: str) -> str:
    shown = key.encode("unicode_escape").decode("ascii").replace('"', '\\"')
    return f'"{shown}"'


def found(value: object) -> str:
    """A value as a message shows it, with its type in TOML's words."""
    if isinstance(value, str):
        cut = value if len(value) <= _LONGEST_SHOWN else value[: _LONGEST_SHOWN - 3] + "..."
        return _quoted(cut)
    if isinstance(value, bool):
        return f"{str(value).lower()} (a boolean)"
    if isinstance(value, int):
        return f"{value} (an integer)" if abs(value) < 10**30 else "a huge integer"
    if isinstance(value, float):
        return f"{value} (a float)"
    if isinstance(value, list):
        return "an array" if value else "an empty array"
    if isinstance(value, datetime.date | datetime.time):
        return f"{value.isoformat()} (a date or time)"
    return "a table"


def unknown(key: str, allowed: Iterable[str]) -> str:
    """The message for a key or word that is not in `allowed`, with the nearest one that is."""
    names = list(itertools.islice(allowed, _MOST_COMPARED))
    near = difflib.get_close_matches(key[:_LONGEST_SHOWN], names, n=1, cutoff=0.6)
    if near:
        return f'did you mean "{near[0]}"?'
    more = ", ..." if len(names) > _MOST_LISTED else ""
    return "allowed: " + ", ".join(names[:_MOST_LISTED]) + more
