"""What the doctor says, whole, on each kind of host; and that its fixes are fixes.

tests/golden/doctor-*.txt hold the tables; `tests.support.doctor` says what in them stands for what,
and how they are written anew.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support import host
from tests.support.cgroup_scope import scope
from tests.support.command import ROOT, Supervise
from tests.support.doctor import CODE, compare
from tests.support.nobody import Nobody, nobody

pytestmark = pytest.mark.kernel

hybrid = pytest.mark.skipif(
    host.in_guest()
    or host.memory_version() != "v1"
    or not any(one.unified for one in host.hierarchies()),
    reason="the golden file is that of a host with v1 and an empty unified hierarchy",
)
PYTHON = (sys.executable, "-c", CODE)


def told(*words: str, prepare: str = "") -> str:
    """The doctor's table, after `prepare` in a mount namespace of its own."""
    shell = f'{prepare}\nexec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", shell, "sh", *words],
        capture_output=True, text=True, cwd=ROOT, timeout=100 * host.SLOWNESS, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


@hybrid
def test_on_a_hybrid_host() -> None:
    compare(lambda: told(*PYTHON), "hybrid")


@hybrid
def test_on_a_host_with_v1_only() -> None:
    unified = next(one.point for one in host.hierarchies() if one.unified)
    compare(lambda: told(*PYTHON, prepare=f"umount {unified}"), "v1")


@pytest.mark.v2
@pytest.mark.skipif(os.environ.get("SUPERVISE_VM") != "uml", reason="that of User-Mode Linux")
def test_on_a_host_with_v2() -> None:
    compare(lambda: told(*PYTHON), "v2")


@pytest.mark.v2
@pytest.mark.qemu
def test_on_a_host_with_v2_and_a_complete_kernel() -> None:
    if os.environ.get("SUPERVISE_VM") != "qemu":
        pytest.skip("the golden file is that of the guest")
    compare(lambda: told(*PYTHON), "v2-complete")


@pytest.fixture
def user() -> Iterator[Nobody]:
    with nobody() as one:
        yield one


@hybrid
def test_without_root(user: Nobody) -> None:
    run, _own = user

    def table() -> str:
        done = run(python=("-c", CODE))
        assert (done.returncode, done.stderr) == (1, "")
        return done.stdout

    compare(table, "unprivileged")


@hybrid
def test_in_a_job_of_our_own(supervise: Supervise) -> None:
    places = (ROOT, sys.base_prefix, sys.prefix)
    shown = [word for place in places for word in ("--mount", f"{place}:{place}:ro")]

    def table() -> str:
        done = supervise("run", *shown, "--working-dir", ROOT, "--", *PYTHON)
        assert done.status == 1
        return done.stdout

    compare(table, "container")


# Fixes that are done, and the doctor asked again.


def rows(*words: str, prepare: str = "") -> dict[str, dict[str, str]]:
    shell = f'{prepare}\nexec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec", shell, "sh", *words,
         *PYTHON, "--json", "--cgroups"],
        capture_output=True, text=True, cwd=ROOT, timeout=100 * host.SLOWNESS, check=False,
    )  # fmt: skip
    found: list[dict[str, str]] = json.loads(done.stdout)
    return {one["name"]: one for one in found}


@hybrid
def test_the_fix_of_a_hierarchy_that_is_mounted_nowhere() -> None:
    unified = next(one.point for one in host.hierarchies() if one.unified)
    fix = rows(prepare=f"umount {unified}")["cgroup2"]["fix"]
    mended = rows(prepare=f"umount {unified}; {fix}")
    assert "cgroup2" not in mended and mended["control groups"]["detail"].startswith("hybrid")


@hybrid
def test_the_fix_of_a_v1_controller_that_is_mounted_nowhere() -> None:
    (pids,) = (one.point for one in host.hierarchies() if "pids" in one.controllers)
    missing = rows(prepare=f"umount {pids}")["pids limit"]
    assert missing["verdict"] == "unavailable"
    mended = rows(prepare=f"umount {pids}; {missing['fix']}")
    assert mended["pids limit"]["verdict"] == "enforced"


@hybrid
@pytest.mark.parametrize("kind", ["none", "not the log"])
def test_the_fix_of_a_kernel_log_that_is_not_there(kind: str) -> None:
    hide = {
        "none": "mount -t tmpfs none /dev && mknod -m 666 /dev/null c 1 3",
        "not the log": "mount --bind /dev/null /dev/kmsg",
    }[kind]
    row = rows(prepare=hide)["kernel log"]
    assert row["verdict"] == "unavailable"
    undo = "umount /dev/kmsg; " if kind != "none" else row["fix"].partition(" (")[0]
    assert rows(prepare=f"{hide}; {undo}")["kernel log"]["verdict"] == "enforced"


@hybrid
def test_too_few_descriptors_are_told_with_what_they_are_enough_for() -> None:
    row = rows(prepare="ulimit -n 200")["descriptors"]
    assert row["verdict"] == "accounted only" and "jobs at once" in row["detail"]
    hard = re.search(r"ulimit -Hn (\d+)", row["fix"])
    assert hard and int(hard[1]) > 2048


@pytest.mark.v2
def test_the_fix_of_a_controller_that_is_not_delegated(parent: str) -> None:
    with scope(parent, delegated=False) as one:
        without = rows(*one.joining())["memory limit"]
        assert without["verdict"] == "unavailable"
        commands = without["fix"].removeprefix("as root: ").partition("; or ")[0]
        mended = rows(*one.joining(), prepare=commands)["memory limit"]
        assert mended["verdict"] == "enforced", mended
