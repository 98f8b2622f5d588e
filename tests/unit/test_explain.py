"""`supervise explain` as text: the chain of every kind of end, and whatever stands in the log.

The golden texts are in tests/golden/explain, a file for each reason; a change that is meant is
written there by `SUPERVISE_GOLDEN=write pytest tests/unit/test_explain.py`, and looked at.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from attrs import asdict
from hypothesis import given
from hypothesis import strategies as st

from supervisor.front.explain import record_of, tell
from supervisor.model import KillJob, MemoryLimit, OomKill, PidsLimit, RaiseLimit, Retry, Timeout
from supervisor.model.action import Ignore
from supervisor.model.event import DiskLimit, Started
from supervisor.model.record import (
    CpuUse,
    DiskUse,
    Evidence,
    MemoryUse,
    PidsUse,
    Reason,
    RunRecord,
    StartError,
    iso,
)
from supervisor.model.state import State
from supervisor.model.status import Capacity, JobStatus
from supervisor.policy.engine import Answer
from supervisor.record.entries import answers_entry, decision_entry, ended_entry, entry_of
from supervisor.record.story import Story
from supervisor.supervise.admission import Demand
from supervisor.supervise.waiting import Waits
from tests.support.command import ROOT

GOLDEN = ROOT / "tests/golden/explain"
M = 1 << 20
BEGAN = 1_700_000_000.0


@pytest.fixture(autouse=True)
def in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


class Teller:
    """A story put together entry by entry, 20 ms after each other."""

    def __init__(self, reason: Reason = Reason.SUCCEEDED, **changes: Any) -> None:
        self.entries: list[dict[str, Any]] = []
        self.reason = reason
        self.changes = changes
        self.record: dict[str, Any] | None = None
        self.spec: Any = {"limits": {"memory": 64 * M, "pids": 32}, "oom": "kill"}
        self.add("job_starting", attempt=1, image=None)
        self.happened(Started(0.0, 4711))

    def add(self, event: str, *, run: str = "aaaaaaaa-x", **fields: Any) -> None:
        seq = len(self.entries) + 1
        named = {"job": "x"} | ({"run": run} if run else {})
        at = iso(BEGAN + 0.02 * seq)
        self.entries.append({"seq": seq, "time": at, "event": event, **named, **fields})

    def happened(self, event: Any) -> None:
        name, fields = entry_of(event) or ("", {})
        self.add(name, **fields)

    def decided(self, hook: str, by: str, action: Any, *answers: Answer) -> None:
        self.add("decision", **decision_entry(hook, by, action, answers))

    def undecided(self, hook: str, *answers: Answer) -> None:
        self.add("undecided", hook=hook, answers=answers_entry(answers))

    def end(self) -> None:
        fields: dict[str, Any] = {
            "attempt": 1,
            "wall_seconds": 3.25,
            "cpu": CpuUse(1.0, 0.5),
            "memory": MemoryUse(64 * M, 40 * M),
            "expected": self.reason is Reason.SUCCEEDED,
            **self.changes,
        }
        command = ("sort", "x")
        record = RunRecord("x", "aaaaaaaa-x", reason=self.reason, command=command, **fields)
        entry = ended_entry(record)
        self.record = entry.pop("record")
        del entry["job"], entry["run"]
        self.add("job_ended", **entry)

    def story(self) -> dict[str, Any]:
        output = ("/state/logs/x.aaaaaaaa.out", "/state/logs/x.aaaaaaaa.err")
        told = Story("x", "aaaaaaaa-x", tuple(self.entries), self.record, self.spec, output)
        return asdict(told)


GROW = Answer("grow-memory", "", 0.0003)
FAILS = Answer("mine", "", 0.002, "raised KeyError: 'x' (mine.py:12 in on_timeout)")


def succeeded() -> Teller:
    """A limit is raised, and that was enough."""
    told = Teller()
    told.happened(MemoryLimit(0.0, 64 * M, 64 * M, 3, held=True))
    raised = RaiseLimit("memory", 128 * M)
    said = Answer("grow-memory", str(raised), 0.0005)
    told.decided("on_memory_limit", "grow-memory", raised, said)
    told.add("limit_changed", limit="memory", to=128 * M, by="grow-memory")
    told.end()
    return told


def failed() -> Teller:
    told = Teller(Reason.FAILED, exit_code=3)
    told.end()
    return told


def signal() -> Teller:
    told = Teller(Reason.SIGNAL, signal=9)
    told.end()
    return told


def oom() -> Teller:
    evidence = (
        Evidence("/cg/payload/memory.oom_control", "oom_kill 1"),
        Evidence("/dev/kmsg", "killed process 4711 ('sort'), anon-rss 65000 kB"),
    )
    told = Teller(Reason.OOM, signal=9, memory=MemoryUse(64 * M, 64 * M, 1), evidence=evidence)
    told.happened(MemoryLimit(0.0, 64 * M, 64 * M, 3, held=True))
    told.undecided("on_memory_limit", GROW)
    told.happened(OomKill(0.0, 1, 1))
    told.end()
    retry = Retry({"memory": 128.0 * M}, 10.0)
    told.decided("on_exit", "retry-ladder", retry, Answer("retry-ladder", "Retry", 0.001))
    told.add("retry", run="", attempt=2, after=10.0, by="retry-ladder", limits={"memory": 128 * M})
    return told


def oom_host() -> Teller:
    evidence = (Evidence("/dev/kmsg", "killed process 4711, for want of memory on the host"),)
    told = Teller(Reason.OOM_HOST, signal=9, evidence=evidence)
    told.happened(OomKill(0.0, 1, 1))
    told.end()
    return told


def pids() -> Teller:
    told = Teller(Reason.PIDS, exit_code=1, pids=PidsUse(32, 32, 5))
    told.happened(PidsLimit(0.0, 5, 32))
    told.end()
    return told


def timeout() -> Teller:
    told = Teller(Reason.TIMEOUT, signal=15, decided_by="configuration")
    told.spec["timeout"] = 3.0
    told.happened(Timeout(0.0, "wall", 3.0))
    told.undecided("on_timeout", FAILS, GROW)
    told.add("warning", text="policy mine at on_timeout: raised KeyError")
    told.add("job_stopping", reason="timeout", by="configuration", why="")
    told.add("signal_sent", signal="TERM")
    told.end()
    return told


def cpu_timeout() -> Teller:
    told = Teller(Reason.CPU_TIMEOUT, signal=15, decided_by="configuration")
    told.spec["cpu_time"] = 1.5
    told.happened(Timeout(0.0, "cpu", 1.5))
    told.add("job_stopping", reason="cpu_timeout", by="configuration", why="")
    told.end()
    return told


def output() -> Teller:
    told = Teller(Reason.OUTPUT, signal=9, decided_by="configuration")
    told.spec["limits"]["output"] = M
    why = "wrote more than 1M to stdout and stderr"
    told.add("job_stopping", reason="output", by="configuration", why=why)
    told.end()
    return told


def disk() -> Teller:
    use = DiskUse(64 * M, 64 * M, 64 * M, 1000, 10, full=True, by="loop")
    evidence = (Evidence("writable layer", "no room"),)
    told = Teller(Reason.DISK, exit_code=1, disk=use, evidence=evidence)
    told.spec["limits"]["disk"] = 64 * M
    told.happened(DiskLimit(0.0, True, "bytes", 63 * M, 64 * M, 10, 1000))
    told.end()
    return told


def stopped() -> Teller:
    told = Teller(Reason.STOPPED, signal=15, decided_by="SIGINT")
    told.add("job_stopping", reason="stopped", by="SIGINT", why="")
    told.add("signal_sent", signal="TERM")
    told.end()
    return told


def policy() -> Teller:
    told = Teller(Reason.POLICY, signal=9, decided_by="kill-fork-bomb", detail="a fork bomb")
    told.happened(PidsLimit(0.0, 500, 32))
    kill = KillJob("a fork bomb", now=True)
    answer = Answer("kill-fork-bomb", str(kill), 0.001)
    told.decided("on_pids_limit", "kill-fork-bomb", kill, GROW, answer)
    told.add("job_stopping", reason="policy", by="kill-fork-bomb", why="a fork bomb")
    told.end()
    return told


def start_failed() -> Teller:
    error = StartError("exec", 2, "/usr/bin/sotr")
    told = Teller(
        Reason.START_FAILED, start_error=error, wall_seconds=None,
        detail="exec: /usr/bin/sotr: No such file or directory",
    )  # fmt: skip
    told.entries.pop()
    told.end()
    return told


def lost() -> Teller:
    told = Teller(Reason.LOST, wall_seconds=None, detail="the exit record is empty")
    told.end()
    return told


def skipped() -> Teller:
    told = Teller(Reason.SKIPPED, wall_seconds=None, detail="y ended as failed")
    told.entries.clear()
    told.spec = None
    told.add("job_waiting", run="", waiting_for="y")
    told.end()
    return told


EVERY = (
    succeeded, failed, signal, oom, oom_host, pids, timeout, cpu_timeout, output, disk, stopped,
    policy, start_failed, lost, skipped,
)  # fmt: skip


def test_there_is_one_for_each_reason() -> None:
    assert {one.__name__ for one in EVERY} == {str(reason) for reason in Reason}
    assert {path.stem for path in GOLDEN.glob("*.txt")} == {str(reason) for reason in Reason}


@pytest.mark.parametrize("make", EVERY, ids=lambda one: one.__name__)
def test_an_end_is_explained_as_it_was(make: Any) -> None:
    text = "\n".join(tell(make().story())) + "\n"
    path = GOLDEN / f"{make.__name__}.txt"
    if os.environ.get("SUPERVISE_GOLDEN") == "write":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()


def status(state: State, **changes: Any) -> dict[str, Any]:
    return asdict(JobStatus("x", state, **changes), value_serializer=_word)


def _word(_instance: object, _attribute: object, value: Any) -> Any:
    return str(value) if isinstance(value, State) else value


@pytest.mark.parametrize(
    ("waits", "said"),
    [
        (Waits("after", "y", state="running"),
         ["x is waiting", "  waits for y, which is running (after)"]),
        (Waits("image", "image debian (3 of 5 layers)"),
         ["x is waiting", "  waits for its image debian (3 of 5 layers)"]),
        (Waits("backoff", until=BEGAN, seconds=90.0),
         ["x is waiting", "  waits until 22:13:20 (1m30s from now) before it is run again"]),
        (Waits("capacity", "2G of 4G of memory", use=Capacity(2, 3, 3 << 30, 4 << 30, 1.5, 2.0),
               holders={"y": Demand(3 << 30, 1.5), "z": Demand()}, ahead=("first",)),
         ["x is waiting", "  waits for room: 2G of 4G of memory is lacking (capacity)",
          "    given out: 3.0G of 4.0G of memory, 1.5 of 2 CPUs, 2 of 3 places",
          "    y has 3.0G and 1.5 CPUs", "    z has a place", "    before it, by priority: first"]),
        (Waits("other", "something"), ["x is waiting", "  waits for something"]),
    ],
)  # fmt: skip
def test_a_waiting_job_is_told_with_what_it_waits_for(waits: Waits, said: list[str]) -> None:
    assert tell(None, status(State.WAITING), asdict(waits)) == said


def test_a_running_job_is_told_with_what_happened_so_far() -> None:
    told = Teller()
    told.happened(MemoryLimit(0.0, 64 * M, 64 * M, 3, held=True))
    lines = tell(told.story(), status(State.HELD, run="aaaaaaaa-x"))
    assert lines[0] == "x is held"
    assert lines[-2].startswith("    read: 64.0M in use") and "no end" not in "\n".join(lines)


def test_a_run_without_an_end_is_told_as_such() -> None:
    assert tell(Teller().story())[-1].startswith("  no end was recorded")
    other = status(State.RUNNING, run="bbbbbbbb-x")
    assert tell(Teller().story(), other)[-1].startswith("  no end was recorded")


def test_a_record_of_nonsense_is_told_as_far_as_it_goes() -> None:
    told = Teller(Reason.OOM)
    told.end()
    story = told.story()
    for record in (7, {}, {"reason": "boom"}, {**story["record"], "memory": 3}):
        assert record_of(record) is None
        lines = tell({**story, "record": record})
        assert "ended: oom" in lines[-1]


@given(st.text(), st.text())
def test_what_others_wrote_does_nothing_to_a_terminal(detail: str, why: str) -> None:
    told = Teller(Reason.POLICY, detail=detail, decided_by=why)
    told.add("job_stopping", reason="policy", by=why, why=detail)
    told.add("notify", by=why, message=detail)
    told.end()
    assert all(line.isprintable() for line in tell(told.story()))


def test_a_decision_belongs_to_the_event_before_it_and_to_no_later_one() -> None:
    told = Teller()
    told.happened(PidsLimit(0.0, 1, 32))
    told.happened(PidsLimit(0.0, 2, 32))
    told.decided("on_pids_limit", "p", Ignore(), Answer("p", "Ignore()", 0.0))
    lines = tell(told.story())
    at = [number for number, line in enumerate(lines) if "asked: nobody" in line]
    decided = [number for number, line in enumerate(lines) if "decided by p" in line]
    assert len(at) == len(decided) == 1 and at[0] < decided[0]
