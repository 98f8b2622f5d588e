"""`supervise replay`: recorded events, other policies, and the same bytes every time."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.errors import ConfigError
from supervisor.front.recorded import World
from supervisor.front.replay import Replay, read
from supervisor.model import MemoryLimit, RaiseLimit, Reason, Timeout
from supervisor.model.job import InlineAction, JobSpec
from supervisor.model.limits import Limits
from supervisor.policy import registry
from supervisor.policy.engine import Answer
from supervisor.record.entries import decision_entry
from supervisor.record.runs import StateDir
from tests.support.command import Done, Supervise
from tests.support.histories import Writer
from tests.support.policies import plugin

M = 1 << 20
AT_LIMIT = MemoryLimit(0.0, 64 * M, 64 * M, 3, held=True)

Ask = Callable[..., Done]


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    state = StateDir(tmp_path / "nightly")
    state.make()
    return state


@pytest.fixture
def writer(state: StateDir) -> Iterator[Writer]:
    writer = Writer(state)
    yield writer
    writer.log.close()


@pytest.fixture
def replay(supervise: Supervise, state: StateDir) -> Ask:
    def call(*words: object) -> Done:
        return supervise("replay", state.root, *words)

    return call


def grown(writer: Writer, run: str = "aaaaaaaa-x", *, hooks: Any = None) -> None:
    """A run whose limit was raised by `grow` when it was reached, and which then succeeded."""
    spec = JobSpec("x", ("sort",), "x", limits=Limits(memory=64 * M), hooks=hooks or {})
    StateDir(writer.log.path.parent).make_run(run, spec, {})
    writer.start(run)
    writer.log.observe("x", run, AT_LIMIT)
    raised = RaiseLimit("memory", 128 * M)
    answers = (Answer("grow", str(raised), 0.1),)
    writer.log.emit(
        "decision", job="x", run=run, **decision_entry("on_memory_limit", "grow", raised, answers)
    )
    writer.log.emit("limit_changed", job="x", run=run, limit="memory", to=128 * M, by="grow")
    ends(writer, run)


def ends(writer: Writer, run: str, reason: Reason = Reason.SUCCEEDED) -> None:
    from supervisor.model.record import RunRecord
    from supervisor.record.entries import ended_entry

    record = RunRecord("x", run, 1, reason, ("sort",), exit_code=0, expected=True)
    writer.log.emit("job_ended", **ended_entry(record))


SAME = """
@hookimpl
def on_memory_limit(job, event): return RaiseLimit("memory", 2 * job.limits.memory)
"""
KILLS = """
@hookimpl
def on_memory_limit(job, event): return KillJob("enough")
@hookimpl
def on_exit(job, event): return Retry({"memory": 4 * job.limits.memory}, 10.0)
"""


def test_the_same_decision_is_the_same(replay: Ask, writer: Writer, tmp_path: Path) -> None:
    grown(writer)
    done = replay("--policy", plugin(tmp_path, "same", SAME))
    assert (done.status, done.stderr) == (0, "")
    assert done.stdout == textwrap.dedent("""\
        x, run aaaaaaaa-x, attempt 1
          22:13:23.000 on_memory_limit: reached its memory limit of 64.0M, held
              then  raise memory to 128.0M, by grow
              now   raise memory to 128.0M, by same
        3 events, 0 decided otherwise, in 0 runs of 1
        """)


def test_where_it_differs_the_recorded_future_is_told_to_be_that(
    replay: Ask, writer: Writer, tmp_path: Path
) -> None:
    grown(writer)
    grown(writer, "bbbbbbbb-x")
    done = replay("--policy", plugin(tmp_path, "kills", KILLS))
    assert (done.status, done.stderr) == (1, "")
    assert done.stdout == textwrap.dedent("""\
        x, run aaaaaaaa-x, attempt 1
          22:13:23.000 on_memory_limit: reached its memory limit of 64.0M, held
              then  raise memory to 128.0M, by grow
              now   kill enough, by kills  <- differs
              from here on what was recorded need not have happened
        ? 22:13:26.000 on_exit: ended: succeeded
              then  nobody decides
              now   retry with memory 512.0M after 10s, by kills  <- differs
        x, run bbbbbbbb-x, attempt 1  (an earlier run of it was decided otherwise)
        ? 22:13:29.000 on_memory_limit: reached its memory limit of 64.0M, held
              then  raise memory to 128.0M, by grow
              now   kill enough, by kills  <- differs
        ? 22:13:32.000 on_exit: ended: succeeded
              then  nobody decides
              now   retry with memory 512.0M after 10s, by kills  <- differs
        6 events, 4 decided otherwise, in 2 runs of 2
        """)
    one = json.loads(
        replay("--policy", plugin(tmp_path, "kills", KILLS), "--json").stdout.split("\n")[1]
    )
    assert one["then"] == {
        "action": "raise", "arguments": {"limit": "memory", "to": 128 * M}, "by": "grow",
    }  # fmt: skip
    assert one["now"]["action"] == "kill" and one["differs"] and one["holds"]
    only = replay("--policy", plugin(tmp_path, "kills", KILLS), "--run", "bbbbbbbb-x", "--json")
    assert {json.loads(line)["run"] for line in only.stdout.splitlines()} == {"bbbbbbbb-x"}


CHANCE = """
import random, secrets, uuid, datetime, os
START = time.time(), time.monotonic(), datetime.datetime.now()
@hookimpl
def on_memory_limit(job, event):
    words = {str(n) for n in range(20)}
    said = [time.time() - event.at, time.time_ns(), datetime.datetime.now().isoformat(),
            datetime.date.today(), random.random(), uuid.uuid4(), secrets.token_hex(4),
            os.urandom(4).hex(), list(words), START]
    time.sleep(3)
    return Notify(" ".join(map(str, [*said, time.time() - event.at])))
@hookimpl
async def on_exit(job, event):
    began = trio.current_time()
    await trio.sleep(3)
    return Notify(f"{trio.current_time() - began:.3f} {time.time() - event.at}")
"""


def test_time_and_chance_are_the_same_every_time(
    replay: Ask, writer: Writer, tmp_path: Path
) -> None:
    grown(writer)
    policy = plugin(tmp_path, "chance", CHANCE)
    first, second = (replay("--policy", policy, "--json") for _ in range(2))
    assert first == second and first.stderr == ""
    limit, exit_ = (json.loads(first.stdout.splitlines()[n])["now"] for n in (1, 2))
    assert limit["arguments"]["message"].startswith("0.0 1700000003000000000 2023-11-14T")
    assert limit["arguments"]["message"].endswith(" 3.0")
    assert exit_["arguments"]["message"] == "3.000 0.0"


SLEEPS = """
@hookimpl
def on_start(job, event):
    time.sleep(6)
@hookimpl
async def on_memory_limit(job, event):
    await trio.sleep_forever()
"""
DEEDS = {
    "import subprocess; subprocess.run(['touch', PATH])": "subprocess.Popen",
    "import os; os.system('touch ' + PATH)": "os.system",
    "open(PATH, 'w')": "open",
    "import os; os.mkdir(PATH)": "os.mkdir",
    "import os; os.close(os.open(PATH, os.O_CREAT | os.O_RDWR))": "open",
    "import os; os.fork()": "os.fork",
    "import socket; socket.create_connection(('127.0.0.1', 9))": "socket.connect",
    "import os; os.kill(1, 0)": "os.kill",
    "import ctypes; ctypes.CDLL(None)": "ctypes.dlopen",
    "raise KeyError('x')": "raised KeyError: 'x'",
    "return 7": "returned int, which is no action",
    "sys.exit(3)": "raised SystemExit: 3",
    "return KillJob()": "refused: KillJob comes too late at on_exit",
}


def test_a_policy_does_nothing_but_answer(replay: Ask, writer: Writer, tmp_path: Path) -> None:
    """Each a policy of its own: one that fails too often is asked no more."""
    grown(writer)
    mark = tmp_path / "mark"
    words: list[str] = ["--policy", plugin(tmp_path, "sleeps", SLEEPS)]
    for number, deed in enumerate(DEEDS):
        body = f"@hookimpl\ndef on_exit(job, event):\n    {deed.replace('PATH', repr(str(mark)))}\n"
        words += ["--policy", plugin(tmp_path, f"bad{number}", body)]
    done = replay(*words, "--json")
    assert done.status == 1, done.stderr
    start, limit, end = (json.loads(line) for line in done.stdout.splitlines())
    assert start["answers"][0]["error"] == limit["answers"][0]["error"] == "no answer within 5 s"
    errors = [answer["error"] for answer in end["answers"]]
    assert len(errors) == len(DEEDS)
    for error, said in zip(errors, DEEDS.values(), strict=True):
        assert said in error
    assert not mark.exists()


def test_a_hook_that_never_comes_back_is_left(writer: Writer, tmp_path: Path) -> None:
    """By the real clock, which is quicker here than half a minute."""
    from supervisor.front import recorded

    grown(writer)
    policies = registry.load(
        [plugin(tmp_path, "hangs", "@hookimpl\ndef on_start(job):\n    while True: pass\n")]
    )
    before, recorded.PATIENCE = recorded.PATIENCE, 0.2
    try:
        first, *_ = Replay(read(writer.log.path), policies, World()).compared()
    finally:
        recorded.PATIENCE = before
    assert first.answers[0]["error"] == "no answer within 5 s"


def test_what_a_policy_sees_is_what_it_would_have_seen(
    replay: Ask, writer: Writer, tmp_path: Path
) -> None:
    grown(writer)
    sees = """
    @hookimpl
    def on_memory_limit(job, event):
        limits = f"{job.limits.memory} {dict(job.raised)}"
        return Notify(f"{job.state} {job.attempt} {limits} {event.held}")
    @hookimpl
    def on_exit(job, event):
        limits = f"{job.limits.memory} {dict(job.raised)}"
        return Notify(f"{job.state} {limits} {job.reason} {event.code}")
    """
    done = replay("--policy", plugin(tmp_path, "sees", sees), "--json")
    said = [json.loads(line)["now"] for line in done.stdout.splitlines()[1:]]
    assert [one["arguments"]["message"] for one in said] == [
        f"held 1 {64 * M} {{}} True",
        f"running {128 * M} {{'memory': 1}} succeeded 0",
    ]


def test_a_jobs_own_hook_comes_first_as_it_does_in_an_instance(
    replay: Ask, writer: Writer, tmp_path: Path
) -> None:
    own = InlineAction("raise", {"limit": "memory", "to": 256 * M})
    grown(writer, hooks={"on_memory_limit": own})
    done = replay("--policy", plugin(tmp_path, "kills", KILLS))
    assert "now   raise memory to 256.0M, by on_memory_limit  <- differs" in done.stdout


def test_a_configuration_says_what_the_jobs_and_the_arguments_are(
    replay: Ask, writer: Writer, tmp_path: Path
) -> None:
    grown(writer)
    config = tmp_path / "x.toml"
    config.write_text(
        '[supervisor]\nplugins = ["grow-memory"]\n[policies.grow-memory]\nmax = "100M"\n'
        '[jobs.x]\ncommand = "true"\nlimits.memory = "64M"\n'
    )
    done = replay("--config", config)
    assert "now   raise memory to 100.0M, by grow-memory  <- differs" in done.stdout
    done = replay("--config", config, "--policy", "kill-fork-bomb")
    assert "now   nobody decides  <- differs" in done.stdout


def test_what_only_says_something_changes_no_future(
    replay: Ask, writer: Writer, tmp_path: Path
) -> None:
    grown(writer)
    says = "@hookimpl\ndef on_start(job): return Notify('hello')\n" + SAME
    done = replay("--policy", plugin(tmp_path, "says", says))
    assert done.status == 1 and "<- differs" in done.stdout
    assert "?" not in done.stdout and "need not" not in done.stdout


def test_a_second_attempt_is_seen_with_its_own_limits(
    replay: Ask, writer: Writer, tmp_path: Path
) -> None:
    grown(writer)
    writer.log.emit("retry", job="x", attempt=2, after=0.0, by="p", limits={"memory": 512 * M})
    writer.log.emit("job_starting", job="x", run="bbbbbbbb-x", attempt=2, image=None)
    writer.log.observe("x", "bbbbbbbb-x", Timeout(0.0, "wall", 5.0))
    config = tmp_path / "x.toml"
    config.write_text('[jobs.x]\ncommand = "true"\nlimits.memory = "64M"\n')
    sees = "@hookimpl\ndef on_timeout(job): return Notify(f'{job.attempt} {job.limits.memory}')\n"
    done = replay("--config", config, "--policy", plugin(tmp_path, "sees", sees))
    assert f"now   notify 2 {512 * M}, by sees" in done.stdout


# files that are not what they should be


def test_torn_lines_and_strange_entries_are_told_and_passed_over(
    replay: Ask, writer: Writer, state: StateDir, tmp_path: Path
) -> None:
    grown(writer)
    with state.events.open("ab") as file:
        file.write(b'{"seq": 7, "tim\nrubbish\n')
        for seq, entry in enumerate([
            {"event": "memory_limit", "run": "aaaaaaaa-x", "job": "x"},
            {"event": "job_ended", "run": "aaaaaaaa-x", "job": "x", "record": 7, "reason": "oom"},
            {"event": "job_starting", "run": "../../etc", "job": "x", "attempt": 1},
            {"event": "limit_changed", "run": "aaaaaaaa-x", "job": "x", "limit": "boom", "to": 3},
            {"event": "retry", "job": "x", "limits": None},
            {"event": "timeout", "run": "aaaaaaaa-x", "job": "x", "kind": "wall", "limit": 1.0},
            {"event": "oom_kill", "run": "nobody", "job": "y", "new": 1, "total": 1},
        ], start=8):  # fmt: skip
            time = "never" if entry["event"] == "timeout" else "2023-11-14T22:13:20.000Z"
            file.write(json.dumps({"seq": seq, "time": time, **entry}).encode() + b"\n")
    done = replay("--policy", plugin(tmp_path, "same", SAME), "--json")
    assert done.status == 0 and len(done.stdout.splitlines()) == 3
    assert "passed over 2 lines that are no entries" in done.stderr
    told = [int(line.split()[2]) for line in done.stderr.splitlines() if " entry " in line]
    assert told == [8, 9, 11, 12, 13]
    assert "run ../../etc: what it was started with is not known" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", [b"", b"\n\n", b"rubbish\n", b"\xff\xfe\0" * 1000, b"{}\n[]\n"])
def test_what_is_no_event_log_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.ndjson"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="there is no event in it") as raised:
        read(path)
    assert str(path) in str(raised.value)


def test_other_wrong_questions(supervise: Supervise, tmp_path: Path) -> None:
    done = supervise("replay", tmp_path / "none", "--policy", "grow-memory")
    assert done.status == 2 and "none: no such event log" in done.stderr
    done = supervise("replay", tmp_path)
    assert done.status == 2 and "no policy to ask" in done.stderr
    done = supervise("replay", tmp_path, "--policy", "grow-memroy")
    assert done.status == 2 and "grow-memory" in done.stderr


def test_older_files_belong_to_it(state: StateDir, replay: Ask, tmp_path: Path) -> None:
    writer = Writer(state, size=1500, most=50)
    for run in ("aaaaaaaa-x", "bbbbbbbb-x", "cccccccc-x"):
        grown(writer, run)
    writer.log.close()
    assert len(list(state.root.glob("events.ndjson.*"))) > 1
    done = replay("--policy", plugin(tmp_path, "same", SAME))
    assert done.stdout.splitlines()[-1] == "9 events, 0 decided otherwise, in 0 runs of 3"
