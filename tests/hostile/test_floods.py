# ruff: noqa: PTH123 - what runs in a job imports little
"""Floods: jobs that take whatever they can get, and what their limits leave to the others.

One batch, a few jobs at a time.  The numbers are small, as the limits are: what counts is that the
kernel charges the job for it, that the job ends as it should, and that it took no more.
"""

from __future__ import annotations

import errno
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.linux import constants, syscalls
from tests.support import host
from tests.support.command import State
from tests.support.containers import Ended, own_state, python, run_jobs

pytestmark = pytest.mark.kernel

MIB = 1 << 20
MEMORY = 48 * MIB
PIDS = 48


def latency(path):
    """How late a sleep of 10 ms ends at worst, while the other one is there."""
    import os
    import time

    worst, deadline = 0.0, time.monotonic() + 60
    while not os.path.exists(path) and time.monotonic() < deadline:
        before = time.monotonic()
        time.sleep(0.01)
        worst = max(worst, time.monotonic() - before - 0.01)
    return worst


def fork_bomb(path, seconds):
    """For a while: fork whatever can be forked, each of which does the same."""
    import os
    import time

    deadline = time.monotonic() + seconds
    pids = set()
    main = os.getpid()
    while time.monotonic() < deadline:
        try:
            if os.fork():
                pids.add(1)
        except OSError:
            time.sleep(0.001)
    if os.getpid() == main:
        open(path, "w").close()
        print(len(pids), flush=True)
        os._exit(0)
    os._exit(0)


def fill_memory(path):
    block = bytes(1 << 20)
    with open(path, "wb", buffering=0) as file:
        for _ in range(512):
            file.write(block)
    raise AssertionError("half a gigabyte was taken")


def fill_cache(path, blocks):
    """Written and read again: the kernel gives the job's own pages back."""
    import os

    block = bytes(1 << 20)
    with open(path, "wb", buffering=0) as file:
        for _ in range(blocks):
            file.write(block)
        os.fsync(file.fileno())
    with open(path, "rb", buffering=0) as file:
        while file.read(1 << 20):
            pass
    os.unlink(path)


def fill_pipes():
    import fcntl
    import os

    held = []
    block = bytes(1 << 16)
    try:
        while True:
            pair = os.pipe()
            held.append(pair)
            os.set_blocking(pair[1], False)
            try:
                fcntl.fcntl(pair[1], 1031, 1 << 20)  # F_SETPIPE_SZ
            except OSError:
                pass
            try:
                while True:
                    os.write(pair[1], block)
            except BlockingIOError:
                pass
    except OSError as error:
        print(error.errno, len(held))


def fill_sockets():
    import socket

    held = []
    block = bytes(1 << 16)
    try:
        while True:
            pair = socket.socketpair()
            held.append(pair)
            pair[0].setblocking(False)
            try:
                while True:
                    pair[0].send(block)
            except BlockingIOError:
                pass
    except OSError as error:
        print(error.errno, len(held))


def fill_inodes():
    import os

    made = 0
    try:
        while True:
            os.mkdir(f"/tmp/{made}")
            made += 1
    except OSError as error:
        print(error.errno, made)


def fill_shared_memory():
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.shmat.restype = ctypes.c_void_p
    for key in range(64):
        segment = libc.shmget(key + 1, ctypes.c_size_t(16 << 20), 0o1600)
        address = libc.shmat(segment, None, 0)
        ctypes.memset(address, 1, 16 << 20)


def zombies():
    """Children that nobody waits for, then orphans that the init must reap."""
    import os

    refused = 0
    for _ in range(200):
        try:
            if os.fork() == 0:
                os._exit(0)
        except OSError:
            refused += 1
    while True:
        try:
            os.wait()
        except ChildProcessError:
            break
    orphans = 0
    while orphans < 300:
        try:
            middle = os.fork()
            if middle == 0:
                try:
                    if os.fork() == 0:
                        os._exit(0)
                except OSError:
                    os._exit(1)
                os._exit(0)
        except OSError:
            continue
        orphans += not os.waitpid(middle, 0)[1]
    return [refused, orphans]


def threads():
    """Ten thousand of them, as many as are let in."""
    import _thread
    import time

    _thread.stack_size(65536)
    started = refused = 0
    for _ in range(10000):
        try:
            _thread.start_new_thread(time.sleep, (30,))
            started += 1
        except RuntimeError:
            refused += 1
            if refused > 50:
                break
    print(started, refused, flush=True)
    import os

    os._exit(0)


def deleted_program():
    """Run a program whose file is gone, and then itself again by /proc."""
    import os
    import shutil
    import subprocess

    shutil.copy("/usr/bin/sleep", "/tmp/mine")
    running = subprocess.Popen(["/tmp/mine", "30"])
    os.unlink("/tmp/mine")
    again = subprocess.run([f"/proc/{running.pid}/exe", "0"]).returncode
    running.kill()
    return [again, running.wait()]


def stop_everything():
    """Stop the init (which it ignores), every other process, and itself."""
    import os
    import signal

    if os.fork() == 0:
        signal.pause()
    os.kill(1, signal.SIGSTOP)
    os.kill(-1, signal.SIGSTOP)
    os.kill(os.getpid(), signal.SIGSTOP)


def ignore_everything():
    import signal
    import time

    for number in set(range(1, 65)) - {9, 19, 32, 33}:
        signal.signal(number, signal.SIG_IGN)
    while True:
        time.sleep(1)


LIMITS = {"memory": "48M", "swap": 0, "pids": PIDS, "open_files": 1024}
SHORT = {"timeout": "8s" if host.in_guest() else "1s", "stop": {"grace": "200ms"}}
"""Long enough for an interpreter to have started."""

JOBS: dict[str, dict[str, Any]] = {
    "tmpfs": {"command": python(fill_memory, "/tmp/x")},
    "shm": {"command": python(fill_memory, "/dev/shm/x")},
    "cache": {"command": python(fill_cache, "/place/x", 96)},
    "pipes": {"command": python(fill_pipes)},
    "sockets": {"command": python(fill_sockets)},
    "inodes": {"command": python(fill_inodes)},
    "sysv": {"command": python(fill_shared_memory)},
    "zombies": {"command": python(zombies)},
    "threads": {"command": python(threads)},
    "deleted": {"command": python(deleted_program)},
    "stopped": {"command": python(stop_everything), **SHORT},
    "deaf": {"command": python(ignore_everything), **SHORT},
    "output": {"command": ["sh", "-c", "yes & yes >&2"], "limits": LIMITS | {"output": "1M"}},
}  # fmt: skip


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    with own_state(tmp_path_factory.mktemp("floods")) as found:
        yield found


@pytest.fixture(scope="module")
def jobs(where: State) -> dict[str, Ended]:
    place = where.state / "place"
    place.mkdir()
    patience = f"{20 * host.SLOWNESS}s"
    jobs = {
        name: {"limits": LIMITS, "timeout": patience, "mounts": [f"{place}:/place"], **settings}
        for name, settings in JOBS.items()
    }
    return run_jobs(where, jobs, head="capacity = { jobs = 3 }")


@pytest.mark.parametrize("name", ["tmpfs", "shm", "pipes", "sockets", "inodes", "sysv"])
def test_memory_of_every_kind_is_the_jobs_own(jobs: dict[str, Ended], name: str):
    """Files in memory, and what the kernel keeps for a job: it is refused, or killed as `oom`."""
    ended = jobs[name]
    allowed = ("oom", "failed") if name in ("tmpfs", "shm") else ("oom", "succeeded")
    assert ended.reason in allowed, (ended.record, ended.err)
    assert "was taken" not in ended.err
    assert ended.record["memory"]["peak"] <= MEMORY
    if name == "sysv":
        assert ended.reason == "oom"
    elif name == "inodes" and ended.reason == "succeeded":
        assert int(ended.out.split()[0]) == errno.ENOSPC


def test_the_page_cache_is_the_jobs_own(where: State, jobs: dict[str, Ended]):
    """On a disk the kernel takes back what it must; what lies in memory stays, and is the job's."""
    ended = jobs["cache"]
    fd = os.open(where.state, os.O_PATH)
    in_memory = syscalls.fs_magic(fd) == constants.TMPFS_MAGIC
    os.close(fd)
    assert ended.reason == ("oom" if in_memory else "succeeded"), ended.err
    assert ended.record["memory"]["peak"] <= MEMORY


def test_zombies_count_and_orphans_are_reaped(jobs: dict[str, Ended]):
    refused, orphans = jobs["zombies"].told
    assert refused >= 200 - PIDS and orphans == 300
    assert jobs["zombies"].record["pids"]["peak"] <= PIDS


def test_ten_thousand_threads(jobs: dict[str, Ended]):
    ended = jobs["threads"]
    assert ended.reason == "succeeded", ended.err
    assert int(ended.out.split()[0]) < PIDS
    assert ended.record["pids"]["peak"] <= PIDS


def test_a_program_that_has_been_removed(jobs: dict[str, Ended]):
    assert jobs["deleted"].told == [0, -9]


def test_a_job_that_stops_itself(jobs: dict[str, Ended]):
    assert jobs["stopped"].reason == "timeout"


def test_a_job_that_ignores_every_signal(jobs: dict[str, Ended]):
    assert jobs["deaf"].reason == "timeout"
    assert jobs["deaf"].record["signal"] == 9


def test_a_flood_of_output(jobs: dict[str, Ended]):
    ended = jobs["output"]
    assert ended.reason == "output"
    assert len(ended.out) + len(ended.err) == MIB


def test_a_fork_bomb_beside_another_job(tmp_state: State, tmp_path: Path):
    (tmp_path / "meet").mkdir()
    mount = {"mounts": [f"{tmp_path}/meet:/meet"], "timeout": "90s"}
    found = run_jobs(tmp_state, {
        "bomb": {"command": python(fork_bomb, "/meet/done", 2 * host.SLOWNESS),
                 "limits": LIMITS | {"pids": 24}, **mount},
        "calm": {"command": python(latency, "/meet/done"), **mount},
    })  # fmt: skip
    bomb = found["bomb"].record
    assert bomb["pids"]["peak"] <= 24 and bomb["pids"]["refused"] > 0
    assert found["calm"].told < 0.5 * host.SLOWNESS


STRESSORS = ("fork", "pipe", "shm", "sem-sysv", "mq", "procfs", "sysfs", "zombie", "vm", "mmap",
             "timer", "inotify", "seek")  # fmt: skip
FORCED = 64 * resource.getpagesize()
"""A packet is received where the kernel may neither sleep nor fail: at its limit a job is charged
single pages past it for that (mm/memcontrol.c, try_charge_memcg), and for none of STRESSORS."""


def stress_ng(*stressors: str) -> dict[str, Any]:
    """A job with a process of each kind, and little to live on."""
    flags = [word for name in stressors for word in (f"--{name}", "1")]
    few = ["--vm-bytes", "64M", "--mmap-bytes", "64M", "--temp-path", "/tmp", "--timeout", "3s"]
    return {
        "command": ["stress-ng", *flags, *few], "timeout": f"{30 * host.SLOWNESS}s",
        "limits": {"memory": "96M", "swap": 0, "pids": 96, "cpus": 1}, "oom": "continue",
    }  # fmt: skip


def test_stress_ng_inside_limits(tmp_state: State):
    """Debian's collection of loads."""
    if not shutil.which("stress-ng"):
        host.miss("tools", "needs stress-ng: apt-get install stress-ng")
    loads = {
        "stress": stress_ng(*STRESSORS),
        "sockets": stress_ng("sock"),
        "both": stress_ng("sock", "vm", "mmap"),
    }
    found = run_jobs(tmp_state, {**loads, "beside": {"command": ["true"]}})
    for name in loads:
        ended = found[name]
        assert ended.reason in ("succeeded", "failed", "pids", "timeout"), ended.record
        memory = ended.record["memory"]
        assert memory["limit"] == 96 * MIB
        assert memory["peak"] <= 96 * MIB + (FORCED if name == "both" else 0), name
        assert ended.record["pids"]["peak"] <= 96
        assert "stress-ng" in ended.out + ended.err
    assert found["beside"].reason == "succeeded"
    assert os.path.exists("/proc/self")
