"""A cgroup of the test session's own in every hierarchy, and processes started inside of runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count

import pytest

from supervisor.cgroup import delegate, detect, files
from supervisor.cgroup.api import JobCgroup
from supervisor.cgroup.manager import Manager
from supervisor.cgroup.v1 import Cpuset

_NUMBERS = count()
_JOIN = 'while [ "$1" != -- ]; do echo 0 > "$1" || exit 99; shift; done; shift; exec "$@"'


@contextmanager
def session_parent() -> Iterator[str]:
    """Make NAME below our own cgroup in every hierarchy; what `detect` takes as `parent`.

    On v2 the test process steps down into a leaf first, and back at the end.
    """
    name = f"supervise-test.{os.getpid()}.{next(_NUMBERS)}"
    found = detect.find(None)
    steps: list[delegate.Step] = []
    made: list[str] = []
    parent = name
    for hierarchy in found.hierarchies:
        if hierarchy.place and hierarchy.controllers:
            parent = f"{hierarchy.path}/{name}"  # one path, for all hierarchies
            steps.append(delegate.Step(hierarchy.place, f"{name}.self", "/proc"))
    try:
        for hierarchy in found.hierarchies:
            directory = f"{hierarchy.base}/{name}"
            if hierarchy.place and hierarchy.controllers:
                steps[0].enable(hierarchy.controllers)
            elif steps:
                directory = hierarchy.mount + parent
            files.make(directory)
            made.append(directory)
            if "cpuset" in hierarchy.controllers and not hierarchy.unified:
                Cpuset.inherit(directory)
        yield parent
    finally:
        for directory in made:
            for below in files.tree(directory):
                files.remove(below)
        for step in steps:
            step.undo()


@contextmanager
def managed(instance: str, parent: str) -> Iterator[Manager]:
    """The manager of an instance below `parent`; whatever it holds is removed at the end."""
    one = Manager(instance, detect.find(parent))
    try:
        yield one
    finally:
        one.remove_leftovers()
        for name in list(one._mine):
            one.tree(name).remove()
        one.close()


@contextmanager
def limited_parent(memory: int) -> Iterator[str]:
    """A cgroup with `memory` bytes for all that is below, as `cgroup_parent` takes it."""
    found = detect.find(None).hierarchies
    if all(hierarchy.unified for hierarchy in found):
        with session_parent() as parent:
            for hierarchy in found:
                directory = f"{hierarchy.base}/{parent.rpartition('/')[2]}"
                _limit(directory, {"memory.max": memory, "memory.swap.max": 0})
            yield parent
        return
    name = f"supervise-test.{os.getpid()}.{next(_NUMBERS)}"
    made: list[str] = []
    try:
        for hierarchy in found:
            directory = f"{hierarchy.mount}/{name}"
            files.make(directory)
            made.append(directory)
            if "cpuset" in hierarchy.controllers:
                Cpuset.inherit(directory)
            if "memory" in hierarchy.controllers:
                both = {f"memory.{kind}limit_in_bytes": memory for kind in ("", "memsw.")}
                _limit(directory, both)
        yield f"/{name}"
    finally:
        for directory in made:
            files.remove(directory)


def _limit(directory: str, limits: Mapping[str, int]) -> None:
    """Write those limits that this kernel has: not every one counts swap."""
    for name, value in limits.items():
        if files.exists(f"{directory}/{name}"):
            files.write(f"{directory}/{name}", str(value))


def start(
    job: JobCgroup, *command: str, init: bool = False, stdin: int | None = subprocess.DEVNULL
) -> subprocess.Popen[str]:
    """Run `command` in the payload's cgroup (or the init's); it joins before it is executed."""
    entry = job.entry
    into = list(entry.init_files if init else entry.payload_files)
    unified = entry.init_dir if init else entry.payload_dir
    if unified:
        into.append(f"{unified}/cgroup.procs")
    return subprocess.Popen(
        ["/bin/sh", "-c", _JOIN, "sh", *into, "--", *command],
        stdin=stdin, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def python(job: JobCgroup, code: str, **options: int | None) -> subprocess.Popen[str]:
    """Run Python code in the payload's cgroup."""
    return start(job, sys.executable, "-I", "-S", "-c", code, **options)  # type: ignore[arg-type]


def line(process: subprocess.Popen[str]) -> str:
    """The next line a process prints: how it tells that it is where the test wants it."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> int:
    """Wait for the process and close its streams; its status."""
    for stream in (process.stdin, process.stdout):
        if stream:
            stream.close()
    return process.wait(timeout=30)


@contextmanager
def noted() -> Iterator[list[str]]:
    """Every mkdir and write that is really done meanwhile, told as `rehearse` tells them."""
    lines: list[str] = []
    make, write = files.make, files.write

    def noting_make(directory: str, *, hint: str = "") -> None:
        make(directory, hint=hint)
        lines.append(f"mkdir {directory}")

    def noting_write(path: str, text: str, *, hint: str = "") -> None:
        write(path, text, hint=hint)
        lines.append(f"write {text} > {path}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "make", noting_make)
        patch.setattr(files, "write", noting_write)
        yield lines
