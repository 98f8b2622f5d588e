"""Processes that append numbered lines to one file, and the check that no line is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from supervisor.container import disk
from tests.support import host

SLOWER = 8 if host.in_guest() else 1
"""By what the number of lines is divided where each takes so much longer."""

WRITE = """
import os, sys
name, count = sys.argv[1], int(sys.argv[2])
for number in range(0, count, 10):
    os.write(1, b"".join(b"%s %d\\n" % (name.encode(), n) for n in range(number, number + 10)))
"""
"""Ten lines a write(2), as fast as it can."""


@contextmanager
def writers(target: int, count: int, *names: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """One process for each name, its stdout `target`; each is waited for at the end."""
    found = [
        subprocess.Popen([sys.executable, "-c", WRITE, name, str(count)], stdout=target)
        for name in names
    ]
    try:
        yield found
    finally:
        for one in found:
            one.kill()
            one.wait()


def assert_whole(data: bytes, count: int, *names: str) -> None:
    """Every line of every writer once, in its order."""
    found: dict[str, list[int]] = {name: [] for name in names}
    for line in data.decode().splitlines():
        name, number = line.split(" ")
        found[name].append(int(number))
    for name in names:
        assert found[name] == list(range(count)), f"{name}: {len(found[name])} of {count} lines"


@contextmanager
def file_system(kind: str, options: str = "") -> Iterator[Path]:
    """A new one of this kind, mounted; from an image where the kind is one of disks."""
    with tempfile.TemporaryDirectory(prefix="sv-log-") as directory:
        place = Path(directory) / "mounted"
        place.mkdir()
        source = "none"
        if kind in ("ext4", "xfs"):
            image = Path(directory) / "image"
            with image.open("wb") as file:
                file.truncate(320 << 20)  # the least that mkfs.xfs makes
            program = shutil.which(f"mkfs.{kind}", path=disk.mkfs_path())
            if program is None:
                host.miss("tools", f"needs mkfs.{kind}: apt-get install e2fsprogs xfsprogs")
            subprocess.run([program, "-q", str(image)], check=True)
            source, options = str(image), "loop"
        argv = ["mount", "-t", kind, *(["-o", options] if options else []), source, str(place)]
        mounted = subprocess.run(argv, capture_output=True, text=True, check=False)
        if mounted.returncode:
            pytest.skip(f"this kernel has no {kind}: {mounted.stderr.strip()}")
        try:
            yield place
        finally:
            done = subprocess.run(["umount", place], capture_output=True, check=False)
            if done.returncode:  # a test that failed has left a file of it open
                subprocess.run(["umount", "--lazy", place], check=True)


def append_to(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
