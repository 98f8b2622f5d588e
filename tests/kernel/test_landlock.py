"""Landlock as a second wall, where the kernel has it: what holds when a mount does not."""

from __future__ import annotations

import errno
import json
import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.linux import landlock
from tests.support import doctor
from tests.support.command import State, Supervise
from tests.support.containers import Ended, python, run_jobs

VERSION = landlock.version()

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.qemu,
    pytest.mark.skipif(VERSION < landlock.REFER_SINCE, reason="this kernel has no Landlock"),
]
scopes = pytest.mark.skipif(VERSION < landlock.SCOPES_SINCE, reason="no scopes before Linux 6.12")

Run = Callable[..., Ended]


@pytest.fixture
def look(tmp_state: State) -> Run:
    """Run a function inside one job and say how it ended."""

    def run(function: Callable[..., object], *arguments: Any, **settings: Any) -> Ended:
        job = {"command": python(function, *arguments), "timeout": "60s", **settings}
        return run_jobs(tmp_state, {"one": job})["one"]

    return run


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """One on the disk that anybody may write to."""
    made = Path(tempfile.mkdtemp(prefix="sv-land-", dir="/var/tmp"))
    made.chmod(0o777)
    (made / "old").write_text("old")
    (made / "old").chmod(0o666)
    yield made
    shutil.rmtree(made)


def write_all(places: list[str]) -> dict[str, list[int]]:
    """The errno of each way to change something in each directory, 0 where it goes."""
    import os

    def make(path: str) -> None:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))

    def tried(way: object, *arguments: object) -> int:
        try:
            way(*arguments)  # type: ignore[operator]
        except OSError as error:
            return error.errno or 0
        return 0

    found = {}
    for place in places:
        found[place] = [
            tried(make, f"{place}/new"), tried(os.mkdir, f"{place}/deep"),
            tried(make, f"{place}/deep/new"),
            tried(os.rename, f"{place}/new", f"{place}/deep/renamed"),
            tried(os.link, f"{place}/deep/new", f"{place}/link"),
            tried(os.truncate, f"{place}/deep/new", 5), tried(os.symlink, "x", f"{place}/s"),
            tried(os.mkfifo, f"{place}/fifo"), tried(os.unlink, f"{place}/link"),
        ]  # fmt: skip
    return found


def test_what_a_job_may_write_to_it_writes_to(look: Run, open_directory: Path) -> None:
    places = ["/tmp", "/run", "/dev/shm", "/data", "/scratch"]
    told = look(write_all, places, mounts=[f"{open_directory}:/data"], tmpfs=["/scratch"]).told
    assert told == {place: [0] * 9 for place in places}


def through_a_hole(directory: str) -> list[int]:
    """What a job can do to the host by a read-only mount that has become writable."""
    import ctypes
    import os

    mount = ctypes.CDLL(None, use_errno=True).mount
    done = mount(None, directory.encode(), None, 0x1020, None)  # MS_REMOUNT | MS_BIND
    found = [ctypes.get_errno() if done < 0 else 0]
    for way in (
        lambda: os.close(os.open(f"{directory}/old", os.O_WRONLY)),
        lambda: os.close(os.open(f"{directory}/new", os.O_WRONLY | os.O_CREAT)),
        lambda: os.unlink(f"{directory}/old"),
        lambda: os.truncate(f"{directory}/old", 0),
        lambda: os.rename(f"{directory}/old", f"{directory}/other"),
    ):
        try:
            way()
            found.append(0)
        except OSError as error:
            found.append(error.errno or 0)
    return found


def test_a_root_that_became_writable_is_not_written_to(look: Run, open_directory: Path) -> None:
    """CAP_SYS_ADMIN could remount it, if Landlock let anybody mount."""
    hole = {
        "mounts": [f"{open_directory}:/data:ro"], "capabilities": {"add": ["SYS_ADMIN"]},
    }  # fmt: skip
    assert look(through_a_hole, "/data", **hole, landlock="off").told[:3] == [0, 0, 0]
    (open_directory / "old").write_text("old")
    if VERSION < landlock.SCOPES_SINCE:
        return
    told = look(through_a_hole, "/data", **hole, landlock="require").told
    assert told[0] == errno.EPERM and 0 not in told
    assert (open_directory / "old").read_text() == "old"


@pytest.fixture
def handed(open_directory: Path) -> Iterator[Path]:
    """A socket of the host's that hands an open directory to whoever connects, once."""
    with (
        tempfile.TemporaryDirectory(prefix="sv-sock-", dir="/var/tmp") as where,
        socket.socket(socket.AF_UNIX) as listener,
    ):
        listener.bind(f"{where}/socket")
        listener.listen()
        listener.settimeout(60)

        def serve() -> None:
            client, _ = listener.accept()
            directory = os.open(open_directory, os.O_RDONLY | os.O_DIRECTORY)
            with client:
                socket.send_fds(client, [b"."], [directory])
            os.close(directory)

        thread = threading.Thread(target=serve)
        thread.start()
        yield Path(where)
        thread.join()


def receive_and_write() -> list[Any]:
    """Take the descriptor, read by it, and write: what was read, the errno of writing."""
    import os
    import socket

    with socket.socket(socket.AF_UNIX) as one:
        one.connect("/service/socket")
        _, (directory,), _, _ = socket.recv_fds(one, 1, 1)
    with open(os.open("old", os.O_RDONLY, dir_fd=directory)) as file:  # noqa: PTH123
        read = file.read()
    try:
        os.close(os.open("new", os.O_WRONLY | os.O_CREAT, dir_fd=directory))
    except OSError as error:
        return [read, error.errno]
    return [read, 0]


@pytest.mark.parametrize(("setting", "told"), [("auto", errno.EACCES), ("off", 0)])
def test_a_directory_of_the_host_in_its_hands_is_not_written_to(
    look: Run, handed: Path, setting: str, told: int
) -> None:
    """Whoever handed it over: a service, or a mistake of ours (CVE-2024-21626)."""
    ended = look(receive_and_write, landlock=setting, mounts=[f"{handed}:/service:ro"])
    assert ended.told == ["old", told]


def again() -> str:
    """Streams are often opened again by their names."""
    import os

    for name in ("/dev/stdout", "/dev/stderr", "/proc/self/fd/1"):
        fd = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"")
        os.close(fd)
    return "opened"


def test_the_streams_can_be_opened_again(look: Run) -> None:
    assert look(again).told == "opened"
    assert look(again, limits={"output": "1M"}).told == "opened"


def test_a_user_writes_where_root_could_not_look(look: Run, open_directory: Path) -> None:
    told = look(
        write_all, ["/data", "/tmp"], mounts=[f"{open_directory}:/data"], user="nobody"
    ).told  # fmt: skip
    assert told == {"/data": [0] * 9, "/tmp": [0] * 9}


@pytest.fixture
def abstract() -> Iterator[str]:
    """The name of an abstract socket of the host's, with somebody listening."""
    name = f"supervise-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        yield name


def connect(name: str) -> list[int]:
    """The errno of reaching an abstract socket of somebody else's, and one of its own."""
    import socket

    found = []
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(f"\0{name}-own")
        own.listen()
        for wanted in (name, f"{name}-own"):
            with socket.socket(socket.AF_UNIX) as one:
                found.append(one.connect_ex(f"\0{wanted}"))
    return found


@scopes
@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"network": "host"}, [errno.EPERM, 0]),
        ({"network": "host", "write": "overlay"}, [errno.EPERM, 0]),
        ({"network": "host", "seccomp": "unconfined"}, [errno.EPERM, 0]),
        ({"network": "host", "landlock": "off"}, [0, 0]),
        ({"network": "none", "landlock": "off"}, [errno.ECONNREFUSED, 0]),
    ],
)
def test_abstract_sockets_of_the_host(
    look: Run, abstract: str, settings: dict[str, Any], told: list[int]
) -> None:
    assert look(connect, abstract, **settings).told == told


def test_the_record_of_what_was_required_and_lacks(supervise: Supervise) -> None:
    if VERSION >= landlock.SCOPES_SINCE:
        assert supervise("run", "--landlock", "require", "--", "true").status == 0
        return
    done = supervise("run", "--landlock", "require", "--record", "-", "--", "true")
    assert json.loads(done.stdout)["reason"] == "start_failed"


def test_the_doctor_tries_it(supervise: Supervise) -> None:
    found = doctor.row(supervise("doctor", "--json").stdout, "Landlock")
    assert f"version {VERSION}: a write that was given up was refused" in found["detail"]
