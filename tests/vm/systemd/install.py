"""`supervise` as an installer lays it out: the wheel of this checkout, and all that it needs.

Whatever Python the tests run on, the guest has Debian's: what is needed at run time is pure
Python, and is copied from here, so that no network is needed.

May import: the standard library.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, distribution
from importlib.util import find_spec
from pathlib import Path

from tests.support.command import ROOT

NAME = "supervise-batch"


def install(site: Path) -> None:
    """Fill `site`, a new directory that is to be a site-packages."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(site)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True,
    )  # fmt: skip
    (wheel,) = site.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    wheel.unlink()
    for needed in _needed(distribution(NAME)).values():
        copy(needed, site)


def _needed(top: Distribution) -> dict[str, Distribution]:
    """All that `top` requires, directly or not; extras and other Pythons' needs are left out."""
    found: dict[str, Distribution] = {}
    waiting = [top]
    while waiting:
        for requirement in waiting.pop().requires or ():
            name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
            if ";" not in requirement and name not in found:
                found[name] = distribution(name)
                waiting.append(found[name])
    return found


def copy(package: Distribution, site: Path) -> None:
    """All that can be imported of it, into `site`."""
    files = [file for file in package.files or () if ".." not in file.parts]
    if not files or not all(Path(str(file.locate())).exists() for file in files):
        _copy_modules(package, site)
        return
    for file in files:
        if file.suffix != ".pyc":
            place = site / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), place)


def _copy_modules(package: Distribution, site: Path) -> None:
    """By what is imported: an egg-info lists the files of the sources, or, being a file, none."""
    declared = (package.read_text("top_level.txt") or "").split()
    for name in declared or [package.metadata["Name"]]:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"{package.metadata['Name']} has no module {name}", name=name)
        origin = Path(spec.origin)
        if spec.submodule_search_locations:
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(origin.parent, site / name, ignore=ignore)
        else:
            shutil.copy(origin, site / origin.name)
