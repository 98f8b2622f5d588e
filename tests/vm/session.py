"""One run of a guest, from its work directory to the exit status of its command."""

from __future__ import annotations

import os
import selectors
import shutil
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.vm import engines, guest
from tests.vm.errors import TAIL, with_log
from tests.vm.kernel import Kernel

TIMED_OUT = 124
PORTS = ("stdout", "stderr", "status")


@dataclass
class Outcome:
    """What the status port has said so far."""

    text: bytes = b""
    began: float | None = None
    status: int | None = None

    def hear(self, data: bytes) -> None:
        """Take in more of the port's text; only a whole line counts."""
        self.text += data
        for line in self.text[: self.text.rfind(b"\n") + 1].splitlines():
            word, _, number = line.partition(b" ")
            if word == b"begin" and self.began is None:
                self.began = time.monotonic()
            elif word == b"exit":
                self.status = int(number)


@dataclass
class Pipes:
    """The reading ends of the ports that have not ended, by name."""

    selector: selectors.DefaultSelector = field(default_factory=selectors.DefaultSelector)

    def open(self) -> list[int]:
        """The pipes; the writing ends are returned, in the order of PORTS."""
        pairs = [(name, *os.pipe()) for name in PORTS]
        for name, reader, _ in pairs:
            self.selector.register(reader, selectors.EVENT_READ, name)
        return [writer for _, _, writer in pairs]

    def read(self, timeout: float | None) -> Iterator[tuple[str, bytes]]:
        """What has come within `timeout` seconds; a port that has ended is dropped."""
        for key, _events in self.selector.select(timeout):
            if data := os.read(key.fd, 65536):
                yield key.data, data
            else:
                self._drop(key.fd)

    def drain(self) -> Iterator[tuple[str, bytes]]:
        """The rest of what a machine that has ended had passed on."""
        while self.live:
            yield from self.read(None)

    @property
    def live(self) -> bool:
        """Whether any port is open."""
        return bool(self.selector.get_map())

    def close(self) -> None:
        for key in list(self.selector.get_map().values()):
            self._drop(key.fd)
        self.selector.close()

    def _drop(self, descriptor: int) -> None:
        self.selector.unregister(descriptor)
        os.close(descriptor)


def run(what: guest.Guest, kernel: Kernel, limit: float) -> int:
    """Boot, run the command, give its exit status; TIMED_OUT after `limit` seconds (0: no limit).

    Whatever happens, nothing of the guest is left.  Raises RigError when the guest dies.
    """
    pipes = Pipes()
    with _work_directory() as work, _saved_terminal(what.terminal):
        machine = engines.Machine(work, pipes.open())
        try:
            _boot(what, kernel, machine)
            return _follow(machine, pipes, limit)
        finally:
            machine.end()
            pipes.close()


def _boot(what: guest.Guest, kernel: Kernel, machine: engines.Machine) -> None:
    tree = machine.work / "tree"
    tree.mkdir()
    (machine.work / "initrd").write_bytes(guest.initrd(what, kernel, tree))
    try:
        engines.start(what, kernel, machine)
    finally:
        for port in machine.ports:
            os.close(port)


def _follow(machine: engines.Machine, pipes: Pipes, limit: float) -> int:
    """Pass on what the command writes until its status is known."""
    outcome = Outcome()
    deadline = time.monotonic() + limit if limit else None
    while pipes.live and outcome.status is None:
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return _timed_out(machine, outcome, limit)
        _pass_on(pipes.read(left), outcome)
    machine.end()
    _pass_on(pipes.drain(), outcome)
    if outcome.status is None:
        raise with_log("the guest died", _log(machine))
    return outcome.status


def _log(machine: engines.Machine) -> Path:
    """Where a dead machine said why: its own log, or else its console."""
    own = machine.work / "qemu"
    return own if own.exists() and own.stat().st_size else machine.console


def _pass_on(chunks: Iterator[tuple[str, bytes]], outcome: Outcome) -> None:
    for port, data in chunks:
        if port == "status":
            outcome.hear(data)
            continue
        stream = sys.stdout if port == "stdout" else sys.stderr
        stream.buffer.write(data)
        stream.buffer.flush()


def _timed_out(machine: engines.Machine, outcome: Outcome, limit: float) -> int:
    print(f"vm: time limit of {limit:g} s reached", file=sys.stderr)
    if outcome.began is None and machine.console.exists():
        sys.stderr.write(machine.console.read_bytes()[-TAIL:].decode(errors="replace"))
    return TIMED_OUT


@contextmanager
def _work_directory() -> Iterator[Path]:
    """A temporary directory; the mounts on its tree/ were never seen in this namespace.

    rmdir first: should the host's root be visible there after all, it is left alone.
    """
    work = Path(tempfile.mkdtemp(prefix="vm."))
    try:
        yield work
    finally:
        tree = work / "tree"
        if tree.exists():
            tree.rmdir()
        shutil.rmtree(work)


@contextmanager
def _saved_terminal(wanted: bool) -> Iterator[None]:
    """The machine makes the terminal raw and is killed: its settings are ours to restore."""
    if not wanted:
        yield
        return
    settings = termios.tcgetattr(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, settings)
