"""The doctor's table: what is tried, below headings, as wide as the terminal.

Rows of one heading that say the same are one row.  May import: `front.lines`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from supervisor.front import lines
from supervisor.front.doctor_trial import Check, Verdict

WORDS: dict[Verdict, str] = {"enforced": "ok", "accounted only": "partly", "unavailable": "no"}
NAMES = 22
"""Columns of a name; one that is longer has a line of its own."""
BEGIN = 2 + 6 + 2
NARROWEST = 60


def table(checks: Sequence[Check], colour: bool, width: int = 80) -> list[str]:
    """A row for each check below its group, its fix below it, and what it all comes to."""
    shown: list[str] = []
    for group, members in groupby(checks, lambda check: check.group):
        shown.append(lines.paint(group.upper(), lines.BOLD, colour))
        for row in _merged(list(members)):
            shown += _row(row, colour, max(width, NARROWEST))
        shown.append("")
    bad = [check.name for check in checks if check.needed and check.verdict != "enforced"]
    end = f"a default job lacks: {', '.join(bad)}" if bad else "a default job has all it needs"
    return [*shown, *textwrap.wrap(end, max(width, NARROWEST), subsequent_indent="  ")]


def _merged(checks: Sequence[Check]) -> list[Check]:
    """Those that follow upon each other and say the same, as one with all their names."""
    rows = []
    alike = groupby(checks, lambda one: (one.verdict, one.detail, one.fix))
    for (verdict, detail, fix), members in alike:
        same = list(members)
        names = [one.name for one in same]
        needed = any(one.needed for one in same)
        ends = {name.rpartition(" ")[2] for name in names}
        if len(names) > 1 and len(ends) == 1 and all(" " in name for name in names):
            # "pid namespace, mount namespace" is "pid, mount namespace"
            names = [*(name.rpartition(" ")[0] for name in names[:-1]), names[-1]]
        rows.append(Check(", ".join(names), verdict, detail, fix, needed))
    return rows


def _row(check: Check, colour: bool, width: int) -> Iterator[str]:
    painted = lines.paint(WORDS[check.verdict].ljust(6), colour_of(check), colour)
    detail = "\n".join(lines.clean(line) for line in check.detail.splitlines())
    start = BEGIN + NAMES + 2
    told = _wrapped(detail, width - start)
    names = textwrap.wrap(check.name, width - BEGIN)
    if len(names) == 1 and len(check.name) <= NAMES:
        yield f"  {painted}  {check.name.ljust(NAMES)}  {told.pop(0) if told else ''}".rstrip()
        names = []
    for number, line in enumerate(names):
        yield f"  {painted if number == 0 else '      '}  {line}"
    yield from (f"{'':{start}}{line}" for line in told)
    if check.fix and check.verdict != "enforced":
        # on one line, however long: it is there to be copied
        yield f"{'':{BEGIN}}fix: {lines.clean(check.fix)}"


def _wrapped(text: str, width: int) -> list[str]:
    wrap = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    return [line for part in text.split("\n") for line in wrap.wrap(part)]


def colour_of(check: Check) -> str:
    """Red is what a default job lacks."""
    if check.verdict == "enforced":
        return lines.GREEN
    return lines.RED if check.needed else lines.YELLOW
