"""`supervise logs`: what jobs have printed, and go on printing.

It reads the files of the state directory itself, so it needs no running instance; of one it asks
where they are.  May import: `errors`, `model.units`, `linux.filewatch`, `record`, `front.lines`,
`front.verbs`.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from supervisor.errors import ConfigError
from supervisor.front.lines import clean, paint, use_colour
from supervisor.front.verbs.place import instance_flags
from supervisor.front.verbs.states import all_of, tiers
from supervisor.model import units
from supervisor.record.loglines import STREAMS, Line, Logged, run_of, runs_of
from supervisor.record.logsource import Source, Wanted, entry
from supervisor.record.runs import StateDir

EPILOG = """\
JOB is a job, a matrix's own name for all its members, or the id of a run; without any, all jobs
are meant.  Of each job the last run is shown.  The lines go to stdout as the job wrote them (one
stream alone byte by byte); to a terminal without control characters.  Where lines have times
(log.timestamps in the configuration) those of stdout and stderr, and of several jobs, are in the
order of time; else a job's stdout comes first.

examples:
  supervise logs web
  supervise logs -f web --tail 20
  supervise logs web db --since 10m --timestamps
  supervise logs --stderr mx0lnjr9-web | grep -c timeout

Exit status: 0; 2 when there is no such job or run; with -f 125 when the instance was killed.
"""
USAGE, LOST = 2, 125
COLOURS = ("36", "33", "32", "35", "34", "31")


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    verb.epilog = EPILOG
    verb.add_argument("jobs", metavar="JOB", nargs="*", help="a job, or the id of a run")
    verb.add_argument("-f", "--follow", action="store_true", help="until the jobs have ended")
    verb.add_argument("--tail", metavar="N", type=_count, help="the last N lines of each stream")
    verb.add_argument("--since", metavar="TIME", type=_moment, help="10m, 2h (ago), or a time")
    which = verb.add_mutually_exclusive_group()
    which.add_argument("--stdout", action="store_true", help="only what went to stdout")
    which.add_argument("--stderr", action="store_true", help="only what went to stderr")
    verb.add_argument("--timestamps", action="store_true", help="the time before each line")
    verb.add_argument("--all-runs", action="store_true", help="not only the last run")
    verb.add_argument("--json", action="store_true", help="one line a line as JSON")
    verb.add_argument("--color", choices=("auto", "always", "never"), default="auto")
    instance_flags(verb)
    verb.add_argument("--config", metavar="FILE", type=Path, help="with its state_dir")
    verb.add_argument("--state-dir", metavar="DIR", type=Path, help="where instances keep theirs")
    verb.set_defaults(verb=run)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise argparse.ArgumentTypeError(f"{text}: not a number of lines")
    return int(text)


def _moment(text: str) -> str:
    """As times stand before lines: they compare as text."""
    try:
        try:
            at = datetime.fromtimestamp(time.time() - units.duration(text), UTC)
        except ValueError:
            at = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError, OSError):
        why = f"{text}: neither a duration (10m, 2h) nor a time (2026-11-28T12:00)"
        raise argparse.ArgumentTypeError(why) from None
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


class Printer:
    """Writes lines: raw, or with their job, their time, or as JSON."""

    def __init__(self, args: argparse.Namespace, *, named: str) -> None:
        """`named`: "" for no name in front of a line, else "job" or "run"."""
        self._named = "" if args.json else named
        self._times = args.timestamps
        self._json = args.json
        self._terminal = sys.stdout.isatty()
        self._colour = use_colour(args.color, sys.stdout, os.environ)
        self._names: list[str] = []
        self._open: Source | None = None
        """Whose line has no end yet on the screen."""

    @property
    def whole(self) -> bool:
        """Whether only whole lines can be written, as long as there may be one."""
        return self._json or bool(self._named)

    def write(self, source: Source, lines: Sequence[Line]) -> None:
        """Write them out, now."""
        if lines:
            data = self._broken(source) + b"".join(self._bytes(source, line) for line in lines)
            if not self._json:
                self._open = None if lines[-1].ends else source
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()

    def tell_gone(self, source: Source) -> None:
        """Rotation was faster than we, or whoever reads us."""
        count, source.lines.gone = source.lines.gone, 0
        if count:
            text = f"{count} bytes of std{source.stream} were rotated away before they were shown"
            print(f"supervise: {source.run.run}: {text}", file=sys.stderr)

    def _broken(self, source: Source) -> bytes:
        """Before the line of another stream an open one is ended."""
        broken = self._open not in (None, source)
        if broken:
            self._open = None
        return b"\n" if broken else b""

    def _bytes(self, source: Source, line: Line) -> bytes:
        if self._json:
            return json.dumps(entry(source, line)).encode() + b"\n"
        head = self._head(source, line) if line.begins else ""
        text = self._cleaned(source, line.data) if self._terminal else line.data
        return head.encode() + text + (b"\n" if line.ends else b"")

    def _head(self, source: Source, line: Line) -> str:
        time_told = f"{line.time} " if self._times and line.time else ""
        if not self._named:
            return time_told
        name = source.run.run if self._named == "run" else source.run.job
        if name not in self._names:
            self._names.append(name)
        colour = COLOURS[self._names.index(name) % len(COLOURS)]
        return paint(f"{clean(name)} |", colour, self._colour) + " " + time_told

    def _cleaned(self, source: Source, data: bytes) -> bytes:
        """Harmless to a terminal; tabs stay."""
        text = data.removesuffix(b"\r").decode("utf-8", "backslashreplace")
        shown = "\t".join(map(clean, text.split("\t")))
        return paint(shown, "31", self._colour and source.stream == "err").encode()


def run(args: argparse.Namespace) -> int:
    """Print them."""
    found = tiers(args)
    runs: list[Logged] = []
    for states in found:
        runs = runs or chosen(args.jobs, states, all_runs=args.all_runs)
    missing = [name for name in args.jobs or [""] if not any(_is(run, name) for run in runs)]
    if missing and not args.follow:
        raise ConfigError(_nothing(missing, found[-1]))
    _check(args, runs)
    streams = ("out",) if args.stdout else ("err",) if args.stderr else STREAMS
    wanted = Wanted(streams, args.tail, args.since or "")
    many = len({one.job for one in runs}) > 1 or len(args.jobs) != 1
    printer = Printer(args, named="job" if many else "run" if args.all_runs else "")
    if args.follow:
        state, jobs = _followed(args.socket, missing, found, runs)
        from supervisor.front.verbs.follow import follow

        return follow(args.jobs, jobs, state, runs, wanted, printer)
    show([source for one in runs for source in wanted.sources(one)], printer)
    return 0


def _followed(
    told: str | None,
    missing: Sequence[str],
    found: Sequence[Sequence[StateDir]],
    runs: Sequence[Logged],
) -> tuple[StateDir, frozenset[str]]:
    """The instance, and all its jobs; those that are `missing` must be among them, yet to run."""
    states = {one.state for one in runs} or set(found[0])
    if len(states) != 1:
        raise ConfigError(_nothing(missing, found[-1]))
    (state,) = states
    jobs = all_of(state, told)
    unknown = [name for name in missing if not any(is_of(job, name) for job in jobs)]
    if unknown:
        raise ConfigError(_nothing(unknown, [state]))
    return state, jobs


def _is(run: Logged, name: str) -> bool:
    return not name or name in (run.job, run.group, run.run)


def is_of(job: str, name: str) -> bool:
    """Whether a job is the one of this name, or a member of that matrix; "" means every job."""
    return not name or job == name or job.startswith(name + "@")


def chosen(names: Sequence[str], states: Sequence[StateDir], *, all_runs: bool) -> list[Logged]:
    """The runs that are meant.  Raises ConfigError where they are of several instances."""
    result: list[Logged] = []
    for name in names or [""]:
        there = [run for state in states for run in _named(state, name)]
        by_job: dict[str, list[Logged]] = {}
        for one in there:
            by_job.setdefault(one.job, []).append(one)
        result += [run for runs in by_job.values() for run in (runs if all_runs else runs[-1:])]
    owners = sorted({one.state.root.name for one in result})
    if len(owners) > 1:
        which = ", ".join(owners)
        raise ConfigError([f"several instances have such jobs: {which}; choose by --instance"])
    return result


def _named(state: StateDir, name: str) -> list[Logged]:
    if not name:
        return all_jobs(state)
    one = run_of(state, name)
    return [one] if one is not None else runs_of(state, name)


def all_jobs(state: StateDir) -> list[Logged]:
    """Every run of an instance."""
    try:
        names = sorted(os.listdir(state.runs))
    except FileNotFoundError:
        return []
    return [one for name in names if (one := run_of(state, name)) is not None]


def _nothing(names: Sequence[str], found: Sequence[StateDir]) -> list[str]:
    where = ", ".join(str(state.root) for state in found) or "any state directory"
    return [f"{name or 'logs'}: no run of such a job in {where}" for name in names or [""]]


def _check(args: argparse.Namespace, runs: Sequence[Logged]) -> None:
    """What cannot be shown is said."""
    for one in runs:
        if not one.has_files:
            way = f"journalctl SUPERVISE_RUN={one.run}"
            print(f"supervise: {one.run}: its lines are in the journal: {way}", file=sys.stderr)
    plain = sorted({one.job for one in runs if not one.stamped})
    if plain and args.timestamps:
        job = clean(plain[0])
        raise ConfigError([f"{job}: its lines have no times; log.timestamps = true gives them"])
    if plain and args.since:
        text = "without log.timestamps a run is shown whole, or not at all"
        print(f"supervise: {clean(plain[0])}: {text}", file=sys.stderr)


def show(sources: Sequence[Source], printer: Printer, live: Sequence[Source] = ()) -> None:
    """All that is there, then the lines that have no end, but those of `live` ones."""
    if len(sources) > 1 and all(source.run.stamped for source in sources):
        streams = (_pairs(source) for source in sources)
        for line, source in heapq.merge(*streams, key=lambda pair: pair[0].time):
            printer.write(source, [line])
    for source in sources:
        while found := source.take():
            printer.write(source, found)
        printer.tell_gone(source)
        if source not in live:
            printer.write(source, source.rest(last=True))


def _pairs(source: Source) -> Iterator[tuple[Line, Source]]:
    return ((line, source) for line in source.all())
