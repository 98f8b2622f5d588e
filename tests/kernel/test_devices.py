"""Which devices a job may use: none but its own, whatever nodes it makes, finds or uncovers."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import doctor
from tests.support.command import State, Supervise
from tests.support.containers import Ended, python, run_jobs

pytestmark = pytest.mark.kernel

Run = Callable[..., Ended]
KMSG = "/dev/kmsg"


@pytest.fixture
def look(tmp_state: State) -> Run:
    """Run a function inside one job and say how it ended."""

    def run(function: Callable[..., object], *arguments: Any, **settings: Any) -> Ended:
        job = {"command": python(function, *arguments), "timeout": "30s", **settings}
        return run_jobs(tmp_state, {"one": job})["one"]

    return run


def disk() -> tuple[int, int]:
    """The block device of /, or one that any host might have where that has none (overlayfs)."""
    device = os.stat("/").st_dev
    return (os.major(device), os.minor(device)) if os.major(device) else (8, 0)


FORBIDDEN = {
    "disk": ("b", *disk()),
    "mem": ("c", 1, 1),
    "kmsg": ("c", 1, 11),
    "console": ("c", 5, 1),
}
HARMLESS = {"null": ("c", 1, 3)}


@pytest.fixture
def nodes() -> Iterator[Path]:
    """A directory of the host's with nodes of all kinds, which anybody may read and write."""
    made = Path(tempfile.mkdtemp(prefix="sv-nodes-", dir="/var/tmp"))
    made.chmod(0o755)
    for name, (kind, major, minor) in (FORBIDDEN | HARMLESS).items():
        mode = stat.S_IFBLK if kind == "b" else stat.S_IFCHR
        os.mknod(made / name, mode | 0o666, os.makedev(major, minor))
        (made / name).chmod(0o666)
    yield made
    shutil.rmtree(made)


def use(paths: list[str], remount: str = "") -> dict[str, int]:
    """The errno of opening each path to write, 0 where it goes; after a remount as `dev`."""
    import ctypes
    import os

    if remount:
        mount = ctypes.CDLL(None, use_errno=True).mount
        if mount(None, remount.encode(), None, 0x1020, None) < 0:  # MS_REMOUNT | MS_BIND
            raise OSError(ctypes.get_errno(), "remount")
    found = {}
    for path in paths:
        try:
            os.close(os.open(path, os.O_WRONLY))
            found[path.rpartition("/")[2]] = 0
        except OSError as error:
            found[path.rpartition("/")[2]] = error.errno
    return found


def test_nodes_in_a_mount_of_the_host_s_open_nothing(look: Run, nodes: Path) -> None:
    told = look(use, [f"/data/{name}" for name in FORBIDDEN], mounts=[f"{nodes}:/data"]).told
    assert set(told.values()) == {errno.EACCES}  # nodev


def test_whoever_gets_around_nodev_meets_the_cgroup(look: Run, nodes: Path) -> None:
    paths = [f"/data/{name}" for name in (*FORBIDDEN, *HARMLESS)]
    told = look(
        use, paths, "/data",
        mounts=[f"{nodes}:/data"], capabilities={"add": ["SYS_ADMIN", "SYS_RAWIO", "SYSLOG"]},
    ).told  # fmt: skip
    assert told.pop("null") == 0
    assert told == dict.fromkeys(FORBIDDEN, errno.EPERM)


def make(devices: dict[str, list[Any]]) -> dict[str, int]:
    """The errno of making each node, 0 where it goes."""
    import os
    import stat

    found = {}
    for name, (kind, major, minor) in devices.items():
        mode = stat.S_IFBLK if kind == "b" else stat.S_IFCHR
        try:
            os.mknod(f"/tmp/{name}", mode | 0o666, os.makedev(major, minor))
            found[name] = 0
        except OSError as error:
            found[name] = error.errno or 0
    return found


@pytest.mark.parametrize("write", ["read-only", "overlay"])
def test_a_job_with_mknod_makes_the_usual_nodes_alone(look: Run, write: str) -> None:
    told = look(
        make, FORBIDDEN | HARMLESS, capabilities={"add": ["MKNOD"]}, write=write
    ).told  # fmt: skip
    assert told.pop("null") == 0
    assert told == dict.fromkeys(FORBIDDEN, errno.EPERM)


def test_without_mknod_no_node_is_made(look: Run) -> None:
    assert set(look(make, FORBIDDEN | HARMLESS).told.values()) == {errno.EPERM}


def ways(path: str) -> list[int]:
    """The errno of opening a path to read, to write, for both."""
    import os

    found = []
    for mode in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        try:
            os.close(os.open(path, mode))
            found.append(0)
        except OSError as error:
            found.append(error.errno)
    return found


NO = errno.EPERM


@pytest.mark.parametrize(
    ("access", "told"), [("r", [0, NO, NO]), ("w", [NO, 0, NO]), ("rw", [0, 0, 0])]
)
def test_a_granted_device_is_used_as_far_as_granted(
    look: Run, access: str, told: list[int]
) -> None:
    device = {"path": KMSG, "target": "/dev/log-of-the-host", "access": access}
    ended = look(
        ways, device["target"], devices=[device], capabilities={"add": ["SYSLOG"]}
    )  # fmt: skip
    assert ended.told == told


@pytest.mark.parametrize("write", ["read-only", "overlay"])
@pytest.mark.parametrize("target", ["/dev/deep/below/node", "/srv/new/node", "/tmp/node"])
def test_a_device_goes_where_it_is_wanted(look: Run, write: str, target: str) -> None:
    ended = look(ways, target, devices=[f"{KMSG}:{target}:w"], write=write)
    assert ended.told == [NO, 0, NO]


def dev() -> tuple[list[str], int]:
    """What is in /dev, and the errno of making a file there."""
    import os

    try:
        os.close(os.open("/dev/mine", os.O_CREAT | os.O_WRONLY))
        return sorted(os.listdir("/dev")), 0
    except OSError as error:
        return sorted(os.listdir("/dev")), error.errno or 0


def test_the_rest_of_dev_is_as_every_job_s(tmp_state: State) -> None:
    job = {"command": python(dev), "timeout": "30s"}
    found = run_jobs(tmp_state, {"plain": job, "more": job | {"devices": [KMSG]}})
    names, failed = found["plain"].told
    assert found["more"].told == [sorted([*names, "kmsg"]), failed]
    assert failed == errno.EROFS


def test_in_a_user_namespace_too(tmp_state: State, nodes: Path) -> None:
    job = {
        "script": "echo > /dev/null; : > /dev/kmsg; (: < /dev/kmsg) 2> /dev/null || echo refused",
        "devices": [f"{nodes}/kmsg:/dev/kmsg:w"],
        "user_namespace": {"host_id": 200000, "size": 65536},
    }
    ended = run_jobs(tmp_state, {"one": job})["one"]
    assert (ended.reason, ended.out) == ("succeeded", "refused\n"), ended


def test_terminals_and_deletions_work_as_ever(look: Run) -> None:
    """pts is a device too; and an overlay's whiteout is a node of one."""

    def both() -> list[Any]:
        import os

        ours, theirs = os.openpty()
        os.write(theirs, b"hello")
        os.unlink("/etc/hosts")
        return [os.read(ours, 5).decode(), os.ttyname(theirs), os.path.exists("/etc/hosts")]

    assert look(both, write="overlay").told == ["hello", "/dev/pts/0", False]


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("/etc/passwd", "mounts: /etc/passwd: is no device"),
        ("/etc", "mounts: /etc: is no device"),
        ("/dev/no-such", "mounts: /dev/no-such: No such file or directory"),
    ],
)
def test_what_is_no_device_starts_nothing(supervise: Supervise, device: str, said: str) -> None:
    done = supervise("run", "--device", device, "--", "echo", "started")
    assert (done.status, done.stdout) == (125, "")
    assert said in done.stderr


def test_a_device_is_granted_by_devices_not_by_mounts(supervise: Supervise) -> None:
    done = supervise("run", "--mount", f"{KMSG}:/tmp/kmsg", "--", "echo", "started")
    assert (done.status, done.stdout) == (125, "")
    assert f'{KMSG}: is a device (devices = ["{KMSG}"] grants one)' in done.stderr


def test_the_doctor_tries_it(supervise: Supervise) -> None:
    found = doctor.row(supervise("doctor", "--json").stdout, "devices")
    assert (found["verdict"], found["detail"]) == ("enforced", "/dev/zero was refused")
