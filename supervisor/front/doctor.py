"""`supervise doctor`: everything a job needs, tried for real on this host, with the fix.

The trials themselves are in `doctor_host` (the kernel as a whole), `doctor_kernel` (namespaces,
mounts, layers), `doctor_users` (their numbers), `doctor_walls` (filters), `doctor_network`,
`doctor_disk` (sizes of layers), `doctor_proc` (the view from inside), `doctor_group` (cgroups as
such) and `doctor_limits`; how they are contained is told in `doctor_trial`, how the table looks in
`doctor_table`.  `clash` has the one check that every command makes at its start.

May import: `errors`, `model`, `linux`, `cgroup`, the trials.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from attrs import asdict, evolve

from supervisor.errors import SupervisorError
from supervisor.front import (
    doctor_disk,
    doctor_group,
    doctor_host,
    doctor_kernel,
    doctor_limits,
    doctor_network,
    doctor_proc,
    doctor_users,
    doctor_walls,
)
from supervisor.front.clash import name_clash
from supervisor.front.doctor_table import table
from supervisor.front.doctor_trial import Check, as_root, has_admin

LONGEST = 60.0
"""Seconds for the whole; what is left by then is not tried."""


def doctor(*, as_json: bool, colour: bool, say: Callable[[str], object], width: int = 80) -> int:
    """Try everything, print the table (or a JSON array) by `say`; the exit status.

    0 when all that a default job needs is enforced, else 1.
    """
    checks = run()
    if as_json:
        say(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        say("\n".join(table(checks, colour, width)))
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
        found: list[Check] = []
        for group, trials in GROUPS.items():
            found += _of(group, _each(trials(), deadline))
        return found + _limits(deadline)


GROUPS: dict[str, Callable[[], list[Callable[[], Check]]]] = {
    "host": lambda: [name_check, *doctor_host.checks()],
    "containers": lambda: [*doctor_kernel.checks(), *doctor_users.checks()],
    "walls": doctor_walls.checks,
    "network": lambda: [*doctor_network.checks(), *doctor_users.networks()],
    "disk": doctor_disk.checks,
    "view from inside": doctor_proc.checks,
}
"""What needs no cgroup, by the headings of the table."""
CGROUPS, LIMITS = "control groups", "limits"


def _of(group: str, checks: Iterable[Check]) -> list[Check]:
    return [evolve(check, group=group, fix=_possible(check.fix)) for check in checks]


def _possible(fix: str) -> str:
    """A mount is no way out for root in a container that may not mount."""
    if os.geteuid() == 0 and "mount -t" in fix and not has_admin():
        return f"{as_root()}; there: {fix}"
    return fix


def _each(trials: Sequence[Callable[[], Check]], deadline: float) -> Iterator[Check]:
    for done, trial in enumerate(trials):
        if time.monotonic() > deadline:
            left = f"{len(trials) - done} checks were not made: {LONGEST:g}s were over"
            yield Check("the rest", "unavailable", left, "again on an idle host", True)
            return
        yield trial()


def _limits(deadline: float) -> list[Check]:
    from supervisor.cgroup import detect

    try:
        kinds = doctor_group.kinds(detect.find(None))
        manager = detect.detect(f"doctor-{os.getpid()}")
    except (SupervisorError, OSError) as error:
        hint = error.hint if isinstance(error, SupervisorError) else ""
        return _of(CGROUPS, [Check("control groups", "unavailable", str(error), hint, True)])
    try:
        whole = _each(doctor_group.checks(manager), deadline)
        told = _of(CGROUPS, [*kinds, *whole])
        return told + _of(LIMITS, _each(doctor_limits.checks(manager), deadline))
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
