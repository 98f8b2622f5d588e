"""Unpacking a layer: decompressed and hashed here, extracted by a process that is shut in.

May import: `errors`, `linux`.  Blocking: to be called in a thread, and not from the event loop.

    blob -> decompress (a thread) -> sha256 -> pipe -> extractor -> TARGET
                                                          |
    unpack  <------ what became of it, opaque directories-+

The archive is extracted while it is hashed, so its bytes are not known to be right then; but what
comes of wrong ones is never used: the caller makes TARGET, and on any exception removes it, by
`removal.remove_tree`.  Nothing is synchronised to the disk here.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from attrs import frozen

from supervisor.errors import ImageError
from supervisor.image import decompress
from supervisor.image.decompress import Compression

_PROGRAM = (
    "import sys; sys.path.insert(0, {path!r}); from supervisor.image.extractor import main; main()"
)
_PIPE = 1 << 20
"""Bytes: what an ordinary user may ask for (/proc/sys/fs/pipe-max-size)."""
_READ = 256 << 10
_MESSAGE = 4096
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@frozen
class Bounds:
    """What a layer may grow to, so that a small file cannot fill the disk.

    bytes     of its archive, uncompressed; and of each file, however sparse
    entries   of its archive, and directories that it takes for granted
    seconds   of CPU time that the extraction may take
    name      how the error calls the setting that raises them
    """

    bytes: int = 64 << 30
    entries: int = 2_000_000
    seconds: int = 3600
    name: str = "Bounds"


@frozen
class Unpacked:
    """What came of it.

    diff_id               "sha256:..." of the uncompressed archive
    size                  bytes of the uncompressed archive
    entries               of the archive, and directories it took for granted
    devices_left_out      device nodes that this user may not make
    attributes_left_out   extended attributes that this user, file system or project does not take
    """

    diff_id: str
    size: int
    entries: int
    devices_left_out: int = 0
    attributes_left_out: int = 0


def unpack(
    blob: Path,
    target: Path,
    *,
    compression: Compression | None = None,
    diff_id: str | None = None,
    bounds: Bounds | None = None,
    progress: Callable[[int], None] | None = None,
) -> Unpacked:
    """Unpack a layer into the empty directory `target`.  Raises ImageError.

    Without `compression` its first bytes tell.  `diff_id` is what the archive must have.
    `progress` is told, in another thread, how many bytes of `blob` have been read; what it raises
    ends the unpacking, and is raised here.
    """
    bounds = bounds or Bounds()
    _require_empty(target)
    with _opened(blob) as file:
        if compression is None:
            compression = decompress.recognize(file.peek(8)[:8])  # type: ignore[attr-defined]
        with _extractor(target, bounds) as extractor:
            feeder = Feeder(file, compression, extractor.pipe, bounds, progress)
            feeder.start()
            try:
                outcome = extractor.outcome()
            finally:
                extractor.end()  # and with it the pipe's other end
                feeder.join()
    if feeder.error is not None:
        raise feeder.error
    counts = _done(outcome, str(blob), bounds)
    found = f"sha256:{feeder.digest.hexdigest()}"
    if diff_id not in (None, found):
        hint = "the image is damaged, or not what its configuration says"
        raise ImageError(f"it unpacks to {found}, and must be {diff_id}", str(blob), hint=hint)
    return Unpacked(found, feeder.size, *counts)


def _require_empty(target: Path) -> None:
    try:
        with os.scandir(target) as entries:
            if any(entries):
                raise ImageError("a layer is unpacked into an empty directory", str(target))
    except OSError as error:
        raise ImageError(f"cannot unpack there: {error.strerror}", str(target)) from error


@contextmanager
def _opened(blob: Path) -> Iterator[BinaryIO]:
    try:
        file = blob.open("rb", buffering=_READ)
    except OSError as error:
        raise ImageError(f"cannot read it: {error.strerror}", str(blob)) from error
    with file:
        yield file


class Feeder(threading.Thread):
    """Decompresses, hashes, and writes into the pipe, which it closes."""

    def __init__(
        self,
        file: BinaryIO,
        compression: Compression,
        pipe: int,
        bounds: Bounds,
        progress: Callable[[int], None] | None,
    ) -> None:
        super().__init__(name="unpack", daemon=True)
        self.digest = hashlib.sha256()
        self.size = 0
        self.error: BaseException | None = None
        self._file = file
        self._compression = compression
        self._pipe = pipe
        self._bounds = bounds
        self._progress = progress

    def run(self) -> None:
        try:
            for data in decompress.pieces(self._file, self._compression, self._read):
                self.size += len(data)
                if self.size > self._bounds.bytes:
                    raise _too_much(str(self._file.name), "bytes", self._bounds)
                self.digest.update(data)
                _write(self._pipe, data)
        except BrokenPipeError:
            return  # the extraction has ended, and says why
        except BaseException as error:
            self.error = error
        finally:
            os.close(self._pipe)

    def _read(self) -> bytes:
        try:
            data = self._file.read(_READ)
        except OSError as error:
            why = f"cannot read it: {error.strerror}"
            raise ImageError(why, str(self._file.name)) from error
        if self._progress is not None:
            self._progress(self._file.tell())
        return data


def _write(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


class _Extractor:
    """The process at work: where its archive goes, and what it says."""

    def __init__(self, process: subprocess.Popen[bytes], pipe: int, control: socket.socket) -> None:
        self.pipe = pipe
        self._process = process
        self._control = control

    def outcome(self) -> list[str]:
        """The words of its last message; ["ended", SIGNAL] where there was none."""
        while True:
            data, fds, _, _ = socket.recv_fds(self._control, _MESSAGE, 1)
            try:
                if data == b"opaque" and fds:
                    os.setxattr(fds[0], "trusted.overlay.opaque", b"y")
                    continue
            except OSError as error:
                return ["failed", "opaque", str(error.errno), "", ""]
            finally:
                for fd in fds:
                    os.close(fd)
            if data:
                return data.decode("utf-8", "replace").split("\0")
            return ["ended", str(-self._process.wait())]

    def end(self) -> None:
        """Nothing is left to do for it, or it has failed."""
        self._process.kill()
        self._process.wait()


@contextmanager
def _extractor(target: Path, bounds: Bounds) -> Iterator[_Extractor]:
    """Start it; when the block ends it has ended.  The pipe is closed by who writes into it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    data, pipe = os.pipe2(os.O_CLOEXEC)
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE)
    except PermissionError:
        pass  # the user has too many pipes (pipe-user-pages-soft): it goes more slowly
    numbers = (bounds.entries, bounds.bytes, bounds.seconds)
    argv = [
        *(os.path.realpath(sys.executable), "-I", "-S", "-X", "utf8", "-c"),
        _PROGRAM.format(path=str(Path(__file__).parents[2])),
        *(str(number) for number in (data, theirs.fileno(), os.getpid())),
        str(target),
        *map(str, numbers),
    ]
    with ours:
        try:
            with theirs:
                process = subprocess.Popen(
                    argv, pass_fds=(data, theirs.fileno()), stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
        except OSError as error:
            os.close(pipe)
            raise ImageError(f"cannot start {argv[0]}: {error.strerror}", str(target)) from error
        finally:
            os.close(data)
        extractor = _Extractor(process, pipe, ours)
        try:
            yield extractor
        finally:
            extractor.end()


def _done(outcome: list[str], where: str, bounds: Bounds) -> list[int]:
    """The counts of a complete archive; raises ImageError for all else."""
    if outcome[0] == "done":
        return [int(word) for word in outcome[1:]]
    if outcome[0] == "failed" and len(outcome) == 5:
        raise _failure(*outcome[1:], where=where, bounds=bounds)
    if outcome == ["ended", str(int(signal.SIGXCPU))]:
        raise _too_much(where, "seconds", bounds)
    raise ImageError(f"the extraction has ended without a word: {outcome}", where)


def _failure(
    what: str, number: str, name: str, text: str, *, where: str, bounds: Bounds
) -> ImageError:
    """The extraction's own words as an error, with the way out."""
    code = int(number)
    why = ": ".join(word for word in (text, os.strerror(code) if code else "") if word)
    shown = repr(name)[1:-1] if name else ""
    if what == "archive":
        return ImageError(f"the archive is refused: {text}", where, hint=f"at entry {shown}")
    if what == "entries":
        return _too_much(where, "entries", bounds)
    if what == "memory" or code == errno.ENOMEM:
        return ImageError("the names in the archive take too much memory", where)
    if what == "system" and code == errno.EFBIG:
        return _too_much(f"{where}: {shown}", "bytes", bounds)
    return ImageError(
        f"cannot unpack {shown}: {why}" if shown else why, where, hint=_hint(what, code)
    )


def _hint(what: str, code: int) -> str:
    if what == "system" and code in _FULL:
        return "make room where the images are"
    return _HINTS.get(what, "")


_HINTS = {
    "sandbox": "the extraction must be shut in, and cannot be: it takes CAP_SYS_CHROOT",
    "users": "without root it takes a user namespace: sysctl kernel.unprivileged_userns_clone, "
    "kernel.apparmor_restrict_unprivileged_userns, user.max_user_namespaces",
    "opaque": "the file system must have trusted.* attributes, as ext4, xfs and btrfs do",
}


def _too_much(where: str, what: str, bounds: Bounds) -> ImageError:
    most = getattr(bounds, what)
    return ImageError(
        f"it unpacks to more than {most} {what}", where,
        hint=f"if it is to be trusted, raise {bounds.name}.{what}",
    )  # fmt: skip
