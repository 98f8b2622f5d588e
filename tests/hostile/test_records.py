"""Attempts on what is told of a job: its record, the supervisor's words, its environment."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.record import exit_record
from tests.hostile import support
from tests.support import host
from tests.support.command import State, Supervise
from tests.support.containers import PYTHON, Ended, log_of, own_state, python, run_jobs

pytestmark = pytest.mark.kernel

ESCAPE = "\x1b]0;owned\x07\x1b[2J\x1b[31mred\r"
"""Sets a terminal's title, clears it, and writes over the line."""

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\x9b]")

FORGED = '{"v":1,"status":0,"utime":0.1,"stime":0.1,"maxrss":1,"started":1.0,"ended":2.0}'


def forge(line):
    """Write what an exit record looks like wherever it can be written, then end badly."""
    import os

    for number in range(64):
        for path in (f"/proc/self/fd/{number}", f"/proc/1/fd/{number}", f"/proc/2/fd/{number}"):
            try:
                fd = os.open(path, os.O_WRONLY)
                os.write(fd, line.encode() + b"\n")
            except OSError:
                continue
    for top, _, names in os.walk("/var/lib/supervise"):
        for name in names:
            os.truncate(os.path.join(top, name), 0)
    os._exit(7)


def silence_the_init():
    """Forbid the init to write its record, where the kernel lets us, then end badly."""
    import os
    import resource

    try:
        resource.prlimit(1, resource.RLIMIT_FSIZE, (0, 0))
    except OSError:
        print("refused", flush=True)
    os._exit(7)


def kill_everybody():
    import os
    import signal

    if os.fork() == 0:
        signal.pause()
    for number in (signal.SIGKILL, signal.SIGSTOP):
        os.kill(1, number)
    os.kill(-1, signal.SIGKILL)
    os._exit(7)


def say(text, code):
    import os

    os.write(1, text.encode())
    os.write(2, text.encode())
    os._exit(code)


JOBS: dict[str, dict[str, Any]] = {
    "forge": {"command": python(forge, FORGED)},
    "silence": {"command": python(silence_the_init)},
    "silence_userns": {"command": python(silence_the_init), "user_namespace": "self"},
    "kill": {"command": python(kill_everybody)},
    "say": {"command": python(say, ESCAPE, 3)},
    "name": {"command": [f"/{ESCAPE}"]},
    "lines": {"command": ["/no\n12:00:00 other ended: succeeded after 0.01s"]},
    "bytes": {"command": ["/no/\u202egnp.exe"]},
    "environment": support.job(("escapes",), **support.OPEN) | {
        "command": [PYTHON, "-I", "-S", "-c", "print(open('/proc/1/environ').read(), end='')"],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    with own_state(tmp_path_factory.mktemp("records")) as found:
        yield found


@pytest.fixture(scope="module")
def jobs(where: State) -> dict[str, Ended]:
    return run_jobs(where, JOBS, environment={"SECRET": "of the supervisor"})


def test_a_forged_exit_record(jobs: dict[str, Ended]):
    ended = jobs["forge"]
    assert (ended.reason, ended.record["exit_code"]) == ("failed", 7)
    forged = exit_record.parse(FORGED.encode())
    assert forged is not None and forged.code == 0  # such a line would have been believed


def test_an_init_that_is_not_to_write(jobs: dict[str, Ended]):
    """In a user namespace of one id the init cannot be set apart: its word is lost, never false."""
    assert jobs["silence"].out == "refused\n"
    assert (jobs["silence"].reason, jobs["silence"].record["exit_code"]) == ("failed", 7)
    assert jobs["silence_userns"].out == ""  # the kernel let it
    assert jobs["silence_userns"].reason == "lost"


def test_a_job_that_kills_all_it_can(jobs: dict[str, Ended]):
    assert (jobs["kill"].reason, jobs["kill"].record["exit_code"]) == ("failed", 7)


def test_the_supervisors_environment_is_nowhere(jobs: dict[str, Ended]):
    """Not even in the init's, which a job with CAP_SYS_PTRACE can read."""
    ended = jobs["environment"]
    assert (ended.reason, ended.out) == ("succeeded", "")


@pytest.mark.parametrize("view", [["--plain"], ["--json"], ["--color", "always"]], ids=str)
def test_what_a_job_writes_does_nothing_to_the_operators_terminal(
    where: State, jobs: dict[str, Ended], view: list[str]
):
    """Its output goes to its log; its command's name is shown with the controls made visible."""
    supervise = Supervise(where)
    done = supervise(where.state / "jobs.toml", *view)
    shown = done.stdout + done.stderr
    if view == ["--color", "always"]:
        shown = re.sub(r"\x1b\[\d*m", "", shown)  # our own
    assert CONTROL.findall(shown) == []
    assert "owned" in shown and "\u202e" not in shown
    assert not [line for line in shown.splitlines() if line.startswith("12:00:00 other")]
    assert "\x1b]0;owned\x07" in log_of(where, "say", "out")


def test_the_explanation_of_a_bad_end_is_harmless_too(supervise: Supervise):
    done = supervise("run", "--", f"/{ESCAPE}")
    assert done.status == 127
    assert CONTROL.findall(done.stderr) == [] and "owned" in done.stderr


def test_the_name_of_a_victim_is_harmless(supervise: Supervise, tmp_path: Path):
    """The kernel's log names the process it killed, and a process chooses its own name."""

    def grow():
        import ctypes

        ctypes.CDLL(None).prctl(15, b"\x1b[2J\x1b[31mred\r", 0, 0, 0)
        held = []
        while True:
            held.append(bytearray(1 << 20))

    record = tmp_path / "record"
    flags = ["--memory", "32M", "--swap", "0", "--record", record]
    done = supervise("run", *flags, "--", *python(grow))
    assert json.loads(record.read_text())["reason"] == "oom"
    assert CONTROL.findall(done.stderr) == []


def test_a_record_in_the_output_is_not_the_record(supervise: Supervise, tmp_path: Path):
    """What reads records reads --record's own file, or `supervise CONFIG --json`."""
    lie = json.dumps({"reason": "succeeded", "exit_code": 0})
    done = supervise("run", "--record", tmp_path / "r", "--", "sh", "-c", f"echo '{lie}'; exit 7")
    assert (done.stdout, done.status) == (lie + "\n", 7)
    found = json.loads((tmp_path / "r").read_text())
    assert (found["reason"], found["exit_code"]) == ("failed", 7)


def test_a_record_printed_by_a_job_is_not_among_those_of_a_batch(tmp_state: State):
    lie = json.dumps({"job": "one", "reason": "succeeded", "exit_code": 0})
    ended = run_jobs(tmp_state, {"one": {"script": f"echo '{lie}'; exit 7"}})["one"]
    assert (ended.reason, ended.out) == ("failed", lie + "\n")


@pytest.mark.parametrize(
    ("words", "variables", "reason"),
    [
        (["x" * 131000], {}, "succeeded"),
        (["x" * 131072], {}, "start_failed"),
        (["y" * 1000] * 1500, {}, "succeeded"),
        ([], {f"V{n}": "z" * 100000 for n in range(10)}, "succeeded"),
        ([], {f"V{n}": "z" * 100000 for n in range(30)}, "start_failed"),
    ],
    ids=["long-word", "too-long", "many-words", "environment", "too-much"],
)
def test_an_enormous_command_line(
    tmp_state: State, words: list[str], variables: dict[str, str], reason: str
):
    """Past the kernel's limits (execve(2)) the start fails with E2BIG, and that is told."""
    job = {"command": ["/bin/true", *words], "environment": variables}
    found = run_jobs(tmp_state, {"big": job, "beside": {"command": ["true"]}})
    assert found["beside"].reason == "succeeded"
    assert found["big"].reason == reason, found["big"].record["detail"]
    if reason == "start_failed":
        assert found["big"].failure[:2] == ("exec", 7)


@pytest.mark.parametrize(
    ("size", "flags"),
    [(1024 if not host.in_guest() else 128, []), (128, ["--output", "2G"])],
    ids=["straight", "counted"],
)
def test_a_gigabyte_without_a_newline(tmp_state: State, size: int, flags: list[str]):
    """Nobody holds it: it goes straight to the caller's stream, or through the pipe that counts."""
    supervise, size = Supervise(tmp_state), size << 20
    command = ["run", *flags, "--", "head", "-c", str(size), "/dev/zero"]
    with supervise.start(*command) as process:
        assert process.stdout is not None
        taken, peak = 0, 0
        while data := os.read(process.stdout.fileno(), 1 << 20):
            taken += len(data)
            if taken < size:  # else it may have ended
                peak = max(peak, _peak(process.pid))
        process.communicate()
    assert (process.returncode, taken) == (0, size)
    assert peak < 150 << 20


def _peak(pid: int) -> int:
    """The most memory a process has had, in bytes (VmHWM of proc_pid_status(5))."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{pid} has ended already")
