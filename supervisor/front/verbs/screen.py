"""A terminal taken over for a full-screen view, and given back however that ends.

May import: nothing of ours.  termios(3), console_codes(4); what is written are the sequences that
every terminal since the VT100 knows, and the alternate screen of xterm.
"""

from __future__ import annotations

import os
import selectors
import signal
import termios
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

ENTER = "\033[?1049h\033[?25l\033[?7l"
"""The alternate screen, without a cursor, without wrapping at the right edge."""
LEAVE = "\033[?7h\033[?25h\033[?1049l"
HOME, CLEAR_LINE = "\033[H", "\033[K"

ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)

KEYS = {
    b"\033[A": "up", b"\033[B": "down", b"\033[C": "right", b"\033[D": "left",
    b"\033OA": "up", b"\033OB": "down", b"\033OC": "right", b"\033OD": "left",
    b"\033[5~": "page up", b"\033[6~": "page down", b"\033[H": "home", b"\033[F": "end",
    b"\033OH": "home", b"\033OF": "end", b"\033[1~": "home", b"\033[4~": "end",
    b"\r": "enter", b"\n": "enter", b"\x7f": "back", b"\b": "back", b"\033": "escape",
}  # fmt: skip


class Ended(Exception):
    """One of ENDING has come: `number`."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Screen:
    """The terminal that `keyboard` reads and `display` writes."""

    def __init__(self, keyboard: int, display: int) -> None:
        self._keyboard = keyboard
        self._display = display
        self._before: list[Any] = []

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines; a serial line says 0."""
        try:
            width, height = os.get_terminal_size(self._display)
        except OSError:
            width = height = 0
        return width or 80, height or 24

    def enter(self) -> None:
        """Keys come one by one, and are not shown; signals stay those of the keyboard.

        To be called again when the terminal may have been somebody else's meanwhile.
        """
        if not self._before:
            self._before = termios.tcgetattr(self._keyboard)
        raw = list(self._before)
        raw[3] &= ~(termios.ICANON | termios.ECHO)
        termios.tcsetattr(self._keyboard, termios.TCSADRAIN, raw)
        self._write(ENTER)

    def leave(self) -> None:
        """As it was before `enter`; a terminal that is gone takes nothing back."""
        with suppress(OSError, termios.error):
            self._write(LEAVE)
            if self._before:
                termios.tcsetattr(self._keyboard, termios.TCSADRAIN, self._before)
        self._before = []

    def draw(self, lines: Sequence[str]) -> None:
        """These lines, and nothing else; in one write, so that nothing flickers.

        Each line is cleared before it is written: behind a full one the cursor stands on its end.
        """
        _, height = self.size
        whole = [*lines[:height], *[""] * (height - len(lines))]
        self._write(HOME + "\r\n".join(f"{CLEAR_LINE}{line}" for line in whole))

    def _write(self, text: str) -> None:
        data = text.encode(errors="replace")
        while data:
            data = data[os.write(self._display, data) :]

    def keys(self) -> list[str]:
        """Those that were pressed: their names, or the character."""
        return decode(os.read(self._keyboard, 1024))


def decode(data: bytes) -> list[str]:
    """Each key of what a terminal has sent; what is none that we know is left out."""
    found = []
    while data:
        known = next(
            (key for key in sorted(KEYS, key=len, reverse=True) if data.startswith(key)), None
        )
        if known == b"\033" and len(data) > 1 and data[1:2] in b"[O":
            data = _after_sequence(data)
            continue
        if known is not None:
            found.append(KEYS[known])
            data = data[len(known) :]
            continue
        if 0x20 <= data[0] < 0x7F:
            found.append(chr(data[0]))
        data = data[1:]
    return found


def _after_sequence(data: bytes) -> bytes:
    """Behind a control sequence (ECMA-48: it ends with a byte from @ on)."""
    for at in range(2, len(data)):
        if 0x40 <= data[at] < 0x7F:
            return data[at + 1 :]
    return b""


@contextmanager
def taken(keyboard: int, display: int) -> Iterator[Screen]:
    """The terminal is ours meanwhile.  Raises Ended at a signal that would end us.

    Ctrl-Z gives it back for as long as we are stopped.
    """
    screen = Screen(keyboard, display)

    def end(number: int, _frame: FrameType | None) -> None:
        raise Ended(number)

    def stop(_number: int, _frame: FrameType | None) -> None:
        screen.leave()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # stops here, until SIGCONT
        signal.signal(signal.SIGTSTP, stop)

    def go_on(_number: int, _frame: FrameType | None) -> None:
        screen.enter()

    def look(_number: int, _frame: FrameType | None) -> None:
        """Nothing: who waits is woken, and draws."""

    handlers = {**dict.fromkeys(ENDING, end), signal.SIGTSTP: stop, signal.SIGCONT: go_on,
                signal.SIGWINCH: look}  # fmt: skip
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        screen.enter()
        yield screen
    finally:
        for number in ENDING:
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not cut this short
        screen.leave()
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def woken_by_signals() -> Iterator[int]:
    """A descriptor that gets readable by any signal: select(2) goes on after one (PEP 475)."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield reader
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)


def wait(descriptors: Sequence[int], seconds: float | None) -> set[int]:
    """Those that are readable, at the latest after so many seconds."""
    with selectors.DefaultSelector() as selector:
        for one in descriptors:
            selector.register(one, selectors.EVENT_READ)
        return {key.fd for key, _ in selector.select(seconds)}
