"""System call filters: from a profile in Docker's or OCI's JSON to the programs a job is given.

May import: `errors`, `linux`; pyseccomp (libseccomp) only where a profile has to be compiled.  A
profile file holds one filter, or an array of filters, of which the strictest answer counts
(seccomp(2)): what two rules for one call cannot say, two filters can.

A program is compiled once: it is kept in memory, and in the cache directory for the next start.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from supervisor.errors import SpawnError
from supervisor.linux import caps, proc

DEFAULT = str(Path(__file__).parent / "profiles" / "default.json")
FORMAT = 1
"""Changes whenever the same profile would compile to something else."""
KEPT = 30 * 86400
"""Seconds for which a program that nobody wrote anew stays in the cache."""

_ERRNO = "SCMP_ACT_ERRNO"
_ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
"""linux/seccomp.h; ERRNO carries its number in the lower half."""
_OPERATORS = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}
_UNKNOWN = -1
"""What libseccomp says of a name it has never heard; below that: not on this machine."""


def programs(profile: str, capabilities: frozenset[int]) -> tuple[bytes, ...]:
    """What to install for a job, first to last; none for "unconfined".

    `profile` is "default", "log" (the default, which logs what it would refuse), "unconfined", or
    the path of a JSON file.  Raises SpawnError (stage `seccomp`) for a file that cannot be used.
    """
    if profile == "unconfined":
        return ()
    logging = profile == "log"
    path = DEFAULT if profile in ("default", "log") else profile
    return _programs(_read(path), path, capabilities, logging)


def try_profile(profile: str, capabilities: frozenset[int]) -> None:
    """Compile the profile of a path, and keep nothing.  Raises SpawnError as `programs` does."""
    if profile not in ("default", "log", "unconfined"):
        compile_profile(_read(profile), profile, capabilities)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        hint = "seccomp is default, log, unconfined, or a profile's path"
        raise SpawnError("seccomp", error.errno or 0, path, "", hint=hint) from error


@cache
def _programs(
    data: bytes, path: str, capabilities: frozenset[int], logging: bool
) -> tuple[bytes, ...]:
    machine = os.uname().machine
    parts = (FORMAT, machine, proc.boot_id(), sorted(capabilities), logging, data)
    key = hashlib.sha256(repr(parts).encode()).hexdigest()
    kept = _Cache.open()
    found = kept.load(key) if kept else None
    if found is None:
        found = compile_profile(data, path, capabilities, logging=logging)
        if kept:
            kept.save(key, found)
    return found


class _Cache:
    """A directory of our own: nobody else can have written what is read from it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @classmethod
    def open(cls) -> _Cache | None:
        """None where there can be none: then each start compiles, a tenth of a second."""
        if os.geteuid() == 0:
            top = Path("/var/cache")
        else:
            top = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
        directory = top / "supervise"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = directory.lstat()
        except OSError:
            return None
        ours = status.st_uid == os.geteuid() and not status.st_mode & 0o022
        return cls(directory) if ours else None

    def load(self, key: str) -> tuple[bytes, ...] | None:
        """The programs kept under `key`; None when there are none, or not whole ones."""
        try:
            data = (self._directory / f"{key}.bpf").read_bytes()
        except OSError:
            return None
        digest, rest = data[:32], data[32:]
        if hashlib.sha256(rest).digest() != digest:
            return None
        sizes, _, body = rest.partition(b"\n")
        found = []
        for size in map(int, sizes.split()):
            found.append(body[:size])
            body = body[size:]
        return tuple(found)

    def save(self, key: str, found: tuple[bytes, ...]) -> None:
        """A cache that cannot be written costs time, nothing else."""
        rest = b" ".join(b"%d" % len(one) for one in found) + b"\n" + b"".join(found)
        try:
            self._prune()
            with tempfile.NamedTemporaryFile(dir=self._directory, delete=False) as file:
                file.write(hashlib.sha256(rest).digest() + rest)
            os.rename(file.name, self._directory / f"{key}.bpf")
        except OSError:
            return

    def _prune(self) -> None:
        for path in self._directory.iterdir():
            if path.stat().st_mtime < time.time() - KEPT:
                path.unlink(missing_ok=True)


def compile_profile(
    data: bytes, path: str, capabilities: frozenset[int], *, logging: bool = False
) -> tuple[bytes, ...]:
    """The BPF programs of a profile, read from `path`.  Raises SpawnError."""
    try:
        document = json.loads(data)
        filters = document if isinstance(document, list) else [document]
        if not filters:
            raise ValueError("an array without a filter")
        return tuple(_compile(one, capabilities, logging=logging) for one in filters)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SpawnError("seccomp", 0, path, _said(error), hint="Docker's or OCI's JSON") from error
    except OSError as error:
        raise SpawnError("seccomp", error.errno or 0, path, "libseccomp") from error


def _said(error: Exception) -> str:
    return f"lacks {error}" if isinstance(error, KeyError) else str(error)


def _compile(document: dict[str, Any], capabilities: frozenset[int], *, logging: bool) -> bytes:
    lib = _libseccomp()
    default = _action(document["defaultAction"], document.get("defaultErrnoRet"))
    built = lib.SyscallFilter(_logged(default) if logging else default)
    # a call of another machine's kind, 32-bit ones included, was never looked at by this filter
    built.set_attr(lib.Attr.ACT_BADARCH, _ACTIONS["SCMP_ACT_KILL_PROCESS"])
    built.set_attr(lib.Attr.CTL_OPTIMIZE, 2)  # a binary tree, not a list
    for action, name, conditions in _rules(document, capabilities):
        answer = _logged(action) if logging else action
        if answer == (_logged(default) if logging else default):
            continue
        number = lib.resolve_syscall(lib.Arch.NATIVE, name)
        if number == _UNKNOWN and action != _ACTIONS["SCMP_ACT_ALLOW"] and _allows(default):
            raise ValueError(f"this libseccomp knows no system call {name}, so it cannot refuse it")
        if number >= 0:
            built.add_rule(answer, number, *(lib.Arg(*condition) for condition in conditions))
    with tempfile.TemporaryFile() as file:
        built.export_bpf(file)
        file.seek(0)
        return file.read()


def _libseccomp() -> Any:
    try:
        import pyseccomp
    except (ImportError, RuntimeError) as error:
        hint = 'apt-get install libseccomp2, or seccomp = "unconfined"'
        raise SpawnError("seccomp", 0, "", f"no libseccomp: {error}", hint=hint) from error
    return pyseccomp


def library_version() -> str:
    """That of libseccomp, as "2.5.4".  Raises SpawnError where there is none."""
    _libseccomp()
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_version.restype = ctypes.POINTER(ctypes.c_uint * 3)
    return ".".join(map(str, library.seccomp_version().contents))


def call_name(architecture: int, number: int) -> str:
    """A system call as people know it; its number where libseccomp does not know it."""
    try:
        lib = _libseccomp()
        return str(lib.resolve_syscall(architecture, number).decode())
    except (SpawnError, ValueError):
        return f"{number} of architecture {architecture:#x}"


def _action(name: object, errno: object) -> int:
    if name == _ERRNO:
        number = 1 if errno is None else errno
        if not isinstance(number, int) or not 0 <= number < 4096:
            raise ValueError(f"errnoRet {errno!r} is no error number")
        return 0x00050000 | number
    if name not in _ACTIONS:
        known = ", ".join([*_ACTIONS, _ERRNO])
        raise ValueError(f"action {name!r} is none of {known}")
    return _ACTIONS[str(name)]


def _allows(action: int) -> bool:
    return action in (_ACTIONS["SCMP_ACT_ALLOW"], _ACTIONS["SCMP_ACT_LOG"])


def _logged(action: int) -> int:
    return action if _allows(action) else _ACTIONS["SCMP_ACT_LOG"]


def _rules(
    document: dict[str, Any], capabilities: frozenset[int]
) -> Iterator[tuple[int, str, list[tuple[int, ...]]]]:
    """(action, call, conditions) of each rule that holds for a job with these capabilities."""
    if document.get("listenerPath") or document.get("listenerMetadata"):
        raise ValueError("listenerPath: no call is handed to another process here")
    for entry in document.get("syscalls") or ():
        if not _holds(entry, capabilities):
            continue
        action = _action(entry["action"], entry.get("errnoRet"))
        alternatives = _conditions(entry.get("args") or ())
        for name in entry.get("names") or [entry["name"]]:
            for conditions in alternatives:
                yield action, name, conditions


def _holds(entry: dict[str, Any], capabilities: frozenset[int]) -> bool:
    """Docker's `includes` (all of them) and `excludes` (any of them)."""
    wanted, unwanted = entry.get("includes") or {}, entry.get("excludes") or {}
    if not _numbers(wanted) <= capabilities or _numbers(unwanted) & capabilities:
        return False
    here = _DOCKER_ARCH.get(os.uname().machine, os.uname().machine)
    if wanted.get("arches") and here not in wanted["arches"]:
        return False
    return here not in unwanted.get("arches", ()) and _new_enough(wanted.get("minKernel"))


_DOCKER_ARCH = {"x86_64": "amd64", "aarch64": "arm64"}


def _numbers(condition: dict[str, Any]) -> frozenset[int]:
    return frozenset(caps.number(name) for name in condition.get("caps", ()))


def _new_enough(wanted: str | None) -> bool:
    if not wanted:
        return True
    release = os.uname().release.split("-")[0].split(".")[:2]
    return tuple(map(int, release)) >= tuple(map(int, wanted.split(".")[:2]))


def _conditions(arguments: Iterable[dict[str, Any]]) -> list[list[tuple[int, ...]]]:
    """All of them; two on one argument are alternatives, as OCI runtimes read it."""
    found = [_condition(argument) for argument in arguments]
    if len({condition[0] for condition in found}) < len(found):
        return [[condition] for condition in found]
    return [found]


def _condition(argument: dict[str, Any]) -> tuple[int, ...]:
    operator = argument["op"]
    if operator not in _OPERATORS:
        raise ValueError(f"op {operator!r} is none of {', '.join(_OPERATORS)}")
    first, second = argument["value"], argument.get("valueTwo", 0)
    return argument["index"], _OPERATORS[operator], first, second
