"""The one user of pyinotify: what the library does on its own account must not happen."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.errors import KernelError
from supervisor.linux.inotify import Inotify

IN_IGNORED = 0x8000
IN_Q_OVERFLOW = 0x4000


@pytest.fixture
def inotify() -> Iterator[Inotify]:
    one = Inotify()
    yield one
    one.close()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "memory.events"
    path.touch()
    return path


def test_the_descriptor_neither_blocks_nor_is_inherited(inotify: Inotify) -> None:
    assert not os.get_inheritable(inotify.fileno())
    assert fcntl.fcntl(inotify.fileno(), fcntl.F_GETFL) & os.O_NONBLOCK
    assert inotify.read() == (set(), False)


def test_a_change_names_its_watch_once(inotify: Inotify, file: Path, tmp_path: Path) -> None:
    other = tmp_path / "ümläut"
    other.touch()
    first, second = inotify.add(str(file)), inotify.add(str(other))
    assert inotify.add(str(file)) == first != second
    for _ in range(3):
        file.write_text("x")
    assert inotify.read() == ({first}, False)
    other.write_text("y")
    assert inotify.read() == ({second}, False)
    assert inotify.read() == (set(), False)


def test_a_missing_file_is_named(inotify: Inotify, tmp_path: Path) -> None:
    path = str(tmp_path / "gone")
    with pytest.raises(KernelError, match=r"inotify_add_watch .*gone") as caught:
        inotify.add(path)
    assert caught.value.errno == errno.ENOENT


def test_removing_is_silent_even_of_what_the_kernel_ended(
    inotify: Inotify, file: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ended = inotify.add(str(file))
    file.write_text("x")
    file.unlink()
    inotify.remove(ended)
    inotify.remove(ended)
    inotify.remove(12345)
    assert inotify.read() == (set(), False)
    logging.getLogger("pyinotify").error("not to be seen")
    assert capfd.readouterr() == ("", "")


def test_an_overflow_is_told(inotify: Inotify, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wd = inotify.add(str(file))
    file.write_text("x")
    real = os.read

    def read(fd: int, size: int) -> bytes:
        # the queue's length is a setting of the whole machine: the last event is played
        data = real(fd, size)
        return (
            data[:-16] + struct.pack("iIII", -1, IN_Q_OVERFLOW, 0, 0) if fd == inotify_fd else data
        )

    inotify_fd = inotify.fileno()
    file.write_text("y")
    monkeypatch.setattr(os, "read", read)
    found, overflow = inotify.read()
    assert overflow
    assert found <= {wd}


def test_closing_twice_is_as_good_as_once() -> None:
    one = Inotify()
    fd = one.fileno()
    one.close()
    one.close()
    assert one.fileno() == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_too_many_instances_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervisor.linux.inotify._libc.inotify_init1", lambda flags: -1)
    monkeypatch.setattr("ctypes.get_errno", lambda: errno.EMFILE)
    with pytest.raises(KernelError, match=r"inotify_init.*max_user_instances"):
        Inotify()


def test_no_watch_to_be_had_names_the_file_and_what_to_do(
    inotify: Inotify, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("supervisor.linux.inotify._libc.inotify_add_watch", lambda *_: -1)
    monkeypatch.setattr("ctypes.get_errno", lambda: errno.ENOSPC)
    with pytest.raises(KernelError, match=r"inotify_add_watch.*max_user_watches") as caught:
        inotify.add(str(file))
    assert caught.value.path == str(file)


def test_importing_it_warns_not_and_starts_no_process() -> None:
    code = (
        "import sys, warnings\n"
        "warnings.simplefilter('error')\n"
        "sys.addaudithook(lambda event, _: event in FORBIDDEN and sys.exit(event))\n"
        "FORBIDDEN = {'subprocess.Popen', 'os.posix_spawn', 'os.fork', 'os.system'}\n"
        "from supervisor.linux.inotify import Inotify\n"
        "Inotify().close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
