"""Files that are the host's root's, mapped: the job's root owns them (idmapped mounts).

Needs a file system that has such mounts: overlayfs and hostfs, all that User-Mode Linux sees of
files, have none.  So these are `qemu`, where temporary files are on a tmpfs of a newer kernel.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest

from supervisor.container.idmaps import IdMounts
from tests.support.command import State
from tests.support.containers import Ended, run_jobs

pytestmark = [pytest.mark.kernel, pytest.mark.qemu]

MAPPED = {"files": "mapped"}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory whose mount can be mapped."""
    tried = IdMounts()
    try:
        if refusal := tried.refusal(str(tmp_path)):
            pytest.skip(f"{tmp_path} cannot be mapped: {refusal}")
    finally:
        tried.close()
    return tmp_path


@pytest.fixture
def root(place: Path, busybox: Path) -> Path:
    """A root with a shell, and a file that nobody but root may read."""
    top = place / "root"
    for name in ("bin", "etc", "dev", "proc", "sys", "tmp", "run", "data"):
        (top / name).mkdir(parents=True)
    for name in ("sh", "stat", "cat", "touch", "chmod"):
        (top / "bin" / name).write_bytes(busybox.read_bytes())
        (top / "bin" / name).chmod(0o755)
    (top / "etc/secret").write_text("secret\n")
    (top / "etc/secret").chmod(0o600)
    return top


def run(where: State, script: str, **settings: Any) -> Ended:
    job = {"command": ["sh", "-c", script], "timeout": "60s", **settings}
    return run_jobs(where, {"one": job})["one"]


@pytest.mark.parametrize("write", ["read-only", "overlay"])
def test_the_jobs_root_owns_its_root_directory(tmp_state: State, root: Path, write: str) -> None:
    script = "stat -c '%u %g' /etc /etc/secret; cat /etc/secret; touch /etc/new; chmod 4755 /bin/sh"
    ended = run(tmp_state, script, root=root, write=write, user_namespace=MAPPED)
    assert ended.record["user_namespace"]["host_id"] > 0
    assert ended.out == "0 0\n0 0\nsecret\n", ended.err
    assert ended.reason == ("succeeded" if write == "overlay" else "failed")
    assert ended.err.count("Read-only file system") == (0 if write == "overlay" else 2)
    assert not (root / "etc/new").exists()
    assert stat.S_IMODE((root / "bin/sh").stat().st_mode) == 0o755


def test_unmapped_they_are_somebody_elses(tmp_state: State, root: Path) -> None:
    """The same with `plain`, so that what is above is the mapping's doing."""
    script = "stat -c '%u %g' /etc/secret; cat /etc/secret"
    ended = run(tmp_state, script, root=root, write="read-only", user_namespace={"files": "plain"})
    assert ended.out == "65534 65534\n"
    assert "Permission denied" in ended.err


def test_what_it_writes_to_a_mount_is_the_hosts_roots(tmp_state: State, place: Path) -> None:
    """As `supervise check` warns: a set-user-ID program as well."""
    shared = place / "shared"
    shared.mkdir(mode=0o755)
    script = "cd /data; stat -c %u .; echo x >file; chmod 4755 file; stat -c '%u %a' file"
    # the host's root itself is an overlay in a guest: "try", which is "auto", leaves that as it is
    ended = run(tmp_state, script, mounts=[f"{shared}:/data"], user_namespace="auto")
    assert ended.out == "0\n0 4755\n", ended.err
    made = (shared / "file").stat()
    assert (made.st_uid, made.st_gid, stat.S_IMODE(made.st_mode)) == (0, 0, 0o4755)


def test_a_mapped_mount_keeps_numbers_beyond_the_range_out(tmp_state: State, place: Path) -> None:
    strange = place / "strange"
    strange.write_text("x\n")
    os.chown(strange, 70000, 70000)
    script = "stat -c '%u %g' /data/strange"
    ended = run(tmp_state, script, mounts=[f"{place}:/data:ro"], user_namespace="auto")
    assert ended.out == "65534 65534\n", ended.err
