"""Jobs with user numbers of their own: what they own, what they may, and what becomes of it.

Whether a file system's mounts can be mapped is a matter of the kernel: where a test depends on it,
it looks first, and asserts the one or the other.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.container.idmaps import IdMounts
from supervisor.supervise import idranges
from tests.support import host
from tests.support.command import State, Supervise
from tests.support.containers import (
    after,
    background,
    instance_name,
    next_line,
    private_mounts,
    python,
    run_jobs,
    write_config,
)

pytestmark = pytest.mark.kernel

SIZE = 65536
PLAIN = {"files": "plain"}


def can_map(path: Path | str) -> bool:
    tried = IdMounts()
    try:
        return not tried.refusal(str(path))
    finally:
        tried.close()


def claims(instance: str) -> list[int]:
    """The ranges that are noted as an instance's."""
    found = []
    for path in idranges.DIRECTORY.iterdir() if idranges.DIRECTORY.exists() else ():
        if path.name.isdecimal() and json.loads(path.read_text())["instance"] == instance:
            found.append(int(path.name))
    return found


def host_id(record: dict[str, Any]) -> int:
    assert record["user_namespace"]["size"] == SIZE
    return int(record["user_namespace"]["host_id"])


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A directory of the host's root that anybody may write to."""
    path = tmp_path / "shared"
    path.mkdir()
    path.chmod(0o1777)
    return path


def look(*paths):
    """The id maps, and (user, group) of each path and of a new file."""
    import os

    open("/tmp/new", "w").close()  # noqa: PTH123
    with open("/proc/self/uid_map") as users, open("/proc/self/gid_map") as groups:  # noqa: PTH123
        maps = [users.read().split(), groups.read().split()]
    owners = {path: [os.stat(path).st_uid, os.stat(path).st_gid] for path in (*paths, "/tmp/new")}
    return {"maps": maps, "owners": owners, "me": [os.getuid(), os.getgid(), os.getgroups()]}


@pytest.mark.parametrize("write", ["read-only", "overlay"])
def test_a_job_gets_a_range_and_root_owns_its_root(tmp_state: State, write: str) -> None:
    job = {
        "command": python(look, "/", "/usr/bin", "/dev/null", "/proc/1"), "write": write,
        "user_namespace": "auto", "timeout": "60s",
    }  # fmt: skip
    ended = run_jobs(tmp_state, {"one": job})["one"]
    told, first = ended.told, host_id(ended.record)
    assert told["maps"] == [["0", str(first), str(SIZE)]] * 2
    assert told["me"] == [0, 0, [0]]
    mapped = [0, 0] if can_map("/") else [65534, 65534]
    assert told["owners"]["/usr/bin"] == mapped
    assert told["owners"]["/tmp/new"] == told["owners"]["/proc/1"] == [0, 0]
    assert claims(instance_name(tmp_state)) == []
    where = tmp_state.state / instance_name(tmp_state)
    entries = [json.loads(line) for line in (where / "events.ndjson").read_text().splitlines()]
    (entry,) = (one for one in entries if one["event"] == "user_ids")
    assert (entry["host_id"], entry["size"], entry["run"]) == (first, SIZE, ended.record["run"])
    spec = json.loads((where / "runs" / ended.record["run"] / "spec.json").read_text())["spec"]
    assert spec["user_namespace"]["host_id"] == first


def test_as_nobody(tmp_state: State) -> None:
    job = {"command": python(look), "user": "nobody", "user_namespace": "auto"}
    told = run_jobs(tmp_state, {"one": job})["one"].told
    assert told["me"][0] == 65534 == told["owners"]["/tmp/new"][0]


def test_without_one_the_record_has_none(tmp_state: State) -> None:
    assert run_jobs(tmp_state, {"one": {"command": "true"}})["one"].record["user_namespace"] is None


def test_what_is_written_to_a_mount_has_the_right_owner_on_the_host(
    tmp_state: State, shared: Path
) -> None:
    other = "setpriv --reuid=1000 --regid=1000 --clear-groups sh -c '>/data/by-1000'"
    job = {
        "command": ["sh", "-ec", f">/data/by-0; {other}"], "mounts": [f"{shared}:/data"],
        "user_namespace": "auto",
    }  # fmt: skip
    ended = run_jobs(tmp_state, {"one": job})["one"]
    assert ended.reason == "succeeded", (ended.record, ended.err)
    shift = 0 if can_map(shared) else host_id(ended.record)
    assert (shared / "by-0").stat().st_uid == shift
    assert (shared / "by-1000").stat().st_uid == shift + 1000


TRY = """
may() { "$@" 2>/dev/null >&2 && echo yes || echo no; }
for path in "$@"; do
    stat -c %u "$path"
    may cat "$path"; may sh -c ": >>$path"; may chmod 666 "$path"
done
"""


def try_files(*paths: str) -> list[str]:
    """A command: of each, the user shown, and whether one may read, write and chmod it.

    A shell: the tests' Python may lie where a job whose root is not mapped does not get.
    """
    return ["sh", "-c", TRY, "sh", *paths]


@pytest.mark.parametrize("user", ["0", "nobody"])
def test_files_of_others_on_a_mount_that_is_not_mapped(
    tmp_state: State, shared: Path, user: str
) -> None:
    """They are shown as 65534's, and nobody in the job is that: neither root nor its nobody."""
    for name, uid, mode in (("secret", 0, 0o600), ("nobodys", 65534, 0o600), ("open", 0, 0o644)):
        (shared / name).write_text("x")
        (shared / name).chmod(mode)
        os.chown(shared / name, uid, uid)
    paths = [f"/data/{name}" for name in ("secret", "nobodys", "open")]
    job = {
        "command": try_files(*paths), "mounts": [f"{shared}:/data"], "user": user,
        "user_namespace": PLAIN,
    }  # fmt: skip
    ended = run_jobs(tmp_state, {"one": job})["one"]
    assert ended.out.split() == ["65534", "no", "no", "no"] * 2 + ["65534", "yes", "no", "no"]


def test_a_user_beyond_the_range_owns_nothing_in_the_job(tmp_state: State, shared: Path) -> None:
    (shared / "far").write_text("x")
    (shared / "far").chmod(0o600)
    os.chown(shared / "far", 70000, 70000)
    jobs = {
        user: {
            "command": try_files("/data/far"), "mounts": [f"{shared}:/data"],
            "user": user, "user_namespace": "auto",
        }
        for user in ("0", "65534")
    }  # fmt: skip
    for ended in run_jobs(tmp_state, jobs).values():
        assert ended.out.split() == ["65534", "no", "no", "no"]


def go_beyond(limit):
    """The errno of becoming, and of giving a file to, an id that is not mapped."""
    import os

    open("/tmp/x", "w").close()  # noqa: PTH123
    found = []
    calls = (lambda: os.chown("/tmp/x", limit, 0), lambda: os.setresgid(limit, limit, limit),
             lambda: os.setresuid(limit, limit, limit))  # fmt: skip
    for call in calls:
        try:
            call()
        except OSError as error:
            found.append(error.errno)
        else:
            found.append(0)
    return found


def test_ids_beyond_the_range(tmp_state: State) -> None:
    jobs = {
        "inside": {"command": python(go_beyond, SIZE), "user_namespace": "auto"},
        "user": {"command": "true", "user": str(SIZE), "user_namespace": "auto"},
    }
    found = run_jobs(tmp_state, jobs)
    assert found["inside"].told == [errno.EINVAL] * 3
    assert found["user"].failure[0] == "user"
    assert f"outside of its {SIZE} mapped ids" in found["user"].record["detail"]


def test_explicitly_mapped_or_not_at_all(tmp_state: State) -> None:
    job = {"command": "true", "mounts": ["/proc/sys:/data:ro"]}
    jobs = {
        "must": job | {"user_namespace": {"files": "mapped"}},
        "may": job | {"user_namespace": "auto"},
        "admin": {
            "command": "true", "user_namespace": {"files": "mapped"},
            "capabilities": {"add": ["SYS_ADMIN"]},
        },
    }  # fmt: skip
    found = run_jobs(tmp_state, jobs)
    assert found["may"].reason == "succeeded"
    assert "cannot be mapped" in found["must"].record["detail"]
    assert "cannot be mapped" in found["admin"].record["detail"]
    assert claims(instance_name(tmp_state)) == []


def leave_behind():
    """A set-user-ID program and files of several users, in what the job writes."""
    import os

    with open("/etc/mine", "w") as file:  # noqa: PTH123
        file.write("mine")
    os.makedirs("/var/made/deep")
    with open("/var/made/deep/suid", "wb") as file:  # noqa: PTH123
        file.write(b"#!/bin/sh\n")
    os.chmod("/var/made/deep/suid", 0o4755)
    open("/var/made/theirs", "w").close()  # noqa: PTH123
    os.chown("/var/made/theirs", 1000, 1000)
    os.unlink("/etc/hostname")
    os.rename("/etc/passwd", "/etc/moved")
    return sorted(set(os.listdir("/etc")) & {"mine", "hostname", "passwd", "moved"})


def test_the_layer_is_on_the_disk_and_its_owners_are_the_jobs(tmp_state: State) -> None:
    if not _layer_on_disk(tmp_state):
        pytest.skip("the state directory cannot hold a layer here")
    job = {
        "command": python(leave_behind), "write": "overlay", "keep": True, "user_namespace": "auto",
        "timeout": "60s",
    }  # fmt: skip
    hostname = Path("/etc/hostname").exists()
    ended = run_jobs(tmp_state, {"one": job})["one"]
    if not can_map("/"):
        assert "Permission denied: '/etc/mine'" in ended.err  # /etc is somebody else's
        return
    assert ended.told == ["mine", "moved"]
    first = host_id(ended.record)
    run = tmp_state.state / instance_name(tmp_state) / "runs" / ended.record["run"]
    assert run.stat().st_uid == 0 and not (run / "work").exists()
    suid = (run / "upper/var/made/deep/suid").stat()
    assert (suid.st_uid, stat.S_IMODE(suid.st_mode)) == (first, 0o4755)
    assert (run / "upper/var/made/theirs").stat().st_uid == first + 1000
    assert (run / "upper/etc/mine").read_text() == "mine"
    assert hostname == Path("/etc/hostname").exists() and Path("/etc/passwd").exists()


def _layer_on_disk(where: State) -> bool:
    from supervisor.container.host import on_overlay
    from supervisor.supervise.storage import has_user_attributes

    return not on_overlay(str(where.state)) and has_user_attributes(where.state)


def test_a_layer_that_is_not_kept_is_gone(tmp_state: State) -> None:
    job = {"command": python(leave_behind), "write": "overlay", "user_namespace": "auto",
           "timeout": "60s"}  # fmt: skip
    ended = run_jobs(tmp_state, {"one": job})["one"]
    assert ended.reason == ("succeeded" if can_map("/") else "failed"), (ended.record, ended.err)
    run = tmp_state.state / instance_name(tmp_state) / "runs" / ended.record["run"]
    assert sorted(path.name for path in run.iterdir()) == ["exit", "spec.json"]


def test_hidden_directories_stay_hidden(tmp_state: State) -> None:
    script = "ls -A /root /home /var/lib/supervise; cat /etc/shadow 2>&1; exit 0"
    jobs = {
        f"{files}-{write}": {
            "command": ["sh", "-c", script], "write": write, "user_namespace": {"files": files},
            "hide": [str(tmp_state.state)],
        }
        for files in ("try", "plain") for write in ("read-only", "overlay")
    }  # fmt: skip
    for name, ended in run_jobs(tmp_state, jobs).items():
        assert ended.reason == "succeeded", (name, ended.record)
        assert "root:" not in ended.out.replace("/root:", ""), name
        lines = [one for one in ended.out.splitlines() if one and not one.endswith(":")]
        assert all("/etc/shadow" in line for line in lines), (name, ended.out)


def test_a_mount_in_a_hidden_directory_that_is_closed_to_the_job(
    tmp_state: State, shared: Path
) -> None:
    """/root is 0700 and somebody else's: the job gets one of its own there, with the mount."""
    (shared / "file").write_text("content")
    job = {
        "command": ["sh", "-c", "ls -A /root; cat /root/deep/file; touch /root/x"],
        "mounts": [f"{shared}:/root/deep:ro"], "user_namespace": PLAIN,
    }  # fmt: skip
    ended = run_jobs(tmp_state, {"one": job})["one"]
    assert ended.out == "deep\ncontent", (ended.record, ended.err)
    assert "Read-only file system" in ended.err


def break_out(*targets):
    """Make read-only mounts writable, as far as one gets: inside, and in namespaces below."""
    import ctypes
    import os

    libc = ctypes.CDLL(None, use_errno=True)

    def attempt():
        done = []
        for target in targets:
            libc.mount(None, target.encode(), None, 0x1000 | 0x20, None)  # MS_REMOUNT | MS_BIND
            libc.umount2(target.encode(), 2)
            try:
                open(f"{target}/.broken", "w").close()  # noqa: PTH123
            except OSError:
                continue
            done.append(target)
        return done

    found = attempt()
    uid = gid = 1000  # root of the job may not be mapped: that takes CAP_SETFCAP
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    libc.prctl(4, 1)  # PR_SET_DUMPABLE: for /proc/self to be its own again
    done = libc.unshare(0x10000000 | 0x20000)  # CLONE_NEWUSER, CLONE_NEWNS
    if done == 0:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"),
                           ("gid_map", f"0 {gid} 1")):  # fmt: skip
            with open(f"/proc/self/{name}", "w") as file:  # noqa: PTH123
                file.write(text)
        found += attempt()
    return [done, found]


def test_a_read_only_mount_that_is_mapped_stays_read_only(tmp_state: State, shared: Path) -> None:
    """Also below it, where mounts are locked; and with CAP_SYS_ADMIN they are not mapped."""
    shared.chmod(0o755)
    job = {
        "mounts": [f"{shared}:/data:ro"], "seccomp": "unconfined", "user_namespace": "auto",
        "timeout": "60s",
    }  # fmt: skip
    script = "for p in / /usr /data; do mount -o remount,bind,rw $p; touch $p/.broken; done; true"
    jobs = {
        "mapped": job | {"command": python(break_out, "/", "/etc", "/usr", "/data")},
        "admin": job | {"command": ["sh", "-c", script], "capabilities": {"add": ["SYS_ADMIN"]}},
    }
    if not can_map("/"):
        del jobs["mapped"]  # nor does it get to the tests' Python, which may be in /root
    found = run_jobs(tmp_state, jobs)
    assert "mapped" not in jobs or found["mapped"].told == [0, []]
    assert found["admin"].reason == "succeeded"
    assert found["admin"].err.count("cannot touch") == 3
    assert "cannot touch '/data/.broken': Permission denied" in found["admin"].err
    assert list(shared.iterdir()) == []
    assert not Path("/.broken").exists() and not Path("/usr/.broken").exists()


def test_two_jobs_cannot_touch_one_another(
    supervise: Supervise, tmp_state: State, shared: Path
) -> None:
    """Neither each other's files in a place both may write, nor, by their numbers, processes."""

    script = "umask 077; echo secret >/data/first; echo ready; exec 1>&-; cat >/dev/null"
    waiting = ["run", "--user-namespace", "auto:plain", "--mount", f"{shared}:/data"]
    command = ["--", "sh", "-c", script]
    with background(supervise, *waiting, *command) as process:
        assert next_line(process) == "ready"
        (first,) = claims(f"run-{process.pid}")
        assert (shared / "first").stat().st_uid == first
        job = {
            "command": try_files("/data/first"), "mounts": [f"{shared}:/data"],
            "user_namespace": PLAIN,
        }  # fmt: skip
        ended = run_jobs(tmp_state, {"other": job})["other"]
        assert host_id(ended.record) != first
        assert ended.out.split() == ["65534", "no", "no", "no"]
        victims = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
                   if first in idranges._users(pid)]  # fmt: skip
        assert victims
        assert _kill_as(host_id(ended.record), victims) == {errno.EPERM}
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(timeout=60) == 0
        assert claims(f"run-{process.pid}") == []


def _kill_as(uid: int, pids: list[int]) -> set[int]:
    """The errnos of signal 0 from a process of the host's with that user."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        for pid in pids:
            try:
                os.kill(pid, 0)
            except OSError as error:
                os.write(writer, b"%d " % (error.errno or 0))
            else:
                os.write(writer, b"0 ")
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        found = {int(word) for word in pipe.read().split()}
    os.waitpid(child, 0)
    return found


def test_when_no_range_is_left(tmp_state: State, tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    ids.write_text(f"supervise:{2**20}:{SIZE}\n")
    jobs = {
        "first": {"command": "sleep 60", "user_namespace": "auto", "timeout": "3s"},
        "second": {"command": "true", "user_namespace": "auto", "after": []},
    }
    jobs["first"]["expect"] = "timeout"
    config = write_config(tmp_state, {name: jobs[name] for name in jobs})
    script = "\n".join(
        f"test -e /etc/{name} || touch /etc/{name}; mount --bind {ids} /etc/{name}"
        for name in ("subuid", "subgid")
    )
    done = after(tmp_state, private_mounts(script), config, "--json", "--plain")
    records = {one["job"]: one for one in map(json.loads, done.stdout.splitlines())}
    ends = {records[name]["reason"] for name in jobs}
    assert ends <= {"timeout", "start_failed", "succeeded"} and "start_failed" in ends, done.stderr
    (failed,) = (one for one in records.values() if one["reason"] == "start_failed")
    assert "no range of 65536 user numbers is free: all 1 are taken" in failed["detail"]
    assert "/etc/subuid" in failed["detail"]
    given = [one["user_namespace"]["host_id"] for one in records.values() if one["user_namespace"]]
    assert given == [2**20]


def test_two_hundred_jobs_get_two_hundred_ranges(tmp_state: State) -> None:
    many = 30 if host.in_guest() else 200  # a start takes the guest a second
    job = {"command": "true", "user_namespace": "auto", "matrix": {"n": list(range(many))}}
    config = write_config(tmp_state, {"many": job}, head="capacity = { jobs = 8 }")
    done = Supervise(tmp_state)(config, "--json", "--plain", timeout=300)
    assert done.status == 0, done.stderr
    given = [host_id(json.loads(line)) for line in done.stdout.splitlines()]
    assert len(given) == len(set(given)) == many
    assert all(first % SIZE == 0 and first >= idranges.FIRST for first in given)
    assert claims(instance_name(tmp_state)) == []


@pytest.fixture
def killed(supervise: Supervise, tmp_state: State) -> Iterator[int]:
    """The range of a job whose supervisor was killed; the job lives on."""
    config = write_config(tmp_state, {"long": {"command": "sleep 600", "user_namespace": "auto"}})
    with background(supervise, config, "--plain") as process:
        log = tmp_state.state / instance_name(tmp_state) / "events.ndjson"
        _wait_for(log, "job_started")
        (first,) = claims(instance_name(tmp_state))
        process.send_signal(signal.SIGKILL)
        process.wait()
    try:
        yield first
    finally:
        config.write_text(config.read_text().replace("sleep 600", "true"))
        done = supervise(config, "--json", "--plain")
        assert done.status == 0, done.stderr
        assert claims(instance_name(tmp_state)) == []


def _wait_for(log: Path, event: str) -> None:
    import time

    deadline = time.monotonic() + 60
    while not (log.exists() and f'"{event}"' in log.read_text()):
        assert time.monotonic() < deadline, f"no {event}"
        time.sleep(0.05)


def test_a_range_is_not_used_again_while_a_job_of_a_dead_supervisor_has_it(
    killed: int, tmp_path: Path
) -> None:
    """Even where it is the only one."""
    numbers = idranges.Pool(killed, killed + SIZE)
    with pytest.raises(idranges.SpawnError, match="all 1 are taken"):
        idranges.IdRanges("another", numbers=numbers).take("run")
