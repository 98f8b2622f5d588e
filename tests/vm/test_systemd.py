"""`supervise` under systemd, in a guest that has it as PID 1: one boot for all of checks.py."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support.command import ROOT
from tests.vm.systemd.install import install

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]  # the first time it makes a Debian root


def test_the_unit_and_the_scope_do_what_they_should(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    install(site)
    guest = [sys.executable, "-m", "tests.vm", "--systemd", "--timeout", "600"]
    tests = ["python3", "-m", "pytest", "--noconftest", "-p", "no:cacheprovider", "--durations=0"]
    modules = sysconfig.get_path("purelib")  # pytest is pure Python: Debian's can use this one
    done = subprocess.run(
        [*guest, "--show", str(site), "--", *tests, "tests/vm/systemd/checks.py"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": modules, "SUPERVISE_SITE": str(site)},
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout and "skipped" not in done.stdout
    print(done.stdout)
