"""A real terminal with a command of ours in it: typed to, looked at, resized, hung up.

May import: `tests.support`.
"""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from tests.support import host
from tests.support.command import ROOT

PATIENCE = 60.0 * host.SLOWNESS


class Terminal:
    """`python -m supervisor WORDS` with a terminal for all three streams, and as its session's.

    `screen` is all that has been shown.  The terminal outlives the command: `modes` can be asked
    for afterwards.
    """

    def __init__(
        self,
        words: Sequence[str],
        environment: Mapping[str, str],
        rows: int = 30,
        columns: int = 90,
    ) -> None:
        self.screen = ""
        self.status: int | None = None
        self._master, self._slave = pty.openpty()
        self.resize(rows, columns)
        self.before = self.modes()
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "vt100", **environment}
        argv = [sys.executable, "-m", "supervisor", *words]
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                fcntl.ioctl(self._slave, termios.TIOCSCTTY, 0)
                for number in range(3):
                    os.dup2(self._slave, number)
                os.closerange(3, 1024)
                os.execve(argv[0], argv, variables)
            finally:
                os._exit(99)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._master)
        os.close(self._slave)

    def modes(self) -> list[object]:
        """As tcgetattr(3) tells them."""
        return termios.tcgetattr(self._slave)

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def resize(self, rows: int, columns: int) -> None:
        """As a window does: the kernel sends SIGWINCH to who is in the foreground."""
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait_for(self, text: str) -> str:
        """What is shown until `text` comes, which is taken; fails when it does not."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.screen:
            ready, _, _ = select.select([self._master], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{text!r} is not shown:\n{self.screen}"
            self.screen += os.read(self._master, 65536).decode(errors="replace")
        shown, _, self.screen = self.screen.partition(text)
        return shown

    def wait(self) -> int:
        """Its exit status (128+n by a signal)."""
        deadline = time.monotonic() + PATIENCE
        while self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                self.status = code if code >= 0 else 128 - code
                break
            ready, _, _ = select.select([self._master], [], [], 0.02)
            if ready:
                self.screen += os.read(self._master, 65536).decode(errors="replace")
            assert time.monotonic() < deadline, f"it does not end:\n{self.screen}"
        while select.select([self._master], [], [], 0)[0]:
            self.screen += os.read(self._master, 65536).decode(errors="replace")
        return self.status
