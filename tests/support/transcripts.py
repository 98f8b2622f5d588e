"""The transcripts of the documents: read from their Markdown, done again, compared.

A block in a fence of `console` is a transcript.  The comment on the line before it says how it is
run, or why it is not; CONTRIBUTING.md has the words.  What a block shows may differ from what is
found in what can only differ (times, process numbers, measured sizes): `TOKENS` is the list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.command import ROOT

DOCUMENTS = (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")))
PROMPTS = ("# ", "$ ")
LEFT_OUT = "…"

BLOCK = re.compile(
    r"^(?:<!--(?P<mark>(?:(?!-->).)*)-->\n)?```(?P<kind>\w*)\n(?P<body>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
KEYS = ("needs", "before", "command", "alike", "order", "only", "timeout")


class Wrong(Exception):
    """A block whose mark cannot be understood, or that has none."""


@dataclass(frozen=True)
class Step:
    """A command, and the lines that the document shows after it; None: not looked at."""

    command: str
    shown: tuple[str, ...] | None


@dataclass
class Session:
    """The transcripts of one name in one document: one shell, one fresh state directory."""

    document: Path
    name: str
    steps: list[Step] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    needs: list[str] = field(default_factory=list)
    alike: list[str] = field(default_factory=list)
    order: str = "as shown"
    only: str = ""
    timeout: int = 120

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}:{self.name}"


def sessions(path: Path) -> list[Session]:
    """Those of a document, in its order.

    Raises `Wrong` for a block that looks like a transcript and does not say whether it is run.
    """
    found: dict[str, Session] = {}
    files: dict[str, str] = {}
    text = path.read_text()
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start("kind")) + 1
        try:
            _take(block, path, found, files)
        except Wrong as error:
            raise Wrong(f"{path.relative_to(ROOT)}:{line}: {error}") from None
    return list(found.values())


def _take(
    block: re.Match[str], path: Path, found: dict[str, Session], files: dict[str, str]
) -> None:
    word, _, rest = (block["mark"] or "").strip().partition("\n")
    head, _, what = word.partition(" ")
    if word.startswith("file: "):
        files[word.removeprefix("file: ").strip()] = block["body"]
    elif word.startswith("not run: "):
        if len(word.removeprefix("not run: ").strip()) < 10:
            raise Wrong("say why it is not run")
    elif head == "transcript" and what.strip():
        session = found.setdefault(what.strip(), Session(path, what.strip(), files=dict(files)))
        session.files.update(files)
        _add(session, rest, block["body"])
    elif block["kind"] == "console" or _prompted(block["body"]):
        raise Wrong("neither `<!-- transcript NAME -->` nor `<!-- not run: REASON -->` before it")


def _prompted(body: str) -> bool:
    return any(line.startswith(("$ ", "# supervise ", "# curl ")) for line in body.splitlines())


def _add(session: Session, rest: str, body: str) -> None:
    """The further lines of the mark, KEY: VALUE each, and the steps of the block."""
    command = ""
    for line in filter(None, map(str.strip, rest.splitlines())):
        key, _, value = (part.strip() for part in line.partition(":"))
        if key not in KEYS or not value:
            raise Wrong(f"{line!r}: not one of {', '.join(KEYS)} with a value")
        if key == "before":
            session.steps.append(Step(value, None))
        elif key == "command":
            command = value
        elif key == "needs":
            session.needs += value.replace(",", " ").split()
        elif key == "alike":
            session.alike.append(value)
        elif key == "timeout":
            session.timeout = int(value)
        else:
            setattr(session, key, value)
    if command:
        session.steps.append(Step(command, tuple(body.splitlines())))
    else:
        session.steps += _steps(body)


def _steps(body: str) -> Iterator[Step]:
    """The first line's prompt is the block's: what begins with another is output."""
    lines = body.splitlines()
    prompt = body[:2]
    if prompt not in PROMPTS:
        raise Wrong("it begins with no prompt, and its mark has no `command:`")
    while lines:
        command = lines.pop(0).removeprefix(prompt)
        while command.endswith("\\"):
            command = command[:-1] + lines.pop(0).strip()
        shown = []
        while lines and not lines[0].startswith(prompt):
            shown.append(lines.pop(0))
        yield Step(command, tuple(shown))


# Comparison.

TOKENS = {
    "stamp": r"\d{4}-\d\d-\d\d[T ][\d:.]+(?:Z|[+-]\d\d:?\d\d)?",
    "clock": r"\b\d\d:\d\d:\d\d(?:\.\d+)?\b",
    "digest": r"\bsha256:[0-9a-f]{12,64}",
    "blob": r"\b(?=[a-f]*\d)[0-9a-f]{12}\b",
    "run": r"\bm[0-9a-z]{7}(?=-[\w])",
    "process": r"(?<=\bprocess )\d+|(?<=\bpid )\d+|(?<=\"pid\": )\d+|(?<=\brun-)\d+",
    "cgroup": r"(?<=\brun\.)\d+\.\d+",
    "time": r"(?<![\w.])\d+(?:\.\d+)?(?:ms|s|m|h|d)\b",
    "size": r"(?<![\w.])\d+(?:\.\d+)?(?: kB|[BKMGT])\b",
}
"""What differs from one machine or hour to another.  A name stands for one thing throughout a
session (`NAMES`), a size may be other by FACTOR; everything else is as shown."""

NAMES = ("digest", "blob", "run")
FACTOR = 2.0
UNITS = {"B": 1, "K": 1 << 10, " kB": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass
class Comparison:
    """What has been seen in a session so far: `names` has what is found for what is shown."""

    alike: Sequence[str] = ()
    names: dict[str, str] = field(default_factory=dict)

    def command(self, text: str) -> str:
        """A command with the names that have come in place of those the document has."""
        for shown in sorted(self.names, key=len, reverse=True):
            text = text.replace(shown, self.names[shown])
        return text

    def same(self, shown: Sequence[str], found: Sequence[str]) -> bool:
        """Whether these lines are those, in their order."""
        names = _all(self, list(shown), list(found), self.names)
        self.names = self.names if names is None else names
        return names is not None

    def same_in_any_order(self, shown: Sequence[str], found: Sequence[str]) -> bool:
        left = list(found)
        for line in shown:
            if line.strip() == LEFT_OUT:
                return True
            match = next((one for one in left if self.same([line], [one])), None)
            if match is None:
                return False
            left.remove(match)
        return not left

    def line(self, shown: str, found: str, names: dict[str, str]) -> dict[str, str] | None:
        """The names that are known then; None if it is another line."""
        pattern, kinds = self._pattern(" ".join(shown.split()))
        match = re.fullmatch(pattern, " ".join(found.split()))
        if match is None:
            return None
        known = dict(names)
        for number, (kind, text) in enumerate(kinds):
            there = match[f"t{number}"]
            if kind in NAMES and known.setdefault(text, there) != there:
                return None
            if kind == "size" and not near(text, there):
                return None
        return known

    def _pattern(self, shown: str) -> tuple[str, list[tuple[str, str]]]:
        own = {f"own{number}": text for number, text in enumerate(self.alike)}
        tokens = {**own, **TOKENS}
        master = re.compile("|".join(f"(?P<{kind}>{text})" for kind, text in tokens.items()))
        kinds: list[tuple[str, str]] = []
        pattern, at = "", 0
        for token in master.finditer(shown):
            kind = token.lastgroup or ""
            pattern += _literal(shown[at : token.start()])
            pattern += f"(?P<t{len(kinds)}>{tokens[kind]})"
            kinds.append((kind, token[0]))
            at = token.end()
        return pattern + _literal(shown[at:]), kinds


def _literal(text: str) -> str:
    """As wide as it may be: columns are as wide as what is in them."""
    parts = re.split(r"( +|…)", text)
    wide = {LEFT_OUT: ".*"}
    return "".join(
        " " if part.isspace() else wide.get(part) or re.escape(part) for part in parts if part
    )


def _all(
    how: Comparison, shown: list[str], found: list[str], names: dict[str, str]
) -> dict[str, str] | None:
    if not shown:
        return None if found else names
    if shown[0].strip() == LEFT_OUT:
        rest = (_all(how, shown[1:], found[skip:], names) for skip in range(len(found) + 1))
        return next((one for one in rest if one is not None), None)
    known = how.line(shown[0], found[0], names) if found else None
    return None if known is None else _all(how, shown[1:], found[1:], known)


def near(shown: str, found: str) -> bool:
    """Whether two sizes are the same but for FACTOR."""
    one, other = bytes_of(shown), bytes_of(found)
    return one <= other * FACTOR and other <= one * FACTOR


def bytes_of(size: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\D+)", size).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]
