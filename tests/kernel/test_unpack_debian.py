"""A real Debian: what comes of it is what GNU tar and umoci make of the same archive."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import host
from tests.support.archives import listing
from tests.support.unpacking import Place

pytestmark = [pytest.mark.kernel, host.outside("unpacking"), pytest.mark.timeout(600)]

KEPT = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "supervise-images")


@pytest.fixture(scope="module")
def debian() -> Path:
    """An archive of mmdebstrap's smallest, made once and kept."""
    found = KEPT / "minbase.tar"
    if not found.exists():
        if shutil.which("mmdebstrap") is None:
            host.miss("tools", "needs mmdebstrap: apt-get install mmdebstrap")
        KEPT.mkdir(parents=True, exist_ok=True)
        made = KEPT / f"{os.getpid()}.tar"
        subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", "stable", made], check=True)
        made.rename(found)
    return found


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path / "place")
    yield found
    found.close()


def test_as_gnu_tar(debian: Path, place: Place, tmp_path: Path) -> None:
    """Modes, ids, times to the nanosecond, links, devices, contents, attributes."""
    other = tmp_path / "other"
    other.mkdir()
    options = ["--numeric-owner", "-p", "--xattrs", "--xattrs-include=*"]
    subprocess.run(["tar", *options, "-xf", debian, "-C", other], check=True)
    done = place.unpack(debian.read_bytes())
    found, wanted = place.found(), listing(other)
    shutil.rmtree(other)
    assert found.keys() == wanted.keys() and len(found) > 3000
    assert [name for name in found if found[name] != wanted[name]] == []
    assert done.devices_left_out == done.attributes_left_out == 0


def test_as_umoci(debian: Path, place: Place, tmp_path: Path) -> None:
    if shutil.which("umoci") is None:
        host.miss("tools", "needs umoci: apt-get install umoci")
    layout = tmp_path / "layout"
    for words in (
        ["init", "--layout", layout],
        ["new", "--image", f"{layout}:a"],
        ["raw", "add-layer", "--image", f"{layout}:a", debian],
        ["unpack", "--image", f"{layout}:a", tmp_path / "bundle"],
    ):
        subprocess.run(["umoci", *words], check=True, capture_output=True)
    place.unpack(debian.read_bytes())
    found, wanted = place.found(), listing(tmp_path / "bundle" / "rootfs")
    shutil.rmtree(tmp_path / "bundle")
    assert found.keys() == wanted.keys()
    assert [name for name in found if found[name] != wanted[name]] == []
