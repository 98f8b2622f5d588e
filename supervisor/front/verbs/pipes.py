"""A command's streams by way of pipes of our own: what the job gets has no name on the host.

Nothing is waited for with the command's input in hand: it may want its output read first.
May import: `errors`, `front.verbs.talk`.
"""

from __future__ import annotations

import os
import select
from contextlib import suppress

from supervisor.front.verbs.talk import CHUNK, GONE, write_all

STDIN, STDOUT, STDERR = 0, 1, 2


class Pipes:
    """`theirs` are the ends to hand over; the others are ours, and copied from and to 0, 1, 2."""

    def __init__(self, *, stdin: bool) -> None:
        """Without `stdin` the command finds the end of its input at once."""
        input_reader, self._input = os.pipe2(os.O_CLOEXEC)
        output_reader, output_writer = os.pipe2(os.O_CLOEXEC)
        error_reader, error_writer = os.pipe2(os.O_CLOEXEC)
        self.theirs: tuple[int, ...] = (input_reader, output_writer, error_writer)
        self._output: dict[int, int] = {output_reader: STDOUT, error_reader: STDERR}
        for fd in (self._input, output_reader, error_reader):
            os.set_blocking(fd, False)
        self._pending = b""
        self._ended = False
        if not stdin:
            self._end_input()

        self.left = False
        """There are no keys to leave by."""

    def hand_over(self) -> None:
        """The other side has its own by now."""
        for fd in self.theirs:
            os.close(fd)
        self.theirs = ()

    def wanted(self) -> dict[int, int]:
        """What to poll(2) for."""
        wanted = dict.fromkeys(self._output, select.POLLIN)
        if self._input >= 0:
            if self._pending:
                wanted[self._input] = select.POLLOUT
            else:
                wanted[self._input] = 0  # whether anybody reads it yet
                if not self._ended:
                    wanted[STDIN] = select.POLLIN
        return wanted

    def ready(self, fd: int, events: int) -> None:
        """Do what can be done without waiting; except for who reads our own output."""
        if fd == STDIN:
            self._read_input()
        elif fd == self._input:
            self._pass_input(events)
        elif fd in self._output:
            self._pass_output(fd)

    def _read_input(self) -> None:
        try:
            self._pending = os.read(STDIN, CHUNK)
        except BlockingIOError:
            return
        except OSError:  # it was closed, or a terminal that has gone
            self._pending = b""
        if not self._pending:
            self._end_input()

    def _pass_input(self, events: int) -> None:
        if events & GONE:
            self._end_input()
            return
        try:
            self._pending = self._pending[os.write(self._input, self._pending) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._end_input()

    def _end_input(self) -> None:
        os.close(self._input)
        self._input, self._ended, self._pending = -1, True, b""

    def _pass_output(self, fd: int) -> bool:
        """Whether there may be more now."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return False
        try:
            if data:
                write_all(self._output[fd], data)
                return True
        except BrokenPipeError:
            pass  # who read ours has gone: the command is to see that, too
        self._forget(fd)
        return False

    def _forget(self, fd: int) -> None:
        del self._output[fd]
        os.close(fd)

    def drain(self) -> None:
        """The command has ended: what it has left in its pipes, whoever may still hold them."""
        for fd in list(self._output):
            while self._pass_output(fd):
                pass

    def close(self) -> None:
        self.hand_over()
        with suppress(OSError):
            if self._input >= 0:
                self._end_input()
        for fd in list(self._output):
            self._forget(fd)
