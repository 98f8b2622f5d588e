"""What others do to a job's cgroup while it runs, and what a job itself tries to do to it.

"Others" are root on the host, with a shell and /sys/fs/cgroup: nothing can be forbidden to them.
A job must come to its end all the same, its record must not tell anything that is not so, and
nothing may be left.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from supervisor.cgroup import detect, files
from supervisor.cgroup.manager import Manager
from supervisor.linux import proc
from supervisor.model.limits import Limits
from tests.support import cgroups, host
from tests.support.batch import PATIENCE, Batch, Running
from tests.support.command import Supervise
from tests.support.containers import background, init_of, next_line, python, run_jobs

pytestmark = pytest.mark.kernel

MIB = 1 << 20
STUBBORN = """["sh", "-c", "trap '' TERM; while :; do sleep 1; done"]"""


HANDLES = """["sh", "-c", "trap 'exit 3' TERM; while :; do sleep 1; done"]"""


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler of a signal (SigCgt in proc_pid_status(5))."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (caught,) = (line.split()[1] for line in lines if line.startswith("SigCgt:"))
    return bool(int(caught, 16) >> (number - 1) & 1)


def directories(pid: int) -> dict[str, str]:
    """Controller ("" for a unified hierarchy, "unified" too) → the directory of a process."""
    mounts = [one for one in proc.mountinfo() if one.fstype in ("cgroup", "cgroup2")]
    found = {}
    for member in proc.memberships(f"/proc/{pid}/cgroup"):
        for mount in mounts:
            v2 = mount.fstype == "cgroup2"
            mine = not member.controllers if v2 else {*member.controllers} <= {*mount.super_options}
            if mine and v2 != bool(member.controllers):
                where = mount.mount_point + member.path.removeprefix(mount.root.rstrip("/"))
                found |= dict.fromkeys(member.controllers or ("unified",), where)
    if host.memory_version() == "v2":
        found |= dict.fromkeys(("memory", "pids"), found["unified"])
    return {name: where for name, where in found.items() if where.endswith("/payload")}


def parent(pid: int) -> int:
    return proc.stat(pid).parent


def eventually(done: Callable[[], bool]) -> None:
    assert files.until(done, PATIENCE)


@contextmanager
def running(
    batch: Batch, settings: str, command: str = '["sleep", "1000"]'
) -> Iterator[tuple[Running, int]]:
    """A batch of one job, `one`, that runs; and the pid of its command."""
    with batch.start(f"[jobs.one]\ncommand = {command}\n{settings}\n") as started:
        yield started, started.wait_started("one")["one"]


# --- Its cgroup goes away ------------------------------------------------------------------------


def test_a_cgroup_removed_after_its_processes_were_killed(batch: Batch) -> None:
    """The supervisor comes too late to read a counter: it says so, and makes nothing up."""
    with running(batch, "limits = { memory = '64M', pids = 8 }") as (started, pid):
        places, init = set(directories(pid).values()), parent(pid)
        assert places
        started.signal(signal.SIGSTOP)
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: proc.stat(init).state == "Z")
        for payload in places:
            run = os.path.dirname(payload)
            for directory in (payload, f"{run}/init", run):
                if os.path.isdir(directory):
                    eventually(lambda one=directory: gone(one))  # type: ignore[misc]
        started.signal(signal.SIGCONT)
        record = started.finish()["one"]
    assert (record["reason"], record["signal"]) == ("signal", 9)
    assert record["memory"] == {**record["memory"], "limit": 64 * MIB, "peak": None, "oom_kills": 0}
    assert any("cannot be read" in one["what"] for one in record["evidence"])


def gone(directory: str) -> bool:
    """Whether rmdir(2) was done; EBUSY while the last task exits."""
    with suppress(OSError):
        os.rmdir(directory)
    return not os.path.isdir(directory)


@pytest.mark.parametrize("command", ['["sleep", "1000"]', STUBBORN], ids=["polite", "stubborn"])
def test_a_job_moved_out_of_its_cgroup_still_meets_its_timeout(batch: Batch, command: str) -> None:
    """And none of it is left, although no cgroup tells any more who it was."""
    settings = "timeout = '3s'\nstop = { grace = '300ms' }\nexpect = 'timeout'"
    with running(batch, settings, command) as (started, pid):
        for payload in set(directories(pid).values()):
            empty(payload)
            eventually(lambda one=payload: gone(one))  # type: ignore[misc]
        record = started.finish()["one"]
    assert record["reason"] == "timeout"
    assert record["signal"] == (9 if command == STUBBORN else 15)
    assert any("cannot be read" in one["what"] for one in record["evidence"])


def empty(directory: str) -> None:
    """Move all who are in it, and those they fork meanwhile, to the hierarchy's root."""
    mounts = [one.mount_point for one in proc.mountinfo() if one.fstype in ("cgroup", "cgroup2")]
    root = max((one for one in mounts if directory.startswith(one + "/")), key=len)

    def none_left() -> bool:
        for pid in files.processes(directory):
            with suppress(OSError):
                Path(root, "cgroup.procs").write_text(str(pid))
        return not files.processes(directory)

    eventually(none_left)


# --- Its limits are changed ----------------------------------------------------------------------

WAITS = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
{before}
open('/tmp/ready', 'w').write('x\\n')
signal.sigwait([signal.SIGUSR1])
{after}
"""


@contextmanager
def waiting(
    batch: Batch, limits: str, *, before: str = "", after: str = "", settings: str = ""
) -> Iterator[tuple[Running, int]]:
    """A job that does `before`, waits for SIGUSR1 once it has said so, and then does `after`."""
    fifo = batch.fifo("ready")
    code = WAITS.format(before=before, after=after)
    command = json.dumps(["/usr/bin/python3", "-I", "-S", "-c", code])
    all_settings = f"limits = {{ {limits} }}\n{batch.sees(fifo)}\n{settings}"
    with running(batch, all_settings, command) as (started, pid):
        batch.told(fifo, 1)
        yield started, pid


def write_memory(pid: int, limit: int) -> None:
    """What an administrator does; -1 is none.  Raises OSError."""
    where = directories(pid)["memory"]
    if host.memory_version() == "v2":
        Path(where, "memory.max").write_text("max" if limit < 0 else str(limit))
        return
    kinds = ("memory.memsw", "memory") if limit < 0 else ("memory",)
    for kind in kinds:
        path = Path(where, f"{kind}.limit_in_bytes")
        if path.exists():
            path.write_text(str(limit))


def test_a_limit_taken_away_by_others_shows_in_the_evidence(batch: Batch) -> None:
    after = "print(len(bytes([1]) * (60 << 20)))"
    with waiting(batch, "memory = '24M', swap = 0", after=after) as (started, pid):
        write_memory(pid, -1)
        os.kill(pid, signal.SIGUSR1)
        record = started.finish()["one"]
    assert (record["reason"], record["memory"]["oom_kills"]) == ("succeeded", 0), record
    assert record["memory"]["limit"] == 24 * MIB  # what it was given
    assert record["memory"]["peak"] > 60 * MIB
    found = {one["source"].rpartition("/")[2]: one["what"] for one in record["evidence"]}
    now = found.get("memory.max") or found["memory.limit_in_bytes"]
    assert now == "max" or int(now) >= files.UNLIMITED


def test_a_limit_lowered_below_what_is_in_use(batch: Batch) -> None:
    """v1 refuses it; v2 kills, and the evidence has the limit that did."""
    before = "b = bytes([1]) * (40 << 20)"
    with waiting(batch, "memory = '64M', swap = 0", before=before) as (started, pid):
        try:
            write_memory(pid, 16 * MIB)
        except OSError as error:
            assert error.errno == 16 and host.memory_version() == "v1"
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)
        record = started.finish()["one"]
    if host.memory_version() == "v1":
        assert (record["reason"], record["memory"]["oom_kills"]) == ("succeeded", 0), record
        return
    assert (record["reason"], record["signal"]) == ("oom", 9), record
    found = {one["source"].rpartition("/")[2]: one["what"] for one in record["evidence"]}
    assert found["memory.max"] == str(16 * MIB)


def test_a_limit_of_processes_lowered_below_their_number(batch: Batch) -> None:
    after = "try: os.fork()\nexcept OSError: sys.exit(1)"
    with waiting(batch, "pids = 8", after=after) as (started, pid):
        Path(directories(pid)["pids"], "pids.max").write_text("1")
        os.kill(pid, signal.SIGUSR1)
        record = started.finish()["one"]
    assert (record["reason"], record["exit_code"]) == ("pids", 1), record
    assert record["pids"]["limit"] == 8
    found = {one["source"].rpartition("/")[2]: one["what"] for one in record["evidence"]}
    assert found["pids.max"] == "1"


def test_a_held_job_whose_limit_others_take_away_goes_on(batch: Batch) -> None:
    """On v1 at once; on v2, where it is frozen, with the policy's answer."""
    after = "b = [bytes(1 << 16) + b'x' for _ in range(60 << 4)]"
    raises = "on_memory_limit = { action = 'raise', to = '128M' }"
    with waiting(batch, "memory = '24M', swap = 0", after=after, settings=raises) as (started, pid):
        os.kill(pid, signal.SIGUSR1)
        started.wait_for("reached its memory limit")
        with suppress(FileNotFoundError, KeyError):  # it may have ended by now
            write_memory(pid, -1)
        record = started.finish()["one"]
    assert (record["reason"], record["memory"]["oom_kills"]) == ("succeeded", 0), record


# --- Somebody else is in it ----------------------------------------------------------------------


@pytest.mark.parametrize("stopped", [False, True], ids=["ends", "stopped"])
def test_a_stranger_in_a_jobs_cgroup_is_killed_with_it(batch: Batch, stopped: bool) -> None:
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        try:
            with waiting(batch, "pids = 8") as (started, pid):
                for directory in set(directories(pid).values()):
                    Path(directory, "cgroup.procs").write_text(str(stranger.pid))
                if stopped:
                    started.signal(signal.SIGTERM)
                else:
                    os.kill(pid, signal.SIGUSR1)
                result = started.finish()
            assert stranger.wait(timeout=PATIENCE) == -signal.SIGKILL
        finally:
            stranger.kill()
    # the job's end does not depend on him: his is the cgroup's, when it is removed
    reason, code = ("stopped", None) if stopped else ("succeeded", 0)
    assert (result["one"]["reason"], result["one"]["exit_code"]) == (reason, code)
    told = [one["text"] for one in batch.entries("warning")]
    assert any(f"moved into the job's cgroup from outside: pid {stranger.pid}" in t for t in told)


# --- It cannot be ended --------------------------------------------------------------------------


def test_a_fork_bomb_that_hears_nothing_is_gone_at_once(batch: Batch) -> None:
    settings = "limits = { pids = 48, cpus = 0.5 }\nstop = { grace = '200ms' }"
    bomb = '["perl", "-e", "$SIG{TERM} = q(IGNORE); fork while 1"]'
    with running(batch, settings, bomb) as (started, pid):
        events = directories(pid).get("unified")
        eventually(lambda: int(Path(directories(pid)["pids"], "pids.current").read_text()) > 40)
        started.signal(signal.SIGTERM)
        record = started.finish()["one"]
    assert (record["reason"], record["signal"]) == ("stopped", 9)
    assert record["pids"]["refused"] > 0
    assert events is None or not os.path.exists(events)


@pytest.mark.parametrize("init", [False, True], ids=["payload", "and its init"])
def test_a_job_that_others_have_frozen_is_ended_after_the_grace(batch: Batch, init: bool) -> None:
    """A frozen process runs no handler of SIGTERM; cgroup.kill asks for none."""
    with running(batch, "stop = { grace = '300ms' }", HANDLES) as (started, pid):
        payload = directories(pid).get("unified")
        if payload is None:
            pytest.skip("needs a unified hierarchy")
        where = os.path.dirname(payload) if init else payload
        eventually(lambda: catches(pid, signal.SIGTERM))  # else it dies of it, frozen or not
        Path(where, "cgroup.freeze").write_text("1")
        eventually(lambda: files.table(f"{where}/cgroup.events")["frozen"] == 1)
        started.signal(signal.SIGTERM)
        record = started.finish()["one"]
    assert (record["reason"], record["signal"]) == ("stopped", 9), record
    # a frozen init cannot write down how the command ended, and is killed a little later
    assert ("init was killed" in record["detail"]) == init


# --- The job itself ------------------------------------------------------------------------------


def attempts() -> list[object]:
    """Every cgroup file that could be opened for writing or directory made; how many were there."""
    import ctypes
    import os

    def tops():
        yield "/sys/fs/cgroup"
        libc = ctypes.CDLL(None, use_errno=True)
        for kind, options in (("cgroup2", None), ("cgroup", b"memory"), ("cgroup", b"pids")):
            where = f"/tmp/{kind}{options}"
            os.mkdir(where)
            if libc.mount(b"none", where.encode(), kind.encode(), 0, options) == 0:
                yield where

    seen, done = 0, []
    for top in tops():
        for directory, _, names in os.walk(top):
            for name in names:
                seen += 1
                try:
                    os.close(os.open(f"{directory}/{name}", os.O_WRONLY))
                    done.append(f"{directory}/{name}")
                except OSError:
                    pass
            try:
                os.mkdir(f"{directory}/of-the-job")
                done.append(f"{directory}/of-the-job")
            except OSError:
                pass
    return [seen, done]


def test_no_file_of_a_cgroup_can_be_written_from_inside(tmp_state) -> None:
    own = {"host_id": 300000, "size": 65536}
    jobs = {
        "root": {},
        "namespace": {"user_namespace": own},
        "mounts": {"user_namespace": own, "capabilities": {"add": ["SYS_ADMIN"]}},
    }
    command = ["/usr/bin/python3", *python(attempts)[1:]]  # which every user can read
    base = {"command": command, "limits": {"memory": "256M", "pids": 8}}
    found = run_jobs(tmp_state, {name: {**base, **more} for name, more in jobs.items()})
    assert [ended.told[1] for ended in found.values()] == [[], [], []]
    assert found["mounts"].told[0] > 0  # it could mount one, or there was nothing to try
    for ended in found.values():
        texts = {one["source"].rpartition("/")[2]: one["what"] for one in ended.record["evidence"]}
        assert texts["pids.max"] == "8"
        assert str(256 * MIB) in texts.values()


# --- Want of watches -----------------------------------------------------------------------------


def test_without_a_watch_to_be_had_no_job_is_started_blind(supervise: Supervise) -> None:
    if not host.in_guest() or host.memory_version() != "v2":
        pytest.skip("a setting of the whole host: needs a guest with cgroup v2")
    limit = Path("/proc/sys/fs/inotify/max_user_watches")
    before = limit.read_text()
    limit.write_text("0")
    try:
        done = supervise("run", "--memory", "64M", "--", "true")
    finally:
        limit.write_text(before)
    assert done.status == 125
    assert "inotify_add_watch" in done.stderr and "fs.inotify.max_user_watches" in done.stderr


# --- What the unified hierarchy is used for, with controllers or without -------------------------


def watched(supervisor: int) -> set[int]:
    """The inodes that a process has inotify watches on (proc_pid_fdinfo(5))."""
    found: set[int] = set()
    for info in Path(f"/proc/{supervisor}/fdinfo").iterdir():
        with suppress(FileNotFoundError):
            lines = re.findall(r"^inotify .*ino:(\w+)", info.read_text(), re.M)
            found |= {int(ino, 16) for ino in lines}
    return found


def test_the_end_of_a_job_is_watched_in_the_unified_hierarchy(supervise: Supervise) -> None:
    command = ("/bin/sh", "-c", "echo ready; exec sleep 1000")
    with background(supervise, "run", "--memory", "64M", "--pids", "8", "--", *command) as process:
        assert next_line(process) == "ready"
        (payload,) = proc.children(init_of(process.pid))
        places = directories(payload)
        if "unified" not in places:
            pytest.skip("needs a unified hierarchy")
        payload_dir = places["unified"]
        run = os.path.dirname(payload_dir)
        wanted = [f"{run}/cgroup.events"]
        if host.memory_version() == "v2":
            wanted += [
                f"{places['memory']}/{name}" for name in ("memory.events.local", "pids.events")
            ]
        assert watched(process.pid) == {os.stat(path).st_ino for path in wanted}


def test_one_write_kills_what_is_in_v1_tasks_too() -> None:
    """A hybrid's unified hierarchy has no controllers, but all processes."""
    with cgroups.session_parent() as parent_name:
        manager = Manager("kill", detect.find(parent_name))
        job = manager.create("run")
        try:
            if not job.entry.payload_dir:
                pytest.skip("needs a unified hierarchy")
            job.apply(Limits(memory=256 * MIB, pids=64))
            wait = "import signal; print('ready', flush=True); signal.pause()"
            all_of_them = [cgroups.python(job, wait) for _ in range(8)]
            for process in all_of_them:
                assert cgroups.line(process) == "ready"
            pids = {process.pid for process in all_of_them}
            old = [os.path.dirname(path) for path in job.entry.payload_files]
            assert all(set(files.processes(directory)) == pids for directory in old)
            with cgroups.noted() as done:
                job.kill()
            assert done == [f"write 1 > {job.entry.payload_dir}/cgroup.kill"]
            assert {cgroups.end(process) for process in all_of_them} == {-signal.SIGKILL}
            eventually(lambda: not job.populated())
            assert not any(files.processes(directory) for directory in old)
        finally:
            job.remove()
            manager.close()
