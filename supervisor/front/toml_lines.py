"""Which line of a TOML document holds which key.

`tomllib` tells no lines, so this walks a document that tomllib has already accepted and notes
where each key and each array element begins.  It knows just enough of TOML's grammar to step over
strings, arrays, inline tables and comments.  Pure; may import nothing of ours.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

Path = tuple[str | int, ...]
"""The way to a value: keys, and indexes into arrays."""

DEEPEST = 32
"""Levels that are told apart; what is below has the line of what it is in."""

_BARE_END = " \t\r\n.=]#,{}["
_SCALAR_END = ",]}#\n"


class Lines:
    """The line (from 1) at which each path of a valid document begins; found when first asked."""

    def __init__(self, text: str) -> None:
        self._text = text

    @cached_property
    def of(self) -> Mapping[Path, int]:
        """Every path with its line; whatever is not understood is not in it."""
        scanner = _Scanner(self._text)
        with contextlib.suppress(IndexError):  # the text ended early: what was found stands
            scanner.document()
        return scanner.lines

    def line(self, path: Sequence[str | int]) -> int:
        """The line of `path`, or of the nearest thing around it; 1 for an unknown one."""
        for end in range(len(path), 0, -1):
            found = self.of.get(tuple(path[:end]))
            if found is not None:
                return found
        return 1


class _Scanner:
    """One pass over the text; `at` is the next character, `lineno` the line it is in."""

    def __init__(self, text: str) -> None:
        self.text = text.replace("\r\n", "\n")
        self.at = 0
        self.lineno = 1
        self.lines: dict[Path, int] = {}
        self.elements: dict[Path, int] = {}

    def document(self) -> None:
        table: Path = ()
        while self.skip_blank():
            if self.text[self.at] == "[":
                table = self.header()
            else:
                self.pair(table)

    def header(self) -> Path:
        """[table] or [[array]]: the path that the pairs below it belong to."""
        line = self.lineno
        double = self.text.startswith("[[", self.at)
        self.step(2 if double else 1)
        path: Path = ()
        keys = list(self.keys("]"))
        for number, key in enumerate(keys):
            path = (*path, key)
            self.note(path, line)
            last = number == len(keys) - 1
            if double and last:
                self.elements[path] = self.elements.get(path, -1) + 1
            if path in self.elements and (double or not last):
                path = (*path, self.elements[path])
                self.note(path, line)
        if len(path) <= DEEPEST:
            self.lines[path] = line
        self.step(2 if double else 1)
        return path

    def pair(self, table: Path) -> None:
        """key = value; a dotted key notes every part of it."""
        line, path = self.lineno, table
        for key in self.keys("="):
            path = (*path, key)
            self.note(path, line)
        self.step(1)
        self.value(path)

    def keys(self, end: str) -> Iterator[str]:
        """The parts of a possibly dotted and quoted key, up to `end` (which is left)."""
        while self.text[self.at] != end:
            char = self.text[self.at]
            if char in " \t.":
                self.step(1)
            elif char in "\"'":
                quoted = self.string()
                yield _unescaped(quoted) if char == '"' else quoted
            else:
                yield self.bare()

    def bare(self) -> str:
        start = self.at
        while self.text[self.at] not in _BARE_END:
            self.step(1)
        if start == self.at:  # not a key at all: never stand still
            self.step(1)
        return self.text[start : self.at]

    def value(self, path: Path) -> None:
        while self.text[self.at] in " \t":
            self.step(1)
        char = self.text[self.at]
        if char in "\"'":
            self.string()
        elif char == "[":
            self.array(path)
        elif char == "{":
            self.inline_table(path)
        else:
            while self.at < len(self.text) and self.text[self.at] not in _SCALAR_END:
                self.step(1)

    def array(self, path: Path) -> None:
        self.step(1)
        index = 0
        while self.skip_blank() and self.text[self.at] != "]":
            if self.text[self.at] == ",":
                self.step(1)
                continue
            self.note((*path, index), self.lineno)
            self.value((*path, index))
            index += 1
        self.step(1)

    def inline_table(self, path: Path) -> None:
        self.step(1)
        while self.skip_blank() and self.text[self.at] != "}":
            if self.text[self.at] == ",":
                self.step(1)
            else:
                self.pair(path)
        self.step(1)

    def string(self) -> str:
        """Step over a string of any of the four kinds; its text as written."""
        quote = self.text[self.at]
        fence = quote * 3 if self.text.startswith(quote * 3, self.at) else quote
        self.step(len(fence))
        start = self.at
        while not self.text.startswith(fence, self.at):
            self.step(2 if quote == '"' and self.text[self.at] == "\\" else 1)
        content = self.text[start : self.at]
        self.step(len(fence))
        while len(fence) == 3 and self.text.startswith(quote, self.at):
            self.step(1)  # up to two quotes may stand right before the closing fence
        return content

    def skip_blank(self) -> bool:
        """Step over white space and comments; False at the end of the text."""
        while self.at < len(self.text):
            if self.text[self.at] == "#":
                while self.at < len(self.text) and self.text[self.at] != "\n":
                    self.step(1)
            elif self.text[self.at] in " \t\r\n":
                self.step(1)
            else:
                return True
        return False

    def step(self, count: int) -> None:
        self.lineno += self.text.count("\n", self.at, self.at + count)
        self.at += count

    def note(self, path: Path, line: int) -> None:
        if len(path) <= DEEPEST:
            self.lines.setdefault(path, line)


def _unescaped(content: str) -> str:
    """A quoted key's text: escapes are rare enough there to let tomllib resolve them."""
    if "\\" not in content:
        return content
    import tomllib

    key: str = tomllib.loads(f'key = "{content}"')["key"]
    return key
