"""Being asked before a file is read: whoever waits can be killed, and is let go with the group."""

from __future__ import annotations

import errno
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.linux import readgate
from tests.support.batch import PATIENCE
from tests.support.command import ROOT

pytestmark = [pytest.mark.kernel, pytest.mark.qemu]  # User-Mode Linux is built without it


@pytest.fixture
def group() -> Iterator[int]:
    found = readgate.open_group()
    yield found
    os.close(found)


@pytest.fixture
def guarded(group: int, tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A guarded file with "old" in it, and a descriptor to write it by."""
    path = tmp_path / "file"
    path.write_text("old")
    fd = os.open(path, os.O_WRONLY)
    try:
        readgate.guard(group, fd)
        yield path, fd
    finally:
        os.close(fd)


def reader(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(["cat", path], stdout=subprocess.PIPE, text=True)


def asked(group: int) -> int:
    """The first who waits."""
    assert select.select([group], [], [], PATIENCE)[0], "nobody has come"
    fds = readgate.waiting(group)
    assert len(fds) == 1
    return fds[0]


Guarded = tuple[Path, int]


def test_who_reads_sees_what_was_written_while_he_waited(group: int, guarded: Guarded) -> None:
    path, fd = guarded
    with reader(path) as process:
        first = asked(group)
        assert os.path.samestat(os.fstat(first), os.fstat(fd))
        os.pwrite(fd, b"new", 0)
        readgate.allow(group, first)
        readgate.allow(group, asked(group))  # for the end of the file
        assert process.communicate(timeout=PATIENCE)[0] == "new"


def test_who_waits_can_be_killed(group: int, guarded: Guarded) -> None:
    with reader(guarded[0]) as process:
        fd = asked(group)
        process.kill()
        assert process.wait(PATIENCE) == -signal.SIGKILL
        readgate.allow(group, fd)


def test_who_waits_goes_on_when_nobody_is_there_to_answer(group: int, guarded: Guarded) -> None:
    with reader(guarded[0]) as process:
        assert select.select([group], [], [], PATIENCE)[0]
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, group)  # which closes the last descriptor of it
        os.close(null)
        assert process.communicate(timeout=PATIENCE)[0] == "old"


def test_what_is_ignored_is_read_at_once_and_heeded_again(group: int, guarded: Guarded) -> None:
    """Also by somebody who opened it meanwhile."""
    path, fd = guarded
    readgate.ignore(group, fd)
    with open(path) as early:  # noqa: PTH123
        assert early.read() == "old" and readgate.waiting(group) == []
        os.pwrite(fd, b"new", 0)
        assert path.read_text() == "new", "a change does not end it"
        readgate.heed(group, fd)
        with subprocess.Popen(["cat"], stdin=early, stdout=subprocess.PIPE) as process:
            readgate.allow(group, asked(group))
            assert process.communicate(timeout=PATIENCE)[0] == b""
    assert readgate.waiting(group) == []


def test_it_takes_a_privilege() -> None:
    code = (
        "from supervisor.linux import readgate\n"
        "try: readgate.open_group()\n"
        "except OSError as error: print(error.errno)"
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set=-sys_admin", sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.strip() == str(errno.EPERM), done.stderr
