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

from supervisor.errors import KernelError
from supervisor.linux import readgate
from tests.support.batch import PATIENCE
from tests.support.command import ROOT

pytestmark = pytest.mark.kernel


@pytest.fixture
def group() -> Iterator[int]:
    try:
        found = readgate.open_group()
    except KernelError as error:
        pytest.skip(f"the kernel asks nobody: {error}")
    yield found
    os.close(found)


@pytest.fixture
def guarded(group: int, tmp_path: Path) -> Iterator[Path]:
    """A file in a directory that is guarded, "old" in it."""
    (tmp_path / "file").write_text("old")
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        readgate.guard(group, directory)
        yield tmp_path / "file"
    finally:
        os.close(directory)


def reader(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(["cat", path], stdout=subprocess.PIPE, text=True)


def asked(group: int) -> int:
    """The first who waits."""
    assert select.select([group], [], [], PATIENCE)[0], "nobody has come"
    fds = readgate.waiting(group)
    assert len(fds) == 1
    return fds[0]


def test_who_reads_sees_what_was_written_while_he_waited(group: int, guarded: Path) -> None:
    fd = os.open(guarded, os.O_WRONLY)
    with reader(guarded) as process:
        first = asked(group)
        assert os.path.samestat(os.fstat(first), os.fstat(fd))
        os.pwrite(fd, b"new", 0)
        readgate.allow(group, first)
        readgate.allow(group, asked(group))  # for the end of the file
        assert process.communicate(timeout=PATIENCE)[0] == "new"
    os.close(fd)


def test_who_waits_can_be_killed(group: int, guarded: Path) -> None:
    with reader(guarded) as process:
        fd = asked(group)
        process.kill()
        assert process.wait(PATIENCE) == -signal.SIGKILL
        readgate.allow(group, fd)


def test_who_waits_goes_on_when_nobody_is_there_to_answer(guarded: Path, group: int) -> None:
    again = os.dup(group)
    with reader(guarded) as process:
        assert select.select([again], [], [], PATIENCE)[0]
        os.close(again)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, group)  # the last descriptor of it
        os.close(null)
        assert process.communicate(timeout=PATIENCE)[0] == "old"


def test_nobody_is_asked_about_who_is_no_longer_guarded(group: int, guarded: Path) -> None:
    directory = os.open(guarded.parent, os.O_RDONLY)
    readgate.unguard(group, directory)
    assert guarded.read_text() == "old"
    assert readgate.waiting(group) == []
    with pytest.raises(KernelError):
        readgate.unguard(group, directory)
    os.close(directory)


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
