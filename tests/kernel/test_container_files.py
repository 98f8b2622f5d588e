# ruff: noqa: PTH123 - what runs in a job imports little
"""A job's file system: what it may read, what it may write, and who sees it.

Where a test needs mounts of the host's, it runs the command in a mount namespace of its own.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from supervisor.linux import proc
from tests.support.command import State, Supervise
from tests.support.containers import (
    after,
    instance_name,
    next_line,
    out_of_the_way,
    private_mounts,
    python,
    run_jobs,
    within,
)

pytestmark = pytest.mark.kernel

NAME = ".supervise-test"


def write_into(*directories):
    """The errno of an attempt to write a file into each; 0: it was written, and removed."""
    import os

    found = {}
    for directory in directories:
        path = f"{directory}/.supervise-test"
        try:
            with open(path, "w") as file:
                file.write("mine")
            os.unlink(path)
        except OSError as error:
            found[directory] = error.errno
        else:
            found[directory] = 0
    return found


def change_host():
    """Write to, remove, rename and make what an overlay shows of the host; what is seen after."""
    import os

    with open("/etc/hostname", "w") as file:
        file.write("changed")
    os.unlink("/etc/passwd")
    os.rename("/etc/group", "/etc/moved")
    os.makedirs("/new/directory")
    with open("/new/directory/file", "w") as file:
        file.write("x" * 100000)
    os.chmod("/etc", 0o700)
    with open("/etc/hostname") as file:
        return [file.read(), os.path.exists("/etc/passwd"), sorted(os.listdir("/new/directory"))]


def fill(path, size):
    """The errno of writing `size` bytes, and how many were taken."""
    import os

    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    done = 0
    try:
        while done < size:
            done += os.write(fd, bytes(65536))
    except OSError as error:
        return [error.errno, done]
    return [0, done]


def listing(*directories):
    import os

    return {directory: sorted(os.listdir(directory)) for directory in directories}


def owner(path):
    import os

    found = os.stat(path)
    return [found.st_uid, found.st_gid, oct(found.st_mode)]


def host_state() -> dict[str, Any]:
    """What `change_host` tries to change."""
    etc = Path("/etc")
    paths = [etc / "hostname", etc / "passwd", etc / "group"]
    texts = {str(path): path.read_bytes() for path in paths if path.exists()}
    return texts | {"mode": stat.S_IMODE(etc.stat().st_mode), "new": Path("/new").exists()}


def test_the_host_cannot_be_written_and_the_jobs_own_places_can(tmp_state: State):
    host = ("/", "/etc", "/usr", "/usr/bin", "/var/tmp", "/var/lib", "/root", "/home", "/dev",
            "/sys", "/proc")  # fmt: skip
    own = ("/tmp", "/run", "/dev/shm")
    jobs = {
        "root": {"command": python(write_into, *host, *own)},
        "mapped": {"command": python(write_into, *host, *own), "user_namespace": "self"},
    }
    for job in run_jobs(tmp_state, jobs).values():
        assert {job.told[path] for path in own} == {0}
        refused = {errno.EROFS, errno.ENOENT, errno.EACCES, errno.EPERM}
        assert {job.told[path] for path in host} <= refused
        assert {job.told[path] for path in ("/", "/etc", "/usr", "/var/tmp")} == {errno.EROFS}


def test_tmp_and_the_like_are_empty_and_nobody_elses(tmp_state: State):
    job = {"command": ["sh", "-c", "ls -A /tmp /run /dev/shm && touch /tmp/x /run/x /dev/shm/x"]}
    found = run_jobs(tmp_state, {"one": job, "other": job})
    for one in found.values():
        assert one.reason == "succeeded"
        assert one.out.split() == ["/dev/shm:", "/run:", "/tmp:"]
    assert not Path("/dev/shm/x").exists()


@pytest.mark.parametrize("write", ["read-only", "overlay"])
def test_other_file_systems_of_the_host_are_seen_and_read_only(tmp_state: State, write):
    top = out_of_the_way()
    mount = f"mount -t tmpfs none {top}; mkdir {top}/deep; mount -t tmpfs none {top}/deep; "
    outside = private_mounts(mount + f"echo there >{top}/deep/file")
    job = [
        f"cat {top}/deep/file; touch {top}/new && echo oh; touch {top}/deep/new && echo oh; true"
    ]
    done = after(tmp_state, outside, "run", "--write", write, "--", "sh", "-c", *job)
    assert (done.status, done.stdout) == (0, "there\n"), done.stderr
    assert done.stderr.count("Read-only file system") == 2


def test_a_file_system_that_is_mounted_over_hinders_no_start(tmp_state: State):
    """Its mount is still listed, but no path leads there."""
    top = out_of_the_way()
    below = f"mount -t tmpfs none {top}; mkdir {top}/sub; mount -t tmpfs none {top}/sub; "
    outside = private_mounts(below + f"mount -t tmpfs none {top}; echo there >{top}/file")
    done = after(tmp_state, outside, "run", "--", "ls", top)
    assert (done.status, done.stdout) == (0, "file\n"), done.stderr


def test_what_the_host_mounted_on_its_kernel_places_stays_out(tmp_state: State):
    """No cgroup, proc or debugfs of the host's, wherever it is mounted."""
    top = out_of_the_way()
    outside = private_mounts(f"mount -t proc none {top}; mount -t tmpfs none /run; touch /run/host")
    done = after(tmp_state, outside, "run", "--", "ls", "-A", top, "/run", "/sys/fs/cgroup")
    assert "host" not in done.stdout
    assert "cpuinfo" not in done.stdout
    assert "cgroup.procs" not in done.stdout
    assert "/run:\n" in done.stdout


def test_an_overlay_takes_every_write_and_is_thrown_away(tmp_state: State):
    before = host_state()
    found = run_jobs(
        tmp_state,
        {
            "disk": {"command": python(change_host), "write": "overlay"},
            "memory": {
                "command": python(change_host), "write": "overlay", "user_namespace": "self",
            },
        },
    )  # fmt: skip
    assert found["disk"].told == ["changed", False, ["file"]]
    assert found["memory"].told == ["changed", False, ["file"]]
    assert host_state() == before
    assert not list(tmp_state.state.rglob("upper"))
    assert not list(tmp_state.state.rglob("work"))


def test_a_one_shot_overlay_is_thrown_away_too(supervise: Supervise):
    before = host_state(), os.listdir("/var/tmp")
    done = supervise("run", "--write", "overlay", "--", *python(change_host))
    assert (done.status, done.stdout) == (0, '["changed", false, ["file"]]\n'), done.stderr
    assert (host_state(), os.listdir("/var/tmp")) == before


def test_keep_keeps_what_was_written(tmp_path: Path):
    # on a disk: a layer of an overlay in a layer of an overlay is not to be had
    state = State(tmp_path / "state", tmp_path / "run")
    state.state.mkdir()
    jobs = {"job": {"command": python(change_host), "write": "overlay", "keep": True}}
    ended = run_jobs(state, jobs)["job"]
    upper = state.state / instance_name(state) / "runs" / ended.record["run"] / "upper"
    assert ended.told[0] == "changed"
    assert (upper / "etc/hostname").read_text() == "changed"
    assert (upper / "new/directory/file").stat().st_size == 100000
    assert stat.S_ISCHR((upper / "etc/passwd").lstat().st_mode)  # how an overlay says: removed


def test_two_overlays_do_not_see_each_other(tmp_state: State):
    script = "test ! -e /mine && touch /mine && ls -d /mine"
    job = {"command": ["sh", "-c", script], "write": "overlay"}
    found = run_jobs(tmp_state, {f"job{n}": job for n in range(4)})
    assert {one.out for one in found.values()} == {"/mine\n"}


@pytest.fixture
def root(tmp_path: Path, busybox: Path) -> Path:
    """A small root: busybox, a user, and no mount point at all."""
    top = tmp_path / "root"
    (top / "bin").mkdir(parents=True)
    for name in ("busybox", "sh", "ls", "cat", "touch", "id", "mount", "stat", "true"):
        (top / "bin" / name).symlink_to("busybox")
    (top / "bin" / "busybox").unlink()
    (top / "bin" / "busybox").write_bytes(busybox.read_bytes())
    (top / "bin" / "busybox").chmod(0o755)
    (top / "etc").mkdir()
    (top / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\ninner:x:4242:4243::/home:/bin/sh\n")
    (top / "etc/group").write_text("root:x:0:\nextra:x:77:other,inner\nlast:x:78:inner\n")
    return top


@pytest.mark.parametrize("userns", ["host", "self"])
@pytest.mark.parametrize("write", ["read-only", "overlay"])
def test_a_directory_as_root(tmp_state: State, root, write, userns):
    script = "ls /; touch /new && echo written; touch /tmp/x /run/x /dev/shm/x && ls /proc/1/comm"
    job = {"command": ["sh", "-c", script], "root": root, "write": write, "user_namespace": userns}
    ended = run_jobs(tmp_state, {"job": job})["job"]
    assert ended.reason == "succeeded", (ended.record, ended.err)
    seen = ended.out.split()
    assert seen[:7] == ["bin", "dev", "etc", "proc", "run", "sys", "tmp"]
    assert ("written" in seen) == (write == "overlay")
    assert sorted(path.name for path in root.iterdir()) == ["bin", "etc"]


def test_the_users_of_a_directory_as_root_are_its_own(tmp_state: State, root):
    job = {"command": ["id"], "root": root, "user": "inner"}
    jobs = {"name": job, "host": job | {"user": "daemon"}}
    found = run_jobs(tmp_state, jobs)
    assert found["name"].out.startswith("uid=4242(inner) gid=4243")
    assert "77(extra),78(last)" in found["name"].out
    assert found["host"].failure == ("user", 0, f"{root}/etc/passwd")


@pytest.mark.parametrize("write", ["read-only", "overlay"])
def test_a_hostile_root_leads_nowhere(tmp_state: State, root, tmp_path, write):
    """Its links name places of its own: mount points on them land inside, never on the host."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").write_text("data")
    (root / "proc").symlink_to(outside)
    (root / "tmp").symlink_to("../../../../../.." + str(outside))
    (root / "data").symlink_to(outside)
    job = {
        "command": ["true"],
        "root": root,
        "write": write,
        "mounts": [{"source": tmp_path / "data", "target": "/data"}],
    }
    ended = run_jobs(tmp_state, {"job": job})["job"]
    assert ended.reason in ("succeeded", "start_failed")
    assert list(outside.iterdir()) == []
    assert sorted(path.name for path in root.iterdir()) == ["bin", "data", "etc", "proc", "tmp"]


def test_a_mount_point_below_a_link_of_the_root(tmp_state: State, root, tmp_path):
    """As /lib of a merged-usr system, or /var/run: the mount is where the link leads, inside."""
    (root / "usr/lib").mkdir(parents=True)
    (root / "lib").symlink_to("usr/lib")
    (root / "var").mkdir()
    (root / "var/run").symlink_to("/run")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/file").touch()
    targets = ("/lib/data", "/var/run/data", "/tmp/data")
    mounts = [{"source": tmp_path / "data", "target": target} for target in targets]
    command = ["ls", "/usr/lib/data", "/run/data", "/tmp/data"]
    jobs = {
        write: {"command": command, "root": root, "mounts": mounts, "write": write}
        for write in ("read-only", "overlay")
    }
    for ended in run_jobs(tmp_state, jobs).values():
        assert ended.reason == "succeeded", ended.record
        assert ended.out.split().count("file") == 3


@pytest.mark.parametrize("userns", ["host", "self"])
def test_missing_targets_on_a_read_only_root(tmp_state: State, tmp_path, userns):
    """Directories and files, several deep, also on the host's root: there, and nowhere outside."""
    (tmp_path / "directory").mkdir()
    (tmp_path / "directory/in").touch()
    (tmp_path / "file").write_text("content")
    script = "ls /new/deep; cat /new/file /lib/supervise-new; ls -d /etc/passwd"
    job = {
        "command": ["sh", "-c", script],
        "mounts": [
            {"source": tmp_path / "directory", "target": "/new/deep"},
            {"source": tmp_path / "file", "target": "/new/file"},
            {"source": tmp_path / "file", "target": "/lib/supervise-new"},
        ],
        "tmpfs": ["/new/scratch:size=1M"],
        "user_namespace": userns,
    }  # fmt: skip
    ended = run_jobs(tmp_state, {"job": job})["job"]
    assert ended.reason == "succeeded", (ended.record, ended.err)
    assert ended.out == "in\ncontentcontent/etc/passwd\n"
    assert not Path("/new").exists()
    assert not Path("/lib/supervise-new").exists()


def test_bind_mounts_read_only_and_read_write(tmp_state: State, tmp_path):
    for name in ("ro", "rw"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "host").touch()
    mounts = [{"source": tmp_path / "ro", "target": "/mnt", "read_only": True},
              {"source": tmp_path / "rw", "target": "/srv", "read_only": False},
              {"source": tmp_path / "ro/host", "target": "/etc/hostname"}]  # fmt: skip
    script = "ls /mnt /srv; cat /etc/hostname; touch /srv/job; touch /mnt/job || echo refused"
    ended = run_jobs(tmp_state, {"job": {"command": ["sh", "-c", script], "mounts": mounts}})["job"]
    assert ended.reason == "succeeded", (ended.record, ended.err)
    assert ended.out.split() == ["/mnt:", "host", "/srv:", "host", "refused"]
    assert (tmp_path / "rw/job").exists()
    assert not (tmp_path / "ro/job").exists()


@pytest.mark.parametrize("userns", ["host", "self"])
def test_read_only_holds_for_what_is_mounted_below(tmp_state: State, tmp_path, userns):
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    outside = private_mounts(
        f"mount -t tmpfs none {tree}/sub; mkdir {tree}/sub/deeper\n"
        f"mount -t tmpfs none {tree}/sub/deeper; echo below >{tree}/sub/deeper/file"
    )
    job = python(write_into, "/mnt", "/mnt/sub", "/mnt/sub/deeper", "/srv/sub/deeper")
    flags = ["--user-namespace", userns, "--mount", f"{tree}:/mnt:ro", "--mount", f"{tree}:/srv"]
    done = after(tmp_state, outside, "run", *flags, "--", *job)
    read_only = dict.fromkeys(("/mnt", "/mnt/sub", "/mnt/sub/deeper"), errno.EROFS)
    assert done.status == 0, done.stderr
    assert json.loads(done.stdout) == read_only | {"/srv/sub/deeper": 0}
    seen = after(tmp_state, outside, "run", *flags, "--", "cat", "/mnt/sub/deeper/file")
    assert seen.stdout == "below\n"


def test_a_tmpfs_ends_at_its_size(tmp_state: State):
    jobs = {
        "small": {"command": python(fill, "/scratch/x", 4 << 20), "tmpfs": ["/scratch:size=1M"]},
        "large": {"command": python(fill, "/scratch/x", 4 << 20), "tmpfs": ["/scratch:size=16M"]},
        "mode": {"command": python(owner, "/scratch"), "tmpfs": ["/scratch"]},
    }
    found = run_jobs(tmp_state, jobs)
    assert found["small"].told == [errno.ENOSPC, 1 << 20]
    assert found["large"].told == [0, 4 << 20]
    assert found["mode"].told == [0, 0, "0o41777"]


def test_a_tmpfs_counts_against_the_jobs_memory(supervise: Supervise):
    flags = ["--memory", "24M", "--swap", "0", "--tmpfs", "/scratch:size=256M", "--record", "-"]
    done = supervise("run", *flags, "--", *python(fill, "/scratch/x", 128 << 20))
    assert '"reason": "oom"' in done.stdout, done.stderr


@pytest.mark.parametrize("write", ["read-only", "overlay"])
def test_the_host_sees_none_of_a_jobs_mounts(tmp_state: State, tmp_path, write):
    """Not even where its mounts are shared, as systemd makes them: nor do later ones arrive."""
    outside = private_mounts("mount --make-rshared /", propagation="slave")
    (tmp_path / "late").mkdir()
    flags = ["--write", write, "--tmpfs", "/scratch", "--mount", f"{tmp_path}:/mnt"]
    script = "echo here; while ! test -e /mnt/go; do :; done; cat /proc/self/mountinfo"
    with within(tmp_state, outside, "run", *flags, "--", "sh", "-c", script) as process:
        try:
            assert next_line(process) == "here"
            during = proc.mountinfo(f"/proc/{process.pid}/mountinfo")
            _enter(process.pid, "mount", "-t", "tmpfs", "late-one", str(tmp_path / "late"))
        finally:
            (tmp_path / "go").touch()
        out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    ours = str(tmp_state.runtime)
    assert [one for one in during if ours in one.mount_point or one.source == "supervise"] == []
    assert "late-one" not in out


def _enter(pid: int, *command: str) -> None:
    subprocess.run(["nsenter", f"--mount=/proc/{pid}/ns/mnt", *command], check=True)


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"root": "/nowhere/at/all"}, "/nowhere/at/all"),
        ({"mounts": [{"source": "/nowhere/at/all", "target": "/mnt"}]}, "/nowhere/at/all"),
        ({"mounts": [{"source": "/etc", "target": "/etc/passwd/below"}]}, "/etc/passwd/below"),
        ({"mounts": [{"source": "/etc", "target": "/etc/passwd"}]}, "/etc/passwd"),
        ({"mounts": [{"source": "/etc/passwd", "target": "/usr"}]}, "/usr"),
        ({"tmpfs": ["/etc/passwd"]}, "/etc/passwd"),
        ({"tmpfs": ["/scratch:size=1M"], "root": "/proc"}, "/proc"),
    ],
)
def test_what_cannot_be_mounted_is_named(tmp_state: State, settings, path):
    job = {"command": ["/bin/true"], "write": "read-only", **settings}
    ended = run_jobs(tmp_state, {"job": job})["job"]
    stage, number, where = ended.failure
    assert (ended.reason, stage) == ("start_failed", "mounts")
    assert number in (errno.ENOENT, errno.ENOTDIR, errno.EINVAL)
    assert path in f"{where} {ended.record['detail']}"
