"""The cases as configurations, run by the command as a user runs it, and what came of them.

A round runs each case a few times, in three supervisors, one after the other: one for the jobs
that end by themselves or are killed, one that is stopped, one whose cgroup has a limit above.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.matrix.cases import CASES, Case
from tests.matrix.outside import ABOVE, KILLED, STOPPED, Deed
from tests.support import cgroups
from tests.support.batch import Batch, Record, Result, toml
from tests.support.command import State, Supervise

ALL: dict[str, Case] = {
    **CASES, **{name: case for name, (case, _) in KILLED.items()}, **STOPPED, **ABOVE,
}  # fmt: skip
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
ABOVE_ALL = 48 << 20
"""Bytes for the whole instance of `above`."""
PATIENCE = 900.0
"""Seconds for one supervisor of a round."""


@dataclass(frozen=True)
class Round:
    """Where and how a round is run; `names` are the cases to run."""

    directory: Path
    runtime: Path
    busybox: Path
    times: int
    at_a_time: int
    number: int
    names: frozenset[str] = frozenset(ALL)

    def batch(self) -> Batch:
        state = State(self.directory / f"state-{self.number}", self.runtime)
        return Batch(Supervise(state), self.directory)

    def configured(self, cases: Mapping[str, Case]) -> str:
        """Those of the cases that are to be run, as the jobs of a configuration."""
        jobs = (table(name, case, self.times) for name, case in cases.items() if name in self.names)
        return "".join(jobs).replace("BUSYBOX", str(self.busybox))

    def run(self) -> Iterator[Record]:
        """The records of all runs; the job's name up to the @ is the case's."""
        for group in (self.alone, self.stopped, self.above):
            result = group()
            if result is not None:
                yield from result.runs

    def alone(self) -> Result | None:
        """Those that end by themselves, and those that are killed."""
        deeds = {name: deed for name, (_, deed) in KILLED.items() if name in self.names}
        killed = {name: case for name, (case, _) in KILLED.items()}
        jobs = self.configured({**killed, **CASES})
        if not jobs:
            return None
        top = f"capacity = {{ jobs = {self.at_a_time} }}"
        with self.batch().start(jobs, top=top) as running:
            # with no deeds the loop below does not look for it
            pattern = rf" ({'|'.join(deeds)})@\S+ started \(pid (\d+)\)"
            for _ in range(len(deeds) * self.times):
                match = running.wait_for(pattern)
                do(deeds[match[1]], int(match[2]), running.batch.name)
            return running.finish(PATIENCE)

    def stopped(self) -> Result | None:
        """Without a bound of jobs: each must be there when the stop comes."""
        jobs = self.configured(STOPPED)
        if not jobs:
            return None
        batch = self.batch()
        ready = batch.fifo(f"ready-{self.number}")
        waiting = len((STOPPED.keys() - {"stopped-before-start"}) & self.names) * self.times
        with batch.start(jobs, defaults=batch.sees(ready)) as running:
            batch.told(ready, waiting)
            running.signal(STOPS[self.number % len(STOPS)])
            return running.finish(PATIENCE)

    def above(self) -> Result | None:
        """One at a time: the limit above is everybody's."""
        jobs = self.configured(ABOVE)
        if not jobs:
            return None
        with cgroups.limited_parent(ABOVE_ALL) as parent:
            top = f'cgroup_parent = "{parent}"\ncapacity = {{ jobs = 1 }}'
            with self.batch().start(jobs, top=top) as running:
                return running.finish(PATIENCE)


def do(deed: Deed, pid: int, name: str) -> None:
    """The deed, unless the job has ended before it: its record will tell.

    The number may have passed to a stranger, who is in another cgroup.  (The environment is no way
    to tell: it is empty for a moment after an exec has succeeded.)
    """
    try:
        if f"/supervise.{name}/" in Path(f"/proc/{pid}/cgroup").read_text():
            deed(pid)
    except (FileNotFoundError, ProcessLookupError):
        return


def table(name: str, case: Case, times: int) -> str:
    """The case as a job of a configuration, so many times."""
    lines = [f"{key} = {toml(value)}" for key, value in case.settings.items()]
    numbers = toml(list(range(times)))
    return (
        f'[jobs.{name}]\ncommand = {toml(case.command)}\nexpect = "{case.reason}"\n'
        f"matrix = {{ time = {numbers} }}\n" + "\n".join(lines) + "\n"
    )
