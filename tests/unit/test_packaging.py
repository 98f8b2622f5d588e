"""What is built is complete: the wheel has the policies, the example and the command, no tests."""

from __future__ import annotations

import configparser
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.command import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built with the hatchling of this Python (no network)."""
    place = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    (built,) = place.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel unpacked, as an installer does: this directory on sys.path is the installation."""
    place = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    return place


def in_installed(installed: Path, code: str) -> str:
    """Run code with the installation before the checkout, from elsewhere."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(installed)!r})\n{code}"],
        cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_module_is_in_the_wheel_and_no_test(installed: Path) -> None:
    modules = {p.relative_to(ROOT) for p in (ROOT / "supervisor").rglob("*.py")}
    packed = {p.relative_to(installed) for p in installed.rglob("*.py")}
    assert modules <= packed
    assert not [p for p in packed if p.parts[0] != "supervisor"]


def test_policies_and_example_are_in_the_wheel(installed: Path) -> None:
    policies = {path.name for path in (ROOT / "plugins").glob("*.py")}
    assert policies
    assert policies == {path.name for path in (installed / "supervisor/bundled").glob("*.py")}
    example = (installed / "supervisor/config.toml.example").read_bytes()
    assert example == (ROOT / "config.toml.example").read_bytes()


def test_the_man_page_is_installed_where_man_looks(installed: Path) -> None:
    (page,) = installed.glob("*.data/data/share/man/man1/supervise.1")
    assert page.read_bytes() == (ROOT / "docs/supervise.1").read_bytes()
    show = "from supervisor.front.manual import man_page; print(man_page(), end='')"
    assert in_installed(installed, show) == page.read_text()


def test_the_unit_of_an_installation_calls_that_installation(installed: Path) -> None:
    """Wherever it is, in systemd's quotes; without a file named `supervise`, by its module."""
    command = installed / "a place of 100%" / "supervise"
    command.parent.mkdir()
    command.touch(mode=0o755)
    show = "from supervisor.front.example import unit; print(unit())"
    unit = in_installed(installed, f"sys.argv = [{str(command)!r}]\n{show}")
    assert f'ExecStart="{str(command).replace("%", "%%")}" /etc/supervise/%i.toml\n' in unit
    unit = in_installed(installed, f"sys.argv = ['-c']\n{show}")
    assert f"ExecStart={sys.executable} -m supervisor /etc/supervise/%i.toml\n" in unit


def test_the_installed_code_is_what_runs(installed: Path) -> None:
    where = in_installed(installed, "import supervisor; print(supervisor.__file__)")
    assert Path(where.strip()).is_relative_to(installed)


def test_the_command_is_declared_and_runs(installed: Path) -> None:
    (entries,) = installed.glob("*.dist-info/entry_points.txt")
    parser = configparser.ConfigParser()
    parser.read(entries)
    module, _, function = parser["console_scripts"]["supervise"].partition(":")
    code = f"sys.argv = ['supervise', '--version']\nfrom {module} import {function} as run"
    version = in_installed(installed, "import supervisor; print(supervisor.__version__)").strip()
    assert version in in_installed(installed, f"{code}\nsys.exit(run())")


def test_the_licence_is_in_the_wheel(installed: Path) -> None:
    (packed,) = installed.glob("*.dist-info/licenses/LICENSE")
    assert packed.read_bytes() == (ROOT / "LICENSE").read_bytes()
