"""The event log: numbering, torn tails, full disks, readers that fail, and the model's entries."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.errors import KernelError
from supervisor.model import (
    CgroupGone,
    Exited,
    Ignore,
    MemoryLimit,
    Notify,
    OomKill,
    PidsLimit,
    Populated,
    RaiseLimit,
    Reason,
    Retry,
    RunRecord,
    Started,
    Tick,
    Timeout,
)
from supervisor.model.action import Action
from supervisor.policy.engine import Answer
from supervisor.record import entries
from supervisor.record.eventfiles import CHUNK, last_seq
from supervisor.record.eventlog import EventLog


def clock() -> float:
    return 1_000_000_000.5


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "events.ndjson"


@pytest.fixture
def log(path):
    log = EventLog(path, clock)
    yield log
    log.close()


def read(path: Path) -> list[dict]:
    """The entries of a log as a reader finds them: torn lines are skipped."""
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def test_an_entry_is_one_line_numbered_and_dated(log, path):
    log.emit("job_started", job="a", run="r", pid=7)
    log.emit("warning", text="two\nlines \udcff \x1b[31m")
    first, second = read(path)
    assert list(first) == ["seq", "time", "event", "job", "run", "pid"]
    assert first["time"] == "2001-09-09T01:46:40.500Z"
    assert (first["seq"], second["seq"]) == (1, 2)
    assert second["text"] == "two\nlines \udcff \x1b[31m"
    assert path.read_bytes().isascii() and path.read_bytes().count(b"\n") == 2


def test_the_file_is_for_the_owner_only(log, path):
    assert path.stat().st_mode & 0o777 == 0o600
    assert not os.get_inheritable(log._file._fd)


def test_numbers_continue_in_a_new_log(log, path):
    for _ in range(3):
        log.emit("warning", text="x")
    again = EventLog(path, clock)
    again.emit("warning", text="y")
    again.close()
    assert [entry["seq"] for entry in read(path)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("content", "seq"),
    [
        (b"", 0),
        (b'{"seq": 9, "time": 1}\n', 9),
        (b'{"seq": 9, "time": 1}\n{"seq": 10, "ti', 10),
        (b'{"seq": 9, "time": 1}\n{"seq": 1', 10),
        (b'{"seq": 9, "time": 1}\n{', 10),
        (b'{"seq": 9, "text": "{\\"seq\\": 99, "}\n', 9),
        (b'{"seq": 1, "t": 1}\n\x00\x00\n', 2),
        (b'{"seq": 5, "x": "' + b"a" * (3 * CHUNK) + b'"}\n', 5),
    ],
)
def test_the_last_number_is_found_even_in_a_torn_line(tmp_path, content, seq):
    path = tmp_path / "events.ndjson"
    path.write_bytes(content)
    assert last_seq(path) == seq


def test_a_torn_line_is_closed_before_the_next_entry(path):
    path.parent.mkdir()
    path.write_bytes(b'{"seq": 41, "time": "x"}\n{"seq": 42, "ti')
    log = EventLog(path, clock)
    log.emit("warning", text="after the crash")
    log.close()
    assert [entry["seq"] for entry in read(path)] == [41, 43]


def test_a_full_disk_loses_entries_but_stops_nobody(path):
    """/dev/full says ENOSPC to every write, as a full disk does."""
    path.parent.mkdir()
    path.symlink_to("/dev/full")
    log = EventLog(path, clock)
    heard = []
    log.subscribe(heard.append)
    log.emit("warning", text="one")
    assert [entry["event"] for entry in heard] == ["warning", "warning"]
    assert "No space left" in heard[1]["text"] and str(path) in heard[1]["text"]
    log.emit("warning", text="two")
    assert len(heard) == 3, "the loss is told once, not for every entry"

    # There is room again.
    real = path.with_name("real")
    fd = os.open(real, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
    os.dup2(fd, log._file._fd)
    os.close(fd)
    log.emit("warning", text="three")
    log.close()
    found = read(real)
    assert [entry["event"] for entry in found] == ["log_lost", "warning"]
    assert found[0]["count"] == 2 and "No space left" in found[0]["why"]
    assert found[1]["text"] == "three"
    assert "2 entries are lost" in heard[-2]["text"]
    numbers = [entry["seq"] for entry in heard] + [found[0]["seq"]]
    assert len(set(numbers)) == len(numbers), "no number is given twice"


def test_a_loss_not_yet_told_is_told_when_the_log_closes(path, monkeypatch):
    log = EventLog(path, clock)
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", refuse)
        log.emit("job_ended", job="a")
    log.close()
    assert [entry["event"] for entry in read(path)] == ["log_lost"]


def test_a_disk_that_fills_up_half_way_leaves_one_torn_line(log, path, monkeypatch):
    real = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", lambda fd, data: real(fd, data[:20]))
        log.emit("warning", text="a long enough text")
    log.emit("warning", text="whole")
    assert [entry["event"] for entry in read(path)] == ["log_lost", "warning"]
    assert last_seq(path) == log._seq - 1 or last_seq(path) == log._seq


def refuse(_fd, _data):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_log_that_cannot_be_opened_is_an_error_with_its_path(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(KernelError) as raised:
        EventLog(tmp_path / "file" / "events.ndjson", clock)
    assert raised.value.errno in (errno.ENOTDIR, errno.EEXIST)
    assert str(tmp_path) in str(raised.value)


def test_a_disk_too_full_to_make_the_file_is_tried_again(path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", full)
        log = EventLog(path, clock)
        log.emit("warning", text="lost")
    log.emit("warning", text="kept")
    log.close()
    assert [entry["event"] for entry in read(path)] == ["log_lost", "warning"]


def test_a_reader_that_fails_is_taken_off_and_the_others_are_told(log, path):
    heard = []

    def broken(_entry):
        raise BrokenPipeError("gone")

    log.subscribe(broken)
    log.subscribe(heard.append)
    log.emit("notify", by="p", message="m")
    log.emit("notify", by="p", message="m")
    assert [entry["event"] for entry in heard] == ["notify", "warning", "notify"]
    assert "BrokenPipeError" in heard[1]["text"]
    assert [entry["seq"] for entry in read(path)] == [1, 2, 3], "in the file in their order"


def test_a_value_without_json_does_no_harm(log, path):
    loop: list = []
    loop.append(loop)
    log.emit("decision", job="a", by="p", arguments={"to": float("nan"), ("x",): object()})
    log.emit("decision", job="a", arguments=loop)
    first, second = read(path)
    assert first["job"] == "a" and "nan" in first["arguments"]
    assert second["arguments"] == "[[...]]"


@pytest.mark.parametrize(
    ("event", "entry"),
    [
        (Started(1.0, 7), ("job_started", {"pid": 7})),
        (
            MemoryLimit(1.0, 5, 6, 7, True),
            ("memory_limit", {"usage": 5, "limit": 6, "hits": 7, "held": True}),
        ),
        (OomKill(1.0, 1, 2), ("oom_kill", {"new": 1, "total": 2})),
        (PidsLimit(1.0, 3, 4), ("pids_limit", {"refused": 3, "limit": 4})),
        (Timeout(1.0, "wall", 5.0), ("timeout", {"kind": "wall", "limit": 5.0})),
        (Exited(1.0, 0, None), None),
        (Populated(1.0, False), None),
        (Tick(1.0), None),
    ],
)
def test_events_become_entries(event, entry):
    assert entries.entry_of(event) == entry


def test_a_cgroup_that_somebody_removed_is_a_warning_with_its_path():
    name, fields = entries.entry_of(CgroupGone(1.0, "/sys/fs/cgroup/x"))
    assert name == "warning" and "/sys/fs/cgroup/x" in fields["text"]


def test_what_a_job_did_is_logged_with_its_name(log, path):
    log.observe("a", "r1", OomKill(1.0, 1, 1))
    log.observe("a", "r1", Exited(1.0, None, 9))
    assert [(e["event"], e["job"], e["run"]) for e in read(path)] == [("oom_kill", "a", "r1")]


def test_decisions_name_who_decided_what():
    found = entries.decision_entry("on_memory_limit", "grow", RaiseLimit("memory", 2**30))
    assert found == {
        "hook": "on_memory_limit",
        "by": "grow",
        "action": "raise",
        "arguments": {"limit": "memory", "to": 2**30},
        "answers": [],
    }
    again = entries.decision_entry("on_exit", "grow", Retry({"memory": 5.0}, after=2.0))
    assert again["arguments"] == {"limits": {"memory": 5.0}, "after": 2.0}
    assert entries.decision_entry("on_exit", "n", Notify("hello"))["action"] == "notify"


def test_decisions_tell_what_everybody_said():
    asked = [Answer("p", "", 0.25, "no answer within 5 s"), Answer("q", "Ignore()", 1 / 3)]
    found = entries.decision_entry("on_timeout", "q", Ignore(), asked)
    assert found["answers"] == [
        {"policy": "p", "verdict": "", "seconds": 0.25, "error": "no answer within 5 s"},
        {"policy": "q", "verdict": "Ignore()", "seconds": 0.333333, "error": ""},
    ]


def test_every_action_has_a_name():
    assert set(entries.ACTION_NAMES) == set(Action.__args__)


def test_the_end_of_a_run_holds_the_whole_record(log, path):
    record = RunRecord("a", "r", 1, Reason.OOM, ("x",), signal=9)
    log.emit("job_ended", **entries.ended_entry(record))
    (found,) = read(path)
    assert found["reason"] == "oom" and found["record"] == json.loads(json.dumps(record.to_json()))


def test_every_kind_of_entry_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "verdicts.md").read_text()
    assert [kind for kind in entries.KINDS if f"`{kind}`" not in text] == []


def test_structlog_comes_without_rich_and_only_when_a_log_is_opened(tmp_path):
    code = f"""
import sys, time
from pathlib import Path
from supervisor.record import eventlog
assert "structlog" not in sys.modules
eventlog.EventLog(Path({str(tmp_path)!r}) / "events.ndjson", time.time).close()
assert "structlog" in sys.modules
assert not [name for name in sys.modules if name.split(".")[0] in ("rich", "pygments")]
try:
    import rich.console
except ImportError:
    pass  # not installed
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2]
    )
    assert done.stderr == "" and done.returncode == 0
