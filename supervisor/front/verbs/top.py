"""`supervise top`: what the jobs use, on a screen of its own, once, or as JSON lines.

The readings come from the instance as a stream; a thread takes them, so that keys are heard
meanwhile.  May import: `errors`, `front.lines`, `front.verbs.{client,place,frame,screen}`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, Any

from supervisor.errors import ConfigError, SupervisorError
from supervisor.front.verbs.client import Client, Reply
from supervisor.front.verbs.frame import (
    PROCESS_SORTS,
    SORTS,
    Reading,
    View,
    job_frame,
    ordered,
    process_frame,
)
from supervisor.front.verbs.place import instance_flags

if TYPE_CHECKING:
    from supervisor.front.verbs.screen import Screen

EPILOG = """\
Keys: up and down choose a job, Enter shows its processes, Left or Esc goes back; c CPU, m memory,
q quota, ... see h; + and - change the interval; q quits.

CPU% is of one CPU.  QUOTA% is of the job's own limits.cpus; without one, of the CPUs it may use:
"c" after the number by its cpuset, "h" by the host.  docs/top.md explains every column.

examples:
  supervise top
  supervise top --once --sort memory
  supervise top compress --interval 1s
  supervise top --json | jq 'select(.job) | {job: .job.job, cpu: .job.cpu.percent}'
"""

LEAST, LONGEST = 0.25, 3600.0
"""Seconds of an interval, as the socket takes it."""
WINDOW = 1.0
"""Seconds between the two looks of --once."""

SORT_KEYS = {
    "c": "cpu", "u": "quota", "t": "throttled", "m": "memory", "%": "mem%", "s": "swap",
    "p": "pids", "i": "io", "o": "oom", "f": "refused", "n": "name",
}  # fmt: skip

HELP = (
    "supervise top",
    "",
    "  up, down, PgUp, PgDn, Home, End   choose a job",
    "  Enter, Right                      its processes",
    "  Left, Esc, Backspace              back to the jobs",
    "  + -                               look half as often, twice as often",
    "  r                                 the other way round",
    "  h ?                               this, and back",
    "  q                                 quit",
    "",
    "  sort by: " + ", ".join(f"{key} {name}" for key, name in list(SORT_KEYS.items())[:6]) + ",",
    "           " + ", ".join(f"{key} {name}" for key, name in list(SORT_KEYS.items())[6:]),
    "",
    "  CPU% is of one CPU, QUOTA% of the job's limits.cpus (c: of the CPUs of its",
    "  cpuset, h: of the host's), THR% of the quota's periods: used up in those.",
    "  MEMORY is without the page CACHE, which the kernel takes back when it must.",
    "  PRESSURE: percent of time some task stood still for want of CPU, memory, I/O.",
)


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    verb.epilog = EPILOG
    verb.add_argument("job", metavar="JOB", nargs="?", help="the processes of one job")
    kind = verb.add_mutually_exclusive_group()
    kind.add_argument("--once", action="store_true", help="print what there is, and end")
    kind.add_argument(
        "--json", action="store_true", help="a line of JSON for each job and look, until stopped"
    )
    verb.add_argument(
        "--interval", metavar="TIME", default=None,
        help="between two looks (default: 2s; with --once: 1s)",
    )  # fmt: skip
    verb.add_argument("--sort", choices=tuple(SORTS), default="cpu", help="(default: cpu)")
    verb.add_argument("--count", metavar="N", type=int, default=0, help="end after so many looks")
    verb.add_argument("--color", choices=("auto", "always", "never"), default="auto")
    instance_flags(verb)
    verb.set_defaults(verb=run)


def run(args: argparse.Namespace) -> int:
    """Show it."""
    interval = seconds(args.interval, WINDOW if args.once else 2.0)
    client = Client.of(args)
    if args.json:
        return _print_json(client, args.job, interval, args.count)
    if args.once:
        return _print_once(client, args, interval)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ConfigError(["top: this is no terminal; give --once, or --json"])
    return Top(client, args, interval).run()


def seconds(text: str | None, default: float) -> float:
    """An interval as it was given.  Raises ConfigError."""
    from supervisor.model.units import duration

    if text is None:
        return default
    try:
        value = duration(text if not text.replace(".", "", 1).isdigit() else f"{text}s")
    except ValueError as error:
        raise ConfigError([f"--interval: {text}: {error}"]) from None
    if not LEAST <= value <= LONGEST:
        raise ConfigError([f"--interval: {text}: from {LEAST:g}s to {LONGEST:g}s"])
    return value


def _query(job: str | None, interval: float, count: int) -> dict[str, Any]:
    return {
        "interval": interval,
        "count": count or None,
        "job": job,
        "processes": "true" if job else None,
    }


def _print_json(client: Client, job: str | None, interval: float, count: int) -> int:
    with client.open("GET", "stats", "follow", query=_query(job, interval, count)) as reply:
        for line in reply.lines():
            print(line.decode(), flush=True)
    return 0


def _print_once(client: Client, args: argparse.Namespace, interval: float) -> int:
    from supervisor.front.lines import use_colour

    query = {"over": interval, "job": args.job, "processes": "true" if args.job else None}
    reading = reading_of(client.get("stats", query=query))
    view = View(
        width=os.get_terminal_size(1).columns if sys.stdout.isatty() else 160,
        height=None,
        colour=use_colour(args.color, sys.stdout, os.environ),
        sort=args.sort,
    )
    for line in (process_frame if args.job else job_frame)(reading, view):
        print(line)
    return 0


def reading_of(answer: Mapping[str, Any]) -> Reading:
    return Reading(
        answer["at"], answer["cpus"], answer["own_cpus"], answer["jobs"], answer["problems"]
    )


def readings(lines: Iterator[bytes]) -> Iterator[Reading]:
    """Whole looks, from the lines of a stream."""
    jobs: list[Any] = []
    for line in lines:
        one = json.loads(line)
        if one["job"] is not None:
            jobs.append(one["job"])
        else:
            yield Reading(one["at"], one["cpus"], one["own_cpus"], jobs, one["problems"])
            jobs = []


class Feed:
    """A stream of readings, taken by a thread; `wake` is readable when there is something new."""

    def __init__(self, client: Client, job: str | None, interval: float) -> None:
        """Raises what `Client.open` does."""
        query = _query(job, interval, 0)
        self._reply: Reply = client.open("GET", "stats", "follow", query=query)
        self.wake, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._latest: Reading | None = None
        self._failure: Exception | None = None
        self._closed = False
        self._thread = Thread(target=self._take, daemon=True)
        self._thread.start()

    def _take(self) -> None:
        try:
            for reading in readings(self._reply.lines()):
                self._latest = reading
                self._tell()
            self._failure = SupervisorError("the instance has ended")
        except Exception as error:
            self._failure = error
        self._tell()

    def _tell(self) -> None:
        with suppress(BlockingIOError):  # it has been told often enough
            os.write(self._writer, b".")

    def latest(self) -> Reading | None:
        """What came last.  Raises SupervisorError when nothing comes any more."""
        os.read(self.wake, 4096)
        if self._failure is not None:
            raise self._failure
        return self._latest

    def close(self) -> None:
        """End the stream, and with it the thread; idempotent."""
        import socket

        if self._closed:
            return
        self._closed = True
        with suppress(OSError):  # the other side was first
            self._reply.stream.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._reply.stream.close()
        os.close(self.wake)
        os.close(self._writer)


class Top:
    """The screen: what is shown, and what keys do."""

    def __init__(self, client: Client, args: argparse.Namespace, interval: float) -> None:
        from supervisor.front.lines import use_colour

        self._client = client
        self._job: str | None = args.job
        self._alone = args.job is not None
        self._count = args.count
        self._reading: Reading | None = None
        self._helping = False
        self._over = False
        colour = use_colour(args.color, sys.stdout, os.environ)
        self.view = View(80, 24, colour, args.sort, interval=interval)

    def run(self) -> int:
        """Until q, or a signal; raises SupervisorError when the instance is gone."""
        from supervisor.front.lines import GONE
        from supervisor.front.verbs.screen import Ended, taken, woken_by_signals

        feed = Feed(self._client, self._job, self.view.interval or 2.0)
        try:
            with taken(0, 1) as screen, woken_by_signals() as signals:
                while not self._over:
                    feed = self._turn(screen, feed, signals)
        except Ended as ended:
            return 0 if ended.number == signal.SIGINT else 128 + ended.number
        except OSError as error:
            if isinstance(error, SupervisorError) or error.errno not in GONE:
                raise
            return 128 + signal.SIGHUP  # the terminal is gone
        finally:
            feed.close()
        return 0

    def _turn(self, screen: Screen, feed: Feed, signals: int) -> Feed:
        """Wait for a key, a reading or a signal, and show what has come of it."""
        from supervisor.front.verbs.screen import wait

        self._draw(screen)
        before = (self._job, self.view.interval)
        ready = wait([0, feed.wake, signals], None)
        if signals in ready:
            os.read(signals, 4096)
        if 0 in ready:
            for key in screen.keys() or ["q"]:  # nothing to be read: the terminal is gone
                self.press(key)
        if feed.wake in ready and not self._over:
            self._take(feed.latest())
        if (self._job, self.view.interval) == before or self._over:
            return feed
        feed.close()
        return Feed(self._client, self._job, self.view.interval or 2.0)

    def _take(self, reading: Reading | None) -> None:
        self._reading = reading
        self._count -= 1
        self._over = self._count == 0

    def _draw(self, screen: Screen) -> None:
        self.view.width, self.view.height = screen.size
        screen.draw(self.lines())

    def lines(self) -> list[str]:
        """The screen as it is to be."""
        reading, view = self._reading, self.view
        if self._helping:
            return [line[: view.width] for line in HELP[: view.height]]
        if reading is None:
            return ["looking ..."]
        if self._job is not None:
            return process_frame(reading, view) if reading.jobs else [f"{self._job}: not there"]
        names = [job["job"] for job in ordered(reading.jobs, view.sort, backwards=view.backwards)]
        self._follow(names)
        return job_frame(reading, view)

    def _follow(self, names: list[str]) -> None:
        """Keep the job that was chosen in sight."""
        view = self.view
        if not names:
            view.chosen = None
            return
        if view.chosen not in names:
            view.chosen = names[min(view.at, len(names) - 1)] if view.chosen else None
            return
        at, room = names.index(view.chosen), max((view.height or 24) - 4, 1)
        view.at = min(max(view.at, at - room + 1), at)

    def press(self, key: str) -> None:
        """What a key does; an unknown one does nothing."""
        self.view.note = ""
        if key == "q" or (key in ("escape", "left", "back") and self._back()):
            self._over = key == "q" or self._alone
        elif key in ("h", "?"):
            self._helping = not self._helping
        elif key == "r":
            self.view.backwards = not self.view.backwards
        elif key in ("+", "-"):
            self._pace(2.0 if key == "+" else 0.5)
        elif key in SORT_KEYS:
            self._sort(SORT_KEYS[key])
        elif key in _MOVES:
            self._move(_MOVES[key])
        elif key in ("enter", "right") and self._job is None and self.view.chosen is not None:
            self._show(self.view.chosen)

    def _back(self) -> bool:
        """To where one came from; whether there is nothing to come back to."""
        if self._helping:
            self._helping = False
            return False
        if self._job is None or self._alone:
            return True
        self._show(None)
        return False

    def _show(self, job: str | None) -> None:
        self._job, self._reading = job, None
        self.view.at = 0

    def _sort(self, name: str) -> None:
        if self._job is not None and name not in PROCESS_SORTS:
            self.view.note = f"processes cannot be sorted by {name}"
        else:
            self.view.sort = name

    def _pace(self, factor: float) -> None:
        self.view.interval = min(max((self.view.interval or 2.0) * factor, LEAST), LONGEST)

    def _move(self, where: Callable[[int, int, int], int]) -> None:
        """Another job, or other lines of the processes."""
        view, reading = self.view, self._reading
        page = max((view.height or 24) - 4, 1)
        if reading is None:
            return
        if self._job is not None:
            count = len(reading.jobs[0]["processes"] or []) if reading.jobs else 0
            view.at = min(max(where(view.at, page, count), 0), max(count - 1, 0))
            return
        names = [job["job"] for job in ordered(reading.jobs, view.sort, backwards=view.backwards)]
        if names:
            at = names.index(view.chosen) if view.chosen in names else -1
            view.chosen = names[min(max(where(at, page, len(names)), 0), len(names) - 1)]


_MOVES: dict[str, Callable[[int, int, int], int]] = {
    "up": lambda at, _page, _count: at - 1,
    "down": lambda at, _page, _count: at + 1,
    "page up": lambda at, page, _count: at - page,
    "page down": lambda at, page, _count: at + page,
    "home": lambda _at, _page, _count: 0,
    "end": lambda _at, _page, count: count - 1,
}
