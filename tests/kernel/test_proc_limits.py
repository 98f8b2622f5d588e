"""`proc = "limits"`: the real procps, nproc and getconf in a job see its share, and see it live."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from supervisor.linux import proc
from tests.support import host
from tests.support.batch import PATIENCE, Batch
from tests.support.command import Done, Supervise
from tests.support.nobody import Nobody, nobody

pytestmark = pytest.mark.kernel

live = pytest.mark.qemu
"""Needs a kernel that asks before a file is read, which User-Mode Linux is not."""
KIB_64M = 64 << 10
HAS_TIME = os.path.exists("/proc/self/ns/time")


@pytest.fixture(autouse=True)
def procps() -> None:
    if not all(map(shutil.which, ("free", "top", "uptime", "vmstat", "ps"))):
        host.miss("tools", "needs procps: apt-get install procps")


Job = Callable[..., Done]


@pytest.fixture
def job(supervise: Supervise) -> Job:
    """A script in a job that sees its share of 64 MB and half a CPU."""

    def run(script: str, *flags: str) -> Done:
        share = ("--proc", "limits", "--memory", "64M", "--cpus", "0.5")
        done = supervise("run", *share, *flags, "--", "sh", "-euc", script)
        assert done.status == 0, done
        return done

    return run


def row(text: str, name: str) -> list[int]:
    """The numbers of a line of free(1), meminfo or stat."""
    line = next(line for line in text.splitlines() if line.split(maxsplit=1)[0] == name)
    return [int(word) for word in line.split()[1:] if word.isdigit()]


def test_free_shows_the_limit_and_what_is_used_of_it(job: Job) -> None:
    total, used, free = row(job("free -k").stdout, "Mem:")[:3]
    assert (total, used < KIB_64M // 4, free > KIB_64M // 2) == (KIB_64M, True, True)


@live
def test_what_a_job_takes_is_seen_at_once(job: Job) -> None:
    """In the files of /tmp, which count as its memory."""
    found = job(
        "free -k\n"
        "head -c 30M /dev/zero >/tmp/thirty\n"
        "until free -k | grep -Eq '^Mem: +65536 +(3[0-9]|4[0-9])[0-9]{3} '; do :; done\n"
        "rm /tmp/thirty\n"
        "until free -k | grep -Eq '^Mem: +65536 +[0-9]{1,4} '; do :; done\n"
    ).stdout
    assert row(found, "Mem:")[1] < 10_000


KEPT_OPEN = """
import os
def free(fd): return int(os.pread(fd, 4096, 0).split()[4])
early = os.open("/proc/meminfo", os.O_RDONLY)
free(early)
late = os.open("/proc/meminfo", os.O_RDONLY)  # just after one was answered: nobody is asked
before = free(late)
with open("/tmp/thirty", "wb") as file: file.write(bytes(30 << 20))
while before - free(late) < 25 << 10: pass
while before - free(early) < 25 << 10: pass
"""


@live
def test_what_is_kept_open_is_live_too(supervise: Supervise) -> None:
    """As top and vmstat do; and whenever it was opened."""
    flags = ("--proc", "limits", "--memory", "128M", "--timeout", "60s")
    done = supervise("run", *flags, "--", os.path.realpath(sys.executable), "-c", KEPT_OPEN)
    assert done.status == 0, done


def test_the_cpus_are_those_of_the_quota(job: Job) -> None:
    script = (
        "nproc; getconf _NPROCESSORS_ONLN; cat /sys/devices/system/cpu/online\n"
        "grep -c ^processor /proc/cpuinfo; grep -c '^cpu[0-9]' /proc/stat"
    )
    first = min(os.sched_getaffinity(0))
    assert job(script).stdout.split() == ["1", "1", str(first), "1", "1"]
    many = str(len(os.sched_getaffinity(0)))
    assert job(script, "--cpus", "max").stdout.split()[:2] == [many, many]


def test_what_the_job_says_of_threads_comes_first(job: Job) -> None:
    assert job("nproc", "--env", "OMP_NUM_THREADS=7").stdout.split() == ["7"]


@pytest.mark.qemu
def test_a_cpuset_is_shown_by_its_numbers(job: Job) -> None:
    last = str(max(os.sched_getaffinity(0)))
    script = "cat /sys/devices/system/cpu/online; grep -o '^cpu[0-9]*' /proc/stat; nproc"
    found = job(script, "--cpuset", last, "--cpus", "max").stdout.split()
    assert found == [last, "cpu", f"cpu{last}", "1"]


@live
def test_top_shows_the_jobs_own_cpu_time_and_nothing_else(job: Job) -> None:
    """Used and idle are half of the time that has passed, however busy the host is."""
    found = job(
        "(while :; do :; done) &\n"
        "until read -r _ user nice system idle rest </proc/stat; [ $((user + system)) -gt 40 ]\n"
        "do :; done\n"
        "read -r before rest </proc/uptime; cat /proc/stat; read -r after rest </proc/uptime\n"
        "echo up: ${before%.*} ${after%.*}; COLUMNS=120 top -b -n1; kill $!"
    ).stdout
    user, _, system, idle, *rest = row(found, "cpu")
    before, after = row(found, "up:")
    assert (user + system > 40, sum(rest)) == (True, 0)
    assert 50 * (before - 1.5) < user + system + idle < 50 * (after + 1.5)
    assert re.search(r"%Cpu.* id", found) and re.search(r"MiB Mem : +64\.0 total", found)
    assert re.search(r"MiB Swap", found)


def test_vmstat_and_uptime_work_on_it(job: Job) -> None:
    found = job("vmstat; uptime; cat /proc/loadavg").stdout.splitlines()
    assert int(found[2].split()[3]) <= KIB_64M
    assert float(found[-1].split()[0]) < 1 and "load average" in found[-2]


@pytest.mark.qemu
def test_time_begins_with_the_job(job: Job) -> None:
    assert HAS_TIME
    found = job("cut -d. -f1 /proc/uptime; ps -o etimes= -p 1 -p $$; uptime -s", "--timeout", "5m")
    up, *ages = found.stdout.split()[:3]
    assert int(up) < 60 * host.SLOWNESS and all(0 <= int(age) <= int(up) for age in ages)


@pytest.mark.qemu
@pytest.mark.parametrize("space", ["auto", "self"])
def test_time_begins_in_a_user_namespace_too(job: Job, space: str) -> None:
    up = job("cut -d. -f1 /proc/uptime", "--user-namespace", space).stdout
    assert int(up) < 60 * host.SLOWNESS


def test_without_a_limit_it_is_the_hosts_memory(supervise: Supervise) -> None:
    done = supervise("run", "--proc", "limits", "--", "free", "-k")
    assert row(done.stdout, "Mem:")[0] == row(proc.read_file("/proc/meminfo"), "MemTotal:")[0]


def test_by_default_it_is_the_host_that_is_seen(supervise: Supervise) -> None:
    done = supervise("run", "--memory", "64M", "--", "free", "-k")
    assert row(done.stdout, "Mem:")[0] == row(proc.read_file("/proc/meminfo"), "MemTotal:")[0]


def test_a_raised_limit_is_seen_by_the_same_process(batch: Batch) -> None:
    result = batch.run(
        "[jobs.one]\n"
        'proc = "limits"\n'
        'limits = { memory = "64M", swap = 0 }\n'
        'tmpfs = ["/tmp:size=200M"]\n'
        'on_memory_limit = { action = "raise", to = "128M" }\n'
        'script = """\n'
        "read -r _ before unit </proc/meminfo\n"
        "until head -c 80M /dev/zero >/tmp/eighty 2>/dev/null; do :; done\n"
        "until read -r _ after unit </proc/meminfo; [ $after -ne $before ]; do :; done\n"
        'echo $before $after"""\n'
    )
    assert result.status == 0, result.done
    assert batch.output(result["one"]).split() == [str(KIB_64M), str(2 * KIB_64M)]


def test_a_limit_that_somebody_sets_is_seen_by_the_same_process(batch: Batch) -> None:
    ready = batch.fifo("ready")
    job = (
        '[jobs.one]\nproc = "limits"\nlimits = { memory = "64M", cpus = 1 }\nscript = """\n'
        "echo up >/tmp/ready\n"
        "until read -r _ now unit </proc/meminfo; [ $now -eq 98304 ]; do :; done\n"
        'until grep -q "^cpu.* 0 0$" /proc/stat; do :; done; echo seen >/tmp/ready"""\n'
    )
    with batch.start(job, defaults=batch.sees(ready)) as running:
        assert batch.told(ready, 1) == ["up"]
        socket = {"SUPERVISE_SOCKET": f"{batch.where.runtime}/{batch.name}/socket"}
        done = batch.supervise("set", "one", "memory=96M", environment=socket)
        assert done.status == 0, done
        assert batch.told(ready, 1) == ["seen"]
        assert running.finish().status == 0


def test_it_can_neither_be_written_nor_taken_away(job: Job) -> None:
    done = job(
        "for file in /proc/meminfo /sys/devices/system/cpu/online; do\n"
        "  ! echo x 2>/dev/null >$file\n"
        "  ! chmod 777 $file 2>/dev/null\n"
        "  ! umount $file 2>/dev/null\n"
        "  ! mount --bind /dev/null $file 2>/dev/null\n"
        "  ! flock -n $file false\n"
        "done; free -k"
    )
    assert row(done.stdout, "Mem:")[0] == KIB_64M


HOSTILE = """
import fcntl, mmap, os, signal
signal.signal(signal.SIGIO, signal.SIG_IGN)
fd = os.open("/proc/meminfo", os.O_RDONLY)
try:
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
except OSError:
    pass
fcntl.flock(fd, fcntl.LOCK_EX)
for path in ("/proc/meminfo", "/proc/stat", "/proc/loadavg"):
    os.stat(path), os.open(path, os.O_PATH)
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
for how in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
    try:
        os.open("/proc/self/fd/%d" % fd, how)
    except OSError as error:
        assert error.errno == 30, error
    else:
        raise SystemExit("it could be opened for writing")
def free(): return int(os.pread(fd, 4096, 0).split()[4])
before = free()
with open("/tmp/thirty", "wb") as file: file.write(bytes(30 << 20))
while before - free() < 25 << 10: pass
"""


@live
def test_neither_leases_nor_locks_nor_maps_hold_the_supervisor_up(supervise: Supervise) -> None:
    flags = ("--proc", "limits", "--memory", "128M", "--timeout", "60s")
    done = supervise("run", *flags, "--", os.path.realpath(sys.executable), "-c", HOSTILE)
    assert done.status == 0, done


@live
def test_a_reader_is_killed_while_the_supervisor_does_not_answer(batch: Batch) -> None:
    ready, go = batch.fifo("ready"), batch.fifo("go")
    job = (
        '[jobs.one]\nproc = "limits"\nlimits = { memory = "64M" }\nexpect = "signal"\n'
        f'mounts = ["{ready}:/tmp/ready", "{go}:/tmp/go"]\n'
        'script = "echo up >/tmp/ready; read -r go </tmp/go; read -r line </proc/meminfo"\n'
    )
    with batch.start(job) as running:
        (pid,) = running.wait_started("one").values()
        batch.told(ready, 1)
        running.signal(signal.SIGSTOP)
        try:
            go.write_text("go\n")
            until(lambda: proc.stat(pid).state == "D")
            os.kill(pid, signal.SIGKILL)
            until(lambda: not os.path.exists(f"/proc/{pid}"))  # its init has waited for it
        finally:
            running.signal(signal.SIGCONT)
        assert running.finish().reasons == {"one": "signal"}


def until(done: Callable[[], bool]) -> None:
    """Nothing tells of it: look again and again."""
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline


@pytest.mark.qemu
def test_without_root_it_is_as_of_the_start(user: Nobody) -> None:
    run, _own = user
    script = "cat /proc/meminfo; cut -d. -f1 /proc/uptime; grep -c /proc/ /proc/self/mountinfo"
    done = run("run", "--on-missing", "warn", "--proc", "limits", "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    *meminfo, up, mounts = done.stdout.splitlines()
    assert row("\n".join(meminfo), "MemTotal:") == row(proc.read_file("/proc/meminfo"), "MemTotal:")
    assert int(up) < 60 * host.SLOWNESS and int(mounts) > 4
    assert 'proc = "limits"' in done.stderr and "fanotify_init" in done.stderr


@pytest.fixture
def user() -> Iterator[Nobody]:
    with nobody() as one:
        yield one


@pytest.mark.parametrize("space", ["host", "auto", "self"])
def test_with_any_user_numbers(job: Job, space: str) -> None:
    found = job("free -k; ls -l /proc/meminfo", "--user-namespace", space).stdout
    assert row(found, "Mem:")[0] == KIB_64M and "-r--r--r--" in found


@pytest.mark.parametrize("flags", [("--write", "overlay"), ("--network", "host"),
                                   ("--device", "/dev/null:/dev/other")])  # fmt: skip
def test_with_any_root(job: Job, flags: tuple[str, ...]) -> None:
    assert job("cat /sys/devices/system/cpu/online; nproc", *flags).stdout.split()[1] == "1"


def test_in_an_empty_root(job: Job, busybox: Path, tmp_path: Path) -> None:
    for name in ("dev", "proc", "run", "sys", "tmp", "bin"):
        (tmp_path / name).mkdir()
    shutil.copy(busybox, tmp_path / "bin/sh")
    found = job("read -r line </proc/meminfo; echo $line", "--root", str(tmp_path)).stdout
    assert row(found, "MemTotal:") == [KIB_64M]


@live
def test_many_who_read_without_end_cost_the_supervisor_little(batch: Batch) -> None:
    """Half of what one CPU can do would be a lot; it is told of a few of them in a second."""
    ready = batch.fifo("ready")
    with batch.start(
        '[jobs.one]\nproc = "limits"\nlimits = { memory = "64M", pids = 40 }\nscript = """\n'
        "for n in 1 2 3 4 5 6 7 8; do\n"
        "  (i=0; while [ $i -lt 1000 ]; do read -r x </proc/meminfo; i=$((i + 1)); done) &\n"
        'done; echo x >/tmp/ready; wait; echo x >/tmp/ready"""\n',
        defaults=batch.sees(ready),
    ) as running:
        batch.told(ready, 1)
        before, start = usage(running.process.pid)
        batch.told(ready, 1)
        after, end = usage(running.process.pid)
        assert running.finish().status == 0
    assert after - before < 0.5 * (end - start) + 0.2


def usage(pid: int) -> tuple[float, float]:
    """Seconds of CPU that a process has used, and now."""
    words = proc.read_file(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK"), time.monotonic()


def test_a_job_whose_supervisor_was_killed_reads_what_was_written_last(batch: Batch) -> None:
    ready = batch.fifo("ready")
    jobs = (
        '[jobs.one]\nproc = "limits"\nlimits = { memory = "64M" }\nscript = """\n'
        "while :; do read -r name kib unit </proc/meminfo; "
        'echo $name $kib >/tmp/ready; done"""\n'
    )
    fd = os.open(ready, os.O_RDWR | os.O_CLOEXEC)  # kept: without a reader the job would die
    room = fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, 4096)
    with os.fdopen(fd, "rb") as told, batch.start(jobs, defaults=batch.sees(ready)) as running:
        told.read1(1)
        running.process.kill()
        running.process.wait(PATIENCE)
        told.read(2 * room)  # what it has written before
        assert b"\nMemTotal: %d\n" % KIB_64M in told.read(100)
        left = batch.where.runtime / batch.name / "proc"
        assert left.is_dir()
        batch.run("[jobs.other]\ncommand = ['true']")  # ends what was left
        assert not left.exists()
