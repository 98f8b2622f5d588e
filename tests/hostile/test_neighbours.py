# ruff: noqa: PTH123 - what runs in a job imports little
"""Two jobs at once, and what stands on the host: neither sees nor reaches the other's.

`alice` puts a thing of every kind where she can and finds it again; `bob` looks for it, and for the
same of the host's, while they are there.  They meet by files in a directory that both were given.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.linux import netlink, proc
from tests.support.command import State, Supervise
from tests.support.containers import Ended, background, next_line, own_state, python, run_jobs

pytestmark = pytest.mark.kernel

KEY = 0x5E1F
NAME = "sv-hostile"


def meet(role, key, name, host_pid, secret):
    """Make things (alice), or not (bob); look for the other's and the host's; what was found."""
    import ctypes
    import os
    import signal
    import socket
    import time

    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p

    def found(function, *arguments):
        try:
            value = function(*arguments)
        except OSError:
            return False
        return value != -1 and value is not False

    def connect(kind, address):
        with socket.socket(kind, socket.SOCK_STREAM) as one:
            one.settimeout(2)
            one.connect(address)

    def wait_for(path):
        for _ in range(3000):
            if os.path.exists(path):
                return
            time.sleep(0.01)

    def pids(signal_number):
        reached = []
        for pid in [*range(3, 400), host_pid, os.getppid() or 1]:
            try:
                os.kill(pid, signal_number)
            except OSError:
                continue
            reached.append(pid)
        return sorted(set(reached) - {1, 2, os.getpid()})

    class Attr(ctypes.Structure):
        _fields_ = [("v", ctypes.c_long * 8)]

    keep = []
    made = f"{name}-{role}"
    if role == "alice":
        abstract = socket.socket(socket.AF_UNIX)
        abstract.bind("\0" + made)
        abstract.listen()
        port = socket.socket(socket.AF_INET)
        port.bind(("127.0.0.1", 5999))
        port.listen()
        keep += [abstract, port]
        for place in ("/dev/shm", "/tmp", "/run"):
            open(f"{place}/{made}", "w").close()
        libc.shmget(key, 4096, 0o1666)
        libc.semget(key, 1, 0o1666)
        libc.msgget(key, 0o1666)
        libc.mq_open(b"/" + made.encode(), os.O_CREAT | os.O_RDWR, 0o600, None)
        open("/meet/ready", "w").close()
    else:
        wait_for("/meet/ready")
    target = f"{name}-alice"
    result = {}
    for whose, label in (("job", target), ("host", f"{name}-host")):
        result[whose] = {
            "abstract socket": found(connect, socket.AF_UNIX, "\0" + label),
            "shm": found(os.stat, f"/dev/shm/{label}"),
            "tmp": found(os.stat, f"/tmp/{label}"),
            "message queue": found(libc.mq_open, b"/" + label.encode(), os.O_RDONLY),
        }
    for offset, whose in ((0, "job"), (1, "host")):
        result[whose] |= {
            "sysv shm": found(libc.shmget, key + offset, 0, 0),
            "sysv semaphore": found(libc.semget, key + offset, 0, 0),
            "sysv queue": found(libc.msgget, key + offset, 0),
        }
    result["job"]["port"] = found(connect, socket.AF_INET, ("127.0.0.1", 5999))
    result["host"]["port"] = found(connect, socket.AF_INET, ("127.0.0.1", secret["port"]))
    result["host"]["interfaces"] = [n for _, n in socket.if_nameindex() if n != "lo"] != []
    with open("/proc/net/route") as file:
        result["host"]["routes"] = len(file.readlines()) > 1
    with open("/proc/net/unix") as file:
        result["host"]["sockets' names"] = f"{name}-host" in file.read()
    result["job"]["processes"] = [
        p for p in os.listdir("/proc") if p.isdigit() and p not in ("1", "2")
    ] != []
    result["host"]["signals"] = bool(pids(0))
    result["host"]["environment"] = os.environ.get("SECRET") is not None
    if role == "bob":
        try:
            os.kill(-1, signal.SIGTERM)
        except OSError:
            pass
        open("/meet/done", "w").close()
    else:
        wait_for("/meet/done")
    return result


class Host:
    """The same things on the host, as long as they are wanted."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        label = f"{NAME}-host"
        self.abstract = socket.socket(socket.AF_UNIX)
        self.abstract.bind("\0" + label)
        self.abstract.listen()
        self.port = socket.create_server(("127.0.0.1", 0))
        self.files = [Path(place) / label for place in ("/dev/shm", "/tmp")]
        for file in self.files:
            file.touch()
        self.shm = self._libc.shmget(KEY + 1, 4096, 0o1600)
        self.sem = self._libc.semget(KEY + 1, 1, 0o1600)
        self.msg = self._libc.msgget(KEY + 1, 0o1600)
        self.queue = self._libc.mq_open(b"/" + label.encode(), os.O_CREAT | os.O_RDWR, 0o600, None)

    def has(self) -> dict[str, bool]:
        """What can be found here: the control."""
        return {
            "files": all(file.exists() for file in self.files),
            "sysv": min(self.shm, self.sem, self.msg) >= 0,
            "message queue": self.queue >= 0,
            "sockets' names": f"{NAME}-host" in Path("/proc/net/unix").read_text(),
        }

    def remove(self) -> None:
        self.abstract.close()
        self.port.close()
        for file in self.files:
            file.unlink()
        self._libc.shmctl(self.shm, 0, None)
        self._libc.semctl(self.sem, 0, 0)
        self._libc.msgctl(self.msg, 0, None)
        os.close(self.queue)
        self._libc.mq_unlink(b"/" + f"{NAME}-host".encode())


@pytest.fixture(scope="module")
def here() -> Iterator[Host]:
    made = Host()
    try:
        yield made
    finally:
        made.remove()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory, here: Host) -> Iterator[dict[str, Ended]]:
    base = tmp_path_factory.mktemp("neighbours")
    (base / "meet").mkdir()
    secret = {"port": here.port.getsockname()[1]}
    jobs: dict[str, dict[str, Any]] = {
        role: {
            "command": python(meet, role, KEY, NAME, os.getpid(), secret),
            "mounts": [f"{base}/meet:/meet"],
            "timeout": "60s",
        }
        for role in ("alice", "bob")
    }
    with own_state(base) as where:
        yield run_jobs(where, jobs, environment={"SECRET": "of the supervisor"})


KINDS = ("abstract socket", "shm", "tmp", "message queue", "sysv shm", "sysv semaphore",
         "sysv queue", "port")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_another_job_has_made(jobs: dict[str, Ended], kind: str):
    assert jobs["alice"].told["job"][kind]  # who made it finds it
    assert not jobs["bob"].told["job"][kind]


@pytest.mark.parametrize(
    "kind", [*KINDS, "interfaces", "routes", "sockets' names", "signals", "environment"]
)
def test_what_is_the_hosts(jobs: dict[str, Ended], here: Host, kind: str):
    for role in ("alice", "bob"):
        assert not jobs[role].told["host"][kind], role
    assert set(here.has().values()) == {True}
    assert len(netlink.links()) >= 1


def test_no_process_of_another_is_seen_or_ended(jobs: dict[str, Ended]):
    for role in ("alice", "bob"):
        assert not jobs[role].told["job"]["processes"]
        assert jobs[role].reason == "succeeded"


def mounts_made_inside():
    """With the walls down: mounts a tmpfs on what both see, tells, and waits for the test."""
    import ctypes
    import time

    libc = ctypes.CDLL(None, use_errno=True)
    print(libc.mount(b"none", b"/meet/inside", b"tmpfs", 0, None), flush=True)
    open("/meet/inside/file", "w").close()
    open("/meet/mounted", "w").close()
    for _ in range(1000):
        try:
            open("/meet/go").close()
        except OSError:
            time.sleep(0.01)
        else:
            return 0
    return 1


def test_a_mount_made_in_a_job_reaches_nobody(tmp_state: State, tmp_path: Path):
    """Not even one that a job with CAP_SYS_ADMIN makes in a directory of the host's."""
    place = tmp_path / "meet"
    (place / "inside").mkdir(parents=True)
    flags = ["--cap-add", "SYS_ADMIN", "--mount", f"{place}:/meet"]
    command = ["run", *flags, "--", *python(mounts_made_inside)]
    with background(Supervise(tmp_state), *command) as process:
        assert next_line(process) == "0"
        try:
            assert not (place / "inside/file").exists()
            assert [m for m in proc.mountinfo() if m.mount_point.startswith(str(place))] == []
        finally:
            (place / "go").touch()
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert list((place / "inside").iterdir()) == []
