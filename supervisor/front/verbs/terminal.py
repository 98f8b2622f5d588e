"""One's own terminal as the window to another: raw while it lasts, as it was whatever happens.

May import: `errors`, `front.verbs.talk`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import struct
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from supervisor.errors import ConfigError
from supervisor.front.verbs.talk import CHUNK, typed, write_all

STDIN, STDOUT = 0, 1
DETACH_KEYS = "ctrl-p,ctrl-q"
MOST_PENDING = 64 * 1024


def size() -> tuple[int, int]:
    """Rows and columns of our own; 24 x 80 where they are not known."""
    for fd in (STDIN, STDOUT):
        try:
            columns, rows = os.get_terminal_size(fd)
        except OSError:
            continue
        if rows and columns:
            return rows, columns
    return 24, 80


def fit(other: int) -> None:
    """Give another terminal the size of ours: TIOCSWINSZ, which tells its programs (SIGWINCH)."""
    rows, columns = size()
    fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))


@contextmanager
def raw() -> Iterator[None]:
    """Every key as it is: it is the other terminal that makes an interrupt of a Ctrl-C."""
    before = termios.tcgetattr(STDIN)
    tty.setraw(STDIN, termios.TCSADRAIN)
    try:
        yield
    finally:
        termios.tcsetattr(STDIN, termios.TCSADRAIN, before)


def keys(text: str) -> bytes:
    """ "ctrl-p,ctrl-q" as what a terminal sends; "" for none.  Raises ConfigError."""
    found = bytearray()
    for name in filter(None, text.split(",")):
        word = name.lower().removeprefix("ctrl-")
        if len(name) == 1 and name.isascii():
            found += name.encode()
        elif len(word) == 1 and name.lower() != word and "@" <= word.upper() <= "_":
            found.append(ord(word.upper()) & 0x1F)
        else:
            raise ConfigError([f'--detach-keys: "{name}" is neither a character nor ctrl-X'])
    return bytes(found)


class Keys:
    """Finds a sequence of keys in what is typed; what may be its beginning is held back."""

    def __init__(self, sequence: bytes) -> None:
        self._sequence = sequence
        self._matched = 0

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What is to be passed on, and whether the sequence is complete."""
        if not self._sequence:
            return data, False
        passed = bytearray()
        for byte in data:
            held = self._sequence[: self._matched] + bytes([byte])
            while not self._sequence.startswith(held):
                passed.append(held[0])
                held = held[1:]
            self._matched = len(held)
            if held == self._sequence:
                return bytes(passed), True
        return bytes(passed), False


class Window:
    """Copies between our terminal and `master`, the other side of the command's."""

    def __init__(self, master: int, sequence: bytes) -> None:
        self._master = master
        self._keys = Keys(sequence)
        self._pending = b""
        self._input = True
        self._open = True
        self.left = False
        """Whether the keys to leave have been typed."""

    def fit(self) -> None:
        """Give it the size of ours."""
        fit(self._master)

    def wanted(self) -> dict[int, int]:
        """What to poll(2) for."""
        wanted = {}
        if self._open:
            wanted[self._master] = select.POLLIN | (select.POLLOUT if self._pending else 0)
        if self._input and len(self._pending) < MOST_PENDING:
            wanted[STDIN] = select.POLLIN
        return wanted

    def ready(self, fd: int, events: int) -> None:
        if fd == STDIN:
            self._read()
        elif fd == self._master:
            if events & select.POLLOUT:
                self._write()
            if events & ~select.POLLOUT:
                self._show()

    def _read(self) -> None:
        data = typed()
        if data is None:
            return
        if not data:
            self._input = False
            return
        passed, self.left = self._keys.feed(data)
        self._pending += passed

    def _write(self) -> None:
        try:
            self._pending = self._pending[os.write(self._master, self._pending) :]
        except BlockingIOError:
            return

    def _show(self) -> bool:
        """Whether there may be more now."""
        try:
            data = os.read(self._master, CHUNK)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:  # nobody has the other side open
                raise
            data = b""
        if not data:
            self._open = False
            return False
        write_all(STDOUT, data)
        return True

    def drain(self) -> None:
        """The command has ended: what it has left.  poll(2) waits for what is on its way."""
        look = select.poll()
        look.register(self._master, select.POLLIN)
        while self._open and any(events & select.POLLIN for _, events in look.poll(0)):
            self._show()
