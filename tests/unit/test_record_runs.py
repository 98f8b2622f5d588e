"""Run ids, the paths of the state directory, spec.json, and the exit record."""

from __future__ import annotations

import errno
import json
import os
import stat

import cattrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.errors import KernelError
from supervisor.model import (
    Device,
    InlineAction,
    IoLimit,
    JobSpec,
    Limits,
    Mount,
    PolicyName,
    Tmpfs,
    UserNamespace,
)
from supervisor.record.exit_record import ExitRecord, parse, read
from supervisor.record.runs import RunIds, StateDir, safe_name, stamp


def test_ids_are_unique_and_sorted_though_the_clock_stands_or_goes_back():
    times = iter([100.0, 100.0, 100.0, 50.0, 101.0])
    ids = RunIds(lambda: next(times))
    found = [ids.new("z") for _ in range(3)] + [ids.new("a"), ids.new("b")]
    assert found == sorted(found) and len(set(found)) == 5


def test_ids_sort_as_text_like_time_does():
    milliseconds = [0, 35, 36, 10**12, 1_790_000_000_000, 36**8 - 1]
    assert [stamp(at) for at in milliseconds] == sorted(stamp(at) for at in milliseconds)
    assert {len(stamp(at)) for at in milliseconds} == {8}


def test_ids_go_on_after_those_an_earlier_supervisor_left(tmp_path):
    (tmp_path / f"{stamp(2_000_000)}-x").mkdir()
    (tmp_path / "zzzzzzzzzz-not-ours").mkdir()
    (tmp_path / "ZZZZZZZZ-not-ours").mkdir()
    ids = RunIds(lambda: 1000.0)
    ids.resume(tmp_path)
    assert ids.new("x") == f"{stamp(2_000_001)}-x"
    RunIds(lambda: 1.0).resume(tmp_path / "missing")


@given(st.text(max_size=400))
def test_any_name_makes_a_file_and_a_cgroup_name(job):
    run = RunIds(lambda: 1_790_000_000.0).new(job)
    assert "/" not in run and run.isascii() and run.isprintable() and run[0] not in "._"
    assert len(run) <= 200
    assert safe_name(safe_name(job)) == safe_name(job)


def test_logs_are_named_after_job_and_run(tmp_path):
    state = StateDir(tmp_path)
    assert state.log("a/../b", "mj3k2x9q-a_.._b", "out") == tmp_path / "logs/a_.._b.mj3k2x9q.out"


SPEC = JobSpec(
    "a",
    ("true", "\udcff"),
    mounts=(Mount("/x", "/y"),),
    tmpfs=(Tmpfs("/t", 5),),
    devices=(Device("/dev/a", "/dev/b", "r"),),
    limits=Limits(memory=5, cpus=1.5, io=(IoLimit("/", read_bps=3),)),
    user_namespace=UserNamespace("map", 1000, 5),
    hooks={"on_exit": PolicyName("p"), "on_tick": InlineAction("raise", {"to": 1.5})},
)


def test_spec_json_holds_the_job_whole(tmp_path):
    state = StateDir(tmp_path / "new")
    state.make()
    state.make_run("r", SPEC, {"attempt": 2, "boot_id": "b"})
    found = json.loads(state.spec("r").read_text())
    assert (found["v"], found["run"], found["attempt"], found["boot_id"]) == (1, "r", 2, "b")
    assert cattrs.structure(found["spec"], JobSpec) == SPEC
    assert os.listdir(state.runs / "r") == ["spec.json"]
    for path in (state.root, state.runs, state.logs, state.runs / "r"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_a_failed_write_leaves_no_half_of_it_and_names_the_file(tmp_path, monkeypatch):
    state = StateDir(tmp_path)
    state.make()

    def full(path, _text):
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(type(tmp_path), "write_text", full)
    with pytest.raises(KernelError) as raised:
        state.make_run("r", SPEC, {})
    assert raised.value.errno == errno.ENOSPC and str(state.spec("r")) in str(raised.value)
    assert os.listdir(state.runs / "r") == []


def test_a_state_directory_that_is_a_file_is_named(tmp_path):
    (tmp_path / "f").touch()
    with pytest.raises(KernelError, match="f"):
        StateDir(tmp_path / "f").make()


GOOD = {
    "v": 1,
    "status": 0,
    "utime": 0.5,
    "stime": 1,
    "maxrss": 4096,
    "started": 1.7e9,
    "ended": 1.7e9,
}


def line(**changes: object) -> bytes:
    return json.dumps({**GOOD, **changes}).encode() + b"\n"


def wait_status(code: int = 0, signal: int = 0) -> int:
    return code << 8 | signal


def test_an_exit_and_a_signal_are_told_apart():
    exited = parse(line(status=wait_status(code=137)))
    assert isinstance(exited, ExitRecord) and (exited.code, exited.signal) == (137, None)
    killed = parse(line(status=wait_status(signal=9)))
    assert isinstance(killed, ExitRecord) and (killed.code, killed.signal) == (None, 9)
    dumped = parse(line(status=wait_status(signal=11) | 0x80))
    assert isinstance(dumped, ExitRecord) and (dumped.code, dumped.signal) == (None, 11)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        line()[:-2],
        line()[: len(line()) // 2],
        b"null\n",
        b"[]\n",
        b'"v"\n',
        b"\xff\xfe\n",
        b"\x00" * 100,
        b"[" * 100_000,
        line(v=2),
        line(status=None),
        line(status=True),
        line(status="0"),
        line(status=-1),
        line(status=2**70),
        line(status=0x137F),  # stopped, not ended
        line(status=0xFFFF),  # continued
        line(utime=float("nan")),
        line(utime=float("inf")),
        line(started=10**400),
        line(stime=-1),
        line(maxrss=1.5),
        line() + line(),
        b'{"v": 1, "stage": "exec", "errno": 2, "path": "/x", "text": ""}\n',
    ],
)
def test_what_is_no_record_is_none(data):
    assert parse(data) is None


@given(st.binary(max_size=200))
def test_no_bytes_raise(data):
    parse(data)


@given(st.integers(0, len(line()) - 3))
def test_no_torn_record_is_believed(length):
    assert parse(line()[:length]) is None


def test_reading_tells_missing_from_unreadable(tmp_path):
    assert read(tmp_path / "exit") is None
    (tmp_path / "exit").write_bytes(line())
    assert isinstance(read(tmp_path / "exit"), ExitRecord)
    (tmp_path / "exit").write_bytes(line().ljust(512, b"\0"))
    assert isinstance(read(tmp_path / "exit"), ExitRecord)
    with pytest.raises(IsADirectoryError):
        read(tmp_path)
