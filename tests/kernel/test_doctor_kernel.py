"""The doctor against the real kernel: it believes no limit that does not hold, and cleans up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support import host
from tests.support.command import ROOT

pytestmark = pytest.mark.kernel

HEAD = """
import json, os, signal, sys, time
from supervisor.cgroup.detect import detect
from supervisor.front import doctor, doctor_group, doctor_kernel, doctor_limits

doctor.LONGEST = 600  # a guest is slow

def show(checks):
    print(json.dumps({check.name: [check.verdict, check.detail] for check in checks}), flush=True)
"""


def start(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HEAD + textwrap.dedent(code)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip


def alone(code: str) -> dict[str, list[str]]:
    process = start(code)
    out, err = process.communicate(timeout=60 * host.SLOWNESS)
    assert err == ""
    nothing_is_left(process.pid)
    return json.loads(out)


def nothing_is_left(pid: int) -> None:
    """No cgroup that was named after the doctor with this PID."""
    left = [
        directory
        for directory, _, _ in os.walk("/sys/fs/cgroup")
        if Path(directory).name.startswith(f"supervise.doctor-{pid}")
    ]
    assert left == []


@pytest.mark.qemu
def test_a_bridge_is_tried_where_nobody_else_sees_it():
    before = Path("/proc/net/dev").read_text().count(":")
    found = alone("""
        from supervisor.front import doctor_network
        show([doctor_network.bridge()])
        """)
    assert found["network bridge"][0] == "enforced", found
    assert Path("/proc/net/dev").read_text().count(":") == before


def test_what_holds_is_called_enforced():
    found = alone("show(doctor.run())")
    for name in (
        *("pid namespace", "mount namespace", "uts namespace", "ipc namespace", "net namespace"),
        *("cgroup namespace", "user namespace", "pivot_root", "mount_setattr", "overlayfs"),
        *("clone with a pidfd", "control groups", "memory limit", "memory events", "pids limit"),
        *("cpus limit", "cpu_weight", "whole-tree kill", "freeze and thaw", "kernel log"),
    ):
        assert found[name][0] == "enforced", (name, found[name])


def test_a_limit_that_the_kernel_does_not_hold_is_not_believed():
    """A cgroup whose limits are never written, though it says so: only a trial can tell."""
    found = alone("""
        from supervisor.cgroup.job import Job
        Job.apply = lambda self, limits: ()
        Job.confine = lambda self, devices: None
        manager = detect(f"doctor-{os.getpid()}")
        try:
            made = [check() for check in doctor_limits.checks(manager)]
            made += [check() for check in doctor_group.checks(manager)]
        finally:
            manager.close()
        show(made)
    """)
    for name in ("memory limit", "pids limit"):
        assert found[name][0] == "accounted only", (name, found[name])
    assert found["cpus limit"][0] != "enforced"  # where others take the CPU, a trial proves nothing
    assert found["memory events"][0] != "enforced"
    assert found["io limit"][0] != "enforced"
    assert found["devices"] == ["accounted only", "/dev/zero was opened"]


def test_a_kill_and_a_freeze_that_do_nothing_are_not_believed():
    found = alone("""
        from supervisor.cgroup.job import Job
        Job.kill = Job.freeze = lambda self: None
        manager = detect(f"doctor-{os.getpid()}")
        try:
            made = [check() for check in doctor_limits.checks(manager)]
            made += [check() for check in doctor_group.checks(manager)]
        finally:
            manager.close()
        show(made)
    """)
    assert found["whole-tree kill"][0] == found["freeze and thaw"][0] == "unavailable"


def test_calls_that_do_nothing_are_not_believed(tmp_path):
    """A kernel (or a filter) that answers 0 and does nothing: the effect is what counts."""
    found = alone(f"""
        from pathlib import Path
        from supervisor.linux import syscalls
        for name in ("mount", "mount_setattr", "unshare", "pivot_root", "umount"):
            setattr(syscalls, name, lambda *args, **kwargs: None)
        doctor_kernel.private_mounts = lambda: Path({str(tmp_path)!r})
        (Path({str(tmp_path)!r}) / "lower").mkdir()
        show([doctor_kernel._namespace("uts", 0x4000000, True)(), doctor_kernel.pivot_root(),
              doctor_kernel.recursive_read_only()])
    """)
    assert found == {
        "uts namespace": ["unavailable", "/proc/self/ns/uts stayed the same"],
        "pivot_root": ["unavailable", "the old root is still there"],
        "mount_setattr": ["unavailable", "a mount below stayed writable"],
    }


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_doctor_leaves_nothing_behind(number):
    """In the middle of a limit's trial: the signal comes when its process is in the cgroup."""
    process = start("""
        def told():
            print("inside", flush=True)
            while True:
                signal.pause()
        doctor_limits._burn = told
        try:
            doctor.run()
        except BaseException as error:
            print(type(error).__name__, flush=True)
    """)
    assert process.stdout is not None
    assert process.stdout.readline() == "inside\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=30 * host.SLOWNESS)
    expected = "SystemExit" if number == signal.SIGTERM else "KeyboardInterrupt"
    assert (out, err) == (f"{expected}\n", "")
    nothing_is_left(process.pid)


def test_a_signal_while_a_cgroup_is_made_waits_until_it_can_be_removed():
    process = start("""
        from supervisor.cgroup import files
        real = files.make
        def interrupted(directory, **more):
            real(directory, **more)
            if "memory-limit" in directory:
                os.kill(os.getpid(), signal.SIGINT)
        files.make = interrupted
        try:
            doctor.run()
        except BaseException as error:
            print(type(error).__name__, flush=True)
    """)
    out, err = process.communicate(timeout=30 * host.SLOWNESS)
    assert (out, err) == ("KeyboardInterrupt\n", "")
    nothing_is_left(process.pid)


def test_the_hosts_mounts_stay_as_they_are():
    before = Path("/proc/self/mountinfo").read_text()
    alone("show([check() for check in doctor_kernel.checks()])")
    assert Path("/proc/self/mountinfo").read_text() == before
