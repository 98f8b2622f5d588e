"""What an instance finds when it starts, and leaves as it was: directories, descriptors, streams.

May import: `errors`, `container.spawn`, `supervise.reaper`.
"""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from supervisor.container.spawn import sealed
from supervisor.errors import KernelError, SupervisorError
from supervisor.supervise.reaper import Child, Reaper


def raise_open_files() -> tuple[int, int]:
    """Have as many descriptors as we may: a running job takes five.  What jobs are to get.

    Their soft limit stays what ours was: a program that uses select(2) knows no more than 1024.
    """
    given = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (given[1], given[1]))
    return given


def start_launcher(reaper: Reaper, argv: Sequence[str], control: int) -> Child:
    """It holds none of our streams but stderr, where a crash of its own would be told."""
    with open(os.devnull, "r+b") as null, sealed(argv[0]) as program:  # noqa: PTH123
        return reaper.spawn(
            argv,
            program=program,
            env={},
            stdin=null.fileno(),
            stdout=null.fileno(),
            pass_fds=(control,),
        )


@contextmanager
def unwrapped() -> Iterator[None]:
    """A lone error comes out of the nurseries as itself, not as a group of groups of one."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None


@contextmanager
def runtime_dir(runtime: Path, name: str) -> Iterator[None]:
    """RUNTIME/NAME with its lock; SupervisorError when another instance has it.

    Mode 0711: a job in a user namespace must be able to walk to its own root below.
    """
    try:
        runtime.mkdir(mode=0o711, parents=True, exist_ok=True)
        lock = os.open(runtime / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise KernelError("make", str(runtime), error.errno or 0, hint=NO_RUNTIME) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        text = f"{runtime}: an instance named {name} is running"
        raise SupervisorError(text, hint="give this one another name in [supervisor]") from None
    try:
        yield
    finally:
        (runtime / "lock").unlink(missing_ok=True)
        os.close(lock)
        _remove_if_empty(runtime)


NO_RUNTIME = "run as root, or set runtime_dir in [supervisor]"


def _remove_if_empty(path: Path) -> None:
    """Another instance may have come in between the unlink and now: then it stays."""
    if not any(path.iterdir()):
        path.rmdir()


@contextmanager
def scratch_dir(wanted: bool) -> Iterator[Path | None]:
    """A directory on disk for the writable layer of a one-shot run."""
    if not wanted:
        yield None
        return
    import tempfile

    path = Path(tempfile.mkdtemp(prefix="supervise-", dir="/var/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path)
