"""What jobs use, as told by the socket, `stats` and `top`, against jobs that use known amounts."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from supervisor.front.verbs.client import Client, Refused
from supervisor.linux import proc
from tests.support import host
from tests.support.batch import PATIENCE, Batch
from tests.support.command import ROOT, Done

pytestmark = pytest.mark.kernel

MIB = 1 << 20
SPIN = '["sh", "-c", "while :; do :; done"]'
SLEEP = '"sleep 1000"'

Ask = Callable[..., Done]


@pytest.fixture
def ask(batch: Batch) -> Ask:
    """A client verb, told of this test's instance."""

    def call(*words: str) -> Done:
        return batch.supervise(*words, environment={"SUPERVISE_SOCKET": str(socket_of(batch))})

    return call


def socket_of(batch: Batch) -> Path:
    return batch.where.runtime / batch.name / "socket"


def stats(batch: Batch, job: str, **query: Any) -> dict[str, Any]:
    """One job, by the socket."""
    answer = Client(socket_of(batch)).get("stats", query={"job": job, **query})
    assert answer["problems"] == []
    (found,) = answer["jobs"]
    assert found["job"] == job
    return dict(found)


def until(looked: Callable[[], dict[str, Any]], fits: Callable[[dict[str, Any]], bool]) -> Any:
    """The first look that fits; on a busy host it may take a few."""
    deadline = time.monotonic() + PATIENCE
    while True:
        found = looked()
        if fits(found):
            return found
        assert time.monotonic() < deadline, json.dumps(found, indent=1)


def test_a_busy_loop_at_half_a_cpu_uses_all_of_its_quota(batch: Batch) -> None:
    """A window counts in which it was let run: then all its periods, but those at the edges, are
    throttled ones.
    """
    job = f"[jobs.busy]\ncommand = {SPIN}\nlimits = {{ cpus = 0.5 }}"
    with batch.start(job) as running:
        favour(running.wait_started("busy")["busy"])
        found = until(
            lambda: stats(batch, "busy", over=3, processes="true"),
            lambda job: (job["cpu"]["throttled_percent"] or 0) >= 80,
        )
    cpu = found["cpu"]
    assert cpu["share_of"] == "quota" and cpu["quota_cpus"] == 0.5
    assert 40 <= cpu["percent"] <= 62  # of a CPU; a throttled task may overrun a slice
    assert cpu["share"] == pytest.approx(2 * cpu["percent"], abs=0.1)
    assert cpu["host_percent"] == pytest.approx(cpu["percent"] / os.cpu_count(), abs=0.1)  # type: ignore[operator]
    assert cpu["throttled_seconds"] > 0 and cpu["throttled_periods"] > 0
    # each process by its ticks comes to what the cgroup has
    of_processes = sum(one["cpu_percent"] or 0 for one in found["processes"])
    assert of_processes == pytest.approx(cpu["percent"], abs=6)


def test_without_a_quota_the_share_is_of_the_host(batch: Batch, ask: Ask) -> None:
    with batch.start(f"[jobs.free]\ncommand = {SPIN}") as running:
        running.wait_started("free")
        found = until(
            lambda: stats(batch, "free", over=1), lambda job: (job["cpu"]["percent"] or 0) > 5
        )
        told = ask("stats", "free")
    cpu = found["cpu"]
    assert cpu["share_of"] in ("host", "cpuset") and cpu["quota_cpus"] is None
    assert cpu["may_use"] == len(os.sched_getaffinity(0))
    assert cpu["share"] == pytest.approx(cpu["percent"] / cpu["may_use"], abs=0.1)
    assert cpu["throttled_percent"] is None
    assert "without a quota" in told.stdout and "throttled" not in told.stdout


def test_memory_is_told_by_its_kinds(batch: Batch) -> None:
    """8 MiB in a tmpfs, then the same of a process."""
    ready = batch.fifo("ready")
    script = (
        "dd if=/dev/zero of=/tmp/eight bs=1M count=8 2> /dev/null; echo x > /tmp/ready; sleep 1000"
    )
    job = f'[jobs.one]\ncommand = ["sh", "-c", "{script}"]\nlimits = {{ memory = "64M" }}'
    with batch.start(job, defaults=batch.sees(ready)):
        batch.told(ready, 1)
        found = until(
            lambda: stats(batch, "one"), lambda job: (job["memory"]["shmem"] or 0) >= 7 * MIB
        )
    memory = found["memory"]
    assert memory["limit"] == 64 * MIB
    assert 8 * MIB <= memory["used"] < 16 * MIB
    assert memory["anon"] < 4 * MIB
    # tmpfs is no cache that could be taken back
    assert memory["working"] >= 8 * MIB
    assert memory["percent"] == pytest.approx(100 * memory["used"] / (64 * MIB), abs=0.1)
    assert memory["oom_kills"] == 0 and memory["swap"] in (0, None)


def test_page_cache_is_told_apart(batch: Batch, tmp_path: Path) -> None:
    disk = host.disk_directory(tmp_path)
    path = disk / f"{batch.name}.cached"
    path.write_bytes(bytes(8 * MIB))
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        ready = batch.fifo("ready")
        script = "cat /tmp/file > /dev/null; echo x > /tmp/ready; sleep 1000"
        seen = batch.sees(ready).removesuffix("]")
        mounts = f'{seen}, {{ source = "{path}", target = "/tmp/file" }}]'
        job = f'[jobs.one]\ncommand = ["sh", "-c", "{script}"]\nlimits = {{ memory = "64M" }}'
        with batch.start(job, defaults=mounts):
            batch.told(ready, 1)
            found = until(
                lambda: stats(batch, "one"), lambda job: (job["memory"]["file"] or 0) >= 7 * MIB
            )
    finally:
        path.unlink()
    memory = found["memory"]
    assert memory["working"] == memory["used"] - memory["file"] < 4 * MIB
    assert found["io"]["read_bytes"] >= 8 * MIB and found["io"]["reads"] > 0


def test_refused_forks_are_told(batch: Batch) -> None:
    """The shell that may not fork is a child: the job goes on."""
    script = "while :; do sh -c '(:); :' 2> /dev/null; done"
    job = f'[jobs.one]\ncommand = ["sh", "-c", "{script}"]\nlimits = {{ pids = 2 }}'
    with batch.start(job) as running:
        running.wait_started("one")
        found = until(lambda: stats(batch, "one"), lambda job: bool(job["pids"]["refused"]))
    assert found["pids"]["limit"] == 2 and found["pids"]["tasks"] <= 2


def test_short_lived_processes_cost_no_more_than_others(batch: Batch) -> None:
    """What ends while it is looked at is left out, and nothing fails."""
    script = "while :; do for i in 1 2 3 4 5 6 7 8; do (:) & done; wait; done"
    job = f'[jobs.one]\ncommand = ["sh", "-c", "{script}"]\nlimits = {{ pids = 100, cpus = 0.5 }}'
    with batch.start(job) as running:
        (first,) = running.wait_started("one").values()
        for _ in range(10):
            found = stats(batch, "one", processes="true", over=0.25)
            assert first in {one["pid"] for one in found["processes"]}
            assert len(found["processes"]) <= 100


@pytest.mark.skipif(not Path("/proc/pressure/cpu").exists(), reason="this kernel has no PSI")
def test_pressure_is_told_where_the_kernel_has_it(batch: Batch) -> None:
    job = f"[jobs.busy]\ncommand = {SPIN}\nlimits = {{ cpus = 0.1 }}"
    with batch.start(job) as running:
        running.wait_started("busy")
        if not stats(batch, "busy")["pressure"]:
            pytest.skip("no unified hierarchy, so no pressure of cgroups")
        found = until(
            lambda: stats(batch, "busy"),
            lambda job: job["pressure"]["cpu"]["some_avg10"] > 0,
        )
    assert set(found["pressure"]) == {"cpu", "memory", "io"}
    assert found["pressure"]["cpu"]["some_seconds"] > 0


def test_a_layer_of_a_fixed_size_is_told(batch: Batch) -> None:
    job = f'[jobs.one]\ncommand = {SLEEP}\nwrite = "overlay"\ndisk_by = "tmpfs"\n'
    with batch.start(job + 'limits = { disk = "8M" }') as running:
        running.wait_started("one")
        disk = stats(batch, "one")["disk"]
    assert disk["limit"] == 8 * MIB and 0 <= disk["used"] < MIB


def test_who_asks_wrongly_is_told(batch: Batch) -> None:
    with batch.start(f"[jobs.one]\ncommand = {SLEEP}") as running:
        running.wait_started("one")
        client = Client(socket_of(batch))
        for status, path, query in (
            (404, ("stats",), {"job": "onne"}),
            (404, ("stats", "follow"), {"job": "onne"}),
            (400, ("stats",), {"over": 61}),
            (400, ("stats",), {"over": -1}),
            (400, ("stats",), {"over": "1e999"}),
            (400, ("stats",), {"processes": "perhaps"}),
            (400, ("stats", "follow"), {"interval": 0.001}),
            (400, ("stats", "follow"), {"interval": "NaN"}),
            (400, ("stats", "follow"), {"count": -1}),
        ):
            with pytest.raises(Refused) as caught:
                client.get(*path, query=query)
            assert caught.value.status == status, query


def kept_open(pid: int) -> int:
    """How many of a run's files, as a meter reads them, a process holds open."""
    count = 0
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile
            count += os.readlink(f"/proc/{pid}/fd/{name}").endswith("/payload/pids.current")
    return count


def test_nothing_is_kept_open_for_those_who_have_gone(batch: Batch) -> None:
    with batch.start(f"[jobs.one]\ncommand = {SLEEP}") as running:
        running.wait_started("one")
        pid = running.process.pid
        client = Client(socket_of(batch))
        client.get("stats")
        assert kept_open(pid) == 0
        streams = [client.open("GET", "stats", "follow", query={"interval": 0.25})
                   for _ in range(5)]  # fmt: skip
        for one in streams:
            assert json.loads(next(one.lines()))["job"]["job"] == "one"
        assert kept_open(pid) == 1  # one for all of them
        for one in streams:
            one.stream.close()
        until(lambda: {"open": kept_open(pid)}, lambda found: not found["open"])


def favour(pid: int) -> None:
    """Let the instance of a job have its CPUs before others: this host may be busy."""
    for mount in host.hierarchies():
        if "cpu" not in mount.controllers:
            continue
        kind = "" if mount.unified else "cpu"
        (path,) = (
            one.path for one in proc.memberships(f"/proc/{pid}/cgroup")
            if kind in (*one.controllers, "" if not one.controllers else None)
        )  # fmt: skip
        instance = mount.point / path.strip("/").removesuffix("/payload").rpartition("/")[0]
        name, value = ("cpu.weight", "10000") if mount.unified else ("cpu.shares", "262144")
        (instance / name).write_text(value)


def test_a_job_that_ends_is_no_longer_told_of(batch: Batch) -> None:
    ready = batch.fifo("ready")
    jobs = (
        f"[jobs.stays]\ncommand = {SLEEP}\n"
        '[jobs.goes]\ncommand = ["sh", "-c", "echo x > /tmp/ready; sleep 1000"]'
    )
    with batch.start(jobs, defaults=batch.sees(ready)) as running:
        running.wait_started("stays", "goes")
        client = Client(socket_of(batch))
        lines = client.lines("stats", "follow", query={"interval": 0.25})
        names = {next(lines)["job"]["job"], next(lines)["job"]["job"]}
        assert names == {"stays", "goes"}
        client.post("jobs", "goes", "kill", body={})
        seen: list[str | None] = []
        for line in lines:  # at last a look at one job alone
            seen.append(line["job"] and line["job"]["job"])
            if seen[-2:] == ["stays", None] and line["jobs"] == 1:
                break
        assert stats(batch, "goes")["state"] == "ended"
        lines.close()  # type: ignore[attr-defined]


def test_the_verbs_print_it(batch: Batch, ask: Ask) -> None:
    jobs = f'[jobs.one]\ncommand = {SLEEP}\nlimits = {{ memory = "64M", cpus = 0.5 }}\n'
    with batch.start(f"{jobs}[jobs.two]\ncommand = {SLEEP}") as running:
        pid = running.wait_started("one", "two")["one"]
        once = ask("top", "--once", "--interval", "0.25s", "--sort", "name")
        assert once.status == 0, once.stderr
        head, _, titles, *rows = once.stdout.splitlines()
        assert " 2 jobs " in head
        assert titles.split()[:3] == ["JOB", "CPU%", "QUOTA%"]
        assert [row.split()[0] for row in rows] == ["one", "two"]
        assert rows[1].split()[2].endswith(("h", "c"))
        of_one = ask("top", "one", "--once", "--interval", "0.25s")
        assert str(pid) in of_one.stdout
        found = ask("top", "--json", "--count", "2", "--interval", "0.25s")
        lines = [json.loads(line) for line in found.stdout.splitlines()]
        assert [(line["look"], line["job"] and line["job"]["job"]) for line in lines] == [
            (1, "one"), (1, "two"), (1, None), (2, "one"), (2, "two"), (2, None)
        ]  # fmt: skip
        assert lines[0]["job"]["cpu"]["percent"] is None
        assert lines[3]["job"]["cpu"]["percent"] is not None
        told = ask("stats", "--over", "0")
        assert told.stdout.startswith("one: running, run ")
        assert "of its quota of 0.5" in told.stdout and "\ntwo: running" in told.stdout
        as_json = ask("stats", "two", "--json", "--over", "0")
        assert json.loads(as_json.stdout)["job"] == "two"
        assert ask("stats", "thre").status == 2
        assert ask("top").status == 2  # no terminal
        assert "--once" in ask("top").stderr
        assert ask("top", "--interval", "1ms").status == 2
    assert ask("top", "--once").status == 125


@contextmanager
def on_a_terminal(batch: Batch, *words: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A verb with a terminal of its own, and the other end of that."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "supervisor", *words],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm",
             "SUPERVISE_SOCKET": str(socket_of(batch))},
    )  # fmt: skip
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def read_until(terminal: int, wanted: str) -> str:
    """What is written to a terminal, up to `wanted`."""
    data = b""
    deadline = time.monotonic() + PATIENCE
    while wanted.encode() not in data:
        ready, _, _ = select.select([terminal], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"{wanted!r} has not come: {data!r}"
        data += os.read(terminal, 65536)
    return data.decode()


ENTER, LEAVE = "\033[?1049h", "\033[?1049l"


def test_top_takes_the_terminal_and_gives_it_back(batch: Batch) -> None:
    jobs = f"[jobs.one]\ncommand = {SLEEP}\n[jobs.two]\ncommand = {SLEEP}"
    with batch.start(jobs) as running:
        pid = running.wait_started("one", "two")["one"]
        with on_a_terminal(batch, "top", "--interval", "0.25s", "--sort", "name") as (top, ours):
            before = termios.tcgetattr(ours)
            read_until(ours, ENTER)
            read_until(ours, "sorted by name")
            assert not termios.tcgetattr(ours)[3] & termios.ECHO
            os.write(ours, b"m")
            read_until(ours, "sorted by memory")
            os.write(ours, b"n\033[B\r")
            read_until(ours, f"{pid}")
            os.write(ours, b"\033[D")
            read_until(ours, " 2 jobs ")
            os.write(ours, b"q")
            assert LEAVE in read_until(ours, LEAVE)
            assert top.wait(PATIENCE) == 0
            assert termios.tcgetattr(ours) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_gives_the_terminal_back(batch: Batch, number: signal.Signals) -> None:
    with batch.start(f"[jobs.one]\ncommand = {SLEEP}") as running:
        running.wait_started("one")
        with on_a_terminal(batch, "top") as (top, ours):
            before = termios.tcgetattr(ours)
            read_until(ours, "sorted by cpu")
            top.send_signal(number)
            read_until(ours, LEAVE)
            assert top.wait(PATIENCE) == (0 if number == signal.SIGINT else 128 + number)
            assert termios.tcgetattr(ours) == before


def test_the_end_of_the_instance_gives_the_terminal_back(batch: Batch) -> None:
    with batch.start(f"[jobs.one]\ncommand = {SLEEP}") as running:
        running.wait_started("one")
        with on_a_terminal(batch, "top") as (top, ours):
            before = termios.tcgetattr(ours)
            read_until(ours, "sorted by cpu")
            running.signal(signal.SIGINT)
            told = read_until(ours, "supervise: the instance has ended")
            assert LEAVE in told
            assert top.wait(PATIENCE) == 125
            assert termios.tcgetattr(ours) == before
        running.finish()
