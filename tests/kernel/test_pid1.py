"""The supervisor as PID 1 and as a child subreaper; and what lives on when a part of it is killed.

Orphans are made by a shell that becomes the supervisor: its children are the supervisor's then.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from supervisor.linux import proc
from tests.support import host, procs
from tests.support.command import State, stop
from tests.support.containers import (
    ended,
    init_of,
    log_of,
    named_child,
    within,
    write_config,
)

pytestmark = pytest.mark.kernel

PATIENCE = 60.0 * host.SLOWNESS
GATE = 'echo here > "/mnt/$0"; while ! test -e /mnt/go; do sleep 0.05; done; '


def until(condition: Callable[[], Any]) -> Any:
    """Wait for what nobody tells of; what it came to."""
    deadline = time.monotonic() + PATIENCE
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)
    return found


def gated(directory: Path, name: str, script: str, **settings: Any) -> dict[str, Any]:
    """A job that tells it is there, waits for the file `go`, and runs `script`."""
    mounts = [{"source": directory, "target": "/mnt", "read_only": False}]
    return {"command": ["sh", "-c", GATE + script, name], "mounts": mounts, **settings}


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """The directory that jobs and test see."""
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


@contextmanager
def running(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """Stopped at the end of the block, and waited for."""
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                _interrupt_inner(process.pid)
                stop(process)


def _interrupt_inner(wrapper: int) -> None:
    """`unshare` passes no signal on, and takes the supervisor along when it is killed."""
    if proc.stat(wrapper).comm == "unshare":
        for pid in proc.children(wrapper):
            os.kill(pid, signal.SIGINT)


def children(parent: int) -> list[proc.Stat]:
    return [one for one in procs.table().values() if one.parent == parent]


ORPHANS = """
for n in 1 2 3 4 5 6 7 8; do (true) & done
(while ! test -e "$SHARED/orphans"; do sleep 0.05; done
 for n in 1 2 3 4 5 6 7 8; do (exit $n) & (setsid sh -c "exit $n" &) & done) &
exec "$@"
"""
"""Some are there from the start; others come while jobs run, and their parent leaves them."""


@pytest.mark.parametrize("role", ["pid 1", "subreaper"])
def test_orphans_are_reaped_and_no_jobs_status_with_them(tmp_state: State, shared, role):
    jobs = {
        "seven": gated(shared, "seven", "exit 7"),
        "killed": gated(shared, "killed", "kill -KILL $$"),
        "good": gated(shared, "good", "true"),
        "late": {"command": ["sh", "-c", "exit 9"], "after": ["good"]},
    }
    shell = ["/bin/sh", "-c", ORPHANS, "sh"]
    namespace = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    wrapper = [*namespace, *shell] if role == "pid 1" else shell
    config = write_config(tmp_state, jobs)
    environment = {"SHARED": str(shared)}
    with running(
        within(tmp_state, wrapper, config, "--json", "--plain", environment=environment)
    ) as process:
        until(lambda: len(list(shared.iterdir())) == 3)
        (first,) = proc.children(process.pid) if role == "pid 1" else (process.pid,)
        (shared / "orphans").touch()
        ours = {"supervise:launc", "supervise:init"}
        until(lambda: {one.comm for one in children(first)} <= ours)
        assert [one.pid for one in children(first) if one.state == "Z"] == []
        (shared / "go").touch()
        out, err = process.communicate(timeout=PATIENCE)
    found = ended(tmp_state, out)
    assert {name: one.record["exit_code"] for name, one in found.items()} == {
        "seven": 7, "killed": None, "good": 0, "late": 9,
    }, err  # fmt: skip
    assert found["killed"].record["signal"] == 9
    assert process.returncode == 1


def test_as_pid_1_the_end_by_a_signal_is_orderly(tmp_state: State, shared):
    """PID 1 has no default actions: TERM must be handled, or nothing happens at all."""
    jobs = {"job": gated(shared, "job", "true", stop={"signal": "TERM", "grace": "100ms"})}
    wrapper = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    config = write_config(tmp_state, jobs)
    with running(within(tmp_state, wrapper, config, "--json", "--plain")) as process:
        until((shared / "job").exists)
        (first,) = proc.children(process.pid)
        os.kill(first, signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert ended(tmp_state, out)["job"].reason == "stopped"


def test_the_launchers_end_ends_no_job(tmp_state: State, shared):
    """What runs goes on; what is to start is started by a new one, or told why not."""
    jobs = {
        "first": gated(shared, "first", "exit 0"),
        "second": {"command": ["true"], "after": ["first"], "priority": 2},
        "third": {"command": ["true"], "after": ["first"], "priority": 1},
        "fourth": {"command": ["true"], "after": ["third"]},
    }
    config = write_config(tmp_state, jobs, head="capacity = { jobs = 1 }")
    with running(within(tmp_state, [], config, "--json", "--plain")) as process:
        until((shared / "first").exists)
        launcher = named_child(process.pid, "supervise:launch")
        os.kill(launcher, signal.SIGKILL)
        until(lambda: not Path(f"/proc/{launcher}").exists() or _state(launcher) == "Z")
        (shared / "go").touch()
        out, err = process.communicate(timeout=PATIENCE)
    found = {name: one.record for name, one in ended(tmp_state, out).items()}
    assert found["first"]["reason"] == "succeeded", err
    assert found["third"]["reason"] == "succeeded", err
    assert found["fourth"]["reason"] == "succeeded", err
    if found["second"]["reason"] != "succeeded":
        assert found["second"]["start_error"]["stage"] == "clone"


def test_a_launcher_killed_again_and_again(tmp_state: State, shared):
    """With a restart policy nothing is lost for good."""
    restart = {"when": "on-failure", "attempts": 5, "backoff": "10ms"}
    jobs = {"first": gated(shared, "first", "exit 0")}
    jobs |= {f"job{n}": {"command": ["true"], "after": ["first"], "restart": restart}
             for n in range(5)}  # fmt: skip
    config = write_config(tmp_state, jobs, head="capacity = { jobs = 1 }")
    with running(within(tmp_state, [], config, "--json", "--plain")) as process:
        until((shared / "first").exists)
        os.kill(named_child(process.pid, "supervise:launch"), signal.SIGKILL)
        (shared / "go").touch()
        out, err = process.communicate(timeout=PATIENCE)
    assert {one.reason for one in ended(tmp_state, out).values()} == {"succeeded"}, err
    assert process.returncode == 0


def test_jobs_outlive_a_killed_supervisor_until_the_next_clears_them_away(tmp_state, shared):
    """`kill -9` of the supervisor is not the end of the work; the next one of the name says so."""
    mark = f"m{uuid4().hex}"
    marked = {"environment": {"SUPERVISE_MARK": mark}}
    config = write_config(
        tmp_state,
        {
            "ends": gated(shared, "ends", "echo went on; touch /mnt/went; exit 3", **marked),
            "stays": gated(shared, "stays", "setsid sleep 1000 & sleep 1000", **marked),
        },
    )
    with within(tmp_state, [], config, "--plain", stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL) as process:  # fmt: skip
        until(lambda: len(list(shared.iterdir())) == 2)
        process.kill()
        process.wait()
    assert len(_marked(mark)) >= 2
    (shared / "go").touch()
    until((shared / "went").exists)
    assert log_of(tmp_state, "ends", "out") == "went on\n"
    (exit_record,) = tmp_state.state.glob("*/runs/*-ends/exit")
    until(lambda: exit_record.read_bytes().rstrip(b"\0"))
    assert os.WEXITSTATUS(json.loads(exit_record.read_bytes().rstrip(b"\0"))["status"]) == 3
    assert _marked(mark), "the other one still runs"

    again = write_config(tmp_state, {"next": {"command": ["true"]}})
    with within(tmp_state, [], again, "--json", "--plain") as process:
        out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert ended(tmp_state, out)["next"].reason == "succeeded"
    assert "left behind" in _warnings(tmp_state)
    until(lambda: not _marked(mark))


def test_a_second_instance_of_the_name_is_refused(tmp_state: State, shared):
    config = write_config(tmp_state, {"job": gated(shared, "job", "exit 0")})
    with running(within(tmp_state, [], config, "--json", "--plain")) as process:
        until((shared / "job").exists)
        with within(tmp_state, [], config, "--plain") as other:
            _, err = other.communicate(timeout=PATIENCE)
        assert other.returncode == 125
        assert "is running" in err
        (shared / "go").touch()
        out, err = process.communicate(timeout=PATIENCE)
    assert ended(tmp_state, out)["job"].reason == "succeeded", err


def test_a_stopped_init_does_not_hinder_a_kill(tmp_state: State, shared):
    """Somebody outside stops the init: the grace ends, and so does the job."""
    settings = {"stop": {"signal": "TERM", "grace": "100ms"}}
    config = write_config(tmp_state, {"job": gated(shared, "job", "true", **settings)})
    with running(within(tmp_state, [], config, "--json", "--plain")) as process:
        until((shared / "job").exists)
        os.kill(init_of(process.pid), signal.SIGSTOP)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE)
    assert ended(tmp_state, out)["job"].reason == "stopped", err


def _state(pid: int) -> str:
    return proc.stat(pid).state


def _marked(mark: str) -> list[int]:
    return [pid for pid in procs.table() if procs.environment_has(pid, f"SUPERVISE_MARK={mark}")]


def _warnings(where: State) -> str:
    (log,) = where.state.glob("*/events.ndjson")
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return "\n".join(entry["text"] for entry in entries if entry["event"] == "warning")
