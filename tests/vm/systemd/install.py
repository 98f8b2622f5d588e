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
        _copy(needed, site)


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


def _copy(package: Distribution, site: Path) -> None:
    for file in package.files or ():
        if ".." not in file.parts and file.suffix != ".pyc":
            place = site / file
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), place)
