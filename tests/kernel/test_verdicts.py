"""Why a run ended: each word of the vocabulary, told apart from the others, time after time.

One table of jobs is run in two ways: each five times in one batch, many at once, where a race would
show; and each once by `supervise run`, with the exit status it gives.
"""

from __future__ import annotations

import json
import os
import re
import signal
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from supervisor.cgroup import detect, files
from supervisor.cgroup.v1 import Cpuset
from supervisor.front.schema import JOB
from tests.support import cgroups, host
from tests.support.batch import Batch, Record, Result, assert_clean, toml
from tests.support.command import State, Supervise

pytestmark = pytest.mark.kernel

TIMES = 5
"""How often each job of the table is run in the batch."""

HOG = "tail /dev/zero"
"""GNU tail keeps all of a line that does not end: it grows until it is stopped."""
MEMORY = {"limits.memory": "16M", "limits.swap": 0}
PIDS = {"limits.pids": 8}
FORKS = "my @p; for (1..20) { my $p = fork; if (defined $p && !$p) { sleep 1000; exit } } "
BUSYBOX = {"mounts": [{"source": "BUSYBOX", "target": "/tmp/busybox"}]}


@dataclass(frozen=True)
class Case:
    """One job, and all that is to be told of its end; `status` is that of `supervise run`.

    `exit_code` and `signal` None: either there is none, or it hangs on who was faster.
    """

    command: tuple[str, ...]
    reason: str
    status: int
    settings: Mapping[str, Any]
    exit_code: int | None = None
    signal: int | None = None
    oom_kills: int = 0
    refused: bool = False
    evidence: str = ""
    """A pattern that one piece of the evidence must contain."""


def sh(script: str, reason: str, status: int, /, **more: Any) -> Case:
    settings = more.pop("settings", {})
    return Case(("sh", "-c", script), reason, status, settings, **more)


CASES = {
    "succeeds": sh("exit 0", "succeeded", 0, exit_code=0),
    "fails": sh("exit 3", "failed", 3, exit_code=3),
    "exits-137": sh("exit 137", "failed", 137, exit_code=137),
    "exits-124": sh("exit 124", "failed", 124, exit_code=124),
    "segfaults": sh("kill -SEGV $$", "signal", 139, signal=11),
    "aborts": sh("kill -ABRT $$", "signal", 134, signal=6),
    "kills-itself": sh("kill -KILL $$", "signal", 137, signal=9),
    "terminates-itself": sh("kill -TERM $$", "signal", 143, signal=15),
    "oom-main": Case(("tail", "/dev/zero"), "oom", 137, MEMORY, signal=9, oom_kills=1,
                     evidence="killed process"),
    "oom-child": sh(f"{HOG}; exit 0", "oom", 137, settings=MEMORY, oom_kills=1),
    "oom-child-main-waits": sh(f"{HOG} & sleep 1000", "oom", 137, settings=MEMORY, signal=9,
                               oom_kills=1),
    "oom-grandchild": sh(f"sh -c '({HOG}; :); :'; exit 0", "oom", 137, settings=MEMORY,
                         oom_kills=1),
    "oom-orphan": sh(f"(setsid {HOG} &) ; sleep 1000", "oom", 137, settings=MEMORY, signal=9,
                     oom_kills=1),
    "oom-continue": sh(f"{HOG}; exit 0", "succeeded", 0, settings={**MEMORY, "oom": "continue"},
                       exit_code=0, oom_kills=1),
    "oom-continue-fails": sh(f"{HOG}", "failed", 137, oom_kills=1, exit_code=137,
                             settings={**MEMORY, "oom": "continue"}),
    "oom-continue-main": Case(("tail", "/dev/zero"), "oom", 137, {**MEMORY, "oom": "continue"},
                              signal=9, oom_kills=1),
    "oom-in-exec": Case(("true",), "oom", 137, {"limits.memory": "4K", "limits.swap": 0},
                        signal=9, oom_kills=1),
    "oom-at-once": Case(("/tmp/busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=64M",
                         "count=1"), "oom", 137,
                        {**BUSYBOX, "limits.memory": "2M", "limits.swap": 0},
                        signal=9, oom_kills=1, evidence="killed process"),
    "pids-bad-end": Case(("perl", "-e", FORKS + "exit 7"), "pids", 7, PIDS, exit_code=7,
                         refused=True),
    "pids-good-end": Case(("perl", "-e", FORKS + "exit 0"), "succeeded", 0, PIDS, exit_code=0,
                          refused=True),
    "pids-signal": Case(("perl", "-e", FORKS + "kill 'ABRT', $$; sleep 1000"), "pids", 134, PIDS,
                        signal=6, refused=True),
    "times-out": Case(("sleep", "1000"), "timeout", 124, {"timeout": "300ms"}, signal=15),
    "times-out-well": sh("trap 'exit 0' TERM; while :; do sleep 1; done", "timeout", 124,
                         settings={"timeout": "300ms"}),
    "times-out-stubborn": sh("trap '' TERM INT HUP; while :; do sleep 1; done", "timeout", 124,
                             settings={"timeout": "1s", "stop.grace": "300ms"}, signal=9),
    "times-out-stopped": sh("kill -STOP $$", "timeout", 124, signal=15,
                            settings={"timeout": "300ms", "stop.grace": "30s"}),
    "times-out-stubborn-tree": sh(
        "setsid sh -c 'trap \"\" TERM; (trap \"\" TERM; kill -STOP $PPID; sleep 1000) & sleep 1000'"
        " & trap '' TERM; while :; do sleep 1; done", "timeout", 124, signal=9,
        settings={"timeout": "1s", "stop.grace": "200ms"}),
    "burns-cpu": sh("while :; do :; done", "cpu_timeout", 124, settings={"cpu_time": "200ms"},
                    signal=15),
    "burns-cpu-in-child": sh("sh -c 'while :; do :; done' & wait", "cpu_timeout", 124,
                             settings={"cpu_time": "200ms"}, signal=15),
    "policy": Case(("sleep", "1000"), "policy", 143,
                   {"on_start": {"action": "kill", "why": "enough"}}, signal=15),
    "not-found": Case(("/no/such/program",), "start_failed", 127, {}),
    "not-executable": Case(("/etc/passwd",), "start_failed", 126, {}),
    "no-such-directory": Case(("true",), "start_failed", 125, {"working_dir": "/no/such"}),
    "leaves-daemons": sh("(setsid sh -c 'trap \"\" TERM HUP; sleep 1000 & sleep 1000' &); exit 0",
                         "succeeded", 0, exit_code=0),
}  # fmt: skip


def check(case: Case, record: Record) -> None:
    """All of a record that the case determines."""
    assert record["reason"] == case.reason, record
    if case.exit_code is not None or case.signal is not None:
        assert (record["exit_code"], record["signal"]) == (case.exit_code, case.signal), record
    kills = record["memory"]["oom_kills"]
    # where the kernel kills the whole group, v2 counts each of its processes
    more = case.reason == "oom" and kills > case.oom_kills > 0
    assert kills == case.oom_kills or more, record
    assert bool(record["pids"]["refused"]) == case.refused, record
    assert record["command"] == list(case.command)
    told = {item["source"].rpartition("/")[2]: item["what"] for item in record["evidence"]}
    if case.reason == "start_failed":
        assert record["exit_code"] is None and record["signal"] is None
        assert record["start_error"]["stage"] in record["detail"]
        assert not told
        return
    counted = told.get("memory.events.local") or told.get("memory.events")
    found = re.search(r"\boom_kill (\d+)", counted or told["memory.oom_control"])
    # with the whole group v2 counts the victim twice
    assert found and int(found[1]) >= kills and bool(int(found[1])) == bool(kills), told
    assert f"max {record['pids']['refused']}" in told["pids.events"], told
    assert any(case.evidence in item["what"] for item in record["evidence"]), told
    assert record["started_at"] <= record["finished_at"]
    assert 0 <= record["wall_seconds"] < 60
    limit = record["memory"]["limit"]
    if case.oom_kills:
        assert record["memory"]["peak"] <= limit
        assert record["memory"]["limit_history"][0]["value"] == limit


def table(name: str, case: Case) -> str:
    """The case as a job of a configuration, several times."""
    lines = [f"{key} = {toml(value)}" for key, value in case.settings.items()]
    numbers = toml(list(range(TIMES)))
    return (
        f'[jobs.{name}]\ncommand = {toml(case.command)}\nexpect = "{case.reason}"\n'
        f"matrix = {{ time = {numbers} }}\n" + "\n".join(lines) + "\n"
    )


def flags(case: Case) -> Iterator[str]:
    """The case's settings as flags of `supervise run`."""
    for key, value in case.settings.items():
        setting = JOB.find(tuple(key.split(".")))
        assert setting is not None
        yield f"--{setting.flag}"
        if key == "mounts":
            yield "{source}:{target}:ro".format(**value[0])
        elif isinstance(value, dict):
            yield f"{value['action']}:{value['why']}"
        else:
            yield str(value)


@pytest.fixture(scope="module")
def everything(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Result]:
    """Every case five times, eight jobs at once."""
    busybox = host.static_busybox() or host.miss("tools", "needs a static busybox")
    directory = tmp_path_factory.mktemp("verdicts")
    jobs = "".join(table(name, case) for name, case in CASES.items())
    with tempfile.TemporaryDirectory(prefix="sv-") as runtime:
        batch = Batch(Supervise(State(directory / "state", Path(runtime))), directory)
        yield batch.run(jobs.replace("BUSYBOX", str(busybox)), top="capacity = { jobs = 8 }")


@pytest.mark.parametrize("name", CASES)
def test_a_reason_is_told_every_time(everything: Result, name: str) -> None:
    records = [run for run in everything.runs if run["job"].partition("@")[0] == name]
    assert len(records) == TIMES
    for record in records:
        check(CASES[name], record)
        assert record["expected"]


def test_a_batch_whose_jobs_end_as_expected_succeeds(everything: Result) -> None:
    assert everything.status == 0, everything.done.stderr
    assert len(everything.runs) == TIMES * len(CASES)


def test_the_log_has_the_very_records_that_were_printed(everything: Result) -> None:
    """--json, the event log: one truth."""
    ended = {entry["run"]: entry["record"] for entry in everything.batch.entries("job_ended")}
    assert ended == {run["run"]: run for run in everything.runs}


def test_an_oom_kill_is_in_the_log_before_the_end(everything: Result) -> None:
    """What the kernel counted was seen as it happened, not only at the end."""
    seen: dict[str, int] = {}
    for entry in everything.batch.entries():
        if entry["event"] == "oom_kill":
            seen[entry["run"]] = entry["total"]
        elif entry["event"] == "job_ended":
            assert entry["record"]["memory"]["oom_kills"] == seen.get(entry["run"], 0), entry


@pytest.mark.parametrize("name", CASES)
def test_run_tells_the_reason_and_gives_the_status(
    supervise: Supervise, tmp_path: Path, busybox: Path, name: str
) -> None:
    case = CASES[name]
    record = tmp_path / "record.json"
    words = [word.replace("BUSYBOX", str(busybox)) for word in flags(case)]
    done = supervise("run", *words, "--record", record, "--", *case.command)
    assert done.status == case.status, done
    found = json.loads(record.read_text())
    check(case, found)
    if case.reason == "succeeded":
        assert "supervise:" not in done.stderr  # "Killed" is the shell's own
    else:
        assert f"supervise: {case.reason}: " in done.stderr


# What comes from outside.


def test_a_kill_from_outside_is_a_signal(batch: Batch) -> None:
    """Five are killed at once: no limit was involved, and nobody of ours did it."""
    jobs = '[jobs.sleeper]\ncommand = "sleep 1000"\nmatrix = { n = [1, 2, 3, 4, 5] }\n'
    names = [f"sleeper@n={n}" for n in range(1, 6)]
    with batch.start(jobs, defaults='limits = { memory = "32M" }') as running:
        for pid in running.wait_started(*names).values():
            os.kill(pid, signal.SIGKILL)
        result = running.finish()
    assert result.status == 1
    for record in result.runs:
        assert (record["reason"], record["signal"], record["exit_code"]) == ("signal", 9, None)
        assert record["memory"]["oom_kills"] == 0 and record["decided_by"] == ""


def test_a_killed_init_takes_its_job_with_it_and_that_is_told(batch: Batch) -> None:
    with batch.start('[jobs.one]\ncommand = "sleep 1000"\n') as running:
        pid = running.wait_started("one")["one"]
        init = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        os.kill(init, signal.SIGKILL)
        record = running.finish()["one"]
    assert record["reason"] in ("signal", "lost")
    assert "init was killed by signal 9" in record["detail"]


def test_what_waits_for_a_job_that_failed_is_skipped(batch: Batch) -> None:
    result = batch.run("""
    [jobs.bad]
    command = "false"
    [jobs.group]
    command = "true"
    matrix = { n = [1, 2] }
    after = ["bad"]
    [jobs.last]
    command = "true"
    after = ["group"]
    [jobs.other]
    command = "true"
    """)
    assert result.status == 1
    assert result.reasons == {
        "bad": "failed", "group@n=1": "skipped", "group@n=2": "skipped", "last": "skipped",
        "other": "succeeded",
    }  # fmt: skip
    record = result["group@n=1"]
    assert record["detail"] == "bad ended as failed"
    assert record["run"] == "" and record["attempt"] == 0 and record["started_at"] is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_batch_stops_its_jobs(batch: Batch, number: int) -> None:
    ready = batch.fifo("ready")
    jobs = """
    [jobs.polite]
    script = "trap 'echo bye; exit 0' TERM; echo x > /tmp/ready; while :; do sleep 0.1; done"
    [jobs.stubborn]
    script = "trap '' TERM; echo x > /tmp/ready; while :; do sleep 1; done"
    stop = { grace = "200ms" }
    [jobs.waiting]
    command = "true"
    after = ["polite"]
    """
    with batch.start(jobs, defaults=batch.sees(ready)) as running:
        batch.told(ready, 2)
        running.signal(number)
        result = running.finish()
    assert result.status == 130
    assert result.reasons == {"polite": "stopped", "stubborn": "stopped", "waiting": "skipped"}
    assert (result["stubborn"]["signal"], result["stubborn"]["exit_code"]) == (9, None)
    assert result["polite"]["decided_by"] == signal.Signals(number).name
    assert "3 jobs in 2 runs: 0 as expected" in result.done.stderr


# A limit above the job's.


@pytest.fixture
def small_parent() -> Iterator[str]:
    """A cgroup with 48 MiB for all that is below, as `cgroup_parent` takes it."""
    found = detect.find(None).hierarchies
    if all(hierarchy.unified for hierarchy in found):
        with cgroups.session_parent() as parent:
            for hierarchy in found:
                limit(
                    f"{hierarchy.base}/{parent.rpartition('/')[2]}", memory="max", swap="swap.max"
                )
            yield parent
        return
    name = f"supervise-test.{os.getpid()}.small"
    made = [f"{hierarchy.mount}/{name}" for hierarchy in found]
    try:
        for hierarchy, directory in zip(found, made, strict=True):
            files.make(directory)
            if "cpuset" in hierarchy.controllers:
                Cpuset.inherit(directory)
            if "memory" in hierarchy.controllers:
                limit(directory, memory="limit_in_bytes", swap="memsw.limit_in_bytes")
        yield f"/{name}"
    finally:
        for directory in made:
            files.remove(directory)


def limit(directory: str, *, memory: str, swap: str) -> None:
    """48 MiB, and no swap where the kernel counts it."""
    Path(f"{directory}/memory.{memory}").write_text(str(48 * 2**20))
    account = Path(f"{directory}/memory.{swap}")
    if account.exists():
        account.write_text("0" if swap == "swap.max" else str(48 * 2**20))


def test_a_limit_above_the_job_is_not_its_own(batch: Batch, small_parent: str) -> None:
    """One whose own limit is higher, one without a limit; and beside them one at its own."""
    result = batch.run(
        f"""
        [jobs.higher]
        script = "{HOG}; exit 0"
        limits = {{ memory = "1G" }}
        matrix = {{ n = [1, 2, 3, 4, 5] }}
        [jobs.none]
        command = "{HOG}"
        matrix = {{ n = [1, 2] }}
        [jobs.own]
        command = "{HOG}"
        limits = {{ memory = "16M" }}
        matrix = {{ n = [1, 2, 3] }}
        [jobs.continues]
        script = "{HOG} || :; exit 0"
        oom = "continue"
        [jobs.kills-itself]
        script = "kill -9 $$"
        limits = {{ memory = "1G" }}
        """,
        top=f'cgroup_parent = "{small_parent}"\ncapacity = {{ jobs = 1 }}',
    )
    expected = {f"higher@n={n}": "oom_host" for n in range(1, 6)}
    expected |= {"none@n=1": "oom_host", "none@n=2": "oom_host"}
    expected |= {f"own@n={n}": "oom" for n in range(1, 4)}
    expected |= {"continues": "succeeded", "kills-itself": "signal"}
    assert result.reasons == expected, result.done.stderr
    killed = {run["job"] for run in result.runs if run["memory"]["oom_kills"]}
    assert killed == set(expected) - {"kills-itself"}


# Nothing left behind.


@pytest.mark.parametrize("write", ["read-only", "overlay"])
def test_a_run_leaves_nothing_behind(supervise: Supervise, tmp_path: Path, write: str) -> None:
    before = set(Path("/var/tmp").glob("supervise-*"))
    record = tmp_path / "r.json"
    process = supervise.start("run", "--write", write, "--record", record, "--",
                              "sh", "-c", "(setsid sleep 1000 &); exit 4")  # fmt: skip
    with process:
        process.communicate(timeout=60)
    assert process.returncode == 4
    assert json.loads(record.read_text())["reason"] == "failed"
    name = f"run-{process.pid}"
    assert_clean(f"supervise.{name}", f"/run/supervise/{name}")
    assert set(Path("/var/tmp").glob("supervise-*")) <= before
