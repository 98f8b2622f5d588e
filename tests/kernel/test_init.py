# ruff: noqa: PTH123 - what runs in a job imports little
"""A job's PID 1: it reaps, forwards, cannot be harmed from inside, and tells the truth."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from supervisor.linux import proc
from tests.support import host, procs
from tests.support.command import State, Supervise
from tests.support.containers import (
    background,
    init_of,
    next_line,
    python,
    run_jobs,
    write_config,
)

pytestmark = pytest.mark.kernel

PATIENCE = 60.0 * host.SLOWNESS


@pytest.fixture
def mark() -> Iterator[str]:
    """A variable for a job's environment; whoever still has it at the end has escaped."""
    entry = f"SUPERVISE_MARK={uuid4().hex}"
    yield entry
    assert [pid for pid in procs.table() if procs.environment_has(pid, entry)] == []


def until(condition: Callable[[], object]) -> None:
    """Wait for what nobody tells of."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def orphans(count):
    """Fork twice, `count` times; how many zombies are left in the end, and how many there were."""
    import os

    def states():
        found = []
        for pid in os.listdir("/proc"):
            if pid.isdigit():
                try:
                    with open(f"/proc/{pid}/stat") as file:
                        found.append(file.read().rpartition(")")[2].split()[0])
                except (FileNotFoundError, ProcessLookupError):
                    continue
        return found

    for _ in range(count):
        child = os.fork()
        if child == 0:
            if os.fork() == 0:
                os._exit(3)
            os._exit(0)
        os.waitpid(child, 0)
    while "Z" in states() or len(states()) > 2:
        pass
    return len(states())


def family(directory, ignore):
    """A tree of every kind; at TERM each leaves a file of its name, unless it ignores it.

    The payload ends last: with it the others would.
    """
    import os
    import signal
    import time

    names = ("child", "session", "orphan", "stopped", "group")

    def heard(name):
        with open(f"{directory}/{name}", "w") as file:
            file.write("heard")

    def live(name):
        if ignore:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        else:
            signal.signal(signal.SIGTERM, lambda *_: (heard(name), os._exit(0)))
        with open(f"{directory}/{name}.here", "w") as file:
            file.write(str(os.getpid()))
        if name == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        while True:
            time.sleep(1000)

    for name in names:
        if os.fork() == 0:
            if name == "session":
                os.setsid()
            if name == "group":
                os.setpgid(0, 0)
            if name == "orphan" and os.fork():
                os._exit(0)
            live(name)

    def state(name):
        try:
            with (
                open(f"{directory}/{name}.here") as file,
                open(f"/proc/{file.read()}/stat") as stat,
            ):
                return stat.read().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return ""

    def last(*_):
        while not all(os.path.exists(f"{directory}/{name}") for name in names):
            pass
        os._exit(0)

    signal.signal(signal.SIGTERM, signal.SIG_IGN if ignore else last)
    while not all(state(name) in ("S", "T") for name in names) or state("stopped") != "T":
        pass
    yield "ready"
    while True:
        time.sleep(1000)


def harm_init():
    """Everything a process may try against PID 1; then end with 7, and let that be told."""
    import ctypes
    import os
    import resource
    import sys

    libc = ctypes.CDLL(None, use_errno=True)
    for number in (9, 19, 11, 6, 4, 17, 24, 31, 34, 64):
        os.kill(1, number)
    reached = []
    for request in (16, 0x4206):  # PTRACE_ATTACH, PTRACE_SEIZE
        if libc.ptrace(request, 1, None, None) == 0:
            reached.append(f"ptrace {request}")
    for path in ("/proc/1/mem", "/proc/1/root/etc/passwd", "/proc/1/environ", "/proc/1/maps"):
        try:
            open(path, "rb").close()
            reached.append(path)
        except OSError:
            pass
    for what in (resource.RLIMIT_FSIZE, resource.RLIMIT_CPU, resource.RLIMIT_NOFILE):
        try:
            resource.prlimit(1, what, (0, 0))
            reached.append(f"prlimit {what}")
        except OSError:
            pass
    print(json.dumps(reached), flush=True)
    sys.exit(7)


def bomb():
    """Fork without end, in every process; tells once, when it is refused."""
    import os

    told = False
    while True:
        try:
            if os.fork() == 0:
                told = True
        except OSError:
            if not told:
                told = True
                yield "full"


def test_a_thousand_orphans_are_reaped(supervise: Supervise):
    done = supervise("run", "--timeout", f"{50 * host.SLOWNESS}s", "--", *python(orphans, 1000))
    assert (done.status, done.stdout) == (0, "2\n"), done.stderr


@pytest.mark.parametrize(
    "script",
    [
        "setsid sleep 1000 & exit 5",
        "(setsid sleep 1000 &) & wait; exit 5",
        "nohup sleep 1000 >/dev/null 2>&1 & exit 5",
        "(trap '' TERM INT HUP; sleep 1000) & exit 5",
        "(kill -STOP $(sh -c 'echo $PPID')) & exit 5",
    ],
)
def test_the_end_of_the_payload_is_the_end_of_all(supervise: Supervise, mark, script):
    done = supervise("run", "--env", mark, "--", "sh", "-c", script)
    assert done.status == 5  # and the pipes are closed: nobody held them


def test_term_reaches_the_whole_tree(supervise: Supervise, tmp_path, mark):
    job = python(family, "/mnt", False)
    flags = ["--mount", f"{tmp_path}:/mnt", "--env", mark, "--stop-grace", "40s", "--record", "-"]
    with background(supervise, "run", *flags, "--", *job) as process:
        assert next_line(process) == '"ready"'
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE)
    record = json.loads(out.splitlines()[-1])
    heard = {path.name for path in tmp_path.iterdir() if not path.suffix}
    assert heard - {"state"} == {"child", "session", "orphan", "stopped", "group"}, err
    assert (record["reason"], record["exit_code"]) == ("stopped", 0)


def test_who_ignores_term_is_killed_after_the_grace(supervise: Supervise, tmp_path, mark):
    job = python(family, "/mnt", True)
    flags = ["--mount", f"{tmp_path}:/mnt", "--env", mark, "--stop-grace", "100ms", "--record", "-"]
    with background(supervise, "run", *flags, "--", *job) as process:
        assert next_line(process) == '"ready"'
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=PATIENCE)
    record = json.loads(out.splitlines()[-1])
    assert (record["reason"], record["signal"]) == ("stopped", 9)
    assert record["wall_seconds"] >= 0.1


def test_twice_means_at_once(supervise: Supervise, tmp_path, mark):
    job = python(family, "/mnt", True)
    flags = ["--mount", f"{tmp_path}:/mnt", "--env", mark, "--stop-grace", "1h", "--record", "-"]
    with background(supervise, "run", *flags, "--", *job) as process:
        assert next_line(process) == '"ready"'
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=PATIENCE)
    assert json.loads(out.splitlines()[-1])["signal"] == 9
    assert process.returncode == 130


def test_another_signal_stops_where_the_job_says_so(supervise: Supervise):
    script = "trap 'exit 9' USR1; trap '' TERM; echo ready; while :; do :; done"
    flags = ["--stop-signal", "USR1", "--record", "-"]
    with background(supervise, "run", *flags, "--", "sh", "-c", script) as process:
        assert next_line(process) == "ready"
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=PATIENCE)
    assert json.loads(out.splitlines()[-1])["exit_code"] == 9


def test_init_cannot_be_harmed_from_inside(supervise: Supervise):
    """Signals to PID 1 are passed on to the job, which has to live with them."""
    trap = "trap '' USR1 SEGV ABRT ILL CHLD XCPU SYS 34 64; exec \"$@\""
    done = supervise("run", "--", "sh", "-c", trap, "sh", *python(harm_init))
    assert (done.status, done.stdout) == (7, "[]\n"), done.stderr


@pytest.mark.parametrize("flags", [["--user", "nobody"], ["--user-namespace", "self"]])
def test_init_cannot_be_killed_or_read_by_others(supervise: Supervise, flags):
    script = """
        for number in 9 19; do kill -$number 1 2>/dev/null; done
        cat /proc/1/environ /proc/1/maps 2>/dev/null
        ls /proc/1/root/ /proc/1/fd/3/ 2>/dev/null
        echo alive; exit 7
    """
    done = supervise("run", *flags, "--", "sh", "-c", script)
    assert (done.status, done.stdout) == (7, "alive\n"), done.stderr


def test_every_exit_code_is_told_exactly(tmp_state: State):
    job = {"command": ["sh", "-c", "exit {code}"], "matrix": {"code": list(range(256))}}
    records = _matrix(tmp_state, job)
    assert {int(code): one["exit_code"] for code, one in records.items()} == {
        code: code for code in range(256)
    }
    assert {one["signal"] for one in records.values()} == {None}
    reasons = {code: one["reason"] for code, one in records.items()}
    assert reasons.pop("0") == "succeeded"
    assert set(reasons.values()) == {"failed"}  # 137 and 143 are no kills


def test_every_signal_is_told_exactly(tmp_state: State):
    """Those that dump core too, with and without a core."""
    deadly = sorted(set(range(1, 65)) - {17, 18, 19, 20, 21, 22, 23, 28, 32, 33})
    job = {"command": ["sh", "-c", "ulimit -c 0; kill -{number} $$; exit 1"],
           "matrix": {"number": deadly}}  # fmt: skip
    records = _matrix(tmp_state, job)
    assert {int(number): one["signal"] for number, one in records.items()} == {
        number: number for number in deadly
    }
    assert {one["exit_code"] for one in records.values()} == {None}
    assert {one["reason"] for one in records.values()} == {"signal"}


def _matrix(where: State, job: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The records of a matrix's members, by its one value."""
    config = write_config(where, {"job": job}, head="capacity = { jobs = 8 }")
    done = Supervise(where)(config, "--json", "--plain", timeout=110)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    return {record["job"].partition("=")[2]: record for record in records}


def test_init_is_outside_of_the_jobs_limits(supervise: Supervise):
    """One task is the payload's alone; and its memory is not charged with its init's."""
    flags = ["--pids", "1", "--memory", "8M", "--record", "-"]
    with background(supervise, "run", *flags, "--", "cat") as process:
        assert process.stdin is not None
        process.stdin.write("here\n")
        process.stdin.flush()
        assert next_line(process) == "here"
        init = init_of(process.pid)
        (payload,) = proc.children(init)
        assert procs.command_line(payload) == "cat"
        places = {one.path for one in proc.memberships(f"/proc/{init}/cgroup")}
        assert not [path for path in places if path.endswith("/payload")]
        process.stdin.close()
        process.stdin = None
        out, err = process.communicate(timeout=PATIENCE)
    record = json.loads(out.splitlines()[-1])
    assert (record["reason"], record["pids"]["refused"]) == ("succeeded", 0), err


def test_a_fork_bomb_is_contained_and_ended(supervise: Supervise, mark):
    flags = ["--pids", "24", "--env", mark, "--record", "-"]
    with background(supervise, "run", *flags, "--", *python(bomb)) as process:
        assert next_line(process) == '"full"'
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE)
    record = json.loads(out.splitlines()[-1])
    assert record["reason"] == "stopped", err
    assert record["pids"]["refused"] > 0


def test_an_init_killed_from_outside_is_told(supervise: Supervise, mark):
    script = "setsid sleep 1000 & echo ready; wait"
    flags = ["--env", mark, "--record", "-"]
    with background(supervise, "run", *flags, "--", "sh", "-c", script) as process:
        assert next_line(process) == "ready"
        os.kill(init_of(process.pid), signal.SIGKILL)
        out, err = process.communicate(timeout=PATIENCE)
    record = json.loads(out.splitlines()[-1])
    assert (record["reason"], record["signal"], process.returncode) == ("signal", 9, 137)
    assert "init was killed by signal 9" in record["detail"]
    assert "init was killed" in err


def test_a_payload_killed_from_outside_is_a_signal(supervise: Supervise):
    script = "echo ready; read line"
    with background(supervise, "run", "--record", "-", "--", "sh", "-c", script) as process:
        assert next_line(process) == "ready"
        (payload,) = proc.children(init_of(process.pid))
        os.kill(payload, signal.SIGKILL)
        out, _ = process.communicate(timeout=PATIENCE)
    record = json.loads(out.splitlines()[-1])
    assert (record["reason"], record["signal"], record["detail"]) == ("signal", 9, "")


def test_init_runs_nothing_of_the_jobs_root(tmp_state: State, tmp_path, busybox):
    """Modules lie where Python would look for them: at /, in its library, along PYTHONPATH."""
    import resource

    root, heard = tmp_path / "root", tmp_path / "heard"
    library = Path(os.__file__).parent
    dynamic = Path(resource.__file__).parent
    places = [root / str(path).lstrip("/") for path in ("/", "/evil", library, dynamic)]
    evil = 'open("/heard/" + __name__, "w").close()\nraise SystemExit(0)\n'
    for place in places:
        (place / "encodings").mkdir(parents=True, exist_ok=True)
        for name in ("traceback", "resource", "signal", "site", "sitecustomize", "os", "ctypes",
                     "linecache", "encodings/__init__", "encodings/ascii", "json", "_ctypes",
                     "_posixsubprocess", "supervisor"):  # fmt: skip
            (place / f"{name}.py").write_text(evil)
    heard.mkdir()
    (root / "bin").mkdir(exist_ok=True)
    (root / "bin/sh").write_bytes(busybox.read_bytes())
    (root / "bin/sh").chmod(0o755)
    job = {"root": root, "write": "read-only", "working_dir": "/evil",
           "environment": {"PYTHONPATH": "/evil:/", "PYTHONHOME": "/", "PYTHONSTARTUP": "/os.py"},
           "mounts": [{"source": heard, "target": "/heard", "read_only": False}]}  # fmt: skip
    jobs = {
        "good": job | {"command": ["sh", "-c", "exit 3"]},
        "killed": job | {"command": ["sh", "-c", "kill -9 $$"]},
        "missing": job | {"command": ["/nothing/\u00ff/here"]},
        "nowhere": job | {"command": ["sh"], "working_dir": "/nowhere"},
        "latin": job | {"command": ["sh", "-c", "exit 4"], "hostname": "x" * 64},
    }
    found = run_jobs(tmp_state, jobs)
    assert found["good"].record["exit_code"] == 3
    assert found["killed"].record["signal"] == 9
    assert found["missing"].failure[:2] == ("exec", 2)
    assert found["nowhere"].failure == ("working_dir", 2, "/nowhere")
    assert found["latin"].record["exit_code"] == 4
    assert list(heard.iterdir()) == []
