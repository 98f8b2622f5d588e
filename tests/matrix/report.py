"""The table: expected scenario against told reason.  Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tests.matrix.cases import Case
from tests.matrix.judge import Record, faults

REASONS = ("succeeded", "failed", "signal", "oom", "oom_host", "pids", "timeout", "cpu_timeout",
           "policy", "stopped", "skipped", "start_failed", "lost")  # fmt: skip
"""The columns; any other word that is told gets one of its own."""


@dataclass
class Tally:
    """What has come of each case so far."""

    cases: Mapping[str, Case]
    told: dict[str, Counter[str]] = field(default_factory=dict)
    wrong: list[tuple[str, list[str], Record]] = field(default_factory=list)
    """Case, faults, record; a wrong reason, or a right one with a wrong number."""

    def add(self, records: Iterable[Record]) -> None:
        for record in records:
            name = record["job"].partition("@")[0]
            self.told.setdefault(name, Counter())[record["reason"]] += 1
            found = faults(self.cases[name], record)
            if found:
                self.wrong.append((name, found, record))

    def missing(self, runs: int) -> list[str]:
        """The cases that have another number of records than they had runs."""
        totals = {name: sum(self.told.get(name, Counter()).values()) for name in self.cases}
        return [f"{name}: {n} records of {runs} runs" for name, n in totals.items() if n != runs]


def matrix(tally: Tally) -> Iterator[str]:
    """A line for each case; "." is none, and "!" marks what is off the diagonal."""
    words = [word for word in _columns(tally) if _used(tally, word)]
    width = max(len(name) for name in tally.cases)
    wrong = Counter(name for name, _, _ in tally.wrong)
    widths = {word: max(len(word), 5) for word in words}
    heads = "  ".join(f"{word:>{widths[word]}}" for word in words)
    yield f"{'':{width}}  {heads}  wrong"
    for name, case in tally.cases.items():
        told = tally.told.get(name, Counter())
        cells = (
            f"{_cell(told[word], expected=word == case.reason):>{widths[word]}}" for word in words
        )
        yield f"{name:{width}}  {'  '.join(cells)}  {wrong[name] or '.':>5}"


def _columns(tally: Tally) -> list[str]:
    others = {word for told in tally.told.values() for word in told} - set(REASONS)
    return [*REASONS, *sorted(others)]


def _used(tally: Tally, word: str) -> bool:
    expected = any(case.reason == word for case in tally.cases.values())
    return expected or any(told[word] for told in tally.told.values())


def _cell(count: int, *, expected: bool) -> str:
    if expected:
        return str(count)
    return f"{count}!" if count else "."


def wrong(tally: Tally) -> Iterator[str]:
    """Each run that is not as it should be: its faults, then its whole record."""
    for name, found, record in tally.wrong:
        yield f"{name}: {'; '.join(found)}"
        yield f"    {json.dumps(record)}"
