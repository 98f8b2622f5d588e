"""`supervise logs -f`: waits for what jobs print by inotify(7), for new runs, and for their end.

What wakes is looked at no closer: each time the event log is read on first, then every stream.  A
run that has ended by the event log has nothing more to come, so what is read after that is all.

May import: `errors`, `linux.filewatch`, `record`, `front.{identity,verbs}`.
"""

from __future__ import annotations

import errno
import os
import select
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from supervisor.errors import KernelError
from supervisor.front import identity
from supervisor.front.verbs.logs import LOST, Printer, is_of, show
from supervisor.linux.filewatch import IN_CREATE, IN_MODIFY, IN_MOVE_SELF, IN_MOVED_TO, FileWatch
from supervisor.record.eventfiles import Tail
from supervisor.record.loglines import Logged, run_of
from supervisor.record.logs import index_path
from supervisor.record.logsource import Source, Wanted
from supervisor.record.runs import StateDir

NEW = IN_CREATE | IN_MOVED_TO
GROWN = IN_MODIFY | IN_MOVE_SELF


class Events:
    """What the event log of an instance says of its jobs."""

    def __init__(self, state: StateDir) -> None:
        self._tail = Tail(state.events)
        self.supervisor: tuple[int, int, str] | None = None
        """Its number, start and boot (`front.identity`); None: its entry was rotated away."""
        self.over = True
        self._running: set[str] = set()
        self.begun: list[tuple[str, str]] = []
        """Job and run, of each run."""
        self.ended: set[str] = set()
        """Runs that have."""
        self.finished: set[str] = set()
        """Jobs that are not run again."""

    def read(self) -> None:
        """All that has come since.  Raises KernelError."""
        while found := self._tail.read():
            for line in found:
                self._take(line.entry)

    def _take(self, entry: dict[str, Any]) -> None:
        event, job, run = entry["event"], entry.get("job", ""), entry.get("run", "")
        if event == "supervisor_started":
            self.supervisor = entry["pid"], entry.get("start", 0), entry.get("boot", "")
            self.over = False
            self.finished.clear()
            self._running.clear()
            return
        if event == "supervisor_stopped":
            self.over = True
            return
        self.over = self.over and self.supervisor is not None
        if event == "job_starting":
            self.begun.append((job, run))
            self._running.add(run)
            self.finished.discard(job)
        elif event == "job_ended":
            self.ended.add(run)
            self._running.discard(run)
        elif event == "job_finished":
            self.finished.add(job)

    def has_ended(self, run: str) -> bool:
        """By its entry; or because it began before this supervisor did."""
        if run in self.ended or self.over:
            return True
        return self.supervisor is not None and run not in self._running

    def close(self) -> None:
        self._tail.close()


class Follower:
    """The jobs that are followed, of one instance."""

    def __init__(
        self, names: Sequence[str], jobs: frozenset[str], state: StateDir, printer: Printer
    ) -> None:
        """`jobs`: all that the instance has, as far as is known."""
        self._names = names
        self._jobs = jobs
        self._state = state
        self._printer = printer
        self._events = Events(state)
        self._watch = FileWatch()
        self._told = 0
        self._waiting: list[str] = []
        self._sources: list[Source] = []
        self._watched: dict[Path, bytes] = {}
        self._pidfd = -1

    def begin(self, runs: Sequence[Logged], wanted: Wanted) -> int:
        """Show what there is of `runs`, then what comes.  The exit status."""
        for directory in (self._state.root, self._state.logs):
            self._watch.add(str(directory), NEW)
        self._heed()
        self._sources = [source for one in runs for source in wanted.sources(one)]
        for source in self._sources:
            self._heed_stream(source)
        ended = self._events.has_ended
        live = [one for one in self._sources if not ended(one.run.run)]
        show(self._sources, self._printer, live)
        files = {source.run.run for source in self._sources}
        self._waiting = [one.run for one in runs if one.run not in files and not ended(one.run)]
        self._pass_over(runs)
        return self._follow(Wanted(wanted.streams, None, wanted.since))

    def _pass_over(self, runs: Sequence[Logged]) -> None:
        """Of the runs that have begun so far, all but those that have come since we looked."""
        last = {one.job: one.run for one in runs}
        for job, run in self._events.begun:
            if run > last.get(job, "") and not (job not in last and run in self._events.ended):
                self._waiting.append(run)
        self._told = len(self._events.begun)

    def _follow(self, wanted: Wanted) -> int:
        while True:
            self._heed()
            alive = self._alive()
            if not alive:
                self._heed()  # its last words
            over = self._is_over() or not alive
            self._find_new(wanted, over=over)
            self._read()
            if over:
                return self._end(gone=not alive and not self._events.over)
            self._wait()

    def _heed(self) -> None:
        self._heed_file(self._state.events)
        self._events.read()

    def _find_new(self, wanted: Wanted, *, over: bool) -> None:
        """The runs that have begun, as soon as they have files."""
        fresh = [run for _, run in self._events.begun[self._told :]]
        self._told += len(fresh)
        waiting, self._waiting = [*self._waiting, *fresh], []
        for run in waiting:
            one = run_of(self._state, run)
            ready = one is not None and self._complete(one, wanted)
            if not (ready or over or run in self._events.ended):
                self._waiting.append(run)
            elif one is not None and self._means(one):
                self._add(wanted.sources(one))

    def _add(self, sources: Sequence[Source]) -> None:
        self._sources += sources
        for source in sources:
            self._heed_stream(source)

    @staticmethod
    def _complete(one: Logged, wanted: Wanted) -> bool:
        """Whether all its files are there that it will have."""
        return all(one.path(stream).exists() or not one.has_files for stream in wanted.streams)

    def _means(self, one: Logged) -> bool:
        return not self._names or bool({one.job, one.group, one.run} & {*self._names})

    def _heed_stream(self, source: Source) -> None:
        """Its file may be another since its last rotation, or be about to be: that one wakes us."""
        path = source.run.path(source.stream)
        index = index_path(path)
        with suppress(FileNotFoundError):
            said = index.read_bytes() if index.exists() else b"-"
            if self._watched.get(path) != said and self._heed_file(path):
                self._watched[path] = said

    def _heed_file(self, path: Path) -> bool:
        """False: it has been renamed; the one that comes in its place wakes us.

        Raises KernelError.
        """
        try:
            self._watch.add(str(path), GROWN)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
            return False
        return True

    def _read(self) -> None:
        """Everything that has come; of ended runs, then, nothing more will."""
        ended = {one.run.run for one in self._sources if self._events.has_ended(one.run.run)}
        for source in self._sources:
            self._heed_stream(source)
            while found := source.take():
                self._printer.write(source, found)
            self._printer.tell_gone(source)
            done = source.run.run in ended
            if done or not (self._printer.whole or len(self._sources) > 1):
                self._printer.write(source, source.rest(last=done))
        for source in [one for one in self._sources if one.run.run in ended]:
            self._sources.remove(source)
            self._watched.pop(source.run.path(source.stream), None)
            source.lines.reader.close()

    def _is_over(self) -> bool:
        """Whether nothing more comes of what is followed."""
        events = self._events
        if events.over:
            return True
        if not self._names:
            return False
        return all(self._is_done(name) for name in self._names)

    def _is_done(self, name: str) -> bool:
        events = self._events
        if run_of(self._state, name) is not None:
            return events.has_ended(name)
        known = self._jobs | {job for job, _ in events.begun} | events.finished
        meant = {job for job in known if is_of(job, name)}
        unsure = not self._jobs and meant != {name}  # members that have not begun are not known
        return bool(meant) and not unsure and meant <= events.finished

    def _alive(self) -> bool:
        """Whether the supervisor still is there; so it is taken to be where nothing tells of it."""
        if not self._events.supervisor:
            return not self._events.over
        if self._pidfd < 0 and not self._events.over:
            self._pidfd = identity.find(*self._events.supervisor)
        if self._pidfd < 0:
            return False
        return not select.select([self._pidfd], [], [], 0)[0]

    def _wait(self) -> None:
        poller = select.poll()
        poller.register(self._watch, select.POLLIN)
        if self._pidfd >= 0:
            poller.register(self._pidfd, select.POLLIN)
        poller.poll()
        self._watch.read()

    def _end(self, *, gone: bool) -> int:
        for source in self._sources:
            self._printer.write(source, source.rest(last=True))
        if gone:
            text = f"supervise: {self._state.root.name}: its supervisor is gone without an end"
            print(text, file=sys.stderr)
        return LOST if gone else 0

    def close(self) -> None:
        self._events.close()
        self._watch.close()
        for source in self._sources:
            source.lines.reader.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)


def follow(
    names: Sequence[str],
    jobs: frozenset[str],
    state: StateDir,
    runs: Sequence[Logged],
    wanted: Wanted,
    printer: Printer,
) -> int:
    """Until the jobs have ended and all of it was shown."""
    follower = Follower(names, jobs, state, printer)
    try:
        return follower.begin(runs, wanted)
    finally:
        follower.close()
