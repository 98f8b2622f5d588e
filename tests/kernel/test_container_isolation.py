# ruff: noqa: PTH123 - what runs in a job imports little
"""What a job sees of the machine and may do to it: namespaces, /dev, /proc, privileges.

One batch runs a job of each kind; each tells what it finds, and the tests compare.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.linux import caps, proc
from tests.support.command import State, Supervise
from tests.support.containers import Ended, after, own_state, python, run_jobs

pytestmark = pytest.mark.kernel

NEW = ("cgroup", "ipc", "mnt", "net", "pid", "uts")
HAS_TIME = Path("/proc/self/ns/time").exists()
KINDS = (*NEW, "user", *(("time",) if HAS_TIME else ()))
OUTSIDE = {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in KINDS}

DEV = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9),
       "tty": (5, 0)}  # fmt: skip
DEV_LINKS = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0",
             "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}  # fmt: skip


def look():
    import os
    import socket

    def text(path):
        with open(path) as file:
            return file.read()

    status = dict(line.split(":\t", 1) for line in text("/proc/self/status").splitlines())
    return {
        "ns": {kind: os.readlink(f"/proc/self/ns/{kind}") for kind in os.listdir("/proc/self/ns")},
        "status": {key: value.strip() for key, value in status.items()},
        "uptime": float(text("/proc/uptime").split()[0]),
        "cgroup": text("/proc/self/cgroup").splitlines(),
        "pids": sorted(int(name) for name in os.listdir("/proc") if name.isdigit()),
        "init": text("/proc/1/comm").strip(),
        "ids": [os.getresuid(), os.getresgid(), os.getgroups()],
        "uid_map": text("/proc/self/uid_map").split(),
        "hostname": socket.gethostname(),
        "interfaces": [name for _, name in socket.if_nameindex()],
        "routes": text("/proc/net/route").splitlines()[1:],
        "up": int(text("/sys/class/net/lo/flags"), 16) & 1,
        "environment": dict(os.environ),
        "cwd": os.getcwd(),
        "session": [os.getpid(), os.getsid(0), os.getpgrp()],
        "umask": os.umask(0),
        "mounts": [line.split(" ")[4:6] for line in text("/proc/self/mountinfo").splitlines()],
    }


def look_at_dev():
    import os
    import stat
    import termios

    def fails(path):
        try:
            with open(path, "wb", buffering=0) as file:
                file.write(b"x")
        except OSError as error:
            return error.errno
        return 0

    nodes, links = {}, {}
    for name in os.listdir("/dev"):
        found = os.lstat(f"/dev/{name}")
        if stat.S_ISLNK(found.st_mode):
            links[name] = os.readlink(f"/dev/{name}")
        elif stat.S_ISCHR(found.st_mode):
            device = [os.major(found.st_rdev), os.minor(found.st_rdev)]
            nodes[name] = [*device, stat.S_IMODE(found.st_mode)]
    with open("/dev/urandom", "rb", buffering=0) as file:
        random = file.read(16)
    with open("/dev/zero", "rb", buffering=0) as file:
        zero = file.read(16)
    ours, theirs = os.openpty()
    os.write(theirs, b"through")
    with open("/dev/shm/mine", "w") as file:
        file.write("x")
    return {
        "nodes": nodes,
        "links": links,
        "others": sorted(set(os.listdir("/dev")) - set(nodes) - set(links)),
        "random": len(set(random)) > 4,
        "zero": zero == bytes(16),
        "full": fails("/dev/full"),
        "null": fails("/dev/null"),
        "tty": fails("/dev/tty"),
        "pty": [os.ttyname(theirs), os.read(ours, 16).decode(), len(termios.tcgetattr(theirs))],
        "pts": sorted(os.listdir("/dev/pts")),
        "new": fails("/dev/new"),
    }


def try_everything():
    """What each attempt to get out or up comes to: an errno, 0 when it was let through."""
    import ctypes
    import os

    libc = ctypes.CDLL(None, use_errno=True)
    found = {}

    def attempt(name, function, *arguments):
        try:
            function(*arguments)
        except OSError as error:
            found[name] = error.errno
        else:
            found[name] = 0

    def call(name, *arguments):
        ctypes.set_errno(0)
        found[name] = ctypes.get_errno() if getattr(libc, name.split()[0])(*arguments) else 0

    def write(path, text):
        with open(path, "w") as file:
            file.write(text)

    remount = ctypes.c_ulong(32 | 4096)
    call("mount tmpfs", b"none", b"/tmp", b"tmpfs", ctypes.c_ulong(0), None)
    call("mount rw", None, b"/", None, remount, None)
    call("mount /proc/sys rw", None, b"/proc/sys", None, remount, None)
    call("mount cgroup", b"none", b"/tmp", b"cgroup2", ctypes.c_ulong(0), None)
    call("umount2 /proc/keys", b"/proc/keys", 2)
    call("umount2 /tmp", b"/tmp", 2)
    call("sethostname", b"mine", 4)
    call("setns", 1, 0)
    call("unshare mnt", 0x00020000)
    call("swapoff", b"/nowhere")
    call("ptrace 1", 16, 1, None, None)
    attempt("mknod", os.mknod, "/tmp/disk", 0o60600, os.makedev(8, 0))
    attempt("mknod char", os.mknod, "/tmp/mem", 0o20600, os.makedev(1, 1))
    attempt("sysctl", write, "/proc/sys/kernel/hostname", "mine")
    attempt("sysctl vm", write, "/proc/sys/vm/overcommit_memory", "1")
    attempt("core_pattern", write, "/proc/sys/kernel/core_pattern", "|/bin/sh")
    if os.path.exists("/proc/sysrq-trigger"):
        attempt("sysrq", write, "/proc/sysrq-trigger", "h")
    attempt("oom_score_adj", write, "/proc/1/oom_score_adj", "-1000")
    attempt("sys", write, "/sys/kernel/uevent_helper", "/bin/sh")
    attempt("priority", os.setpriority, os.PRIO_PROCESS, 0, -5)
    attempt("settime", __import__("time").clock_settime, 0, 0)
    attempt("proc 1 root", os.listdir, "/proc/1/root")
    for fd in os.listdir("/proc/1/fd"):
        attempt(f"proc 1 fd {fd}", os.readlink, f"/proc/1/fd/{fd}")
    attempt("proc 1 mem", open, "/proc/1/mem", "rb")
    attempt("proc 1 cwd", os.readlink, "/proc/1/cwd")
    attempt("proc 1 environ", open, "/proc/1/environ", "rb")
    return found


def hidden():
    import os

    def size(path):
        if os.path.isdir(path):
            return len(os.listdir(path))
        with open(path, "rb") as file:
            return len(file.read(4096))

    paths = ("acpi", "asound", "kcore", "keys", "latency_stats", "sched_debug", "scsi",
             "timer_list", "timer_stats")  # fmt: skip
    names = [f"/proc/{name}" for name in paths] + ["/sys/firmware"]
    return {name: size(name) for name in names if os.path.exists(name)}


USERS = {"self": "self", "map": {"host_id": 300000, "size": 65536}}

JOBS: dict[str, dict[str, Any]] = {
    "plain": {"command": python(look)},
    "other": {"command": python(look), "hostname": "worker.example", "network": "host",
              "working_dir": "/usr",
              "environment": {"LANG": "C.UTF-8", "PATH": "/bin", "EMPTY": ""}},
    "overlay": {"command": python(look), "write": "overlay"},
    "dev": {"command": python(look_at_dev)},
    "tries": {"command": python(try_everything)},
    "tries_userns": {"command": python(try_everything), "user_namespace": "self"},
    "hidden": {"command": python(hidden)},
    "self": {"command": python(look), "user_namespace": "self"},
    "self_dev": {"command": python(look_at_dev), "user_namespace": "self"},
}  # fmt: skip

SHIFTED: dict[str, dict[str, Any]] = {
    "later": {"command": python(look), "time_offset": "10d"},
    "earlier": {"command": python(look), "time_offset": "-1s"},
}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Ended]]:
    with own_state(tmp_path_factory.mktemp("isolation")) as where:
        yield run_jobs(
            where, JOBS | (SHIFTED if HAS_TIME else {}), environment={"SECRET": "of the supervisor"}
        )


@pytest.mark.parametrize("name", ["plain", "overlay"])
def test_every_namespace_is_new(jobs, name):
    inside = jobs[name].told["ns"]
    assert {kind for kind in KINDS if inside[kind] != OUTSIDE[kind]} == set(NEW)


def test_no_two_jobs_share_a_namespace(jobs):
    one, other = jobs["plain"].told["ns"], jobs["overlay"].told["ns"]
    assert {kind for kind in NEW if one[kind] == other[kind]} == set()


def test_the_hosts_network_where_asked(jobs):
    inside = jobs["other"].told
    assert inside["ns"]["net"] == OUTSIDE["net"]
    assert inside["interfaces"] == [name for _, name in socket.if_nameindex()]


def test_without_network_there_is_loopback_up_and_nothing_else(jobs):
    inside = jobs["plain"].told
    assert (inside["interfaces"], inside["up"], inside["routes"]) == (["lo"], 1, [])


@pytest.mark.qemu
@pytest.mark.skipif(not HAS_TIME, reason="this kernel has no time namespaces")
def test_the_clocks_are_shifted_in_a_time_namespace(jobs):
    outside = float(Path("/proc/uptime").read_text().split()[0])
    for name in SHIFTED:
        assert jobs[name].told["ns"]["time"] != OUTSIDE["time"]
    assert jobs["later"].told["uptime"] > outside + 9 * 86400
    assert jobs["plain"].told["uptime"] <= outside
    assert jobs["earlier"].told["uptime"] < outside


@pytest.mark.skipif(HAS_TIME, reason="this kernel has time namespaces")
def test_a_kernel_without_time_namespaces_is_told(tmp_state: State):
    failed = run_jobs(tmp_state, {"later": SHIFTED["later"]})["later"]
    assert failed.failure[:2] == ("time_namespace", errno.EINVAL)


def test_a_user_namespace_where_asked(jobs):
    inside = jobs["self"].told
    assert inside["ns"]["user"] != OUTSIDE["user"]
    assert inside["uid_map"] == ["0", str(os.geteuid()), "1"]
    assert inside["ids"][0] == [0, 0, 0]
    assert {kind for kind in NEW if inside["ns"][kind] == OUTSIDE[kind]} == set()


@pytest.mark.parametrize("name", ["plain", "other", "self"])
def test_the_cgroup_namespace_starts_at_the_payloads_cgroup(jobs, name):
    own = {one.controllers for one in proc.memberships() if one.path != "/"}
    lines = jobs[name].told["cgroup"]
    used = [proc.Membership(line) for line in lines]
    controllers = {"memory", "pids", "cpu"}
    assert {one.path for one in used if controllers & set(one.controllers)} <= {"/"}
    # a hierarchy that is not in use may still show where the supervisor sits, but never a job
    assert not [one for one in used if "supervise" in one.path], own


@pytest.mark.parametrize("name", ["plain", "overlay", "self"])
def test_proc_shows_only_the_jobs_own(jobs, name):
    inside = jobs[name].told
    assert inside["pids"] == [1, 2]
    assert inside["init"] == "supervise:init"
    assert inside["session"] == [2, 2, 2]


@pytest.mark.parametrize("name", ["dev", "self_dev"])
def test_dev_is_exactly_what_is_promised(jobs, name):
    inside = jobs[name].told
    if name == "dev":
        assert inside["nodes"] == {node: [*numbers, 0o666] for node, numbers in DEV.items()}
    assert {node: tuple(one[:2]) for node, one in inside["nodes"].items()} == DEV
    assert inside["links"] == DEV_LINKS
    assert inside["others"] == ["pts", "shm"]


@pytest.mark.parametrize("name", ["dev", "self_dev"])
def test_dev_works(jobs, name):
    inside = jobs[name].told
    assert inside["random"] and inside["zero"]
    assert (inside["full"], inside["null"]) == (errno.ENOSPC, 0)
    assert inside["tty"] == errno.ENXIO  # a session of its own, without a terminal
    assert inside["pty"] == ["/dev/pts/0", "through", 7]
    assert inside["pts"] == ["0", "ptmx"]
    if name == "dev":
        assert inside["new"] == errno.EROFS


def test_no_privilege_is_left_and_none_can_be_gained(jobs):
    status = jobs["plain"].told["status"]
    allowed = caps.mask(caps.DOCKER_DEFAULT)
    for which in ("CapBnd", "CapEff", "CapPrm"):
        assert int(status[which], 16) & ~allowed == 0
    assert int(status["CapEff"], 16) == caps.mask(caps.JOB_DEFAULT) & caps.effective()
    assert (status["CapInh"], status["CapAmb"]) == ("0" * 16, "0" * 16)
    assert status["NoNewPrivs"] == "1"


@pytest.mark.parametrize("name", ["tries", "tries_userns"])
def test_every_attempt_to_get_out_is_refused(jobs, name):
    found = jobs[name].told
    assert {what for what, number in found.items() if number == 0} == set()
    assert set(found.values()) <= {errno.EPERM, errno.EACCES, errno.EROFS, errno.EINVAL}
    assert found["ptrace 1"] == errno.EPERM
    for what in ("mount tmpfs", "mount rw", "umount2 /tmp", "umount2 /proc/keys", "mknod"):
        assert found[what] == errno.EPERM, what


def test_what_tells_of_the_host_is_hidden(jobs):
    assert set(jobs["hidden"].told.values()) == {0}


def test_signals_are_as_a_fresh_program_expects(jobs):
    status = jobs["plain"].told["status"]
    assert int(status["SigBlk"], 16) == 0
    own_of_python = 1 << 13 - 1 | 1 << 25 - 1  # it ignores SIGPIPE and SIGXFSZ itself
    assert int(status["SigIgn"], 16) & ~own_of_python == 0


def test_signals_ignored_by_nohup_are_not_ignored_in_a_job(supervise: Supervise):
    """Nor are blocked ones blocked, nor those that Python or posix_spawn(3) ignores."""
    nohup = ["/bin/sh", "-c", "trap '' HUP INT QUIT TERM USR1 PIPE; exec \"$@\"", "sh"]
    look = ["grep", "-E", "Sig(Ign|Blk)", "/proc/self/status"]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2, signal.SIGALRM})
    try:
        done = after(supervise.where, nohup, "run", "--", *look)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    assert done.status == 0, done.stderr
    assert {line.split()[1] for line in done.stdout.splitlines()} == {"0" * 16}


def test_the_environment_is_exactly_what_is_documented(jobs):
    path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    own = {"PATH": path, "HOME": "/root", "USER": "root", "LOGNAME": "root"}
    assert _without_locale(jobs["plain"].told["environment"]) == own
    changed = own | {"PATH": "/bin", "EMPTY": "", "LANG": "C.UTF-8"}
    assert _without_locale(jobs["other"].told["environment"]) == changed


def _without_locale(environment: dict[str, str]) -> dict[str, str]:
    """Python sets LC_CTYPE in its own environment when there is no locale (PEP 538)."""
    return {name: value for name, value in environment.items() if name != "LC_CTYPE"}


def test_host_name_and_working_directory(jobs):
    assert (jobs["plain"].told["hostname"], jobs["plain"].told["cwd"]) == ("plain", "/")
    assert (jobs["other"].told["hostname"], jobs["other"].told["cwd"]) == ("worker.example", "/usr")
    assert socket.gethostname() not in ("plain", "worker.example")


def test_the_umask_is_the_usual_one(jobs):
    assert jobs["plain"].told["umask"] == 0o022


def test_every_mount_of_the_host_that_a_job_sees_is_read_only(jobs):
    mounts = dict(jobs["plain"].told["mounts"])
    writable = {point for point, options in mounts.items() if "rw" in options.split(",")}
    assert writable == {"/proc", "/tmp", "/run", "/dev/pts", "/dev/shm"}
    assert "/sys/fs/cgroup" not in mounts
