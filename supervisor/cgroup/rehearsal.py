"""What a start would do to the cgroup file system, noted instead of done: for `plan`.

For this package only.  While a `Rehearsal` acts, `files` asks it instead of the kernel: a mkdir or
a write becomes a line, and a later read sees what it would have left.  So the very code that
starts a run prints what it would do.  The rules it knows are those that a start depends on: what
a fresh cgroup's files hold, how cgroup.subtree_control and cgroup.procs take a write.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from supervisor.errors import KernelError

_FRESH = {
    "cgroup.procs": "",
    "cgroup.subtree_control": "",
    "memory.events": "",
    "memory.events.local": "",
    "memory.high": "max",
    "memory.max": "max",
    "memory.memsw.limit_in_bytes": "max",
}
"""What a start reads of a cgroup that has just been made."""

_acting: ContextVar[Rehearsal | None] = ContextVar("acting", default=None)
"""Of this task alone: what other threads do meanwhile is done for real."""

acting = _acting.get


@contextmanager
def rehearse() -> Iterator[Rehearsal]:
    """For the length of the block nothing is touched, and its lines are collected."""
    rehearsal = Rehearsal()
    token = _acting.set(rehearsal)
    try:
        yield rehearsal
    finally:
        _acting.reset(token)


class Rehearsal:
    """The `lines` so far, and the cgroups and files as they would be by now."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._made: set[str] = set()
        self._texts: dict[str, str] = {}
        self._moved: dict[str, str] = {}
        self._removed: set[str] = set()

    def exists(self, path: str) -> bool:
        if path in self._removed:
            return False
        return path in self._made or path in self._texts or os.path.exists(path)

    def make(self, directory: str) -> None:
        """Raises KernelError where mkdir(2) would: EEXIST, ENOENT."""
        if self.exists(directory):
            raise KernelError("mkdir", directory, errno.EEXIST)
        self._need(os.path.dirname(directory), "mkdir", directory)
        self._removed.discard(directory)
        self._made.add(directory)
        self.lines.append(f"mkdir {directory}")

    def write(self, path: str, text: str, real: Callable[[str], str]) -> None:
        directory, name = os.path.split(path)
        self._need(directory, f"write {text!r} to", path)
        self.lines.append(f"write {text} > {path}")
        if name == "cgroup.procs":
            self._moved[text] = path
        elif name == "cgroup.subtree_control":
            self._texts[path] = _toggled(self.read(path, real), text)
        else:
            self._texts[path] = text

    def remove(self, directory: str) -> bool:
        """Only a start that fails gets here, to clear away what it has made."""
        was_there = self.exists(directory)
        self._made.discard(directory)
        self._removed.add(directory)
        self.lines.append(f"rmdir {directory}")
        return was_there

    def _need(self, directory: str, operation: str, path: str) -> None:
        if not self.exists(directory):
            raise KernelError(operation, path, errno.ENOENT)

    def read(self, path: str, real: Callable[[str], str]) -> str:
        """What was written, else what a fresh cgroup has, else `real(path)`."""
        directory, name = os.path.split(path)
        if path in self._texts:
            return self._texts[path]
        if name == "cpuset.cpus.effective" and f"{directory}/cpuset.cpus" in self._texts:
            return self._texts[f"{directory}/cpuset.cpus"]
        text = _FRESH[name] if directory in self._made and name in _FRESH else real(path)
        return self._members(path, text) if name == "cgroup.procs" else text

    def _members(self, path: str, text: str) -> str:
        stayed = [pid for pid in text.split() if self._moved.get(pid, path) == path]
        came = [pid for pid, where in self._moved.items() if where == path]
        return "\n".join(dict.fromkeys([*stayed, *came]))


def _toggled(enabled: str, words: str) -> str:
    """cgroup.subtree_control after "+memory -io" was written to it."""
    after = dict.fromkeys(enabled.split())
    for word in words.split():
        if word[0] == "+":
            after[word[1:]] = None
        else:
            after.pop(word[1:], None)
    return " ".join(after)
