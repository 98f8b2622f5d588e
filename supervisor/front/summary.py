"""The table at the end of a batch: what became of each job, and one line of totals.  Pure.

It goes to standard output, and needs no rich.  May import: `errors`, `model`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attrs import frozen

from supervisor.front import lines
from supervisor.model.record import Reason, RunRecord

HEADER = ("JOB", "RUNS", "REASON", "EXPECTED", "TIME", "CPU", "PEAK MEMORY", "NOTE")
RIGHT = (1, 4, 5, 6)
"""The columns that are aligned to the right."""


@frozen
class Row:
    """The cells of one job, with the colours of its reason and of whether it was expected."""

    cells: tuple[str, ...]
    colours: tuple[str, str]


def summary(
    records: Iterable[RunRecord], wall: float, *, colour: bool = False, width: int | None = None
) -> str:
    """The table of all runs (in the order of their ends), the last of each job deciding.

    `wall` is the time of the whole batch in seconds; `width` cuts the note to a terminal's
    columns, None (a file, a pipe) leaves it whole.
    """
    runs: dict[str, list[RunRecord]] = {}
    for record in records:
        runs.setdefault(record.job, []).append(record)
    rows = [_row(attempts) for attempts in runs.values()]
    table = _table(rows, colour, width) if rows else []
    return "\n".join([*table, totals(runs, wall)]) + "\n"


def totals(runs: dict[str, list[RunRecord]], wall: float) -> str:
    """`9 jobs in 10 runs: 8 as expected, 1 not (1 oom); wall 12s, CPU 31s`."""
    last = [attempts[-1] for attempts in runs.values()]
    bad: dict[str, int] = {}
    for record in last:
        if not record.expected:
            bad[record.reason] = bad.get(record.reason, 0) + 1
    counts = ", ".join(f"{count} {reason}" for reason, count in bad.items())
    missed = f", {sum(bad.values())} not ({counts})" if bad else ""
    jobs, started = len(last), sum(map(_started, runs.values()))
    good = jobs - sum(bad.values())
    used = sum(_cpu(record) or 0.0 for attempts in runs.values() for record in attempts)
    return (
        f"{jobs} job{'s' * (jobs != 1)} in {started} run{'s' * (started != 1)}: "
        f"{good} as expected{missed}; "
        f"wall {lines.duration(wall)}, CPU {lines.duration(used)}"
    )


def note(record: RunRecord) -> str:
    """What one should know beside the reason."""
    notes = []
    if record.reason == Reason.FAILED:
        notes.append(f"exit code {record.exit_code}")
    if record.signal is not None and record.reason in (Reason.SIGNAL, Reason.PIDS):
        notes.append(f"signal {record.signal}")
    history = record.memory.limit_history
    if len(history) > 1:
        steps = " -> ".join(lines.limit_value("memory", change.value) for change in history)
        notes.append(f"memory limit {steps} by {history[-1].by}")
    if record.memory.oom_kills and record.reason not in (Reason.OOM, Reason.OOM_HOST):
        notes.append(f"{record.memory.oom_kills} killed by OOM")
    if record.pids.refused:
        notes.append(f"{record.pids.refused} forks refused")
    if record.decided_by and len(history) < 2:
        notes.append(f"decided by {record.decided_by}")
    if record.detail:
        notes.append(record.detail)
    return lines.clean("; ".join(notes))


def _started(attempts: Sequence[RunRecord]) -> int:
    return sum(record.reason != Reason.SKIPPED for record in attempts)


def _cpu(record: RunRecord) -> float | None:
    user, system = record.cpu.user_seconds, record.cpu.system_seconds
    return None if user is None and system is None else (user or 0.0) + (system or 0.0)


def _row(attempts: Sequence[RunRecord]) -> Row:
    last = attempts[-1]
    expected = "yes" if last.expected else "NO"
    cells = (
        lines.clean(last.job),
        str(_started(attempts)),
        str(last.reason),
        expected,
        lines.duration(last.wall_seconds),
        lines.duration(_cpu(last)),
        lines.size(last.memory.peak),
        note(last),
    )
    reason = lines.REASON_COLOURS.get(last.reason, lines.RED)
    return Row(cells, (reason, lines.GREEN if last.expected else lines.RED))


def _table(rows: Sequence[Row], colour: bool, width: int | None) -> list[str]:
    every = [HEADER, *(row.cells for row in rows)]
    widths = [max(len(cells[column]) for cells in every) for column in range(len(HEADER))]
    shown = [lines.paint(_line(HEADER, widths, width), lines.BOLD, colour)]
    for row in rows:
        line = _line(row.cells, widths, width)
        shown.append(_coloured(line, row, widths) if colour else line)
    return shown


def _line(cells: Sequence[str], widths: Sequence[int], width: int | None) -> str:
    padded = [
        cell.rjust(wide) if column in RIGHT else cell.ljust(wide)
        for column, (cell, wide) in enumerate(zip(cells, widths, strict=True))
    ]
    line = "  ".join(padded).rstrip()
    return line if width is None or len(line) <= width else line[: max(width - 1, 0)] + "…"


def _coloured(line: str, row: Row, widths: Sequence[int]) -> str:
    """Colour the cells REASON and EXPECTED, which stand at known places in `line`."""
    reason = sum(widths[:2]) + 4
    expected = reason + widths[2] + 2
    places = ((expected, widths[3], row.colours[1]), (reason, widths[2], row.colours[0]))
    for start, length, colour in places:
        cell = line[start : start + length]
        line = line[:start] + lines.paint(cell, colour, bool(cell)) + line[start + length :]
    return line
