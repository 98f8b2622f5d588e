"""A configuration of a test's own, run as a user runs it, and what may not be left behind of it.

Each instance has a name no other has, and each of its jobs a variable that says so: whatever is
found of it afterwards is its own, however many supervisors run on the host.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import IO, Any
from uuid import uuid4

from supervisor.linux import proc
from tests.support import host, leaks, procs
from tests.support.command import Done, State, Supervise, stop

MARK = "SUPERVISE_BATCH"
PATIENCE = 60.0 * host.SLOWNESS
"""Seconds to wait for what must come; the host may be very busy."""

Record = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """One configuration: `write` it, then `run` it, or `start` it and watch."""

    supervise: Supervise
    directory: Path
    name: str = field(default_factory=lambda: f"t{uuid4().hex[:10]}")

    @property
    def where(self) -> State:
        return self.supervise.where

    @property
    def path(self) -> Path:
        return self.directory / f"{self.name}.toml"

    @property
    def state(self) -> Path:
        """The instance's own state directory."""
        return self.where.state / self.name

    def write(self, jobs: str, *, top: str = "", defaults: str = "") -> Path:
        """`jobs` is TOML; `top` goes into [supervisor], `defaults` into [defaults]."""
        self.path.write_text(
            f'{self.where.table}name = "{self.name}"\n{top}\n'
            f'[defaults]\nenvironment = {{ {MARK} = "{self.name}" }}\n{defaults}\n{jobs}'
        )
        return self.path

    def run(self, jobs: str, *flags: str, top: str = "", defaults: str = "") -> Result:
        """Write it, run it to its end, and check that nothing is left."""
        self.write(jobs, top=top, defaults=defaults)
        done = self.supervise(self.path, "--json", *flags, timeout=120)
        self.assert_clean()
        return Result(done, self)

    @contextmanager
    def start(self, jobs: str, *, top: str = "", defaults: str = "") -> Iterator[Running]:
        """Write it and run it in the background; it is stopped at the end if it still runs."""
        self.write(jobs, top=top, defaults=defaults)
        process = self.supervise.start(self.path, "--json")
        running = Running(process, self)
        try:
            yield running
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
            running.finish()
        self.assert_clean()

    def fifo(self, name: str) -> Path:
        """A pipe that jobs can say something through: see `sees` and `told`."""
        path = self.directory / name
        os.mkfifo(path, 0o666)
        return path

    @staticmethod
    def sees(fifo: Path) -> str:
        """A line of [defaults] that puts it at /tmp/ready in every job."""
        return f'mounts = [{{ source = "{fifo}", target = "/tmp/ready", read_only = false }}]'

    @staticmethod
    def told(fifo: Path, lines: int) -> list[str]:
        """Wait for so many lines (`echo x > /tmp/ready`); fails when they do not come."""
        fd = os.open(fifo, os.O_RDWR | os.O_CLOEXEC)  # with a writer of our own it has no end
        data = b""
        try:
            while data.count(b"\n") < lines:
                ready, _, _ = select.select([fd], [], [], PATIENCE)
                assert ready, f"after {PATIENCE:g} s only {data!r} has come"
                data += os.read(fd, 4096)
        finally:
            os.close(fd)
        return data.decode().splitlines()

    def entries(self, event: str | None = None) -> list[Record]:
        """The event log, or its entries of one kind."""
        text = (self.state / "events.ndjson").read_text()
        found = [json.loads(line) for line in text.splitlines()]
        return [entry for entry in found if event in (None, entry["event"])]

    def output(self, record: Record, stream: str = "out") -> str:
        """What a run printed."""
        (path,) = (self.state / "logs").glob(f"*.{record['run'].partition('-')[0]}.{stream}")
        return path.read_text()

    def assert_clean(self) -> None:
        """No process, cgroup, mount, or run-time file of this instance is there any more."""
        assert_clean(f"supervise.{self.name}", f"{self.where.runtime}/{self.name}", self.name)


class Result:
    """A batch that has ended."""

    def __init__(self, done: Done, batch: Batch) -> None:
        self.done = done
        self.status = done.status
        self.batch = batch
        self.runs: list[Record] = [json.loads(line) for line in done.stdout.splitlines()]

    def __getitem__(self, job: str) -> Record:
        """The last record of a job."""
        return [record for record in self.runs if record["job"] == job][-1]

    @property
    def reasons(self) -> dict[str, str]:
        return {record["job"]: record["reason"] for record in self.runs}


class Running:
    """A batch that runs.  Its standard error is read as it comes, so that it can be waited for."""

    def __init__(self, process: subprocess.Popen[str], batch: Batch) -> None:
        self.process = process
        self.batch = batch
        self._out: list[str] = []
        self._seen: list[str] = []
        self._coming: SimpleQueue[str | None] = SimpleQueue()
        assert process.stdout is not None and process.stderr is not None
        self._threads = [
            Thread(target=self._out.extend, args=(process.stdout,), daemon=True),
            Thread(target=_feed, args=(process.stderr, self._coming), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The next line on standard error that matches; fails when there comes none."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                line = self._coming.get(timeout=max(deadline - time.monotonic(), 0.01))
            except Empty:
                line = None
            if line is None:
                raise AssertionError(f"no line matches {pattern!r}:\n{''.join(self._seen)}")
            self._seen.append(line)
            if match := re.search(pattern, line):
                return match

    def wait_started(self, *jobs: str) -> dict[str, int]:
        """Wait until these jobs run; the pids of their commands."""
        pids: dict[str, int] = {}
        while not set(jobs) <= set(pids):
            match = self.wait_for(r" (\S+) started \(pid (\d+)\)")
            pids[match[1]] = int(match[2])
        return pids

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def finish(self, patience: float = PATIENCE) -> Result:
        """Wait for its end, so many seconds at most."""
        try:
            self.process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            stop(self.process)
            raise AssertionError("the batch does not end:\n" + self.stderr()) from None
        stderr = self.stderr()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return Result(Done("".join(self._out), stderr, self.process.returncode), self.batch)

    def stderr(self) -> str:
        """All of it, once the process has ended."""
        for thread in self._threads:
            thread.join(PATIENCE)
        while not self._coming.empty():
            line = self._coming.get()
            if line is not None:
                self._seen.append(line)
        return "".join(self._seen)


def _feed(stream: IO[str], coming: SimpleQueue[str | None]) -> None:
    """Each line as it comes, then None."""
    for line in stream:
        coming.put(line)
    coming.put(None)


def toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps(value)


def assert_clean(cgroup: str, runtime: str, mark: str = "") -> None:
    """Nothing has `cgroup` in its path, nothing is at `runtime`, nobody works for either.

    Processes are found by the variable MARK, by their cgroup, and by the launcher's arguments,
    which its clones (the inits) share.  The supervisor has waited for all of them.
    """
    left = [f"cgroup {path}" for path in leaks.cgroups() if cgroup in path.split("/")]
    left += [
        f"mount {mount.mount_point}" for mount in proc.mountinfo() if runtime in mount.mount_point
    ]
    if Path(runtime).exists():
        left.append(f"file {runtime}: {[str(path) for path in Path(runtime).iterdir()]}")
    left += [
        f"process {pid} {procs.command_line(pid)}"
        for pid in procs.table()
        if (mark and procs.environment_has(pid, f"{MARK}={mark}"))
        or f"{runtime}/work" in procs.command_line(pid)
    ]
    assert not left, "left behind:\n" + "\n".join(left)
