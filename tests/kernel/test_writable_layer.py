"""What a job leaves: a layer that is kept, what it changed, and results that are copied out."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from supervisor.container.host import on_overlay
from supervisor.linux import syscalls
from supervisor.model.job import JobSpec
from supervisor.supervise.collect import collect
from tests.support.command import State, Supervise
from tests.support.containers import Ended, instance_name, python, run_jobs

pytestmark = pytest.mark.kernel


def out_of(state: State, ended: Ended) -> Path:
    return state.state / instance_name(state) / "runs" / ended.record["run"] / "out"


def on_disk(tmp_path: Path) -> State:
    """Of a test of its own: in a guest, other state lies on an overlay, where nothing is kept."""
    state = State(tmp_path / "kept", tmp_path / "run")
    state.state.mkdir()
    return state


def warnings(state: State) -> list[str]:
    log = state.state / instance_name(state) / "events.ndjson"
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    return [entry["text"] for entry in entries if entry["event"] == "warning"]


def run_one(state: State, script: str, **more: object) -> Ended:
    job = {"command": ["sh", "-euc", script], "write": "overlay", **more}
    return run_jobs(state, {"job": job})["job"]


WRITE_RESULTS = """
mkdir -p /out/deep/er
for path in /out/result.csv /out/deep/er/x /tmp/in-memory /dev/shm/shared; do
    printf $path >$path
done
chmod 6755 /out/result.csv
"""


@pytest.mark.parametrize("write", ["overlay", "read-only"])
@pytest.mark.parametrize("space", ["host", "auto"])
def test_results_are_there_afterwards_wherever_they_were(tmp_state: State, write, space):
    paths = ["/out", "/tmp/in-memory", "/dev/shm/shared"]
    job = {"script": WRITE_RESULTS, "write": write, "user_namespace": space,
           "copy_out": paths, "tmpfs": ["/out"]}  # fmt: skip
    if write == "overlay":
        del job["tmpfs"]
    ended = run_jobs(tmp_state, {"job": job})["job"]
    assert ended.reason == "succeeded", ended
    out = out_of(tmp_state, ended)
    found = {str(path.relative_to(out)): path for path in out.rglob("*") if path.is_file()}
    assert set(found) == {"out/result.csv", "out/deep/er/x", "tmp/in-memory", "dev/shm/shared"}
    assert all(path.read_text() == f"/{name}" for name, path in found.items())
    status = found["out/result.csv"].stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o755, 0, 0)


@pytest.mark.parametrize(
    "end",
    ["exit 3", "kill -9 $$", "sleep 1000", "head -c 200M /dev/zero | tail"],
    ids=["failed", "killed", "timeout", "oom"],
)
def test_results_are_there_however_the_job_ended(tmp_state: State, end):
    ended = run_one(tmp_state, f"echo half >/tmp/result; {end}", copy_out=["/tmp/result"],
                    timeout="2s", limits={"memory": "64M"})  # fmt: skip
    assert ended.reason != "succeeded"
    assert (out_of(tmp_state, ended) / "tmp/result").read_text() == "half\n"


def leave_traps():
    import os
    import socket

    os.makedirs("/out/sub")
    os.symlink("/etc/shadow", "/out/link")
    os.symlink("/", "/out/sub/up")
    os.symlink("/proc/1/root", "/out/sub/magic")
    os.mkfifo("/out/fifo")
    socket.socket(socket.AF_UNIX).bind("/out/socket")
    with open("/out/big", "w") as file:  # noqa: PTH123
        file.truncate(1 << 40)
        file.write("x")
    for number in range(1000):
        os.link("/out/big", f"/out/sub/{number}")
    with open(b"/out/\xff\n\x1b[31m", "w") as file:  # noqa: PTH123
        file.write("name")
    os.symlink("/etc", "/elsewhere")
    os.symlink("/out/big", "/alone")


def test_a_hostile_tree_brings_nothing_from_outside(tmp_state: State):
    paths = ["/out", "/elsewhere/hostname", "/alone", "/none", "/elsewhere/../../../etc/passwd"]
    job = {"command": python(leave_traps), "write": "overlay", "copy_out": paths[:4]}
    ended = run_jobs(tmp_state, {"job": job})["job"]
    assert ended.reason == "succeeded", ended
    out = out_of(tmp_state, ended)
    assert sorted(os.listdir(os.fsencode(out / "out"))) == [b"big", b"sub", b"\xff\n\x1b[31m"]
    assert not any(path.is_symlink() for path in out.rglob("*"))
    # A link within the root is followed on the way, to the job's own /etc, which is the host's.
    assert (out / "elsewhere/hostname").read_bytes() == Path("/etc/hostname").read_bytes()
    blocks = {status.st_ino: status.st_blocks for status in map(Path.lstat, out.rglob("*"))}
    assert sum(blocks.values()) * 512 < 1 << 20  # a file of 1 TiB with a thousand names
    told = "\n".join(warnings(tmp_state))
    for name in ("/out/link", "/out/fifo", "/out/socket", "/out/sub/up", "/alone", "/none"):
        assert f"not copied out: {name}: " in told


def dig():
    import os

    os.mkdir("/out")
    os.chdir("/out")
    for _ in range(300):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    with open("/out/file", "w") as file:  # noqa: PTH123
        file.write("x")


def test_a_tree_too_deep_is_told_and_the_rest_is_there(tmp_state: State):
    job = {"command": python(dig), "write": "overlay", "copy_out": ["/out"]}
    ended = run_jobs(tmp_state, {"job": job})["job"]
    assert (out_of(tmp_state, ended) / "out/file").read_text() == "x"
    assert any("not copied out: /out/ddd" in text for text in warnings(tmp_state))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[State]:
    """A state directory with hardly any room."""
    state = State(tmp_path / "small", tmp_path / "run")
    state.state.mkdir()
    syscalls.mount("tmpfs", str(state.state), "tmpfs", 0, "size=4M")
    yield state
    syscalls.umount(str(state.state), 0)


def test_a_full_disk_leaves_nothing_half(small_disk: State):
    script = "head -c 16M /dev/urandom >/tmp/big; echo small >/tmp/small"
    ended = run_one(small_disk, script, copy_out=["/tmp/big", "/tmp/small"], keep="never")
    assert ended.reason == "succeeded", ended
    out = out_of(small_disk, ended)
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["small"]
    assert any("/tmp/big: No space left on device" in text for text in warnings(small_disk))


def test_a_file_is_copied_though_the_copy_of_its_other_name_was_given_up(small_disk: State):
    script = (
        "mkdir /tmp/d; head -c 16M /dev/urandom >/tmp/d/big; echo x >/tmp/d/a; ln /tmp/d/a /tmp/b"
    )
    ended = run_one(small_disk, script, copy_out=["/tmp/d", "/tmp/b"])
    out = out_of(small_disk, ended)
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["b"]


def test_one_shot_results_go_to_the_working_directory(supervise: Supervise, tmp_path: Path):
    script = "mkdir /tmp/o; echo 1 >/tmp/o/r; echo 2 >/tmp/two"
    flags = ("--copy-out", "/tmp/o", "--copy-out", "/tmp/two")
    done = supervise("run", *flags, "--", "sh", "-c", script, cwd=tmp_path)
    assert done.status == 0, done.stderr
    assert (tmp_path / "o/r").read_text() + (tmp_path / "two").read_text() == "1\n2\n"
    again = supervise("run", *flags, "--", "sh", "-c", script.replace("2", "3"), cwd=tmp_path)
    assert (tmp_path / "two").read_text() == "3\n"
    assert "not copied out: /tmp/o: Directory not empty" in again.stderr


@pytest.mark.parametrize(
    ("keep", "script", "kept"),
    [
        ("never", "false", False),
        ("on-failure", "true", False),
        ("on-failure", "false", True),
        ("always", "true", True),
    ],
)
def test_when_a_layer_is_kept(tmp_path: Path, keep, script, kept):
    state = on_disk(tmp_path)
    ended = run_one(state, f"echo new >/new; {script}", keep=keep)
    upper = out_of(state, ended).parent / "upper"
    assert upper.exists() is kept
    if kept:
        assert (upper / "new").read_text() == "new\n"


def test_diff_tells_what_a_run_changed(supervise: Supervise, tmp_path: Path):
    state = on_disk(tmp_path)
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/old").write_text("old")
    (root / "gone").write_text("")
    tops = [path for path in ("/usr", "/bin", "/lib", "/lib64") if Path(path).exists()]
    mounts = [f"{path}:{path}:ro" for path in tops]
    script = "echo new >/etc/old; rm /gone; mkdir /d; echo '\033[31m' >$(printf '/d/\\033x')"
    ended = run_one(state, script, keep="always", root=str(root), mounts=mounts)
    assert ended.reason == "succeeded", ended.err
    run, name = ended.record["run"], instance_name(state)
    for wanted in (run, f"{name}/{run}"):
        done = supervise("diff", "--state-dir", str(state.state), wanted)
        assert done.stdout.splitlines() == [
            "A /d",
            "A /d/\\x1bx",
            "C /etc",
            "C /etc/old",
            "D /gone",
        ], done
    done = supervise("diff", "--json", str(state.state / name / "runs" / run))
    assert json.loads(done.stdout.splitlines()[1]) == {"kind": "A", "path": "/d/\x1bx"}


def test_diff_of_what_is_not_there_says_where_it_looked(supervise: Supervise, tmp_path: Path):
    done = supervise("diff", "--state-dir", str(tmp_path), "none")
    assert (done.status, str(tmp_path / "*/runs") in done.stderr) == (125, True), done
    state = on_disk(tmp_path)
    ended = run_one(state, "true")
    done = supervise("diff", "--state-dir", str(state.state), ended.record["run"])
    assert (done.status, "keep = never" in done.stderr) == (125, True), done


def test_a_one_shot_that_keeps_can_be_looked_at(supervise: Supervise):
    done = supervise("run", "--write", "overlay", "--keep", "--", "sh", "-c", "echo x >/made")
    if on_overlay("/var/lib/supervise"):
        assert (done.status, "in memory here, and cannot be kept" in done.stderr) == (125, True)
        return
    run = done.stderr.rpartition("run ")[2].strip()
    try:
        assert supervise("diff", run).stdout == "A /made\n"
    finally:
        shutil.rmtree(Path("/var/lib/supervise/.run/runs") / run)
        with suppress(OSError):
            os.rmdir("/var/lib/supervise/.run/runs")
            os.rmdir("/var/lib/supervise/.run")


def test_a_second_stop_does_not_wait_for_the_rest():
    spec = JobSpec("job", ("true",), copy_out=("/etc/hostname", "/etc/passwd"))
    fd = os.open("/", os.O_PATH)
    try:
        assert list(collect(spec, [fd], Path("/nowhere"), flat=False, given_up=lambda: True)) == []
    finally:
        os.close(fd)


def test_the_payload_has_none_of_the_descriptors(tmp_state: State):
    ended = run_one(tmp_state, "ls /proc/self/fd", copy_out=["/tmp/x", "/x"])
    assert ended.out.split() == ["0", "1", "2", "3"]  # 3: ls itself reads the directory
