"""`supervise CONFIG` as people use it: order, room, restarts, Ctrl-C, two at once, bad input."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.batch import PATIENCE, Batch, assert_clean
from tests.support.command import ROOT, Supervise
from tests.support.nobody import Nobody, nobody

pytestmark = pytest.mark.kernel

READY = "echo x > /tmp/ready"


# The end of a batch.


def test_a_batch_that_goes_well(batch: Batch) -> None:
    batch.write('[jobs.one]\ncommand = "echo hello"\n')
    done = batch.supervise(batch.path)
    assert done.status == 0
    assert "one started" in done.stderr and "one ended: succeeded" in done.stderr
    assert "1 job in 1 run: 1 as expected" in done.stdout  # the summary is the result
    (out,) = (batch.state / "logs").glob("one.*.out")
    assert out.read_text() == "hello\n"
    batch.assert_clean()


def test_a_batch_with_a_bad_end(batch: Batch) -> None:
    result = batch.run('[jobs.good]\ncommand = "true"\n[jobs.bad]\ncommand = "false"\n')
    assert result.status == 1
    assert "1 as expected, 1 not (1 failed)" in result.done.stderr  # --json has stdout for itself


def test_what_is_expected_is_no_bad_end(batch: Batch) -> None:
    jobs = '[jobs.fails]\ncommand = "false"\nexpect = "failed"\n'
    assert batch.run(jobs).status == 0
    assert batch.run(jobs.replace("false", "true")).status == 1


# Order and room.


def events(batch: Batch) -> list[tuple[str, str]]:
    """(started or ended, job) in the order of the log."""
    kinds = {"job_starting": "started", "job_ended": "ended"}
    return [(kinds[e["event"]], e["job"]) for e in batch.entries() if e["event"] in kinds]


def test_jobs_start_after_those_they_wait_for(batch: Batch) -> None:
    result = batch.run("""
    [jobs.last]
    command = "true"
    after = ["many", "first"]
    [jobs.many]
    command = "sleep 0.{n}"
    matrix = { n = [1, 2] }
    after = ["first"]
    [jobs.first]
    command = "sleep 0.1"
    """)
    assert result.status == 0
    seen = events(batch)
    assert seen[:2] == [("started", "first"), ("ended", "first")]
    assert seen[-2:] == [("started", "last"), ("ended", "last")]
    assert {job for _, job in seen[2:-2]} == {"many@n=1", "many@n=2"}


@pytest.mark.parametrize(
    ("capacity", "limits", "most"),
    [
        ("jobs = 3", "", 3),
        ('memory = "64M"', 'limits = { memory = "16M" }', 4),
        ("cpus = 1", "limits = { cpus = 0.5 }", 2),
    ],
)
def test_no_more_run_at_once_than_there_is_room_for(
    batch: Batch, capacity: str, limits: str, most: int
) -> None:
    job = f'[jobs.one]\ncommand = "sleep 0.1"\nmatrix = {{ n = {list(range(10))} }}\n{limits}\n'
    result = batch.run(job, top=f"capacity = {{ {capacity} }}")
    assert result.status == 0
    running, peak = 0, 0
    for what, _ in events(batch):
        running += 1 if what == "started" else -1
        peak = max(peak, running)
    assert peak == most


def test_priority_orders_those_who_wait(batch: Batch) -> None:
    jobs = "".join(
        f'[jobs.{name}]\ncommand = "true"\npriority = {priority}\n'
        for name, priority in (("c", 0), ("d", 0), ("b", 5), ("e", -1), ("a", 9))
    )
    assert batch.run(jobs, top="capacity = { jobs = 1 }").status == 0
    assert [job for what, job in events(batch) if what == "started"] == ["a", "b", "c", "d", "e"]


# Restarts.


def test_a_job_that_fails_is_started_again_with_longer_and_longer_waits(batch: Batch) -> None:
    result = batch.run("""
    [jobs.bad]
    command = "false"
    restart = { when = "on-failure", attempts = 3, backoff = "50ms", max_backoff = "150ms" }
    """)
    assert result.status == 1
    assert [run["attempt"] for run in result.runs] == [1, 2, 3, 4]
    assert [entry["after"] for entry in batch.entries("restart")] == [0.05, 0.1, 0.15]
    for before, after in pairwise(result.runs):
        assert before["finished_at"] < after["started_at"]


def test_a_job_that_recovers_has_ended_well(batch: Batch, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    result = batch.run(f"""
    [jobs.flaky]
    script = "[ -e /tmp/data/tried ] || {{ touch /tmp/data/tried; exit 1; }}"
    mounts = [{{ source = "{tmp_path}/data", target = "/tmp/data", read_only = false }}]
    restart = {{ when = "on-failure", backoff = "10ms" }}
    """)
    assert result.status == 0
    assert [run["reason"] for run in result.runs] == ["failed", "succeeded"]


def test_a_service_runs_until_it_is_stopped(batch: Batch) -> None:
    jobs = '[jobs.s]\ncommand = "true"\n' + (
        'restart = { when = "always", attempts = "max", backoff = "10ms", max_backoff = "20ms" }\n'
    )
    with batch.start(jobs) as running:
        for _ in range(4):
            running.wait_for("s started")
        running.signal(signal.SIGINT)
        result = running.finish()
    assert result.status == 130
    assert [run["attempt"] for run in result.runs] == list(range(1, len(result.runs) + 1))


# Ctrl-C.


def test_the_stop_signal_is_the_job_s_own(batch: Batch) -> None:
    ready = batch.fifo("ready")
    jobs = f"""
    [jobs.one]
    script = "trap 'echo asked; exit 0' USR2; trap '' TERM; {READY}; while :; do sleep 0.1; done"
    stop = {{ signal = "USR2", grace = "60s" }}
    """
    with batch.start(jobs, defaults=batch.sees(ready)) as running:
        batch.told(ready, 1)
        running.signal(signal.SIGINT)
        result = running.finish()
    assert (result["one"]["reason"], result["one"]["exit_code"]) == ("stopped", 0)
    assert batch.output(result["one"]) == "asked\n"


def test_the_second_interrupt_kills_at_once(batch: Batch) -> None:
    ready = batch.fifo("ready")
    jobs = f"""
    [jobs.one]
    script = "trap '' TERM; {READY}; while :; do sleep 1; done"
    stop = {{ grace = "10m" }}
    """
    with batch.start(jobs, defaults=batch.sees(ready)) as running:
        batch.told(ready, 1)
        running.signal(signal.SIGINT)
        running.wait_for("one was sent SIGTERM")
        running.signal(signal.SIGINT)
        result = running.finish()
    assert result.status == 130
    assert (result["one"]["reason"], result["one"]["signal"]) == ("stopped", 9)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_signal_cuts_the_clean_up_short(batch: Batch, number: int) -> None:
    jobs = "".join(f'[jobs.j{n}]\ncommand = "sleep 1000"\n' for n in range(8))
    with batch.start(jobs) as running:
        running.wait_started(*(f"j{n}" for n in range(8)))
        while running.process.poll() is None and (batch.where.runtime / batch.name).exists():
            running.signal(number)
        assert set(running.finish().reasons.values()) == {"stopped"}
    batch.assert_clean()


# Two at once.


def test_two_instances_side_by_side_do_not_meet(supervise: Supervise, tmp_path: Path) -> None:
    one, two = Batch(supervise, tmp_path), Batch(supervise, tmp_path)
    with one.start('[jobs.j]\ncommand = "sleep 1000"\n') as first:
        first.wait_started("j")
        assert two.run('[jobs.j]\ncommand = "true"\n').status == 0
        first.signal(signal.SIGTERM)
        assert first.finish()["j"]["reason"] == "stopped"


def test_a_name_that_is_taken_is_refused_and_its_owner_unharmed(batch: Batch) -> None:
    ready = batch.fifo("ready")
    jobs = f"[jobs.j]\nscript = \"{READY}; trap 'exit 7' USR1; while :; do sleep 0.1; done\"\n"
    jobs += 'stop = { signal = "USR1" }\n'
    with batch.start(jobs, defaults=batch.sees(ready)) as first:
        batch.told(ready, 1)
        refused = batch.supervise(batch.path)
        assert refused.status == 125
        assert f"an instance named {batch.name} is running" in refused.stderr
        assert "another name" in refused.stderr
        first.signal(signal.SIGINT)
        assert first.finish()["j"]["exit_code"] == 7


# Bad input.


@pytest.mark.parametrize(
    "text",
    ["", "[jobs.a]\n", "[jobs.a]\ncommand = 1\n", "[jobs.a\n", "[jobs.a]\ncomand = 'x'\n"],
)
def test_a_wrong_configuration_starts_nothing(batch: Batch, text: str) -> None:
    batch.write('[jobs.fine]\ncommand = "true"\n' + (text or "x = 1\n"))
    done = batch.supervise(batch.path)
    assert done.status == 2
    assert f"{batch.path}:" in done.stderr and "Traceback" not in done.stderr
    assert not batch.state.exists()
    batch.assert_clean()


def test_a_limit_that_cannot_be_enforced_is_refused(batch: Batch) -> None:
    result = batch.run("""
    [jobs.j]
    command = "true"
    [jobs.k]
    command = "true"
    limits = { cpuset = "4000-4001" }
    """)
    assert result.status in (1, 125)
    assert "cpuset" in result.done.stderr and "Traceback" not in result.done.stderr


def test_a_full_disk_stops_no_job(supervise: Supervise, tmp_path: Path) -> None:
    """The state directory fills up while the jobs run: they end as they would, the loss is told."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], check=True)
    try:
        batch = Batch(supervise, tmp_path)
        batch.write("")
        text = f"""
        [supervisor]
        name = "{batch.name}"
        state_dir = "{disk}"
        runtime_dir = "{batch.where.runtime}"
        [jobs.filler]
        script = "yes | head -c 1M"
        expect = "failed"
        [jobs.after]
        script = "exit 3"
        after = ["filler"]
        expect = "failed"
        [jobs.quiet]
        command = "sleep 0.5"
        """
        batch.path.write_text(text)
        done = supervise(batch.path, "--json")
        batch.assert_clean()
    finally:
        subprocess.run(["umount", disk], check=True)
    records = {run["job"]: run for run in map(json.loads, done.stdout.splitlines())}
    assert records["quiet"]["reason"] == "succeeded", done.stderr
    assert records["after"]["reason"] in ("failed", "start_failed")
    assert "No space left on device" in done.stderr


# The live table.


def test_the_live_table_appears_and_leaves_the_terminal_clean(batch: Batch) -> None:
    batch.write('[jobs.wait]\ncommand = "sleep 1.2"\nlimits = { memory = "64M" }\n')
    master, slave = pty.openpty()
    before = termios.tcgetattr(slave)
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "supervisor", str(batch.path)],
            stdin=slave, stdout=slave, stderr=slave, env=environment,
        ) as process:  # fmt: skip
            seen = b""
            while process.poll() is None or select.select([master], [], [], 0.1)[0]:
                if select.select([master], [], [], 0.1)[0]:
                    seen += os.read(master, 65536)
        assert process.returncode == 0
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)
    text = seen.decode(errors="replace")
    assert "64.0M" in text and "running" in text  # the table
    assert "1 job in 1 run: 1 as expected" in text  # the summary
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is there again
    assert "\x1b[?1049h" not in text or "\x1b[?1049l" in text
    batch.assert_clean()


# Without privilege.


@pytest.fixture
def as_nobody() -> Iterator[Nobody]:
    with nobody() as found:
        yield found


def test_missing_privilege_is_named_with_the_ways_out(as_nobody: Nobody) -> None:
    run, own = as_nobody
    done = run("run", "--memory", "32M", "--", "true")
    assert done.returncode == 125, done
    for words in ("root", "delegated cgroup", 'on_missing = "warn"'):
        assert words in done.stderr
    assert "Traceback" not in done.stderr
    left = [path for path in own.rglob("*") if path.name not in ("supervise",)]
    assert left == []


def test_a_container_without_privilege(as_nobody: Nobody) -> None:
    run, _own = as_nobody
    if subprocess.run(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups",
                       "unshare", "-Ur", "true"], check=False).returncode:  # fmt: skip
        pytest.skip("this kernel gives no user namespace to ordinary users")
    done = run("run", "--on-missing", "warn", "--user-namespace", "self", "--memory", "32M", "--",
               "id", "-u")  # fmt: skip
    assert (done.stdout, done.returncode) == ("0\n", 0), done.stderr
    assert "memory" in done.stderr  # what is not enforced is told


def test_nothing_of_a_run_that_is_refused_is_left(supervise: Supervise) -> None:
    process = supervise.start("run", "--user", "no-such-user-at-all", "--", "true")
    with process:
        _out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode in (2, 125) and "no-such-user-at-all" in err
    assert_clean(f"supervise.run-{process.pid}", f"/run/supervise/run-{process.pid}")
