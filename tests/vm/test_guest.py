"""The guest itself: what goes in, what comes back, and that the host is left alone."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from shlex import quote

import pytest

from tests.support.command import ROOT
from tests.support.containers import private_mounts
from tests.vm import archive, kernel, session
from tests.vm.errors import RigError
from tests.vm.guest import Hierarchy

pytestmark = pytest.mark.timeout(300)  # the first boot downloads a kernel


def vm(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the tool as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "tests.vm", *arguments],
        cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.vm
def test_streams_and_status_come_back_from_a_v2_host(tmp_path: Path) -> None:
    shared, private = tmp_path / "with a space", tmp_path / "private"
    shared.mkdir()
    private.mkdir()
    script = (
        f'echo "$(cat /proc/self/cgroup)"; echo told >&2; touch "{private}/no"; '
        f'cat /sys/fs/cgroup/cgroup.controllers >"{shared}/yes"; stat -c %s /dev/vda; exit 7'
    )
    done = vm("--writable", str(shared), "--disk", "1M", "--", "sh", "-c", script)
    assert done.returncode == 7, done.stderr
    assert done.stdout.startswith("0::/command\n")
    assert "told\n" in done.stderr
    assert {"memory", "pids", "cpu", "io"} <= set((shared / "yes").read_text().split())
    assert list(private.iterdir()) == []


@pytest.mark.vm
@pytest.mark.parametrize(
    ("kind", "unified", "on_v1", "on_v2"),
    [
        ("v1", "", {"memory", "pids", "cpu", "cpuacct", "blkio", "freezer"}, None),
        ("hybrid", "/unified", {"memory", "pids", "cpu", "cpuacct", "blkio", "freezer"}, set()),
        ("mixed:memory,pids", "/unified", {"memory", "pids"}, {"cpu", "io"}),
    ],
)
def test_the_hierarchies_are_those_asked_for(
    kind: str, unified: str, on_v1: set[str], on_v2: set[str] | None
) -> None:
    """The command is below the root in each, as a service would be."""
    script = f"cat /proc/self/cgroup; echo -; cat /sys/fs/cgroup{unified}/cgroup.controllers"
    done = vm("--hierarchy", kind, "--", "sh", "-c", script)
    above, _, listed = done.stdout.partition("-\n")
    lines = above.splitlines()
    if on_v2 is None:
        assert "No such file" in done.stderr
    else:
        assert lines.pop() == "0::/command"
        assert set(listed.split()) == on_v2
    found = [line.split(":") for line in lines]
    assert all(path == "/command" for _, _, path in found), done.stdout
    assert on_v1 <= {name for _, name, _ in found}
    assert kind != "mixed:memory,pids" or len(found) == 2


@pytest.mark.vm
def test_a_controller_the_kernel_lacks_is_an_error_of_the_guest() -> None:
    done = vm("--hierarchy", "mixed:nonsense", "--", "true")
    assert done.returncode == 125
    assert "this kernel has no v1 hierarchy with nonsense" in done.stderr


@pytest.mark.vm
def test_words_for_the_kernel_come_last_and_the_hosts_state_is_not_seen() -> None:
    words = ("--append", "one=1 two", "--append", "one=2")
    done = vm(*words, "--", "sh", "-c", "cat /proc/cmdline; ls -A /run /var/lib/supervise")
    assert done.returncode == 0, done.stderr
    line, *listed = done.stdout.splitlines()
    assert "cgroup_no_v1=all one=1 two one=2" in line
    assert listed == ["/run:", "vm", "", "/var/lib/supervise:"]


@pytest.mark.vm
def test_the_hosts_other_file_systems_are_seen_and_left_alone(tmp_path: Path) -> None:
    other = tmp_path / "other's"
    other.mkdir()
    outside = private_mounts(
        f"mount -t tmpfs none {quote(str(other))}; mkdir {quote(str(other))}/deep;"
        f"mount -t tmpfs none {quote(str(other))}/deep; echo there >{quote(str(other))}/deep/file"
    )
    script = f"cat {quote(str(other))}/deep/file; echo >{quote(str(other))}/deep/file; echo $?"
    guest = shlex.join([sys.executable, "-m", "tests.vm", "--", "sh", "-c", script])
    done = subprocess.run(
        [*outside, "sh", "-c", f"{guest}; cat {quote(str(other))}/deep/file"],
        cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "there\n0\nthere\n", done.stderr


def test_an_unknown_hierarchy_is_refused_with_the_known_ones() -> None:
    for word in ("v3", "mixed", "mixed:", "mixed:a b", "hybrid:memory"):
        with pytest.raises(RigError, match="use v2, v1, hybrid or mixed:CONTROLLER"):
            Hierarchy.parse(word)


@pytest.mark.vm
def test_a_command_killed_by_a_signal_has_the_shell_s_status() -> None:
    assert vm("--", "sh", "-c", "kill -9 $$").returncode == 137


@pytest.mark.vm
def test_the_time_limit_ends_the_guest_and_all_its_processes() -> None:
    """That none is left is the session's check for leaks to find."""
    done = vm("--timeout", "3", "--", "sleep", "100")
    assert done.returncode == session.TIMED_OUT
    assert "time limit of 3 s reached" in done.stderr


def test_no_command_is_a_usage_error() -> None:
    done = vm("--engine", "uml")
    assert done.returncode == 2
    assert "no command" in done.stderr


def test_an_archive_is_read_back_by_another_program(tmp_path: Path, busybox: Path) -> None:
    members = [
        archive.Member("etc", 0o40755),
        archive.Member("etc/a name", 0o100600, b"x" * 4097),
        archive.Member("empty", 0o100644),
    ]
    first = archive.cpio(members)
    assert len(first) % 512 == 0
    subprocess.run([busybox, "cpio", "-id"], input=first, cwd=tmp_path, check=True)
    assert (tmp_path / "etc/a name").read_bytes() == b"x" * 4097
    assert (tmp_path / "etc/a name").stat().st_mode == 0o100600
    assert (tmp_path / "empty").read_bytes() == b""


def test_a_kernel_is_found_inside_its_compressed_image() -> None:
    plain = archive.ELF + bytes(range(256)) * 64
    packed = subprocess.run(["gzip", "-c"], input=plain, capture_output=True, check=True).stdout
    payload = packed + len(plain).to_bytes(4, "little")
    head = bytearray((4 + 1) * 512)
    head[0x1F1] = 4
    head[0x24C:0x250] = len(payload).to_bytes(4, "little")
    assert archive.vmlinux(bytes(head) + payload) == plain
    assert archive.vmlinux(bytes(head) + b"not packed" + payload) is None


def test_modules_load_after_those_they_need(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text(
        "k/fuse.ko:\nk/virtiofs.ko: k/fuse.ko k/virtio-ring.ko\n"
        "k/virtio-ring.ko: k/virtio.ko\nk/virtio.ko:\n"
    )
    (tmp_path / "k").mkdir()
    for name in ("fuse", "virtiofs", "virtio-ring", "virtio"):
        (tmp_path / f"k/{name}.ko").write_text(name)
    *_modules, listed = kernel._early_modules(tmp_path)
    order = listed.data.decode().split()
    assert sorted(order) == ["/m/fuse.ko", "/m/virtio-ring.ko", "/m/virtio.ko", "/m/virtiofs.ko"]
    assert order.index("/m/virtio.ko") < order.index("/m/virtio-ring.ko")
    assert order.index("/m/virtio-ring.ko") < order.index("/m/virtiofs.ko")


def test_a_package_laid_out_otherwise_is_refused(tmp_path: Path) -> None:
    (tmp_path / "package-uml").mkdir()
    with pytest.raises(RigError, match=r"0 of usr/bin/linux\.uml instead of one"):
        kernel.prepare("uml", Path(shutil.which("sh") or ""), tmp_path)


def test_only_a_whole_status_line_counts() -> None:
    heard = session.Outcome()
    for piece in (b"begin 1.", b"5\nexit 1", b"7"):
        heard.hear(piece)
        assert heard.status is None
    heard.hear(b"\n")
    assert heard.status == 17
    assert heard.began is not None
