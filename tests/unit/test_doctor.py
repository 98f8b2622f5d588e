"""The doctor without privilege: how trials are contained, what it concludes, the name clash.

Trials fork, which only a process with one thread may do: they run in an interpreter of their own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
import time

import pytest
from attrs import evolve

from supervisor.cgroup.api import Missing
from supervisor.front import doctor
from supervisor.front.doctor_table import table
from supervisor.front.doctor_trial import Check, Outcome
from supervisor.model import Limits
from tests.support.command import ROOT


def alone(code: str, *arguments: str) -> dict:
    """Run `code` in an interpreter of its own; it prints one JSON value."""
    head = "import json, os, signal, sys, time\nfrom supervisor.front.doctor_trial import attempt\n"
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(code), *arguments],
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return json.loads(done.stdout)


def test_a_trial_tells_what_it_found_and_changes_nothing_here():
    assert alone("""
        here = os.getcwd()
        outcome = attempt(lambda: [os.chdir("/"), os.getppid()])
        print(json.dumps([outcome.value[1] == os.getpid(), os.getcwd() == here]))
    """) == [True, True]


def test_a_trial_that_fails_says_why():
    assert alone("""
        from supervisor.errors import SupervisorError
        def refuse(): raise SupervisorError("it is so")
        outcomes = [
            attempt(lambda: os.listdir("/nonexistent")), attempt(refuse),
            attempt(lambda: os._exit(3)), attempt(lambda: os.kill(os.getpid(), 9)),
        ]
        print(json.dumps([[o.failure, o.signal] for o in outcomes]))
    """) == [
        ["/nonexistent: No such file or directory", None],
        ["it is so", None],
        ["broke off with exit code 3", None],
        ["ended by SIGKILL", 9],
    ]


def test_a_trial_that_hangs_is_given_up_and_leaves_no_process():
    started = time.monotonic()
    found = alone("""
        def hang():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            if os.fork() == 0:
                signal.pause()
            signal.pause()
        outcome = attempt(hang, 0.3)
        group_is_gone = False
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            group_is_gone = True
        print(json.dumps([outcome.timed_out, outcome.failure, group_is_gone]))
    """)
    assert found == [True, "took too long and was given up", True]
    assert time.monotonic() - started < 10


def test_children_that_a_trial_forgot_hold_up_nobody_and_are_killed():
    """They hold the pipe and the read end of ours: its end-of-file is their end."""
    assert alone("""
        reader, writer = os.pipe()
        def forget():
            if os.fork() == 0:
                signal.pause()
            return "done"
        outcome = attempt(forget, 30)
        os.close(writer)
        print(json.dumps([outcome.value, os.read(reader, 1).decode()]))
    """) == ["done", ""]


def test_an_interrupt_takes_the_trial_with_it():
    assert (
        alone("""
        reader, writer = os.pipe()
        def interrupt():
            os.kill(os.getppid(), signal.SIGINT)
            signal.pause()
        try:
            attempt(interrupt, 30)
        except KeyboardInterrupt:
            os.close(writer)
            print(json.dumps(os.read(reader, 1).decode()))
    """)
        == ""
    )


def test_our_own_package_does_not_clash():
    assert doctor.name_clash() is None
    assert doctor.name_check().verdict == "enforced"


def test_files_of_the_other_distribution_are_found(tmp_path):
    (tmp_path / "supervisord.py").touch()
    told = doctor.name_clash(tmp_path)
    assert str(tmp_path) in told and "virtual environment" in told and "\n" not in told


def test_an_overwritten_package_is_found(monkeypatch):
    monkeypatch.delattr("supervisor.__version__")
    assert doctor.name_clash() is not None
    assert doctor.name_check().verdict == "unavailable"


def test_the_other_distribution_elsewhere_on_the_path_is_told(tmp_path, monkeypatch):
    info = tmp_path / "supervisor-4.2.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: supervisor\nVersion: 4.2.5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    check = doctor.name_check()
    assert check.verdict == "accounted only" and str(tmp_path) in check.detail and check.fix


def test_the_check_at_every_start_is_cheap():
    found = alone("""
        import supervisor
        from supervisor.front.doctor import name_clash
        before = set(sys.modules)
        name_clash()
        print(json.dumps([len(set(sys.modules) - before), "importlib.metadata" in sys.modules]))
    """)
    assert found == [0, False]


GOOD = Check("pid namespace", "enforced", "made a new one", "never shown", True)
SOFT = Check("overlayfs", "unavailable", "no such device", "modprobe overlay")
BAD = Check("memory limit", "accounted only", "64 MiB fitted\x1b[2J\nsecond line", "reboot", True)


LONG = "a sentence of some length that takes a second line in a terminal of 80 columns"


def test_the_table_names_the_fix_of_what_is_not_enforced_only():
    rows = [evolve(GOOD, group="one"), evolve(SOFT, group="two"), evolve(BAD, group="two")]
    assert table(rows, colour=False) == [
        "ONE",
        "  ok      pid namespace           made a new one",
        "",
        "TWO",
        "  no      overlayfs               no such device",
        "          fix: modprobe overlay",
        "  partly  memory limit            64 MiB fitted\\x1b[2J",
        "                                  second line",
        "          fix: reboot",
        "",
        "a default job lacks: memory limit",
    ]
    assert table([GOOD, SOFT], colour=False)[-1] == "a default job has all it needs"


def test_only_what_a_default_job_lacks_is_red():
    coloured = "\n".join(table([SOFT, BAD, GOOD], colour=True))
    for word in ("33mno ", "31mpartly", "32mok "):
        assert f"\033[{word}" in coloured


def test_what_says_the_same_is_one_row():
    rows = [Check(f"{name} namespace", "enforced", "made") for name in ("pid", "net", "user")]
    long = [Check("a name that is longer than its column", "unavailable", LONG, LONG)]
    assert table(rows + long, colour=False)[1:-2] == [
        "  ok      pid, net, user namespace",
        "                                  made",
        "  no      a name that is longer than its column",
        "                                  a sentence of some length that takes a second",
        "                                  line in a terminal of 80 columns",
        f"          fix: {LONG}",
    ]
    assert max(map(len, table(rows, colour=False, width=20))) > 20


@pytest.mark.parametrize(
    ("checks", "status"), [([GOOD], 0), ([GOOD, SOFT], 0), ([GOOD, SOFT, BAD], 1)]
)
def test_the_exit_status_is_about_what_is_needed(monkeypatch, checks, status):
    monkeypatch.setattr(doctor, "run", lambda: checks)
    said: list[str] = []
    assert doctor.doctor(as_json=True, colour=True, say=said.append) == status
    (text,) = said
    found = json.loads(text)
    assert [check["name"] for check in found] == [check.name for check in checks]
    assert set(found[0]) == {"group", "name", "verdict", "detail", "fix", "needed"}


def test_the_whole_is_bounded():
    made = []

    def check():
        made.append(1)
        return GOOD

    found = list(doctor._each([check, check], time.monotonic() - 1))
    assert made == [] and not doctor.healthy(found) and "2 checks" in found[0].detail


def test_a_host_without_a_readable_proc_gets_a_table_too(monkeypatch):
    def refuse(_instance):
        raise PermissionError(13, "Permission denied", "/proc/self/cgroup")

    monkeypatch.setattr("supervisor.cgroup.detect.find", refuse)
    (check,) = doctor._limits(time.monotonic() + 5)
    assert (check.name, check.verdict, check.needed) == ("control groups", "unavailable", True)
    assert "/proc/self/cgroup" in check.detail


def test_missing_limits_are_told_with_their_fix_and_nothing_is_made():
    from supervisor.front import doctor_limits

    class Nothing:
        version = "v1"

        def missing(self, limits):
            if limits == Limits():
                return ()
            return (Missing("memory", "no memory", "mount it"), Missing("swap", "none", "mount it"))

        def missing_devices(self):
            return Missing("devices", "no devices", "mount it")

        def missing_pressure(self, _resources):
            return ()

        def create(self, run, **_more):
            raise PermissionError(13, "Permission denied", run)

    checks = [check() for check in doctor_limits.checks(Nothing())]
    assert {check.verdict for check in checks} == {"unavailable"}
    assert (checks[0].detail, checks[0].fix) == ("no memory; none", "mount it")
    assert not doctor.healthy(checks)


def test_a_notification_may_come_a_little_later_than_what_it_tells_of(monkeypatch):
    from supervisor.front import doctor_limits

    reader, writer = os.pipe()
    late = threading.Timer(0.05, os.write, (writer, b"x"))

    def trial(_group, _work):
        late.start()
        return Outcome(signal=9)

    monkeypatch.setattr(doctor_limits, "inside", trial)
    verdict, _ = doctor_limits._told_by(os.fdopen(reader, "rb", buffering=0), None, "a pipe")
    late.join()
    os.close(writer)
    assert verdict == "enforced"


def test_the_whole_doctor_as_whoever_runs_the_tests():
    """Whatever this host allows: a verdict for everything, in time, and one JSON array."""
    found = alone("""
        import supervisor
        from supervisor.front.doctor import doctor
        doctor(as_json=True, colour=False, say=print)
    """)
    names = [check["name"] for check in found]
    assert len(set(names)) == len(names) > 25
    assert {check["verdict"] for check in found} <= {"enforced", "accounted only", "unavailable"}
    for check in found:
        assert check["detail"], check
        assert check["verdict"] != "unavailable" or check["fix"] or not check["needed"], check
