"""`supervise doctor`: everything a job needs, tried for real on this host, with the fix.

The trials themselves are in `doctor_kernel` (namespaces, mounts), `doctor_users` (their numbers),
`doctor_disk` (sizes of layers) and `doctor_limits` (cgroups); how they are contained is told in
`doctor_trial`.  `clash` has the one check that every command makes at its start.

May import: `errors`, `model`, `linux`, `cgroup`, the trials.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from attrs import asdict

from supervisor.errors import SupervisorError
from supervisor.front import doctor_disk, doctor_kernel, doctor_limits, doctor_users, lines
from supervisor.front.clash import name_clash
from supervisor.front.doctor_trial import Check, Verdict

LONGEST = 10.0
"""Seconds for the whole; what is left by then is not tried."""

COLOURS = {"enforced": lines.GREEN, "accounted only": lines.YELLOW, "unavailable": lines.RED}


def doctor(*, as_json: bool, colour: bool, say: Callable[[str], object]) -> int:
    """Try everything, print the table (or a JSON array) by `say`; the exit status.

    0 when all that a default job needs is enforced, else 1.
    """
    checks = run()
    if as_json:
        say(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        say("\n".join(table(checks, colour)))
    return 0 if healthy(checks) else 1


def healthy(checks: Sequence[Check]) -> bool:
    """Whether a default job would be contained and limited as promised."""
    return all(check.verdict == "enforced" for check in checks if check.needed)


def run() -> list[Check]:
    """Every check, one after the other, within LONGEST seconds.

    Ctrl-C and SIGTERM end it early, as KeyboardInterrupt and SystemExit; nothing stays behind.
    """
    deadline = time.monotonic() + LONGEST
    with _terminable():
        found = [name_check()]
        found += _each(
            [*doctor_kernel.checks(), *doctor_users.checks(), *doctor_disk.checks()], deadline
        )
        return found + _limits(deadline)


def _each(trials: Sequence[Callable[[], Check]], deadline: float) -> Iterator[Check]:
    for done, trial in enumerate(trials):
        if time.monotonic() > deadline:
            left = f"{len(trials) - done} checks were not made: {LONGEST:g}s were over"
            yield Check("the rest", "unavailable", left, "again on an idle host", True)
            return
        yield trial()


def _limits(deadline: float) -> list[Check]:
    from supervisor.cgroup.detect import detect

    try:
        manager = detect(f"doctor-{os.getpid()}")
    except (SupervisorError, OSError) as error:
        hint = error.hint if isinstance(error, SupervisorError) else ""
        return [Check("control groups", "unavailable", str(error), hint, True)]
    try:
        found: Verdict = "unavailable" if manager.version == "none" else "enforced"
        told = Check("control groups", found, "\n".join(manager.describe()), "", True)
        return [told, *_each(doctor_limits.checks(manager), deadline)]
    finally:
        manager.close()


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM unwinds the stack, so that every `finally` on it runs."""
    before = signal.signal(signal.SIGTERM, _terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _terminated(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def name_check() -> Check:
    """Whether a distribution named `supervisor` is installed here, and has overwritten us."""
    clash = name_clash()
    fix = "python3 -m venv .venv && .venv/bin/pip install supervise-batch"
    if clash is not None:
        return Check("import package", "unavailable", clash, fix, True)
    place = _foreign_distribution()
    if place:
        detail = f"{place}: supervisord is installed too; whichever comes first on the path wins"
        return Check("import package", "accounted only", detail, fix)
    return Check("import package", "enforced", "`supervisor` is supervise-batch's own")


def _foreign_distribution() -> str:
    """Where the PyPI distribution *supervisor* is installed; empty when it is not."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        return str(distribution("supervisor").locate_file(""))
    except PackageNotFoundError:
        return ""


def table(checks: Sequence[Check], colour: bool) -> list[str]:
    """A line for each check, further detail and its fix below, and what it all comes to."""
    wide = max(len(check.name) for check in checks)
    shown = []
    for check in checks:
        verdict = lines.paint(check.verdict.ljust(14), COLOURS[check.verdict], colour)
        told = check.detail.splitlines() or [""]
        if check.fix and check.verdict != "enforced":
            told.append(f"fix: {check.fix}")
        shown.append(f"{check.name.ljust(wide)}  {verdict}  {lines.clean(told[0])}")
        shown += [f"{'':{wide + 18}}{lines.clean(more)}" for more in told[1:]]
    bad = [check.name for check in checks if check.needed and check.verdict != "enforced"]
    end = f"a default job lacks: {', '.join(bad)}" if bad else "a default job has all it needs"
    return [*shown, "", end]
