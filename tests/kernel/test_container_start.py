"""How a command comes to run, as whom, with which descriptors; and what is told when it cannot."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import host
from tests.support.command import State, Supervise
from tests.support.containers import Ended, after, own_state, python, run_jobs

pytestmark = pytest.mark.kernel


def descriptors():
    """Number and target of what is open; the listing's own is closed when it is read."""
    import os

    names = os.listdir("/proc/self/fd")
    links = {name: f"/proc/self/fd/{name}" for name in names}
    return {name: os.readlink(link) for name, link in links.items() if os.path.lexists(link)}


def limits():
    import resource

    return resource.getrlimit(resource.RLIMIT_NOFILE)


WHO = ["sh", "-c", "id -u; id -g; id -G; echo $HOME $USER $LOGNAME"]

STARTS: dict[str, dict[str, Any]] = {
    "fds": {"command": python(descriptors)},
    "fds_overlay": {"command": python(descriptors), "write": "overlay", "user_namespace": "self"},
    "open_files": {"command": python(limits), "limits": {"open_files": 77}},
    "root": {"command": WHO},
    "name": {"command": WHO, "user": "daemon"},
    "number": {"command": WHO, "user": "1"},
    "unknown_number": {"command": WHO, "user": 54321},
    "both": {"command": WHO, "user": "nobody:daemon"},
    "both_numbers": {"command": WHO, "user": "54321:12345"},
    "group": {"command": WHO, "group": "daemon"},
    "no_user": {"command": ["true"], "user": "no-such-user"},
    "no_group": {"command": ["true"], "user": "daemon:no-such-group"},
    "outside_map": {"command": ["true"], "user": "nobody", "user_namespace": "self"},
    "no_command": {"command": ["no-such-command"]},
    "no_path": {"command": ["/no/such/command"]},
    "through_file": {"command": ["/etc/passwd/command"]},
    "not_executable": {"command": ["/etc/passwd"]},
    "directory": {"command": ["/etc"]},
    "no_cwd": {"command": ["true"], "working_dir": "/no/such/directory"},
    "file_cwd": {"command": ["true"], "working_dir": "/etc/passwd"},
    "closed_cwd": {"command": ["true"], "working_dir": "/root", "user": "nobody",
                   "hide": "nothing"},
    "long": {"command": ["true", "x" * 200_000]},
    "many": {"command": ["sh", "-c", "echo $#", "sh", *(["y" * 1000] * 400)]},
    "high_rlimit": {"command": ["true"], "limits": {"open_files": 1073741816}},
    "empty_word": {"command": ["sh", "-c", "echo \"$#$1\"", "sh", "", "x"]},
    "loop": {"command": ["/loop"], "root": "ROOT"},
    "no_interpreter": {"command": ["/script"], "root": "ROOT"},
    "not_a_program": {"command": ["/text"], "root": "ROOT"},
    "fifo": {"command": ["/fifo"], "root": "ROOT"},
    "second": {"command": ["tool"], "root": "ROOT", "environment": {"PATH": "/a:/none:/b"}},
    "refused": {"command": ["tool"], "root": "ROOT", "environment": {"PATH": "/a:/none"}},
    "relative": {"command": ["./b/tool"], "root": "ROOT"},
    "here": {"command": ["tool"], "root": "ROOT", "working_dir": "/b", "environment": {"PATH": ""}},
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of things that cannot be run, and one tool that can."""
    top = tmp_path_factory.mktemp("root")
    for name in ("a", "b"):
        (top / name).mkdir()
    (top / "loop").symlink_to("loop")
    _write(top / "script", b"#!/no/such/interpreter\n")
    _write(top / "text", b"neither a script nor a program")
    os.mkfifo(top / "fifo", 0o755)
    (top / "a/tool").write_bytes(b"#!/b/tool\n")  # without the permission
    busybox = host.static_busybox()
    if busybox is None:
        host.miss("tools", "needs a static busybox: apt-get install busybox-static")
    _write(top / "b/tool", busybox.read_bytes())
    return top


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o755)


@pytest.fixture(scope="module")
def jobs(root, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Ended]]:
    filled = {
        name: job | ({"root": root} if job.get("root") == "ROOT" else {})
        for name, job in STARTS.items()
    }
    with own_state(tmp_path_factory.mktemp("starts")) as where:
        yield run_jobs(where, filled)


@pytest.mark.parametrize("name", ["fds", "fds_overlay"])
def test_nothing_but_the_three_streams_is_open(jobs, name):
    found = jobs[name].told
    assert set(found) == {"0", "1", "2"}
    assert found["0"] == "/dev/null"


def test_not_even_what_the_supervisor_was_given_by_mistake(tmp_state: State, tmp_path):
    """A descriptor leaked by whoever started the supervisor is not passed on to a job."""
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    with secret.open() as leaked, secret.open() as high:
        os.dup2(high.fileno(), 200)
        try:
            done = after(tmp_state, [], "run", "--", *python(descriptors),
                         pass_fds=(leaked.fileno(), 200))  # fmt: skip
        finally:
            os.close(200)
    assert done.status == 0, done.stderr
    assert set(json.loads(done.stdout)) == {"0", "1", "2"}


def test_open_files(jobs):
    assert jobs["open_files"].told == [77, 77]


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("root", "0 0 0 /root root root"),
        ("name", "1 1 1 /usr/sbin daemon daemon"),
        ("number", "1 1 1 /usr/sbin daemon daemon"),
        ("unknown_number", "54321 54321 54321 / 54321 54321"),
        ("both", "65534 1 1 /nonexistent nobody nobody"),
        ("both_numbers", "54321 12345 12345 / 54321 54321"),
        ("group", "0 1 1 /root root root"),
    ],
)
def test_users_and_groups(jobs, name, told):
    assert jobs[name].reason == "succeeded", jobs[name].record
    assert " ".join(jobs[name].out.split()) == told


@pytest.mark.parametrize(
    ("name", "stage", "number", "path"),
    [
        ("no_user", "user", 0, "/etc/passwd"),
        ("no_group", "user", 0, "/etc/group"),
        ("no_command", "exec", errno.ENOENT, "no-such-command"),
        ("no_path", "exec", errno.ENOENT, "/no/such/command"),
        ("through_file", "exec", errno.ENOTDIR, "/etc/passwd/command"),
        ("not_executable", "exec", errno.EACCES, "/etc/passwd"),
        ("directory", "exec", errno.EACCES, "/etc"),
        ("no_cwd", "working_dir", errno.ENOENT, "/no/such/directory"),
        ("file_cwd", "working_dir", errno.ENOTDIR, "/etc/passwd"),
        ("closed_cwd", "working_dir", errno.EACCES, "/root"),
        ("long", "exec", errno.E2BIG, "/usr/local/sbin/true"),
        ("loop", "exec", errno.ELOOP, "/loop"),
        ("no_interpreter", "exec", errno.ENOENT, "/script"),
        ("not_a_program", "exec", errno.ENOEXEC, "/text"),
        ("fifo", "exec", errno.EACCES, "/fifo"),
        ("refused", "exec", errno.EACCES, "/a/tool"),
    ],
)
def test_a_start_that_fails_tells_stage_errno_and_path(jobs, name, stage, number, path):
    record = jobs[name].record
    if name == "closed_cwd" and os.stat("/root").st_mode & stat.S_IXOTH:
        pytest.skip("/root is open to all here")
    assert record["reason"] == "start_failed", record
    assert jobs[name].failure[:2] == (stage, number), record
    assert jobs[name].failure[2].endswith(os.path.basename(path)), record
    assert jobs[name].failure[2] == path or name == "long"
    assert (record["exit_code"], record["signal"]) == (None, None)
    assert (jobs[name].out, jobs[name].err) == ("", "")


def test_a_user_outside_of_the_mapped_ones_is_refused(jobs):
    assert jobs["outside_map"].failure[0] == "user"
    assert "mapped" in jobs["outside_map"].record["detail"]


def test_long_commands_arrive(jobs):
    """Longer than a message of the socket to the launcher may be."""
    assert jobs["many"].out == "400\n"
    assert jobs["empty_word"].out == "2\n"


@pytest.mark.parametrize("name", ["second", "relative", "here"])
def test_the_search_path_is_the_jobs_own(jobs, name):
    # busybox under a name it does not know: it ran, and says so
    assert (jobs[name].reason, jobs[name].record["exit_code"]) == ("failed", 127)
    assert "applet not found" in jobs[name].err


def test_a_limit_higher_than_may_be_set_is_told(jobs):
    record = jobs["high_rlimit"].record
    if record["reason"] == "start_failed":
        assert jobs["high_rlimit"].failure[:2] == ("rlimits", errno.EPERM)
        assert "CAP_SYS_RESOURCE" in record["detail"]


@pytest.mark.parametrize(
    ("command", "status"), [("/no/such", 127), ("no-such", 127), ("/etc/passwd", 126), ("/", 126)]
)
def test_the_status_of_run_is_a_shells(supervise: Supervise, command, status):
    done = supervise("run", "--", command)
    assert (done.status, done.stdout) == (status, "")
    assert command in done.stderr


def test_a_setuid_program_gains_nothing(tmp_state: State, tmp_path, busybox):
    """Neither by its owner nor by its capabilities: no_new_privs, and the mounts it lies on."""
    for name in ("id", "cat"):
        shutil.copy(busybox, tmp_path / name)
        (tmp_path / name).chmod(0o6755)
    mounts = [{"source": tmp_path, "target": "/mnt", "read_only": False}]
    job = {"user": "nobody", "mounts": mounts, "command": ["/mnt/id", "-u"]}
    jobs = {
        "id": job,
        "read": job | {"command": ["/mnt/cat", "/etc/shadow"], "hide": "nothing"},
        "caps": job | {"command": ["/mnt/cat", "/proc/self/status"]},
    }
    tmp_path.chmod(0o755)
    found = run_jobs(tmp_state, jobs)
    assert found["id"].out == "65534\n", found["id"].err
    assert (found["read"].out, found["read"].record["exit_code"]) == ("", 1)
    status = dict(line.split(":\t", 1) for line in found["caps"].out.splitlines())
    assert {int(status[which], 16) for which in ("CapEff", "CapPrm", "CapInh", "CapAmb")} == {0}


def test_supplementary_groups_by_the_roots_own_files(tmp_state: State, root):
    (root / "etc").mkdir(exist_ok=True)
    (root / "etc/passwd").write_text("me:x:5000:5001::/home/me:/bin/sh\n")
    (root / "etc/group").write_text("a:x:6001:me\nb:x:6002:you,me\nc:x:6003:you\nbroken\n:::\n")
    shutil.copy(root / "b/tool", root / "b/id")
    job = {"command": ["/b/id"], "root": root, "user": "me"}
    jobs = {"own": job, "other": job | {"user": "me:c"}}
    found = run_jobs(tmp_state, jobs)
    assert found["own"].out.split() == [
        "uid=5000(me)", "gid=5001", "groups=5001,6001(a),6002(b)"]  # fmt: skip
    assert found["other"].out.split() == [
        "uid=5000(me)", "gid=6003(c)", "groups=6001(a),6002(b),6003(c)"]  # fmt: skip
