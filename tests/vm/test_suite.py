"""The division of the kernel tests into guests, and what comes back from them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import procs
from tests.support.command import ROOT
from tests.vm import suite
from tests.vm.kernel import Engine
from tests.vm.suite import Part

ENGINES: tuple[Engine, ...] = ("uml", "qemu")
Guests = Callable[..., list[suite.Ended]]
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def guests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Guests:
    """`guests({file: shell script})` runs the scripts as if they were the guests of the files."""
    scripts: dict[str, str] = {}

    def command(part: Part, *_rest: object) -> list[str]:
        return ["sh", "-c", scripts[part.files[0]]]

    monkeypatch.setattr(suite, "command", command)

    def run(these: dict[str, str], *flags: str) -> list[suite.Ended]:
        scripts.update(these)
        return suite.run([Part("uml", (file,)) for file in these], suite.parse([*flags]), tmp_path)

    return run


def test_each_output_comes_in_one_piece_with_its_status(guests: Guests, capfd: Capture) -> None:
    slow = "for i in 1 2 3; do echo slow $i; sleep .05; done; echo '3 passed in 0.2s'"
    ended = guests(
        {"a": slow, "b": "echo '1 failed in 0.1s' >&2; exit 1", "c": "exit 124", "d": "exit 125"},
        "--guests", "3",
    )  # fmt: skip
    words = {one.part.files[0]: (one.word, one.summary) for one in ended}
    assert words == {
        "a": ("passed", "3 passed in 0.2s"),
        "b": ("FAILED", "1 failed in 0.1s"),
        "c": ("TOO LONG", "exit status 124"),
        "d": ("NO GUEST", "exit status 125"),
    }
    out = capfd.readouterr().out
    assert "=== uml a: passed (0 s)\nslow 1\nslow 2\nslow 3\n3 passed in 0.2s\n" in out
    assert "=== uml b: FAILED (0 s)\n1 failed in 0.1s\n" in out
    lines = suite.table(ended, 1.0).splitlines()
    assert lines[1].startswith("passed") and "uml a" in lines[1]
    assert lines[-1] == "4 guests in 1 s"


def test_only_so_many_run_at_once(guests: Guests, tmp_path: Path) -> None:
    """Each looks at who else is there; with two guests nobody ever sees a third."""
    script = (
        f"mkdir -p {tmp_path}/in/$$; ls {tmp_path}/in | wc -l; sleep .1; rmdir {tmp_path}/in/$$"
    )
    log = tmp_path / "seen"
    guests(dict.fromkeys("abcdef", f"({script}) >>{log}"), "--guests", "2")
    assert set(log.read_text().split()) <= {"1", "2"}


def test_a_single_one_writes_straight_through(guests: Guests, capfd: Capture) -> None:
    (one,) = guests({"a": "echo out; echo err >&2; exit 3"})
    assert one.status == 3
    assert capfd.readouterr() == ("out\n", "err\n")


def test_what_still_runs_is_told(
    guests: Guests, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "TOLD_EVERY", 0.02)
    guests({"a": "sleep .3", "b": "sleep .3"})
    assert "running: uml a (0 s), uml b (0 s)\n" in capfd.readouterr().out


def test_no_guest_is_left_after_a_failure(
    guests: Guests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(running: list[suite.Running]) -> list[suite.Running]:
        while len(list(tmp_path.glob("pid.*"))) < 2:
            time.sleep(0.01)
        raise ZeroDivisionError

    monkeypatch.setattr(suite, "wait", broken)
    script = (
        f"trap 'rm {tmp_path}/pid.$$; exit 0' TERM; >{tmp_path}/pid.$$; while :; do sleep .01; done"
    )
    with pytest.raises(ZeroDivisionError):
        guests({"a": script, "b": script}, "--guests", "2")
    assert list(tmp_path.glob("pid.*")) == []


def test_one_that_ignores_the_request_is_killed(
    guests: Guests, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "GRACE", 0.1)
    script = f"trap '' TERM; echo $$ >{tmp_path}/pid; while :; do sleep .01; done"

    def broken(running: list[suite.Running]) -> list[suite.Running]:
        while not (tmp_path / "pid").exists():
            time.sleep(0.01)
        raise ZeroDivisionError

    monkeypatch.setattr(suite, "wait", broken)
    with pytest.raises(ZeroDivisionError):
        guests({"a": script})
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_marked_tests_go_to_the_complete_kernel_and_the_others_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file all of whose tests are marked needs no guest that skips them."""

    def collect(arguments: list[str]) -> dict[str, int]:
        return {"m": 2, "x": 1} if "qemu" in arguments else {"m": 2, "x": 7, "y": 3}

    monkeypatch.setattr(suite, "collect", collect)
    assert [str(part) for part in suite.parts("both", [])] == [
        "qemu what is marked so",
        "uml x",
        "uml y",
    ]
    assert suite.parts("both", [])[0].files == ("m", "x")
    assert [str(part) for part in suite.parts("qemu", [])] == ["qemu m", "qemu x", "qemu y"]


def test_arguments_reach_the_guests_that_they_are_for() -> None:
    words = ["-k", "a or b", "tests/kernel/test_init.py::test_x[1 2]", "tests/kernel/test_hold.py"]
    assert suite.only(["tests/kernel/test_init.py"], words) == [
        "tests/kernel/test_init.py::test_x[1 2]", "-k", "a or b",
    ]  # fmt: skip
    assert suite.only(["tests/kernel/test_hold.py", "tests/kernel/test_init.py"], words[:3]) == [
        "tests/kernel/test_hold.py", words[2], "-k", "a or b",
    ]  # fmt: skip
    argv = suite.command(Part("qemu", ("tests/f.py",)), words, both=True, limit=7.0)
    assert argv[argv.index("--timeout") + 1] == "7"
    assert argv[-5:] == ["tests/f.py", "-k", "a or b", "-m", "qemu"]
    assert suite.command(Part("qemu", ("f",)), [], both=False, limit=7.0)[-2:] == [
        "timeout=900",
        "f",
    ]


def test_pytest_is_asked_what_there_is() -> None:
    found = suite.collect(["tests/vm/test_suite.py", "-k", "pytest_is_asked"])
    assert found == {"tests/vm/test_suite.py": 1}


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--", "-m", "kernel"), "with -m choose --engine uml or qemu"),
        (("--", "tests/kernel/no_such_file.py"), "no_such_file.py"),
        (("--", "-k", "no_such_test"), "no tests"),
        (("--engine", "bochs"), "bochs"),
    ],
)
def test_a_wrong_choice_is_a_usage_error(arguments: tuple[str, ...], told: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.vm.suite", *arguments],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert told in done.stderr


def test_the_order_is_that_of_the_last_time(tmp_path: Path) -> None:
    times = suite.Times.load(tmp_path / "cache/times.json")
    part, other = (Part(e, ("tests/vm/test_suite.py",)) for e in ENGINES)
    assert times.guess(other) > times.guess(part) > 0
    times.keep([suite.Ended(part, 0, 4321.04, ""), suite.Ended(other, 1, 9.0, "")])
    again = suite.Times.load(times.path)
    assert again.guess(part) == 4321.0
    assert again.guess(other) == times.guess(other)
    times.path.write_text("{not json")
    assert suite.Times.load(times.path).seconds == {}


@pytest.mark.vm
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_the_guests(number: signal.Signals, tmp_path: Path) -> None:
    """SIGKILL too: the kernel passes it on.  The session's check finds what is left."""
    file = "tests/kernel/test_reaper.py"
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.vm.suite", "--engine", "uml", "--", file],
        cwd=ROOT, stdout=subprocess.DEVNULL, env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    while not list(tmp_path.glob("vm.*/console")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait() == (-9 if number == signal.SIGKILL else 130)
    deadline = time.monotonic() + 60
    while [pid for pid in procs.table() if procs.environment_has(pid, f"TMPDIR={tmp_path}")]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert list(tmp_path.glob("vm.*/console")) == []
