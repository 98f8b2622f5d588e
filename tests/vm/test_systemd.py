"""`supervise` under systemd, in a guest that has it as PID 1: one boot for all of checks.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.support import host
from tests.support.command import ROOT
from tests.vm.errors import RigError
from tests.vm.systemd import root
from tests.vm.systemd.install import install


@pytest.mark.vm
@pytest.mark.timeout(900)  # the first time it makes a Debian root
def test_the_unit_and_the_scope_do_what_they_should(tmp_path: Path) -> None:
    if not shutil.which("mmdebstrap"):
        host.miss("vm", "needs a Debian root: apt-get install mmdebstrap")
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


def test_without_mmdebstrap_the_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RigError, match="apt-get install mmdebstrap"):
        root.prepare(tmp_path / "cache")


def test_half_a_root_is_never_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "mmdebstrap"
    tool.write_text("""#!/bin/sh
for last; do :; done
mkdir "$last" && echo half >"$last/file"
echo no network >&2
exit 1
""")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(RigError, match="no network"):
        root.prepare(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
