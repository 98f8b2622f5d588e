"""What a run needs of the disk: its directory, the exit record, the streams, a writable layer.

May import: `errors`, `model`, `container`, `record`, `supervise.{rotate,target}`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import trio

from supervisor.container.disk import Place
from supervisor.container.host import has_user_attributes, on_overlay
from supervisor.container.layers import Layers
from supervisor.container.spawn import Streams
from supervisor.errors import KernelError, SpawnError
from supervisor.model.image import Image
from supervisor.model.job import JobSpec
from supervisor.record import exit_record
from supervisor.record.journald import INFO, WARNING
from supervisor.record.runs import StateDir
from supervisor.supervise import rotate
from supervisor.supervise.target import File, Journal, Stream, Target

STREAMS = ("out", "err")
RECORD_SIZE = 512
"""Bytes set aside for the exit record: a disk that fills up later cannot lose it."""


class Storage:
    """The files of one run.  With no `state` the streams are the caller's, the record a memfd."""

    def __init__(
        self,
        spec: JobSpec,
        run: str,
        state: StateDir | None,
        scratch: Path | None,
        kept: StateDir | None = None,
        image: Image | None = None,
    ) -> None:
        """`kept` is where a one-shot run has a directory, if its layer may stay."""
        self._spec = spec
        self._run = run
        self._state = state
        self._kept = kept
        self._facts: dict[str, Any] = {"pid": os.getpid()}
        if image is not None:
            self._facts["image"] = {"name": image.name, "digest": image.digest}
        self._layer: Path | None = None
        self._logs: dict[str, int] = {}
        self._owned: list[int] = []
        self._writers: list[int] = []
        self.pipes: dict[str, tuple[int, tuple[Target, ...]]] = {}
        """Of streams that are copied: the pipes' reading ends, and where that goes."""
        self.input = -1
        """The writing end of its stdin, where that is open."""
        self.rotation: rotate.Way = ""
        """How the files are rotated that the job writes itself, if they are to be."""
        try:
            self.streams = self._open()
            own = self._directory(scratch)
            self.layers = self._layers(own)
            self.place = Place(str(own) if own else None, self.layers.run_dir is not None)
            """Where a layer with a size of its own may have it (`supervise.disk`)."""
        except OSError as error:
            self.close()
            if isinstance(error, KernelError):
                raise
            raise KernelError("open", _name(error), error.errno or 0) from error
        except SpawnError:
            self.close()
            raise

    def _open(self) -> Streams:
        if self._state is None:
            record = self._own(os.memfd_create("exit", os.MFD_CLOEXEC))
            if self._spec.limits.output is None and not self._spec.log.timestamps:
                return Streams(0, 1, 2, record)
            out, err = (self._pipe(stream) for stream in STREAMS)
            return Streams(0, out, err, record)
        self._state.make_run(self._run, self._spec, self._facts)
        null = self._own(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
        if self._spec.terminal:
            out = err = null  # its init takes a terminal in their place
            os.close(os.open(self.log("err"), os.O_CREAT | os.O_CLOEXEC, 0o600))
        else:
            out, err = (self._stream(stream) for stream in STREAMS)
        flags = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC
        record = self._own(os.open(self._state.exit(self._run), flags, 0o600))
        os.posix_fallocate(record, 0, RECORD_SIZE)
        return Streams(self._input(null), out, err, record)

    def _input(self, null: int) -> int:
        """Its stdin; the writing end stays with us, so that it has no end before the job has."""
        if self._spec.stdin != "open" or self._spec.terminal:
            return null
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._writers.append(reader)
        self.input = writer
        return reader

    def take_terminal(self, master: int) -> None:
        """What is shown on the job's terminal is its output; `master` stays the caller's."""
        self.pipes["out"] = (master, tuple(self._targets("out")))
        self.input = os.dup(master)

    def end_input(self) -> None:
        """Nobody of us writes to its stdin any more."""
        if self.input >= 0:
            os.close(self.input)
        self.input = -1

    def _stream(self, stream: str) -> int:
        """What the job gets: its log file, or a pipe."""
        if self._is_copied():
            return self._pipe(stream)
        create = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        self._logs[stream] = self._own(os.open(self.log(stream), create, 0o600))
        return self._logs[stream]

    def _is_copied(self) -> bool:
        """Whether the job cannot write to its files itself."""
        log = self._spec.log
        if self._spec.limits.output is not None or log.copied:
            return True
        if log.max_size is not None:
            self.rotation = rotate.way(self._logs_at())
            return not self.rotation
        return False

    def _pipe(self, stream: str) -> int:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        self._own(reader)
        self._writers.append(writer)
        self.pipes[stream] = (reader, tuple(self._targets(stream)))
        return writer

    def _targets(self, stream: str) -> Iterator[Target]:
        log = self._spec.log
        if self._state is None:
            yield Stream(1 + STREAMS.index(stream), stamps=log.timestamps)
            return
        if "files" in log.sink:
            yield File(
                self.log(stream), stamps=log.timestamps, max_size=log.max_size, keep=log.keep
            )
        if "journald" in log.sink:
            yield Journal(
                {
                    "SYSLOG_IDENTIFIER": self._spec.name,
                    "PRIORITY": str(WARNING if stream == "err" else INFO),
                    "SUPERVISE_JOB": self._spec.name,
                    "SUPERVISE_RUN": self._run,
                    "SUPERVISE_INSTANCE": self._state.root.name,
                    "SUPERVISE_STREAM": stream,
                }
            )

    def log(self, stream: str) -> Path:
        """The file of one stream of a run that has them."""
        assert self._state is not None
        return self._state.log(self._spec.name, self._run, stream)

    def _logs_at(self) -> Path:
        assert self._state is not None
        return self._state.logs

    @property
    def logged(self) -> bool:
        """Whether it has log files that the job writes itself."""
        return bool(self._logs)

    def started(self) -> None:
        """The job has its streams: the pipes' writing ends are nobody else's any more."""
        for fd in self._writers:
            os.close(fd)
        self._writers.clear()

    def written(self) -> int | None:
        """What is in the files that the job writes itself; None where there are none."""
        if not self._logs:
            return None
        return sum(os.fstat(fd).st_size for fd in self._logs.values())

    def _own(self, fd: int) -> int:
        self._owned.append(fd)
        return fd

    def _directory(self, scratch: Path | None) -> Path | None:
        """What the run has of its own on the disk."""
        if self._state is not None:
            return self._state.runs / self._run
        if self._kept is None:
            return scratch
        self._kept.make_run(self._run, self._spec, self._facts)
        return self._kept.runs / self._run

    def _layers(self, own: Path | None) -> Layers:
        """Directories for the overlay's upper, or a tmpfs where they cannot be had."""
        base = layer_base(self._spec, own)
        if base is None:
            if self._spec.keep != "never":
                why = "the writable layer is in memory here, and cannot be kept"
                raise SpawnError("mounts", 0, str(own or ""), why, hint='set keep = "never"')
            return Layers(None)
        for name in ("upper", "work"):
            (base / name).mkdir(mode=0o755, parents=True)
        self._layer = base
        self._belongs_to(base, self._owner())
        return Layers(str(base))

    def _owner(self) -> int:
        """Who root of the job is on the host."""
        space = self._spec.user_namespace
        return space.host_id if space.kind == "map" and os.geteuid() == 0 else os.geteuid()

    @staticmethod
    def _belongs_to(base: Path, owner: int) -> None:
        """Nobody gets to `base` from outside; a job's root walks through it to its layer."""
        if owner != os.geteuid():
            for path in (base, base / "upper", base / "work"):
                os.chown(path, owner, owner)

    def exit_record(self) -> exit_record.ExitRecord | None:
        """What the init wrote when the payload had ended; None: nothing, or not the whole."""
        return exit_record.parse(os.pread(self.streams.all[3], RECORD_SIZE, 0))

    def results(self) -> tuple[Path, bool]:
        """Where what is copied out goes, and whether under its last name alone."""
        if self._state is None:
            return Path.cwd(), True
        return self._state.runs / self._run / "out", False

    async def clean(self, *, keep: bool) -> Path | None:
        """Throw the writable layer away, off the event loop; to `keep` it: where its upper is."""
        if self._layer is None:
            return None
        if self._kept is not None and not keep:
            await trio.to_thread.run_sync(remove_tree, self._layer)
            return None
        for name in ("work",) if keep else ("upper", "work"):
            await trio.to_thread.run_sync(remove_tree, self._layer / name)
        if os.geteuid() == 0:
            os.chown(self._layer, 0, 0)
        return self._layer / "upper" if keep else None

    def close(self) -> None:
        self.started()
        self.end_input()
        for fd in self._owned:
            os.close(fd)
        self._owned.clear()
        for _, targets in self.pipes.values():
            for target in targets:
                target.close()


def place_of(spec: JobSpec, own: Path | None) -> Place:
    """The same for a run that is not there yet."""
    return Place(str(own) if own else None, layer_base(spec, own) is not None)


def layer_base(spec: JobSpec, own: Path | None) -> Path | None:
    """Whether a run's writable layer lies in `own`, its directory; None: it is a tmpfs, or none.

    In a user namespace overlayfs keeps its marks in attributes that not every file system has
    (user.*, xattr(7)).  What a job writes with ids by newuidmap(1) its user could not remove.
    """
    if spec.write != "overlay" or own is None or on_overlay(str(own)):
        return None
    kind = spec.user_namespace.kind
    if kind == "auto" or (kind != "host" and not has_user_attributes(str(own))):
        return None
    return own


def remove_tree(path: Path) -> None:
    """rmtree, also past directories that their owner closed to himself, as overlayfs does."""
    if os.geteuid() != 0:
        for directory, names, _files in os.walk(path):
            for name in names:
                if not os.path.islink(os.path.join(directory, name)):
                    os.chmod(os.path.join(directory, name), 0o700)
    shutil.rmtree(path)


def _name(error: OSError) -> str:
    return os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else ""
