"""`supervise` under systemd, in a guest that has it as PID 1: one boot for all of checks.py."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.support import host
from tests.support.command import ROOT
from tests.vm.errors import RigError
from tests.vm.systemd import root
from tests.vm.systemd.install import copy, install


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


@pytest.mark.parametrize("flat", [True, False])
def test_what_an_egg_info_does_not_list_is_copied_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flat: bool
) -> None:
    """As Debian and pip without wheel install what has a setup.py alone."""
    there, site = tmp_path / "there", tmp_path / "site"
    (there / "eggpackage").mkdir(parents=True)
    site.mkdir()
    (there / "eggpackage/__init__.py").write_text("")
    (there / "eggmodule.py").write_text("")
    about = "Metadata-Version: 1.1\nName: eggmodule\nVersion: 1.0\n"
    info = there / "eggmodule-1.0.egg-info"
    if flat:
        info.write_text(about)
    else:
        info.mkdir()
        (info / "PKG-INFO").write_text(about)
        (info / "SOURCES.txt").write_text("python3/eggmodule.py\n")
        (info / "installed-files.txt").write_text("../eggmodule.py\nPKG-INFO\n")
        (info / "top_level.txt").write_text("eggmodule\neggpackage\n")
    monkeypatch.syspath_prepend(str(there))
    copy(distribution("eggmodule"), site)
    found = sorted(str(path.relative_to(site)) for path in site.rglob("*.py"))
    assert found == ["eggmodule.py"] + ["eggpackage/__init__.py"] * (not flat)


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
