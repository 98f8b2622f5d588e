"""`limits.disk` by project quota, on an ext4 and an xfs made for it.

Not every kernel has it: then these are skipped.  The guest's has.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.container import disk
from supervisor.linux import quota
from supervisor.supervise import projects
from tests.kernel.test_disk import MIB, fill, limited
from tests.support import host
from tests.support.batch import Batch
from tests.support.command import State, Supervise
from tests.support.containers import Ended, python, run_jobs, write_config

pytestmark = pytest.mark.kernel

MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-O", "quota,project", "-E", "quotatype=prjquota"],
    "xfs": ["mkfs.xfs", "-q"],
}


@pytest.fixture(params=MAKE)
def fstype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def quota_state(tmp_path: Path, fstype: str) -> Iterator[State]:
    """A state directory on a file system with project quota."""
    image = tmp_path / "image"
    place = Path(tempfile.mkdtemp(prefix="sv-", dir="/tmp"))  # jobs have a /tmp of their own
    with image.open("wb") as file:
        file.truncate(400 * MIB)
    argv = MAKE[fstype]
    program = shutil.which(argv[0], path=disk.mkfs_path())
    if program is None:
        host.miss("tools", f"needs {argv[0]}: apt-get install e2fsprogs xfsprogs")
    subprocess.run([program, *argv[1:], image], check=True)
    done = subprocess.run(
        ["mount", "-o", "loop,prjquota", image, place], capture_output=True, text=True, check=False
    )
    if done.returncode:
        place.rmdir()
        pytest.skip(f"this kernel has no project quota on {fstype}: {done.stderr.strip()}")
    try:
        place.chmod(0o711)
        (place / "state").mkdir()
        runtime = Path(tempfile.mkdtemp(prefix="sv-"))
        runtime.chmod(0o711)
        yield State(state=place / "state", runtime=runtime)
        shutil.rmtree(runtime)
    finally:
        subprocess.run(["umount", place], check=True)
        place.rmdir()


@pytest.fixture
def batch(quota_state: State, tmp_path: Path) -> Batch:
    return Batch(Supervise(quota_state), tmp_path)


def quoted(command: list[str], size: str = "16M", **values: Any) -> dict[str, Any]:
    return limited(command, values.pop("disk_by", "auto"), size, user_namespace="auto", **values)


def one(where: State, job: dict[str, Any]) -> Ended:
    return run_jobs(where, {"one": job})["one"]


def limits_on(where: Path) -> dict[int, int]:
    """The projects of ours that have a limit there."""
    fd = disk.open_directory(str(where))
    try:
        numbers = range(projects.FIRST, projects.FIRST + 200)
        return {n: found for n in numbers if (found := quota.get(fd, n).limit)}
    finally:
        os.close(fd)


def registered() -> set[str]:
    found = projects.DIRECTORY.glob("*.*")
    return {path.name for path in found}


REFUSES = {"ext4": errno.EDQUOT, "xfs": errno.ENOSPC}


def test_a_job_can_write_its_limit_and_no_more(quota_state: State, fstype: str) -> None:
    before = registered()
    ended = one(quota_state, quoted(python(fill, 4096, "/")))
    done, why, left, size = ended.told
    assert (why, size) == (REFUSES[fstype], done)
    assert 15.9 * MIB <= done <= 16 * MIB and left < 128 * 1024
    record = ended.record["disk"]
    assert (record["by"], record["full"], record["limit"]) == ("quota", True, 16 * MIB)
    assert done <= record["used"] <= 16 * MIB
    assert limits_on(quota_state.state) == {} and registered() <= before


def test_the_reason_the_inodes_and_who_else_there_is(quota_state: State) -> None:
    many = "i=0; while mkdir /$i; do i=$((i+1)); done; exit 4"
    found = run_jobs(
        quota_state,
        {
            "full": quoted(["dd", "if=/dev/zero", "of=/x", "bs=64k"]),
            "inodes": quoted(["sh", "-c", many], limits={"disk_inodes": 100}),
            "small": quoted(["dd", "if=/dev/zero", "of=/x", "bs=1M", "count=12"]),
        },
    )
    reasons = {name: ended.reason for name, ended in found.items()}
    assert reasons == {"full": "disk", "inodes": "disk", "small": "succeeded"}
    assert found["inodes"].record["disk"]["inodes"] == 100
    assert {ended.record["disk"]["by"] for ended in found.values()} == {"quota"}


def test_a_job_with_the_hosts_numbers_could_leave_it_and_gets_none(quota_state: State) -> None:
    job = limited(["true"], "auto", "16M", user_namespace="host")
    assert one(quota_state, job).record["disk"]["by"] == "loop"
    config = write_config(quota_state, {"one": {**job, "disk_by": "quota"}})
    refused = Supervise(quota_state)(config)
    assert refused.status == 125
    assert 'another project (fix: user_namespace = "auto")' in refused.stderr


def leave() -> Any:
    """Attempts to have files that are not the project's: errnos, and how much could be written."""
    import errno
    import fcntl
    import os
    import struct

    get, put, flags_get, flags_put = 0x801C581F, 0x401C5820, 0x80086601, 0x40086602
    base = "/d"
    os.mkdir(base)
    fd = os.open(base, os.O_RDONLY)

    def tried(work: Any) -> int:
        try:
            work()
        except OSError as error:
            return error.errno or 0
        return 0

    own = struct.unpack("=5I8s", fcntl.ioctl(fd, get, bytes(28)))

    def with_(flags: int, project: int) -> Any:
        raw = struct.pack("=5I8s", flags, own[1], own[2], project, own[4], own[5])
        return lambda: fcntl.ioctl(fd, put, raw)

    raw = fcntl.ioctl(fd, flags_get, bytes(8))
    flags = int.from_bytes(raw[:4], "little")
    bare = (flags & ~0x20000000).to_bytes(8, "little")
    found = {
        "inherits": bool(own[0] & 0x200) and own[3] != 0,
        "project 0": tried(with_(own[0], 0)),
        "project 1": tried(with_(own[0], 1)),
        "not inherited": tried(with_(own[0] & ~0x200, own[3])),
        "chattr -P": tried(lambda: fcntl.ioctl(fd, flags_put, bare)),
    }
    after = struct.unpack("=5I8s", fcntl.ioctl(fd, get, bytes(28)))
    found["same"] = (after[0] & 0x200, after[3]) == (own[0] & 0x200, own[3])
    done = 0
    try:
        for number in range(200):
            name = f"{base}/{number}"
            file = os.open(name, os.O_WRONLY | os.O_CREAT)
            done += os.write(file, bytes(1 << 17))
            os.close(file)
            os.rename(name, f"/{number}")
    except OSError as error:
        found["why"] = error.errno in (errno.EDQUOT, errno.ENOSPC)
    found["done"] = done
    return found


def test_no_way_leads_out_of_the_project(quota_state: State) -> None:
    found = one(quota_state, quoted(python(leave))).told
    assert found["inherits"], "the overlay does not show it: then it cannot be changed either"
    assert found["project 0"] and found["project 1"] and found["not inherited"]
    assert found["same"] and found["why"]
    assert found["done"] <= 16 * MIB


def test_it_is_raised_while_the_job_writes(batch: Batch) -> None:
    result = batch.run(
        """
        [jobs.one]
        script = '''
        i=0
        while [ $i -lt 60 ]; do
            dd if=/dev/zero of=/$i bs=1M count=1 2>/dev/null
            i=$((i+1))
        done
        '''
        write = "overlay"
        user_namespace = "auto"
        limits = { disk = "32M", memory = "256M" }
        on_disk_limit = { action = "raise", to = "128M" }
        """
    )
    record = result["one"]
    assert record["reason"] == "succeeded", result.done.stderr
    assert (record["disk"]["by"], record["disk"]["limit"]) == ("quota", 128 * MIB)


def test_what_a_killed_supervisor_had_is_given_back_by_the_next(batch: Batch) -> None:
    job = """
        [jobs.one]
        command = ["sleep", "1000"]
        write = "overlay"
        user_namespace = "auto"
        limits = { disk = "8M" }
        """
    before = registered()
    with batch.start(job) as running:
        running.wait_started("one")
        assert len(registered() - before) == 1
        running.process.kill()
        running.process.wait()
        assert len(limits_on(batch.where.state)) == 1
        assert batch.run('[jobs.two]\ncommand = "true"').reasons == {"two": "succeeded"}
        assert registered() <= before
        assert limits_on(batch.where.state) == {}
