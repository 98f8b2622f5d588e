"""`limits.disk`: a layer takes so many bytes and inodes, and no more, whichever way it is held."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from supervisor.container.host import on_overlay
from tests.support.batch import Batch
from tests.support.command import State, Supervise
from tests.support.containers import (
    Ended,
    private_mounts,
    python,
    run_jobs,
    within,
    write_config,
)
from tests.support.host import in_guest

pytestmark = pytest.mark.kernel

MIB = 1 << 20
WAYS = ("loop", "tmpfs")
every_way = pytest.mark.parametrize("way", WAYS)
MAPPED = pytest.mark.parametrize("ids", ["host", "auto"])


def fill(chunk: int, directory: str) -> Any:
    """Write until it fails: how many bytes arrived, why no more, and what statvfs(3) says."""
    import os

    done, why = 0, 0
    fd = os.open(f"{directory}/full", os.O_WRONLY | os.O_CREAT)
    try:
        while True:
            done += os.write(fd, b"x" * chunk)
    except OSError as error:
        why = error.errno or 0
    space = os.statvfs("/")
    return done, why, space.f_bavail * space.f_frsize, os.fstat(fd).st_size


def limited(command: list[str], way: str, size: str = "32M", **values: Any) -> dict[str, Any]:
    limits = {"disk": size, "memory": "512M"} | values.pop("limits", {})
    return {"command": command, "write": "overlay", "disk_by": way, "limits": limits, **values}


def one(where: State, job: dict[str, Any], head: str = "") -> Ended:
    return run_jobs(where, {"one": job}, head=head)["one"]


def loops() -> set[str]:
    """Loop devices whose file is one without a name: a job's layer."""
    found = set()
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            if path.read_text().rstrip().endswith("(deleted)"):
                found.add(path.parts[3])
        except OSError:
            continue  # let go of just now
    return found


@MAPPED
@every_way
def test_a_job_can_write_its_limit_and_gets_enospc(tmp_state: State, way: str, ids: str) -> None:
    before = loops()
    ended = one(tmp_state, limited(python(fill, 4096, ""), way, user_namespace=ids))
    done, why, left, size = ended.told
    assert (why, size, left) == (errno.ENOSPC, done, 0)
    assert 31.9 * MIB <= done <= 32 * MIB
    disk = ended.record["disk"]
    assert (disk["limit"], disk["full"], disk["by"]) == (32 * MIB, True, way)
    assert done <= disk["used"] == disk["peak"] <= 32 * MIB
    assert disk["inode_limit"] >= 4096 and 0 < disk["inodes"] < 16
    assert loops() <= before


@every_way
def test_a_job_that_failed_with_its_layer_full_is_told_so(tmp_state: State, way: str) -> None:
    script = "dd if=/dev/zero of=/var/tmp/x bs=64k"
    found = run_jobs(
        tmp_state,
        {
            "full": limited(["sh", "-c", script], way),
            "caught": limited(["sh", "-c", f"{script} || true"], way),
            "other": limited(["sh", "-c", "exit 3"], way),
            "inodes": limited(
                ["sh", "-c", "i=0; while mkdir /var/tmp/$i; do i=$((i+1)); done; exit 4"], way,
                limits={"disk_inodes": 200},
            ),
        },
    )  # fmt: skip
    reasons = {name: ended.reason for name, ended in found.items()}
    assert reasons == {
        "full": "disk", "caught": "succeeded", "other": "failed", "inodes": "disk",
    }  # fmt: skip
    (evidence,) = (e for e in found["full"].record["evidence"] if "layer" in e["source"])
    assert evidence["source"] == f"writable layer ({way})"
    assert f"of {32 * MIB} bytes" in evidence["what"]
    assert found["caught"].record["disk"]["full"] is True
    inodes = found["inodes"].record["disk"]
    assert inodes["inodes"] == inodes["inode_limit"] and 200 <= inodes["inode_limit"] <= 220
    assert inodes["used"] < 4 * MIB


def test_a_run_explains_it(supervise: Supervise) -> None:
    done = supervise(
        "run", "--write", "overlay", "--disk", "4M", "--", "dd", "if=/dev/zero", "of=/x",
    )  # fmt: skip
    assert done.status == 1
    assert "disk: it failed with its disk limit of 4.0M used up" in done.stderr
    assert "try --disk 8M" in done.stderr


@every_way
def test_an_action_of_the_job_raises_its_limit(batch: Batch, way: str) -> None:
    """Between nearly full and full the job waits: a writer of full speed may be the first."""
    result = batch.run(
        f"""
        [jobs.one]
        script = '''
        write() {{ for i in $(seq $1 $2); do dd if=/dev/zero of=/var/tmp/$i bs=1M count=1; done; }}
        write 1 52
        until [ $(stat -f -c '%a * %S / 1048576' /var/tmp | xargs expr) -gt 64 ]; do :; done
        write 53 120
        '''
        write = "overlay"
        disk_by = "{way}"
        limits = {{ disk = "64M", memory = "512M" }}
        on_disk_limit = {{ action = "raise", to = "256M" }}
        """
    )
    record = result["one"]
    assert record["reason"] == "succeeded", result.done.stderr
    disk = record["disk"]
    assert (disk["limit"], disk["full"]) == (256 * MIB, False)
    assert disk["used"] >= 120 * MIB
    names = [entry["event"] for entry in batch.entries()]
    assert names.index("disk_limit") < names.index("decision") < names.index("limit_changed")


@every_way
def test_an_action_of_the_job_ends_it_when_it_is_full(batch: Batch, way: str) -> None:
    result = batch.run(
        f"""
        [jobs.one]
        script = "dd if=/dev/zero of=/var/tmp/x bs=64k || exec sleep 1000"
        write = "overlay"
        disk_by = "{way}"
        limits = {{ disk = "32M", memory = "512M" }}
        on_disk_limit = {{ action = "kill", why = "it is full" }}
        """
    )
    record = result["one"]
    assert (record["reason"], record["detail"]) == ("policy", "it is full"), result.done.stderr
    told = [entry for entry in batch.entries() if entry["event"] == "disk_limit"]
    assert told[-1]["full"] is True and told[-1]["scarce"] == "bytes"
    assert told[-1]["limit"] == 32 * MIB


def hostile() -> Any:
    """Ways to have more than one's share: how many bytes each kept at the end, and why no more."""
    import os
    import time

    def tried(work: Any) -> int:
        try:
            work()
        except OSError as error:
            return error.errno or 0
        return 0

    def left() -> int:
        space = os.statvfs("/")
        return space.f_bavail * space.f_frsize

    where = ""
    found = {}
    fd = os.open(f"{where}/sparse", os.O_RDWR | os.O_CREAT)
    found["sparse"] = tried(lambda: os.ftruncate(fd, 1 << 36)), os.fstat(fd).st_blocks
    found["fallocate"] = tried(lambda: os.posix_fallocate(fd, 0, 1 << 30)), os.fstat(fd).st_blocks
    os.ftruncate(fd, 0)

    held = [os.open(f"{where}/gone", os.O_RDWR | os.O_CREAT) for _ in range(1)]
    os.unlink(f"{where}/gone")

    def endless() -> None:
        while True:
            os.write(held[0], bytes(1 << 16))

    found["deleted"] = tried(endless), os.fstat(held[0]).st_blocks
    full = left()
    os.close(held[0])  # an event of fanotify's may hold on to it until the supervisor wakes
    until = time.monotonic() + 30
    while left() < full + (1 << 20) and time.monotonic() < until:
        time.sleep(0.01)
    found["freed"] = full, left()

    def storm() -> None:
        for number in range(3000):
            new = os.open(f"{where}/new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(new, bytes(1 << 12))
            os.close(new)
            os.rename(f"{where}/new", f"{where}/old{number % 7}")

    found["renames"] = tried(storm), left()
    return found


@MAPPED
@every_way
def test_no_way_leads_past_it(tmp_state: State, way: str, ids: str) -> None:
    job = limited(python(hostile), way, user_namespace=ids)
    ended = one(tmp_state, job)
    found = ended.told
    assert found["sparse"] == [0, 0]
    assert found["fallocate"][0] == errno.ENOSPC
    why, blocks = found["deleted"]
    assert why == errno.ENOSPC and 31 * MIB < blocks * 512 <= 32 * MIB
    full, freed = found["freed"]
    assert full < MIB and freed > 31 * MIB
    assert found["renames"][0] == 0 and found["renames"][1] > 31 * MIB
    assert ended.record["disk"]["peak"] <= 32 * MIB


def test_its_memory_is_its_own_where_the_layer_is_in_memory(tmp_state: State) -> None:
    job = limited(python(fill, 65536, "/var/tmp"), "tmpfs", "256M", limits={"memory": "48M"})
    assert one(tmp_state, job | {"limits": {**job["limits"], "swap": 0}}).reason == "oom"


def test_what_is_in_the_layer_can_be_kept(tmp_state: State) -> None:
    script = (
        "mkdir -p /var/tmp/d; echo here >/var/tmp/d/f; ln /var/tmp/d/f /var/tmp/d/g; "
        "rm -r /usr/share/doc; truncate -s 1G /var/tmp/hole"
    )
    job = limited(["sh", "-ec", script], "loop", keep="always", copy_out=["/var/tmp/d/f"])
    ended = one(tmp_state, job)
    assert ended.reason == "succeeded", ended.err
    (run,) = (tmp_state.state).glob("*/runs/*")
    upper = run / "upper"
    assert (upper / "var/tmp/d/f").read_text() == (run / "out/var/tmp/d/f").read_text() == "here\n"
    assert (upper / "var/tmp/d/f").stat().st_ino == (upper / "var/tmp/d/g").stat().st_ino
    assert (upper / "usr/share/doc").stat().st_rdev == 0  # a whiteout
    hole = (upper / "var/tmp/hole").stat()
    assert hole.st_size == 1 << 30 and hole.st_blocks * 512 < MIB
    assert not (run / "work").exists()


def test_a_run_keeps_it_too(supervise: Supervise, tmp_path: Path) -> None:
    if on_overlay("/var/lib"):
        pytest.skip("layers are in memory here, and cannot be kept")
    record = tmp_path / "r.json"
    done = supervise(
        "run", "--write", "overlay", "--disk", "8M", "--disk-by", "loop", "--keep", "always",
        "--record", record, "--", "sh", "-c", "echo here >/var/tmp/f",
    )  # fmt: skip
    assert done.status == 0, done.stderr
    told = json.loads(record.read_text())
    assert told["disk"]["by"] == "loop"
    try:
        changed = supervise("diff", told["run"])
        assert "A /var/tmp/f" in changed.stdout, changed.stderr
    finally:
        shutil.rmtree(Path("/var/lib/supervise/.run/runs", told["run"]))
        with suppress(OSError):
            os.rmdir("/var/lib/supervise/.run/runs")
            os.rmdir("/var/lib/supervise/.run")


def settle(before: set[str]) -> None:
    """Wait until the kernel has let go of what it had beside `before`."""
    deadline = time.monotonic() + 30
    while left := loops() - before:
        assert time.monotonic() < deadline, f"left: {left}"


def test_a_killed_supervisor_leaves_no_device_and_no_file(batch: Batch) -> None:
    before = loops()
    job = """
        [jobs.one]
        command = ["sleep", "1000"]
        write = "overlay"
        disk_by = "loop"
        limits = { disk = "8M" }
        """
    with batch.start(job) as running:
        running.wait_started("one")
        ours = loops() - before
        assert len(ours) == 1
        running.process.kill()
        running.process.wait()
        assert ours <= loops(), "the job goes on, and so does its layer"
        result = batch.run('[jobs.two]\ncommand = "true"')
        assert result.reasons == {"two": "succeeded"}
        settle(before)
    (run,) = batch.state.glob("runs/*-one")
    assert not (run / "layer.new").exists()


def test_many_at_once_each_have_their_own(tmp_state: State) -> None:
    before = loops()
    script = "dd if=/dev/zero of=/var/tmp/x bs=64k 2>/dev/null; stat -c %s /var/tmp/x"
    job = limited(["sh", "-c", script], "loop", "4M", limits={"memory": "32M"})
    count = 8 if in_guest() else 50  # a guest has one slow CPU
    found = run_jobs(tmp_state, {f"j{n}": job for n in range(count)})
    assert {ended.reason for ended in found.values()} == {"succeeded"}
    sizes = {int(ended.out) for ended in found.values()}
    assert all(3.8 * MIB < size <= 4 * MIB for size in sizes)
    assert loops() <= before


def test_a_full_disk_below_is_told(tmp_state: State) -> None:
    """The job may have 64M, the disk below has 16M: it hears EIO, and the record says why."""
    script = "dd if=/dev/zero of=/var/tmp/x bs=1M count=40 conv=fsync"
    config = write_config(tmp_state, {"one": limited(["sh", "-c", script], "loop", "64M")})
    text = config.read_text()
    small = private_mounts(
        f"mount -t tmpfs -o size=16M none {tmp_state.state}; cat >{config} <<'END'\n{text}END\n"
    )
    with within(tmp_state, small, config, "--json") as process:
        out, err = process.communicate(timeout=60)
    record = json.loads(out)
    assert (record["reason"], record["disk"]["full"]) == ("failed", False), err
    told = [e["what"] for e in record["evidence"] if "layer" in e["source"]]
    assert any("the disk below it is full" in what for what in told), record["evidence"]
