"""Jobs at their memory limit: who is held there, how they go on, and how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from supervisor.cgroup.v2 import trip_wire
from tests.support import host, policies
from tests.support.batch import Batch
from tests.support.command import ROOT, State, Supervise

pytestmark = pytest.mark.kernel

MIB = 1 << 20
CACHE = 64 * MIB
"""As much as goes through the page cache: the disk that CI's guests have."""

CONFIG = """
{table}
plugins = ["grow-memory"]

[policies.grow-memory]
max = "512M"

[defaults]
timeout = "60s"

[jobs.grows]
command = ["awk", "BEGIN {{ for (i = 1; i <= 300000; i++) k[i \\" x\\"]++; print length(k) }}"]
matrix = {{ n = [1, 2, 3, 4] }}
limits = {{ memory = "8M", {swap} pids = 16 }}
"""


@pytest.mark.parametrize("swap", ["", "swap = 0,"], ids=["memory", "memory and no swap"])
def test_every_limit_on_the_way_up_is_met_once(supervise, tmp_state, tmp_path, swap):
    # With swap = 0 v1's failcnt never moves: the limit of memory and swap together strikes first.
    config = tmp_path / "grow.toml"
    config.write_text(CONFIG.format(table=tmp_state.table, swap=swap))
    done = supervise(config, "--json", timeout=100)
    assert done.status == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == 4
    for record in records:
        limits = [change["value"] for change in record["memory"]["limit_history"]]
        assert limits[0] == 8 * MIB and len(limits) >= 3, record
        assert limits == [8 * MIB << n for n in range(len(limits))]
        # no raise without need: what it used in the end was more than the limit before the last
        assert record["memory"]["peak"] > limits[-2] * 3 / 4
        assert record["memory"]["oom_kills"] == 0


# Whoever takes memory is held, and goes on as the same process.

WAYS = {
    "steps": "b = [bytes(1 << 16) + bytes([n % 256]) for n in range(640)]",
    "pages": """
m = mmap.mmap(-1, 40 << 20)
for at in range(0, 40 << 20, 4096):
    m[at] = 1
""",
    "one call": "mmap.mmap(-1, 40 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x8000)",
    "one write": """
f = os.memfd_create("f")
os.writev(f, [bytes(1 << 16)] * 640)
""",
    "pipes": """
pairs = [os.pipe() for _ in range(40)]
for _, end in pairs:
    fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, 1 << 20)
    os.write(end, bytes(1 << 20))
""",
    "many": """
r, w = os.pipe()
children = []
for _ in range(10):
    children.append(os.fork())
    if not children[-1]:
        os.close(w)
        os.read(r, 1)  # until all are there
        b = mmap.mmap(-1, 4 << 20)
        for at in range(0, 4 << 20, 4096):
            b[at] = 1
        os.kill(os.getpid(), 19)  # with all of it
        os._exit(0)
os.close(w)
for child in children:
    assert os.WIFSTOPPED(os.waitpid(child, os.WUNTRACED)[1])
for child in children:
    os.kill(child, 18)
for child in children:
    assert os.waitpid(child, 0)[1] == 0
""",
}
"""How 40 MiB and more are taken: the kernel charges each in another place."""

V1_FAILS = ("one call", "one write", "pipes")
"""v1's kernel holds who touches memory; a system call that needs some fails there, or does less."""


def command(way: str) -> str:
    code = f"import fcntl, mmap, os\nbegan = os.getpid()\n{way}\nprint(began == os.getpid())"
    return json.dumps([sys.executable, "-I", "-S", "-c", code])


def test_whatever_takes_memory_is_held_and_goes_on(batch: Batch) -> None:
    ways = [way for way in WAYS if way not in V1_FAILS or not host.lacks_version("v2")]
    jobs = "".join(f'[jobs."{n.replace(" ", "-")}"]\ncommand = {command(WAYS[n])}\n' for n in ways)
    result = batch.run(
        jobs,
        top="capacity = { jobs = 2 }",
        defaults="""hide = "nothing"
        limits = { memory = "16M", swap = 0 }
        timeout = "100s"
        on_memory_limit = { action = "raise", to = "256M" }""",
    )
    assert result.status == 0, result.done.stderr
    assert len(result.runs) == len(ways)
    for record in result.runs:
        assert record["memory"]["oom_kills"] == 0 and record["attempt"] == 1, record
        values = [change["value"] for change in record["memory"]["limit_history"]]
        assert values == [16 * MIB, 256 * MIB], record
        assert batch.output(record) == "True\n"


def test_a_limit_below_what_its_start_takes(batch: Batch) -> None:
    """The job is held before its first instruction, or killed there: never lost, never hung."""
    raised = 'on_memory_limit = { action = "raise", to = "64M" }'
    small = 'command = "true"\nlimits = { memory = "64K", swap = 0 }'
    result = batch.run(f"[jobs.raised]\n{small}\n{raised}\n[jobs.killed]\n{small}\n")
    assert result.reasons == {"raised": "succeeded", "killed": "oom"}, result.done.stderr
    assert result["raised"]["memory"]["oom_kills"] == 0


OTHERS = """
import time
r, w = os.pipe()
os.set_blocking(r, False)
if not os.fork():
    os.close(w)
    most, last = 0.0, time.monotonic()
    while True:
        try:
            if not os.read(r, 1):
                break
        except BlockingIOError:
            pass
        now = time.monotonic()
        most, last = max(most, now - last), now
        time.sleep(0.01)
    print(most > 2, flush=True)
    os._exit(0)
b = [bytes(1 << 16) + bytes([n % 256]) for n in range(640)]
os.close(w)
os.wait()
"""
"""While one takes memory, a child of it notes for how long it was not let run."""


def test_while_a_job_is_held_all_of_it_stands_still(batch: Batch, tmp_path: Path) -> None:
    """v1's kernel stops only who touches memory: others would find none for a fork or a pipe."""
    result = batch.run(
        f'[jobs.two]\ncommand = {command(OTHERS)}\nhide = "nothing"\n'
        'limits = { memory = "24M", swap = 0 }\n',
        top=f'plugins = ["{waiting(tmp_path)}"]',
    )
    record = result["two"]
    assert (record["reason"], record["memory"]["oom_kills"]) == ("succeeded", 0), record
    assert batch.output(record) == "True\nTrue\n"


# A job may have a memory_high too.


@pytest.mark.v2
@pytest.mark.parametrize("high", ["56M", "62M"], ids=["below the wire", "above the wire"])
def test_a_memory_high_slows_down_and_holds_nobody(batch: Batch, high: str) -> None:
    """The wire of 64M is at 58.2M: the job is held there, and nowhere else."""
    takes = "b = [bytes(1 << 16) + bytes([n % 256]) for n in range(56 << 4)]"
    result = batch.run(
        f'[jobs.high]\ncommand = {command(takes)}\nhide = "nothing"\n'
        f'limits = {{ memory = "64M", memory_high = "{high}", swap = 0 }}\ntimeout = "100s"\n'
        'on_memory_limit = { action = "raise", to = "128M" }\n'
    )
    record = result["high"]
    assert (record["reason"], record["memory"]["oom_kills"]) == ("succeeded", 0), record
    assert len(record["memory"]["limit_history"]) == 2
    (told,) = batch.entries("memory_limit")
    assert told["held"] and trip_wire(64 * MIB) < told["usage"] <= 64 * MIB
    assert batch.output(record) == "True\n"


ANSWERS = {
    "swap": ("succeeded", ["memory", "swap"]),  # there may be none to be had: asked again
    "pids": ("oom", ["pids"]),
    "cpus": ("oom", ["cpus"]),
}


@pytest.mark.parametrize("limit", ANSWERS)
def test_a_raise_of_another_limit_leaves_nobody_held(
    batch: Batch, tmp_path: Path, limit: str
) -> None:
    to = {"swap": 64 * MIB, "pids": 64, "cpus": 2}[limit]
    path = policies.plugin(
        tmp_path,
        "other",
        f"""
        @hookimpl
        def on_memory_limit(job, event):
            if not job.raised:
                return RaiseLimit("{limit}", {to})
            return RaiseLimit("memory", 2**28) if event.held else None
        """,
    )
    takes = "b = [bytes(1 << 16) + bytes([n % 256]) for n in range(60 << 4)]"
    result = batch.run(
        f'[jobs.held]\ncommand = {command(takes)}\nhide = "nothing"\n'
        'limits = { memory = "24M", swap = 0, pids = 32, cpus = 1 }\ntimeout = "100s"\n',
        top=f'plugins = ["{path}"]',
    )
    record = result["held"]
    reason, raised = ANSWERS[limit]
    assert record["reason"] == reason, (record, batch.entries("decision"))
    assert sorted(one["limit"] for one in batch.entries("limit_changed")) == raised


# Who only reads and writes files is held by nobody: the kernel takes the page cache back.


@contextmanager
def cold_file(directory: Path) -> Iterator[Path]:
    """A file of CACHE bytes of which nothing is in memory."""
    disk, path = Path("/dev/vda"), directory / "big"
    if disk.is_block_device() and host.in_guest():
        path = disk
    elif subprocess.check_output(["stat", "-f", "-c", "%T", directory], text=True) == "tmpfs\n":
        pytest.skip("needs a directory that is not in memory (TMPDIR), or a guest with --disk 64M")
    else:
        with path.open("wb") as file:
            for _ in range(CACHE // MIB):
                file.write(bytes(MIB))
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        yield path
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("way", ["cat >/dev/null", "head -c 64M /dev/zero >&0"])
def test_page_cache_is_no_reason_to_hold(tmp_state: State, tmp_path: Path, way: str) -> None:
    record = tmp_path / "record.json"
    argv = [sys.executable, "-m", "supervisor", "run", "--memory", "16M", "--swap", "0",
            "--on-memory-limit", "raise:256M", "--record", record, "--", "sh", "-c",
            way]  # fmt: skip
    environment = {**os.environ, **tmp_state.environment, "PYTHONPATH": str(ROOT)}
    with cold_file(tmp_path) as path, path.open("r+b") as file:
        done = subprocess.run(argv, stdin=file, env=environment, timeout=100, check=False)
    found: dict[str, Any] = json.loads(record.read_text())
    assert done.returncode == 0, found
    assert len(found["memory"]["limit_history"]) == 1
    assert found["memory"]["oom_kills"] == 0
    assert found["memory"]["peak"] > 13 * MIB  # or it never came near the limit
    told = {one["source"].rpartition("/")[2]: one["what"] for one in found["evidence"]}
    if "memory.events.local" in told:
        assert " high 0 " not in told["memory.events.local"]


@contextmanager
def disk(directory: Path) -> Iterator[Path]:
    """A directory on a disk: in the guest a file system is made on its empty one."""
    if not host.in_guest():
        if subprocess.check_output(["stat", "-f", "-c", "%T", directory], text=True) == "tmpfs\n":
            pytest.skip("needs a directory that is not in memory (TMPDIR)")
        yield directory
        return
    if not Path("/dev/vda").is_block_device():
        pytest.skip("needs a guest with --disk 64M")
    subprocess.run(["mkfs.ext4", "-q", "-F", "/dev/vda"], check=True)
    where = directory / "disk"
    where.mkdir()
    subprocess.run(["mount", "/dev/vda", where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


REWRITES = "for i in 1 2 3 4 5; do dd if=/dev/zero of=/data/out bs=1M count=40 conv=notrunc; done"


@pytest.mark.parametrize("way", ["cat /data/big >/dev/null", REWRITES], ids=["read", "write"])
def test_two_hundred_megabytes_of_files_fit_into_32(
    tmp_state: State, tmp_path: Path, way: str
) -> None:
    """The file that is read is one hole: its pages come from no disk, but are cached as any."""
    record = tmp_path / "record.json"
    with disk(tmp_path) as where:
        with (where / "big").open("wb") as file:
            file.truncate(200 * MIB)
        done = Supervise(tmp_state)(
            "run", "--memory", "32M", "--swap", "0", "--on-memory-limit", "raise:256M",
            "--mount", f"{where}:/data", "--record", record, "--", "sh", "-c", way,
        )  # fmt: skip
    found: dict[str, Any] = json.loads(record.read_text())
    assert done.status == 0, (done.stderr, found)
    assert len(found["memory"]["limit_history"]) == 1, found
    assert found["memory"]["oom_kills"] == 0
    assert found["memory"]["peak"] > 26 * MIB  # or it never came near the limit


# How a held job ends.

GROW = "b = []\nwhile True:\n    b.append(bytes(1 << 16) + b'x')"
HELD = f"""
[jobs.held]
command = {command(GROW)}
hide = "nothing"
limits = {{ memory = "24M", swap = 0 }}
stop = {{ grace = "50s" }}
"""


def test_no_answer_is_an_oom_with_its_evidence(batch: Batch, tmp_path: Path) -> None:
    """A policy that hangs counts as one that says nothing, when its time is over."""
    path = policies.plugin(
        tmp_path,
        "hangs",
        """
        @hookimpl
        def on_memory_limit(job, event):
            time.sleep(1000)
        """,
    )
    result = batch.run(HELD, top=f'plugins = ["{path}"]')
    record = result["held"]
    assert (record["reason"], record["signal"]) == ("oom", 9)
    assert record["memory"]["oom_kills"] >= 1
    assert any("oom_kill" in one["what"] for one in record["evidence"])


def test_a_held_job_hears_its_stop_signal(batch: Batch) -> None:
    """By a policy that ends it: long before the grace is over, and by that signal."""
    result = batch.run(HELD + 'on_memory_limit = { action = "kill", why = "enough" }')
    record = result["held"]
    assert (record["reason"], record["signal"]) == ("policy", signal.SIGTERM)
    assert record["wall_seconds"] < 45


FAMILY = """
for _ in range(3):
    if not os.fork():
        r, w = os.pipe()
        os.read(r, 1)
"""
"""Children that wait for ever, and are frozen where they do so."""
ENDS = {
    "kill": ("policy", signal.SIGTERM),
    "kill at once": ("policy", signal.SIGKILL),
    "let go": ("oom", signal.SIGKILL),
    "its timeout": ("timeout", signal.SIGTERM),
}


@pytest.mark.parametrize("way", ENDS)
def test_a_held_family_ends_as_one(batch: Batch, tmp_path: Path, way: str) -> None:
    decides = {
        "kill": 'on_memory_limit = { action = "kill" }',
        "kill at once": 'on_memory_limit = { action = "kill", now = true }',
        "let go": 'on_memory_limit = { action = "ignore" }',
        "its timeout": "timeout = '2s'",
    }[way]
    top = f'plugins = ["{waiting(tmp_path)}"]' if way == "its timeout" else ""
    result = batch.run(
        f'[jobs.family]\ncommand = {command(FAMILY + GROW)}\nhide = "nothing"\n'
        f'limits = {{ memory = "24M", swap = 0 }}\nstop = {{ grace = "50s" }}\n{decides}\n',
        top=top,
    )
    record = result["family"]
    assert (record["reason"], record["signal"]) == ENDS[way], record
    assert record["wall_seconds"] < 45


@pytest.mark.v2
def test_a_held_job_has_room_to_end_with(batch: Batch) -> None:
    """What is above the trip wire: on v1 a handler that needs memory finds none."""
    handler = (
        "import signal, sys\nsignal.signal(15, lambda *_: sys.exit(len(bytes(1 << 17)) >> 17))\n"
    )
    result = batch.run(
        f"[jobs.held]\ncommand = {command(handler + GROW)}\n"
        'hide = "nothing"\n'
        'limits = { memory = "64M", swap = 0 }\nstop = { grace = "50s" }\n'
        'on_memory_limit = { action = "kill" }\n'
    )
    record = result["held"]
    assert (record["reason"], record["exit_code"]) == ("policy", 1), record


def waiting(directory: Path) -> str:
    """A policy that takes its time, so that the job stays held."""
    return policies.plugin(
        directory,
        "slow",
        """
        @hookimpl
        async def on_memory_limit(job, event):
            await trio.sleep(4)
            return RaiseLimit("memory", 2**30)
        """,
    )


def test_a_stop_while_a_policy_thinks_about_a_held_job(batch: Batch, tmp_path: Path) -> None:
    with batch.start(HELD, top=f'plugins = ["{waiting(tmp_path)}"]') as running:
        running.wait_for("reached its memory limit of .*, held")
        running.signal(signal.SIGTERM)
        result = running.finish()
    record = result["held"]
    assert (record["reason"], record["signal"]) == ("stopped", signal.SIGTERM)
    assert record["wall_seconds"] < 45


def test_a_job_left_held_by_a_killed_supervisor_is_ended_by_the_next(
    batch: Batch, tmp_path: Path
) -> None:
    batch.write(HELD, top=f'plugins = ["{waiting(tmp_path)}"]')
    process = batch.supervise.start(batch.path, "--json")
    assert process.stderr is not None
    with process:
        for line in process.stderr:
            if "reached its memory limit" in line:
                break
        process.kill()
    result = batch.run('[jobs.next]\ncommand = "true"\n')
    assert result.reasons == {"next": "succeeded"}
    assert any("left behind" in entry["text"] for entry in batch.entries("warning"))


def test_a_swarm_that_takes_memory_is_held_raised_and_ended(batch: Batch) -> None:
    """Each of them forks and takes more: one raise, then nobody has more to give."""
    swarm = """
b = []
while True:
    try:
        os.fork()
    except OSError:
        pass
    b.append(bytes(1 << 18) + b'x')
"""
    result = batch.run(
        f"[jobs.swarm]\ncommand = {command(swarm)}\nhide = 'nothing'\n"
        'limits = { memory = "24M", swap = 0, pids = 24 }\ntimeout = "100s"\n'
        'on_memory_limit = { action = "raise", to = "48M" }\n'
    )
    record = result["swarm"]
    assert record["reason"] == "oom", record
    values = [change["value"] for change in record["memory"]["limit_history"]]
    assert values == [24 * MIB, 48 * MIB]
