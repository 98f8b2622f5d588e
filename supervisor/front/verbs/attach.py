"""`supervise attach`: a window to what a job writes, and to its stdin or its terminal.

Its output comes from its log files, so that several may look, and none holds the job up.
May import: `errors`, `linux.filewatch`, `record.logs`, `front.verbs`.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from supervisor.front.verbs import terminal
from supervisor.front.verbs.client import Client, Refused
from supervisor.front.verbs.place import instance_flags
from supervisor.front.verbs.talk import GONE, Dialogue, Talk, signals, typed, write_all
from supervisor.linux.filewatch import IN_MODIFY, IN_MOVE_SELF, FileWatch
from supervisor.record.logs import Reader

PROTOCOL = "supervise-attach"
STDIN = 0
FAILED, BY_SIGNAL = 125, 128
ENDS_US = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)

EPILOG = """\
Shows what the job writes from now on.  A job with stdin = "open" also takes what you type, one with
terminal = true has its terminal here: Ctrl-C goes to the job then, and the detach keys leave.  The
job goes on when you leave; several may be attached.

exit status: the job's own when it ends meanwhile (128+n by signal n), 0 when you leave, 125 when
it does not run.

examples:
  supervise attach shell
  supervise attach --no-stdin web
  echo quit | supervise attach --eof game
"""


def configure(verb: argparse.ArgumentParser) -> None:
    """The flags of `attach`."""
    verb.epilog = EPILOG
    verb.add_argument("job", metavar="JOB", help="a running job")
    verb.add_argument("--no-stdin", action="store_true", help="only look")
    verb.add_argument(
        "--eof", action="store_true", help="the end of your input is the end of the job's, too"
    )
    verb.add_argument(
        "--detach-keys",
        metavar="KEYS",
        default=terminal.DETACH_KEYS,
        help='what leaves a terminal (default: ctrl-p,ctrl-q; "": nothing)',
    )
    instance_flags(verb)
    verb.set_defaults(verb=attach)


def attach(args: argparse.Namespace) -> int:
    """Until the job ends, or the operator leaves.  Raises SupervisorError."""
    sequence = terminal.keys(args.detach_keys)
    client = Client.of(args)
    body = {"input": not args.no_stdin}
    with (
        signals((signal.SIGWINCH, *ENDS_US)) as heard,
        _opened(client, args.job, body) as talk,
    ):
        told = talk.next()["attached"]
        raw = told["terminal"] and talk.descriptor >= 0 and os.isatty(STDIN)
        with ExitStack() as stack:
            window = Attached(told, talk, sequence if raw else b"", eof=args.eof)
            stack.callback(window.close)
            if raw:
                window.fit()
                stack.enter_context(terminal.raw())
            status = Attending(talk, window, heard).held()
    if window.left:
        print(f"supervise: {args.job} goes on", file=sys.stderr)
    return status


def _opened(client: Client, job: str, body: dict[str, Any]) -> Talk:
    try:
        return Talk.open(client, PROTOCOL, "jobs", job, "attach", body=body)
    except Refused as error:
        if error.status == 409:  # 1 would be the job's own
            error.exit_status = FAILED
        raise


class Attached:
    """What is copied: from the log files to our streams, and from our stdin to the way in."""

    def __init__(self, told: dict[str, Any], talk: Talk, sequence: bytes, *, eof: bool) -> None:
        self._talk = talk
        self._way_in = talk.descriptor
        self._terminal = bool(told["terminal"])
        self._eof = eof
        self._keys = terminal.Keys(sequence)
        self._pending = b""
        self._input = self._way_in >= 0
        self.left = False
        self._watch = FileWatch()
        self._readers: dict[int, Reader] = {}
        self._at: dict[int, int] = {}
        for number, stream in ((1, "out"), (2, "err")):
            log = told["logs"][stream]
            self._readers[number] = Reader(Path(log["path"]))
            self._watch.add(log["path"], IN_MODIFY | IN_MOVE_SELF)
            self._at[number] = int(log["at"])
        if self._way_in >= 0:
            os.set_blocking(self._way_in, False)
        self._show()  # what was written before it was watched

    def fit(self) -> None:
        """The size of our window becomes that of the job's terminal."""
        if self._terminal and self._way_in >= 0:
            terminal.fit(self._way_in)

    def wanted(self) -> dict[int, int]:
        """What to poll(2) for."""
        wanted = {self._watch.fileno(): select.POLLIN}
        if self._pending:
            wanted[self._way_in] = select.POLLOUT
        elif self._input:
            wanted[STDIN] = select.POLLIN
        return wanted

    def ready(self, fd: int, events: int) -> None:
        if fd == self._watch.fileno():
            self._watch.read()
            self._show()
        elif fd == STDIN:
            self._read()
        elif events & GONE:
            self._pending, self._input = b"", False  # the job takes no more
        else:
            with suppress(BlockingIOError):
                self._pending = self._pending[os.write(self._way_in, self._pending) :]

    def _read(self) -> None:
        data = typed()
        if data is None:
            return
        if not data:
            self._input = False
            self._end_input()
            return
        self._pending, self.left = self._keys.feed(data)

    def _end_input(self) -> None:
        """Ours is over; the job's as well if that is wanted, once nobody else may write to it."""
        if self._terminal:
            self._pending = b"\x04" if self._eof else b""
            return
        os.close(self._way_in)
        self._talk.descriptor = self._way_in = -1
        if self._eof:
            self._talk.say({"eof": True})

    def _show(self) -> None:
        """All that has come.  Its files may be others since their last rotation."""
        for number, reader in self._readers.items():
            self._watch.add(str(reader.path), IN_MODIFY | IN_MOVE_SELF)
            while True:
                at, data = reader.read(self._at[number])
                if not data:
                    break
                write_all(number, data)
                self._at[number] = at + len(data)

    def drain(self) -> None:
        """The job has ended: what is left."""
        self._show()

    def close(self) -> None:
        self._watch.close()
        for reader in self._readers.values():
            reader.close()


class Attending(Dialogue):
    """From the first look to the end of the job, or of our interest."""

    def obey(self, number: int) -> int | None:
        if number in ENDS_US:
            return 0 if number == signal.SIGINT else BY_SIGNAL + number
        self._copying.fit()
        return None

    def heed(self, told: Mapping[str, Any]) -> int | None:
        ended = told.get("ended")
        if ended is None:
            return None
        self._copying.drain()
        print(f"supervise: ended: {ended['reason']}", file=sys.stderr)
        return _status(ended)


def _status(told: dict[str, Any]) -> int:
    if told["signal"] is not None:
        return BY_SIGNAL + int(told["signal"])
    return FAILED if told["code"] is None else int(told["code"])
