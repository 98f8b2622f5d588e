"""Runs in a job, or outside of one for comparison: attempts, one after the other.

An attempt is a function that raises OSError where it is refused and returns where it got through.
None does harm where it gets through: it opens what it would write to, and writes nothing.

    main(("escapes", "kernel"))   runs the attempts of these modules and prints what they came to
                                  as JSON: the name of the errno, "through", or the signal's name

Loaded by `python -I -S`: the standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import os
import platform
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

THROUGH = "through"
PATIENCE = 20
"""Seconds; an attempt that hangs is ended as SIGALRM."""

ATTEMPTS: dict[str, Callable[[], object]] = {}
ALONE: set[str] = set()
"""Those that change or end the process that makes them, even where they are refused."""

_X86_64 = {
    "clone": 56, "keyctl": 250, "add_key": 248, "bpf": 321, "perf_event_open": 298,
    "userfaultfd": 323, "kexec_load": 246, "init_module": 175, "clock_settime": 227,
}  # fmt: skip
_GENERIC = {
    "clone": 220, "keyctl": 219, "add_key": 217, "bpf": 280, "perf_event_open": 241,
    "userfaultfd": 282, "kexec_load": 104, "init_module": 105, "clock_settime": 112,
}  # fmt: skip
_BOTH = {
    "pidfd_getfd": 438, "open_tree": 428, "fsopen": 430, "mount_setattr": 442, "clone3": 435,
    "io_uring_setup": 425,
}  # fmt: skip
NUMBERS = _BOTH | (_X86_64 if platform.machine() == "x86_64" else _GENERIC)

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def attempt(function: Callable[[], object]) -> Callable[[], object]:
    """Put it on the list, under its own name."""
    ATTEMPTS[function.__name__] = function
    return function


def alone(function: Callable[[], object]) -> Callable[[], object]:
    """The same, to be made by a process of its own in any case."""
    ALONE.add(function.__name__)
    return attempt(function)


def call(name: str, *arguments: Any) -> int:
    """A function of the C library, else a system call by its name; raises OSError."""
    values = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    ctypes.set_errno(0)
    if name in NUMBERS:
        done = libc.syscall(ctypes.c_long(NUMBERS[name]), *values)
    else:
        done = getattr(libc, name)(*values)
    if done < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return int(done)


def reached(error: OSError, *numbers: int) -> None:
    """The call was let in, and only then found its arguments bad: that is through."""
    if error.errno not in numbers:
        raise error


def contained() -> NoReturn:
    """It was let through, and led to nothing that is not the job's own."""
    raise OSError(errno.EXDEV, "contained")


def open_to_write(path: str) -> None:
    os.close(os.open(path, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK))


def outcome(function: Callable[[], object]) -> str:
    """What one attempt comes to, made by a child."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(PATIENCE)
        os.close(reader)
        os.write(writer, _word(function).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:  # noqa: PTH123
        word = file.read().decode()
    status = os.waitpid(pid, 0)[1]
    return signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else word


def _word(function: Callable[[], object]) -> str:
    try:
        function()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    except Exception as error:
        return repr(error)
    return THROUGH


def main(modules: tuple[str, ...], *, apart: bool) -> None:
    """`apart`: each attempt by a process of its own, as it may well go through."""
    package = __name__.rpartition(".")[0]
    for module in modules:
        importlib.import_module(f"{package}.{module}")
    names = sys.argv[1:] or list(ATTEMPTS)
    own = set(names) if apart else ALONE
    found = {
        name: outcome(ATTEMPTS[name]) if name in own else _word(ATTEMPTS[name]) for name in names
    }
    print(json.dumps(found), flush=True)
