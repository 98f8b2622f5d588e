"""Which of the host's mounts a root = "host" shows."""

from __future__ import annotations

from supervisor.container import host
from supervisor.linux import constants, proc

MOUNTINFO = r"""
20 1 254:0 / / rw,relatime - ext4 /dev/vda rw
21 20 0:21 / /proc rw - proc proc rw
22 20 0:22 / /sys rw - sysfs sysfs rw
23 22 0:23 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
24 20 0:6 / /dev rw - devtmpfs devtmpfs rw
25 24 0:24 / /dev/shm rw - tmpfs tmpfs rw
26 20 0:25 / /run rw - tmpfs tmpfs rw
27 26 8:2 / /run/media/disk rw - ext4 /dev/sdb rw
28 20 0:26 / /tmp rw - tmpfs tmpfs rw
29 20 8:1 / /home rw - ext4 /dev/sda1 rw
30 29 8:3 / /home/with\040space rw - ext4 /dev/sdc rw
31 20 0:31 / /var/lib/nfs/rpc_pipefs rw - rpc_pipefs sunrpc rw
32 20 0:21 / /chroot/proc rw - proc proc rw
33 20 0:33 / /runner rw - tmpfs tmpfs rw
34 20 0:34 / /boot/efi rw - vfat /dev/sda2 rw
35 20 0:35 / /net rw - autofs systemd-1 rw
""".strip()


def split(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return host.split([proc.Mount(line) for line in text.splitlines()])


def test_file_systems_and_windows_on_the_kernel_are_told_apart():
    real, pseudo = split(MOUNTINFO)
    assert real == ("/boot/efi", "/home", "/home/with space", "/runner")
    assert pseudo == ("/chroot/proc", "/net", "/var/lib/nfs/rpc_pipefs")


def test_the_last_mount_at_a_place_counts():
    over = (
        MOUNTINFO
        + "\n40 29 0:40 / /home rw - proc proc rw\n41 32 0:41 / /chroot/proc rw - ext4 x rw"
    )
    real, pseudo = split(over)
    assert "/home" not in real and "/home" in pseudo
    assert "/chroot/proc" in real and "/chroot/proc" not in pseudo


def test_what_is_mounted_over_is_not_there():
    """Its path leads to something else, or nowhere: a bind of it would fail, and every start."""
    real, _ = split(MOUNTINFO + "\n40 29 0:40 / /home rw - tmpfs none rw")
    assert "/home" in real and "/home/with space" not in real
    real, _ = split(MOUNTINFO + "\n40 20 0:40 / /boot rw - tmpfs none rw")
    assert "/boot" in real and "/boot/efi" not in real
    deep = "\n40 29 0:40 / /home rw - tmpfs none rw\n41 40 0:41 / /home/new/deep rw - tmpfs none rw"
    assert "/home/new/deep" in split(MOUNTINFO + deep)[0]


def test_no_mounts_at_all():
    assert split("") == ((), ())


def test_inside_is_by_components():
    assert host.inside("/run", ("/run",))
    assert host.inside("/run/x", ("/run",))
    assert not host.inside("/runner", ("/run",))
    assert host.inside("/anything", ("/",))


def test_the_clone_has_the_namespaces_asked_for():
    always = (constants.CLONE_NEWPID, constants.CLONE_NEWNS, constants.CLONE_NEWUTS,
              constants.CLONE_NEWIPC)  # fmt: skip
    for network in (False, True):
        for user in (False, True):
            flags = host.clone_flags(network=network, user=user)
            assert all(flags & one for one in always)
            assert bool(flags & constants.CLONE_NEWNET) == network
            assert bool(flags & constants.CLONE_NEWUSER) == user


def test_facts_are_read_again_only_when_mounts_changed(monkeypatch, tmp_path):
    reads = []
    look = host.look
    monkeypatch.setattr(host, "look", lambda work, *more: reads.append(work) or look(work, *more))
    found = host.Host(str(tmp_path))
    try:
        assert found.facts() is found.facts()
        assert len(reads) == 1
    finally:
        found.close()
