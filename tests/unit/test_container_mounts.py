"""The plan of a job's file system: computed without touching anything, printed, and carried."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from supervisor.container import devices, hiding, mounts, rootfs
from supervisor.container.host import Facts
from supervisor.container.layers import Layers
from supervisor.errors import SpawnError
from supervisor.linux import constants as c
from supervisor.model import JobSpec, Limits, Mount, Tmpfs, UserNamespace
from supervisor.model.job import Device

WORK = "/run/x/work"
FACTS = Facts(
    work=WORK,
    privileged=True,
    submounts=("/opt", "/opt/deep"),
    pseudo=("/chroot/proc",),
    masked=(("/proc/kcore", False), ("/sys/firmware", True)),
    read_only=("/proc/sys",),
)
SELF = UserNamespace("self")


def plan(layers: str | None = None, facts: Facts = FACTS, uid: int = 0, **settings: Any) -> Any:
    spec = JobSpec(name="job", command=("true",), **settings)
    return rootfs.plan(spec, facts, Layers(layers), uid)


def lines(operations: Any) -> list[str]:
    return [operation.describe() for operation in operations]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with every mount point."""
    for name in ("dev", "proc", "run", "sys", "tmp", "data", "usr/lib"):
        (tmp_path / "root" / name).mkdir(parents=True)
    return tmp_path / "root"


def kinds(operations: Any) -> list[str]:
    return [type(operation).__name__ for operation in operations]


SETTINGS: list[dict[str, Any]] = [
    {},
    {"write": "overlay"},
    {"user_namespace": SELF},
    {"user_namespace": SELF, "write": "overlay"},
    {"network": "host", "mounts": (Mount("/etc", "/new/place"),), "tmpfs": (Tmpfs("/t", 4096),)},
    {"devices": (Device("/dev/null", "/dev/other"),)},
    {"devices": (Device("/dev/null", "/new/node"),), "user_namespace": SELF, "write": "overlay"},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("privileged", [True, False])
def test_every_operation_can_be_printed_and_carried(settings, privileged):
    facts = Facts(work=WORK, privileged=privileged, submounts=FACTS.submounts,
                  masked=FACTS.masked, read_only=FACTS.read_only)  # fmt: skip
    for operation in plan(facts=facts, **settings):
        again = mounts.unpack(operation.pack())
        assert (type(again), again.describe()) == (type(operation), operation.describe())
        assert "\n" not in operation.describe()


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_old_root_goes_after_the_new_one_is_there(settings):
    """Nothing of the host can be named after the pivot: it has been opened before."""
    found = kinds(plan(**settings))
    pivot, drop = found.index("PivotRoot"), found.index("DropOldRoot")
    assert pivot < drop
    assert found.count("PivotRoot") == found.count("DropOldRoot") == 1
    assert "OpenTree" not in found[pivot:]
    # the walls stand last, over whatever was mounted
    assert set(found[drop + 1 :]) <= {"ReadOnly", "Mask", "Attach", "Seal"}


@pytest.mark.parametrize("settings", SETTINGS)
def test_what_is_opened_is_attached_once(settings):
    operations = plan(**settings)
    opened = [one.tree for one in operations if isinstance(one, mounts.OpenTree)]
    attached = [one.tree for one in operations if isinstance(one, mounts.Attach)]
    assert sorted(opened) == sorted(attached) == sorted(set(opened))


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("privileged", [True, False])
def test_devices_are_opened_in_dev_alone(settings, privileged):
    facts = evolve(FACTS, privileged=privileged)
    operations = plan(facts=facts, **settings)
    granted = {device.path for device in settings.get("devices", ())}
    nodes = {f"/dev/{name}" for name, _, _ in mounts.DEV_NODES}
    for one in operations:
        if isinstance(one, mounts.OpenTree) and not one.attributes & c.MOUNT_ATTR_NODEV:
            assert one.source.startswith(f"{WORK}/dev") or one.source in granted | nodes | {"/sys"}
        if isinstance(one, mounts.Mount) and one.fstype != "devpts" and WORK not in one.target:
            assert one.flags & c.MS_NODEV, one.describe()
        if isinstance(one, mounts.Overlay):
            assert one.flags & c.MS_NODEV


def test_a_job_with_devices_has_a_dev_of_its_own(root):
    told = lines(plan(root=str(root), write="read-only", devices=(Device("/dev/null", "/dev/x"),)))
    own = next(n for n, line in enumerate(told) if line.endswith(" none /dev"))
    assert "nodev" in told[own] and "size=64K" in told[own]
    assert told.index("touch /dev/x") > own
    assert told.index("mount -o remount,bind,ro /dev") > told.index("touch /dev/x")
    assert f"open_tree {WORK}/dev/zero as #1, private,ro" in told
    assert not any(line.startswith(f"open_tree {WORK}/dev as") for line in told)


def sizes(**settings):
    """The options of each tmpfs, by where it is mounted."""
    found = {}
    for one in plan(write="read-only", **settings):
        if isinstance(one, mounts.Mount) and one.fstype == "tmpfs":
            assert one.target not in found
            found[one.target] = one.data
    return found


def test_what_is_in_memory_has_a_size(root):
    own = {"/tmp": "mode=1777,", "/run": "mode=755,", "/dev/shm": "mode=1777,"}
    found = sizes(root=str(root))
    assert found == {target: mode + "size=25%" for target, mode in own.items()}
    found = sizes(root=str(root), limits=Limits(memory=64 << 20))
    limited = "size=67108864,nr_inodes=16384"
    assert found == {target: mode + limited for target, mode in own.items()}


def test_each_size_can_be_said(root):
    asked = (
        Tmpfs("/tmp", 8 << 20), Tmpfs("/dev/shm", 1 << 20, 50), Tmpfs("/data", inodes=9),
    )  # fmt: skip
    found = sizes(root=str(root), limits=Limits(memory=64 << 20), tmpfs=asked)
    assert found == {
        "/tmp": "mode=1777,size=8388608,nr_inodes=2048",
        "/run": "mode=755,size=67108864,nr_inodes=16384",
        "/dev/shm": "mode=1777,size=1048576,nr_inodes=50",
        "/data": "mode=1777,size=67108864,nr_inodes=9",
    }


def test_a_mount_below_a_sized_tmp_is_not_covered_by_it(root, tmp_path):
    asked = {"tmpfs": (Tmpfs("/tmp", 1 << 20),), "mounts": (Mount(str(tmp_path), "/tmp/data"),)}
    order = [
        one.target
        for one in plan(root=str(root), **asked)
        if isinstance(one, (mounts.Attach, mounts.Mount))
    ]
    assert order.count("/tmp") == 1 and order.index("/tmp") < order.index("/tmp/data")


def test_a_device_is_no_mount(root):
    with pytest.raises(SpawnError, match=r'/dev/null: is a device \(devices = \["/dev/null"\]'):
        plan(root=str(root), mounts=(Mount("/dev/null", "/data/null"),))


@pytest.mark.parametrize(
    ("path", "said"),
    [("/no/such", "No such file"), ("/etc", "is no device"), ("/etc/passwd", "is no device")],
)
def test_what_is_no_device_is_refused(path, said):
    spec = JobSpec("one", ("true",), devices=(Device(path, "/dev/x"),))
    with pytest.raises(SpawnError, match=f"mounts: {path}: {said}"):
        devices.rules(spec)


def test_planning_is_pure(monkeypatch):
    for name in ("mkdir", "mknod", "symlink", "unlink", "chmod", "chdir", "mount"):
        monkeypatch.setattr(os, name, _forbidden, raising=False)
    assert lines(plan()) == lines(plan())


def _forbidden(*_: object) -> None:
    raise AssertionError("a plan does nothing")


def test_the_host_read_only_has_its_other_file_systems_read_only():
    opened = {one.source: one for one in plan() if isinstance(one, mounts.OpenTree)}
    assert {"/", "/opt", "/opt/deep", f"{WORK}/dev"} <= set(opened)
    assert all(opened[source].attributes & c.MOUNT_ATTR_RDONLY for source in opened)
    order = [one.target for one in plan() if isinstance(one, mounts.Attach)]
    assert order.index("/opt") < order.index("/opt/deep")


def test_a_mount_keeps_what_it_says(root, tmp_path):
    for read_only in (True, False):
        mount = Mount(str(tmp_path), "/data", read_only=read_only)
        (found,) = (
            one
            for one in plan(root=str(root), write="read-only", mounts=(mount,))
            if isinstance(one, mounts.OpenTree) and one.source == str(tmp_path)
        )
        assert found.recursive
        assert bool(found.attributes & c.MOUNT_ATTR_RDONLY) == read_only


def test_the_kernels_windows_are_closed():
    found = lines(plan())
    assert any("/proc/kcore" in line for line in found)
    assert any("/sys/firmware" in line for line in found)
    assert "mount --bind -o ro /proc/sys /proc/sys" in found
    proc = next(line for line in found if "-t proc" in line)
    assert all(flag in proc for flag in ("nosuid", "nodev", "noexec"))
    sysfs = next(line for line in found if "-t sysfs" in line)
    assert "ro" in sysfs.split(" -o ")[1].split(" ")[0].split(",")


def test_with_the_hosts_network_the_hosts_sys_is_bound():
    found = plan(network="host")
    assert not [line for line in lines(found) if "-t sysfs" in line]
    (opened,) = (o for o in found if isinstance(o, mounts.OpenTree) and o.source == "/sys")
    assert opened.attributes & c.MOUNT_ATTR_RDONLY


def test_an_overlay_in_memory_and_on_disk():
    memory = next(line for line in lines(plan(write="overlay")) if "-t overlay" in line)
    assert f"upperdir={WORK}/layers/upper" in memory
    disk = next(line for line in lines(plan("/runs/r", write="overlay")) if "-t overlay" in line)
    assert f"lowerdir={WORK}/white:/,upperdir=/runs/r/upper,workdir=/runs/r/work" in disk


def test_in_a_user_namespace_the_root_is_bound_with_all_below_it():
    (opened,) = (
        one for one in plan(user_namespace=SELF)
        if isinstance(one, mounts.OpenTree) and one.source == "/"
    )  # fmt: skip
    assert opened.recursive
    overlay = next(
        line for line in lines(plan(user_namespace=SELF, write="overlay")) if "upperdir" in line
    )
    assert f"lowerdir={WORK}/white:{WORK}/host," in overlay and "userxattr" in overlay


def test_the_windows_in_a_host_root_are_hidden_in_a_user_namespace():
    assert "/chroot/proc" in {o.target for o in plan(user_namespace=SELF) if hasattr(o, "target")}
    assert not [line for line in lines(plan()) if "/chroot" in line]


def test_a_complete_root_needs_no_overlay(root):
    found = lines(plan(root=str(root), write="read-only"))
    assert not [line for line in found if "overlay" in line]


@pytest.mark.parametrize(
    ("target", "made"),
    [
        ("/new", "/new"),
        ("/usr/lib/x/y", "/usr/lib/x/y"),
        ("/lib/x", "/usr/lib/x"),
        ("/deep/x", "/usr/lib/x"),
        ("/out/x", "/etc/x"),
    ],
)
def test_a_missing_mount_point_is_made_where_the_roots_links_lead(root, tmp_path, target, made):
    (root / "lib").symlink_to("usr/lib")
    (root / "deep").symlink_to("/lib")
    (root / "out").symlink_to("../../../etc")
    mount = Mount(str(tmp_path), target)
    operations = plan(root=str(root), write="read-only", mounts=(mount,))
    directories = {one.path for one in operations if isinstance(one, mounts.MakeDir)}
    assert f"{WORK}/layers/skeleton{made}" in directories
    assert all(path.startswith(WORK) for path in directories)


def test_below_an_own_tmpfs_a_mount_point_is_simply_made(root, tmp_path):
    for target in ("/tmp/a/b", "/run/a", "/scratch/a"):
        (root / "scratch").mkdir(exist_ok=True)
        found = lines(
            plan(root=str(root), write="read-only", tmpfs=(Tmpfs("/scratch"),),
                 mounts=(Mount(str(tmp_path), target),))
        )  # fmt: skip
        assert not [line for line in found if "overlay" in line]
        assert f"mkdir -p -m 0755 {target}" in found


@pytest.mark.parametrize(
    ("settings", "path"),
    [
        ({"root": "/no/such/root"}, "/no/such/root"),
        ({"root": "/etc/passwd"}, "/etc/passwd"),
        ({"mounts": (Mount("/no/such/source", "/mnt"),)}, "/no/such/source"),
    ],
)
def test_what_must_fail_is_told_ahead(settings, path):
    with pytest.raises(SpawnError) as caught:
        plan(**settings)
    assert (caught.value.stage, caught.value.path) == ("mounts", path)
    assert caught.value.hint


def test_a_loop_in_a_hostile_root_is_told(root, tmp_path):
    (root / "loop").symlink_to("loop")
    with pytest.raises(SpawnError, match="symbolic links"):
        plan(root=str(root), write="read-only", mounts=(Mount(str(tmp_path), "/loop/x"),))


def test_who_is_not_root_needs_no_walls_around_roots_files():
    """A start is quicker without; /proc/sys is root's to write."""
    assert "mount --bind -o ro /proc/sys /proc/sys" not in lines(plan(uid=1000))
    assert any("/proc/kcore" in line for line in lines(plan(uid=1000)))


def test_an_operation_has_exactly_its_fields():
    with pytest.raises(TypeError, match="unknown fields"):
        mounts.MakeDir(path="/x", mode=0o755, more=1)
    with pytest.raises(KeyError):
        mounts.MakeDir(path="/x")
    with pytest.raises(ValueError, match="zip"):
        mounts.unpack(("MakeDir", "/x"))


def test_directories_and_files_are_made_whatever_is_there(tmp_path):
    context = mounts.Context()
    deep = tmp_path / "a/b/c"
    for _ in range(2):
        mounts.MakeDir(path=str(deep), mode=0o700).execute(context)
    mounts.MakeFile(path=str(deep / "x/file")).execute(context)
    assert (deep / "x/file").read_bytes() == b""
    (deep / "x/file").write_text("kept")
    mounts.MakeFile(path=str(deep / "x/file")).execute(context)
    assert (deep / "x/file").read_text() == "kept"
    with pytest.raises(NotADirectoryError):
        mounts.MakeDir(path=str(deep / "x/file/below"), mode=0o700).execute(context)


def test_a_directory_that_another_makes_meanwhile_is_no_failure(tmp_path, monkeypatch):
    mkdir, seen = os.mkdir, []

    def slow(name, mode, *, dir_fd):
        """Somebody makes it just before."""
        mkdir(name, mode, dir_fd=dir_fd)
        seen.append(name)
        mkdir(name, mode, dir_fd=dir_fd)

    monkeypatch.setattr(mounts.os, "mkdir", slow)
    mounts.make_dirs(f"{tmp_path}/layers/upper", 0o755)
    assert (tmp_path / "layers/upper").is_dir()
    assert seen == ["layers", "upper"]
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError):
        mounts.make_dirs(f"{tmp_path}/file", 0o755)


def test_what_is_hidden_by_name_is_no_mount_that_a_rename_would_take_away():
    """A job's own list gets a layer of its own; by default the launcher's is used."""
    secret = os.path.realpath("/usr/bin/env")
    default = lines(plan())
    assert (
        f"mount -t overlay -o ro,nodev,lowerdir={WORK}/white/etc:/etc none {WORK}/over" in default
    )
    own = lines(plan(hide=(*hiding.HIDDEN, secret)))
    assert f"mknod {WORK}/layers/white{secret} c 0 0" in own
    assert f"mknod {WORK}/layers/white/etc/shadow c 0 0" in own
    place = os.path.dirname(secret)
    assert f"lowerdir={WORK}/layers/white{place}:{place} " in "\n".join(own)
    assert not any("white" in line for line in lines(plan(hide=())))


def test_the_launchers_view_is_used_where_all_in_it_is_to_be_hidden():
    covered = evolve(FACTS, covered=("/home",))
    seen = next(one for one in plan(facts=covered) if getattr(one, "source", "") == f"{WORK}/seen")
    assert seen.recursive and seen.attributes & c.MOUNT_ATTR_RDONLY
    for settings in ({"hide": ()}, {"write": "overlay"}, {"user_namespace": SELF}):
        assert not any("/seen" in line for line in lines(plan(facts=covered, **settings)))


def test_nothing_is_made_through_a_magic_link(tmp_path):
    """It leads to what this process holds open, which may be outside of any root."""
    outside = os.open(tmp_path, os.O_PATH)
    (tmp_path / "link").symlink_to(f"/proc/self/fd/{outside}")
    (tmp_path / "plain").symlink_to(tmp_path)
    context = mounts.Context()
    try:
        for path in (f"{tmp_path}/link/new", f"/proc/self/fd/{outside}/new"):
            for operation in (mounts.MakeDir(path=path, mode=0o755), mounts.MakeFile(path=path)):
                with pytest.raises(OSError) as caught:
                    operation.execute(context)
                assert caught.value.errno == errno.ELOOP
        assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "plain"]
        mounts.MakeFile(path=f"{tmp_path}/plain/new").execute(context)
        assert (tmp_path / "new").is_file()
    finally:
        os.close(outside)
