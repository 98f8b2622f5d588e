"""The verbs that start nothing: check, plan, init, help, version; and wrong usage."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

import supervisor
from supervisor.linux import proc
from tests.support import leaks
from tests.support.batch import Batch
from tests.support.command import Supervise

pytestmark = pytest.mark.kernel

JOBS = """
[jobs.one]
command = "sleep 1000"
limits = { memory = "64M", pids = 5, cpus = 0.5 }
mounts = [{ source = "/usr", target = "/data" }]
[jobs.two]
command = ["echo", "{n}"]
matrix = { n = [1, 2] }
write = "overlay"
"""


def seen(batch: Batch) -> tuple[object, ...]:
    """What a start would change."""
    return (
        {path for path in leaks.cgroups() if batch.name in path},
        {mount.mount_point for mount in proc.mountinfo()},
        sorted(batch.directory.rglob("*")),
        sorted(batch.where.runtime.rglob("*")),
    )


def test_a_plan_tells_every_step_and_does_none(batch: Batch) -> None:
    batch.write(JOBS)
    before = seen(batch)
    done = batch.supervise("plan", batch.path)
    assert done.status == 0, done.stderr
    assert seen(batch) == before
    for words in ("one:", "two@n=1:", "clone3", "CLONE_NEWPID", "CLONE_PARENT", "pivot_root",
                  "67108864", "pids.max", "/data", "execve sleep 1000", "execve echo 2",
                  "spec.json"):  # fmt: skip
        assert words in done.stdout, words
    for line in ("execve", "pivot_root"):
        assert done.stdout.index("clone3") < done.stdout.index(line)


def test_a_plan_of_one_job(batch: Batch) -> None:
    batch.write(JOBS)
    done = batch.supervise("plan", batch.path, "two@n=2")
    assert "execve echo 2" in done.stdout and "execve echo 1" not in done.stdout
    done = batch.supervise("plan", batch.path, "three")
    assert done.status == 2 and "two@n=1" in done.stderr


def test_check_starts_nothing(batch: Batch) -> None:
    batch.write(JOBS)
    before = seen(batch)
    done = batch.supervise("check", batch.path)
    assert done.status == 0 and "risk: " in done.stderr  # /usr is writable in JOBS
    assert "3 jobs" in done.stdout
    shown = batch.supervise("check", "--show", batch.path)
    tomllib.loads(shown.stdout)
    assert 'memory = "64M"' in shown.stdout
    assert seen(batch) == before


def test_help_is_worth_reading(supervise: Supervise) -> None:
    done = supervise("--help")
    assert done.status == 0 and done.stderr == ""
    for verb in ("run", "check", "plan", "doctor", "init"):
        assert f"supervise {verb}" in done.stdout
        told = supervise(verb, "--help")
        assert told.status == 0 and "usage: supervise" in told.stdout
    assert supervise("--version").stdout == f"supervise {supervisor.__version__}\n"


def test_wrong_usage_is_told(supervise: Supervise, tmp_path: Path) -> None:
    for words in ((), ("chekc", "x"), ("plan",), ("check", "--no-such-flag", "x"), ("--verbose",)):
        done = supervise(*words)
        assert done.status == 2, words
        assert done.stdout == "" and done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", [(), ("check",), ("plan",)])
def test_a_file_that_cannot_be_read_is_told(
    supervise: Supervise, tmp_path: Path, verb: tuple[str, ...]
) -> None:
    garbage = tmp_path / "garbage.toml"
    garbage.write_bytes(os.urandom(4096) + b"\xff\xfe\x00")
    for path in (tmp_path / "missing.toml", tmp_path / "a" / "b.toml", tmp_path, garbage,
                 Path("/dev/null/x.toml")):  # fmt: skip
        done = supervise(*verb, path)
        assert done.status == 2, (path, done)
        assert str(path) in done.stderr and "Traceback" not in done.stderr


def test_the_other_supervisor_in_our_package_is_refused(
    supervise: Supervise, tmp_path: Path
) -> None:
    """As if pip had put PyPI's distribution over a copy of ours."""
    import shutil

    from tests.support.command import ROOT

    shutil.copytree(ROOT / "supervisor", tmp_path / "supervisor")
    shutil.copytree(ROOT / "plugins", tmp_path / "plugins")
    (tmp_path / "supervisor" / "supervisord.py").write_text("")
    done = supervise("run", "--", "true", environment={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert done.status == 125
    assert "another distribution named supervisor" in done.stderr
    assert "virtual environment of its own" in done.stderr
