"""Roots, working directories and first programs made by somebody who means harm.

What a hostile image, or another job that may write to a directory, can put there: links at the
mount points, links to the descriptors of whoever sets the job up, a program that is the host's.
"""

from __future__ import annotations

import os
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.container.spawn import sealed
from tests.support import host
from tests.support.command import State
from tests.support.containers import PYTHON, after, run_jobs

pytestmark = pytest.mark.kernel

DESCRIPTORS = range(3, 26)
"""More than a job's init has open at any time."""

LOOK = """
for name in /proc/sys/kernel/core_pattern /proc/sysrq-trigger; do
    (: >>$name) 2>/dev/null && echo through $name
done
for name in /tmp /run /dev/shm /sys /proc /dev; do (echo x >$name/made) 2>/dev/null; done
cat /proc/keys /dev/console 2>/dev/null
true
"""
"""Writes nothing to the kernel: `>>` opens, and that is enough to know."""


@pytest.fixture
def root(tmp_path: Path, busybox: Path) -> Path:
    """A root with a shell, and beside it a directory that must stay as it is."""
    top = tmp_path / "root"
    (top / "bin").mkdir(parents=True)
    (top / "bin/sh").write_bytes(busybox.read_bytes())
    (top / "bin/sh").chmod(0o755)
    for name in ("cat", "ls", "true", "pwd"):
        (top / "bin" / name).symlink_to("sh")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file").write_text("the host's\n")
    return top


def untouched(outside: Path) -> bool:
    return [(one.name, one.read_text()) for one in outside.iterdir()] == [("file", "the host's\n")]


LINKS: dict[str, dict[str, str]] = {
    "proc": {"proc": "{outside}"},
    "proc-up": {"proc": "../../../../../../../..{outside}"},
    "proc-inside": {"proc": "bin"},
    "dev": {"dev": "{outside}"},
    "dev-proc": {"dev": "proc"},
    "dev-console": {"dev/console": "{outside}/file", "dev/null": "{outside}/file"},
    "dev-null": {"dev/null": "/proc/sys/kernel/core_pattern", "dev/shm": "{outside}"},
    "sys": {"sys": "proc"},
    "tmp": {"tmp": "{outside}", "run": "tmp"},
    "tmp-up": {"tmp": "../../../../../../../..{outside}"},
    "tmp-descriptor": {"tmp": "/proc/self/fd/9", "run": "/proc/1/root"},
    "tmp-kernel": {"tmp": "/proc/sys", "run": "/sys/kernel"},
    "loop": {"tmp": "run", "run": "tmp"},
    "etc": {"etc": "{outside}"},
}
"""In a root: where a link stands, and where it leads."""


def link(root: Path, links: dict[str, str], outside: Path) -> None:
    for name, target in links.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).symlink_to(target.format(outside=outside))


@pytest.mark.parametrize("write", ["read-only", "overlay"])
def test_links_at_the_mount_points(tmp_state: State, root: Path, tmp_path: Path, write: str):
    """CVE-2025-31133, -52565, -52881 and others began so."""
    outside = tmp_path / "outside"
    jobs = {}
    for name, links in LINKS.items():
        copy = tmp_path / name
        copy.mkdir()
        subprocess.run(["cp", "-a", str(root / "bin"), str(copy)], check=True)
        link(copy, links, outside)
        jobs[name] = {"command": ["/bin/sh", "-c", LOOK], "root": copy, "write": write,
                      "timeout": "30s"}  # fmt: skip
    assert (tmp_path / "tmp-up/tmp").resolve() == outside  # to the host, the links lead out
    for name, ended in run_jobs(tmp_state, jobs).items():
        assert ended.reason in ("succeeded", "start_failed"), (name, ended.record, ended.err)
        assert ended.out == "", name
    assert untouched(outside)


def numbered(root: Path) -> None:
    for number in DESCRIPTORS:
        (root / f"fd{number}").symlink_to(f"/proc/self/fd/{number}")


def test_a_mount_target_that_leads_to_a_descriptor(tmp_state: State, root: Path, tmp_path: Path):
    """The init has the host's root open while it mounts: nothing is made there (CVE-2025-52881)."""
    numbered(root)
    (tmp_path / "data").mkdir()
    jobs: dict[str, dict[str, Any]] = {}
    for number in DESCRIPTORS:
        target = f"/fd{number}{tmp_path}/made"
        job = {"command": ["/bin/true"], "root": root, "write": "overlay"}
        jobs[f"mount{number}"] = job | {"mounts": [f"{tmp_path}/data:{target}/mount{number}"]}
        jobs[f"tmpfs{number}"] = job | {"tmpfs": [f"{target}/tmpfs{number}"]}
    found = run_jobs(tmp_state, jobs)
    assert not (tmp_path / "made").exists()
    assert {ended.reason for ended in found.values()} == {"start_failed"}
    fd = os.open("/", os.O_PATH)
    assert Path(f"/proc/self/fd/{fd}{tmp_path}").samefile(tmp_path)  # such a link is real
    os.close(fd)


def test_a_working_directory_that_is_a_descriptor(tmp_state: State, root: Path):
    """CVE-2024-21626: a directory of the host that was left open, by number or by link."""
    numbered(root)
    job = {"command": ["/bin/pwd"], "root": root}
    ways = {"fd": "/proc/self/fd/", "link": "/fd"}
    if host.in_guest():
        del ways["link"]  # half a second for each start
    jobs = {
        f"{way}{number}": job | {"working_dir": f"{top}{number}"}
        for number in DESCRIPTORS
        for way, top in ways.items()
    }
    found = run_jobs(tmp_state, jobs)
    assert {name for name, ended in found.items() if ended.reason != "start_failed"} == set()
    assert {ended.failure[0] for ended in found.values()} == {"working_dir"}


def test_only_the_three_streams_are_open(tmp_state: State):
    """Also where whoever calls the command has left more open."""
    caller = ["sh", "-c", 'exec 7</ 8</etc/shadow; exec "$@"', "sh"]
    done = after(tmp_state, caller, "run", "--", "ls", "/proc/self/fd")
    assert done.stdout.split() == ["0", "1", "2", "3"], done.stderr  # 3 is what ls itself reads
    without = subprocess.run([*caller, "ls", "/proc/self/fd"], capture_output=True, text=True,
                             check=True).stdout  # fmt: skip
    assert {"7", "8"} <= set(without.split())


FIRST = """#!/proc/self/exe
import os
name = "/proc/self/exe"
print("runs")
def change_mode(): os.chmod(name, os.stat(name).st_mode & 0o7777)
def change_owner(): os.chown(name, 0, 0)
def write(): os.close(os.open(name, os.O_WRONLY))
def cut(): os.truncate(name, os.stat(name).st_size)
for what in (change_mode, change_owner, write, cut):
    try:
        what()
    except OSError:
        continue
    print("through", what.__name__)
"""


@pytest.mark.parametrize("settings", [{}, {"user_namespace": "self"}], ids=["root", "userns"])
def test_the_hosts_interpreter_as_first_program(
    tmp_state: State, tmp_path: Path, settings: dict[str, str]
):
    """CVE-2019-5736: what sets a job up is a program of the host's, and can be run by the job."""
    place = tmp_path / "place"
    place.mkdir()
    (place / "script").write_text(FIRST)
    (place / "script").chmod(0o755)
    (place / "link").symlink_to("/proc/self/exe")
    job = {"mounts": [f"{place}:/srv"], **settings}
    found = run_jobs(tmp_state, {
        "script": job | {"command": ["/srv/script"]},
        "link": job | {"command": ["/srv/link", "/srv/script"]},
    })  # fmt: skip
    for name, ended in found.items():
        assert ended.out == "runs\n", (name, ended.record, ended.err)
    os.chmod(PYTHON, stat.S_IMODE(os.stat(PYTHON).st_mode))


def test_the_interpreter_is_started_from_a_read_only_mount():
    with sealed(PYTHON) as program, pytest.raises(OSError, match="Read-only file system"):
        os.chmod(program, 0o755)


NULL = """
import os
for number in range(3):
    try:
        os.fchmod(number, 0o666)
    except OSError:
        continue
    os.write(2, b"through") if not os.path.isfile(f"/proc/self/fd/{number}") else None
"""


@pytest.mark.parametrize("userns", ["host", "self"])
def test_the_hosts_null_device(tmp_state: State, userns: str):
    """A job's stdin is /dev/null: its own, as root could change the mode of the host's."""
    command = [PYTHON, "-I", "-S", "-c", NULL]
    job = {"command": command, "user_namespace": userns}
    (ended,) = run_jobs(tmp_state, {"job": job}).values()
    assert (ended.reason, ended.err) == ("succeeded", "")
    fd = os.open(os.devnull, os.O_RDONLY)
    os.fchmod(fd, stat.S_IMODE(os.fstat(fd).st_mode))  # outside it goes through
    os.close(fd)


SAME = """
import os, sys
own = os.stat("/dev/null")
sys.exit(not all(os.path.samestat(os.fstat(number), own) for number in range(3)))
"""


def test_the_callers_null_device(tmp_state: State):
    caller = ["sh", "-c", 'exec "$@" </dev/null >/dev/null 2>/dev/null', "sh"]
    done = after(tmp_state, caller, "run", "--", PYTHON, "-I", "-S", "-c", SAME)
    assert done.status == 0


MODES = """
import os
for name in ("null", "zero", "granted"):
    try:
        os.chmod("/dev/" + name, 0o666)
    except OSError:
        os.close(os.open("/dev/" + name, os.O_WRONLY))
        continue
    print("through", name)
"""


@pytest.mark.parametrize("userns", ["host", "self"])
def test_the_mode_of_a_device_that_others_use(tmp_state: State, userns: str):
    """A granted device is the host's own node, and the others are shared by all jobs."""
    job = {"command": [PYTHON, "-I", "-S", "-c", MODES], "user_namespace": userns}
    jobs = {"plain": job, "granted": job | {"devices": ["/dev/full:/dev/granted"]}}
    jobs["plain"] |= {"command": [*job["command"][:-1], MODES.replace(', "granted"', "")]}
    for name, ended in run_jobs(tmp_state, jobs).items():
        assert (ended.reason, ended.out) == ("succeeded", ""), (name, ended.record, ended.err)


PASSWD = {"link": "/etc/shadow", "up": "../../../../../../../../etc/passwd"}


def test_a_passwd_file_that_is_none(tmp_state: State, root: Path, tmp_path: Path):
    """A link to the host's, and a pipe that nobody writes to: told at once, nothing is read."""
    jobs = {}
    for name in (*PASSWD, "pipe"):
        copy = tmp_path / name
        subprocess.run(["cp", "-a", str(root), str(copy)], check=True)
        (copy / "etc").mkdir()
        if name == "pipe":
            os.mkfifo(copy / "etc/passwd")
        else:
            (copy / "etc/passwd").symlink_to(PASSWD[name])
        jobs[name] = {"command": ["/bin/true"], "root": copy, "user": "daemon"}
    for name, ended in run_jobs(tmp_state, jobs).items():
        assert (ended.reason, ended.failure[0]) == ("start_failed", "user"), name
    assert "daemon:" in Path("/etc/passwd").read_text()  # the host's would have told


@pytest.fixture
def changing(root: Path) -> Iterator[Path]:
    """A root whose /proc is now a directory, now a link to another, as fast as can be."""
    for name in ("proc", "dev", "sys", "run", "tmp", "decoy/sys/kernel"):
        (root / name).mkdir(parents=True)
    (root / "other").symlink_to("decoy")
    stop = threading.Event()
    swaps: list[int] = []

    def swap() -> None:
        while not stop.is_set():
            for source, target in (("proc", "away"), ("other", "proc"), ("proc", "other"),
                                   ("away", "proc")):  # fmt: skip
                os.rename(root / source, root / target)
            swaps.append(1)
            stop.wait(0.0002)  # the supervisor's start needs the CPU as well

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield root
    finally:
        stop.set()
        thread.join()
    assert len(swaps) > 10


RACE = """
for top in /proc /away /other; do
    (: >>$top/sys/kernel/core_pattern) 2>/dev/null && echo through
done
true
"""


def test_a_root_that_changes_while_it_is_set_up(tmp_state: State, changing: Path):
    """The masks lie on the /proc that was mounted, whatever its name leads to by then."""
    job = {"command": ["/bin/sh", "-c", RACE], "root": changing, "write": "read-only"}
    found = run_jobs(tmp_state, {f"job{number}": job for number in range(40)})
    assert {ended.reason for ended in found.values()} <= {"succeeded", "start_failed"}
    assert [name for name, ended in found.items() if "through" in ended.out] == []
