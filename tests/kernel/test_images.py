"""Jobs in images: layers united, what the image says of how to run it, and who means harm.

The layers are made by hand, as no honest image would have them; `test_images_store.py` has jobs in
images from the store.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from supervisor.container.host import has_user_attributes
from tests.support.command import State
from tests.support.containers import private_mounts
from tests.support.layered import run_in

pytestmark = pytest.mark.kernel

TOOLS = ("cat", "chmod", "echo", "grep", "id", "ls", "mkdir", "mknod", "mount", "pwd", "rm",
         "sleep", "stat", "true")  # fmt: skip
SPACES = ("host", "auto")
NO_CONFIG: dict[str, Any] = {}


@pytest.fixture
def base(tmp_path: Path, busybox: Path) -> Path:
    """The lowest layer: a shell and the usual directories."""
    top = tmp_path / "layers/base"
    (top / "bin").mkdir(parents=True)
    (top / "bin/sh").write_bytes(busybox.read_bytes())
    (top / "bin/sh").chmod(0o755)
    for name in TOOLS:
        (top / "bin" / name).symlink_to("sh")
    for name in ("dev", "etc", "proc", "run", "sys", "tmp", "data"):
        (top / name).mkdir()
    (top / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nme:x:1000:1001::/home/me:/bin/sh\n")
    (top / "etc/group").write_text("root:x:0:\nmine:x:7:me\n")
    (top / "data/old").write_text("base")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("the host's\n")
    return top


def layer(base: Path, name: str) -> Path:
    """A further one beside it."""
    path = base.parent / name
    path.mkdir()
    return path


def whiteout(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mknod(path, 0o20000, 0)


def opaque(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
    os.setxattr(path, "trusted.overlay.opaque", b"y")
    if has_user_attributes(str(path)):
        os.setxattr(path, "user.overlay.opaque", b"y")


def untouched(base: Path) -> bool:
    outside = base.parents[1] / "outside"
    return [(one.name, one.read_text()) for one in outside.iterdir()] == [("file", "the host's\n")]


def script(text: str, **settings: Any) -> dict[str, Any]:
    return {"command": ["/bin/sh", "-c", text], "root": "image", "timeout": "30s", **settings}


def in_user_namespace(base: Path) -> tuple[str, ...]:
    """Both kinds of ids, where the file system can have layers for both."""
    return SPACES if has_user_attributes(str(base)) else SPACES[:1]


SEEN = """
cat /data/new /data/old 2>&1; ls /gone /under 2>&1; cat /lib/x; stat -c '%a %u:%g' /data
(echo mine >/data/written && cat /data/written) 2>&1
"""


def test_layers_are_united(tmp_state: State, base: Path):
    middle, top = layer(base, "middle"), layer(base, "top")
    (base / "gone").mkdir()
    (base / "gone/file").write_text("x")
    (base / "under").mkdir()
    (base / "under/below").write_text("x")
    whiteout(top / "gone")
    opaque(top / "under")
    (top / "under/above").write_text("x")
    (middle / "usr/lib").mkdir(parents=True)
    (middle / "usr/lib/x").write_text("through a link\n")
    (top / "lib").symlink_to("usr/lib")
    (middle / "data").mkdir()
    (middle / "data/new").write_text("middle\n")
    (top / "data").mkdir(mode=0o750)
    os.chown(top / "data", 3, 4)
    whiteout(top / "data/old")
    jobs = {
        f"{write}-{space}": script(SEEN, write=write, user_namespace=space)
        for write in ("read-only", "overlay")
        for space in in_user_namespace(base)
    }
    found = run_in(tmp_state, {"image": ([top, middle, base], NO_CONFIG)}, jobs)
    for name, ended in found.items():
        written = "mine" if "overlay" in name else "Read-only file system"
        mapped = "3:4" if "host" in name or ended.record["user_namespace"] else ""
        lines = ended.out.splitlines()
        assert lines[0] == "middle", (name, ended.record, ended.err)
        assert "No such file" in lines[1]
        assert "/gone: No such file" in lines[2]
        assert lines[3:6] == ["/under:", "above", "through a link"]
        assert lines[6] == f"750 {mapped}"
        assert written in lines[7], (name, lines)
        assert ended.record["image"] == {"name": "image:latest", "digest": "sha256:" + "0" * 64}
    assert not (base / "data/written").exists() and not (top / "data/written").exists()


CONFIG = {
    "environment": [["PATH", "/opt/bin:/bin"], ["COLOUR", "blue"], ["HOME", "/nowhere"]],
    "entrypoint": ["/bin/sh", "-c"],
    "command": ['echo "$COLOUR $HOME $(id -u):$(id -g):$(id -G)"; pwd'],
    "working_dir": "/srv/new/place",
    "user": "me",
    "volumes": ["/var/volume"],
    "exposed_ports": ["80/tcp"],
}


def test_what_the_image_says_is_honoured_unless_the_job_says_otherwise(
    tmp_state: State, base: Path
):
    plain: dict[str, Any] = {"root": "image", "timeout": "30s"}
    write = {"write": "read-only"}
    jobs: dict[str, Any] = {
        "all": plain,
        "read-only": plain | write,
        "command": plain | {"command": ["ls -d /var/volume; stat -c %a /srv/new"]},
        "entrypoint": plain | {"entrypoint": ["echo"], "command": ["x y", "z"]},
        "entrypoint-alone": plain | {"entrypoint": ["pwd"]},
        "none": plain | {"entrypoint": [], "command": ["pwd"]},
        "script": plain | {"script": "echo $COLOUR"},
        "other": plain | {"environment": {"COLOUR": "red"}, "user": "0", "working_dir": "/data"},
        "group": plain | {"group": "mine"},
    }
    found = run_in(tmp_state, {"image": ([base], CONFIG)}, jobs)
    place = "/srv/new/place\n"
    expected = {
        "all": f"blue /nowhere 1000:1001:1001 7\n{place}",
        "read-only": f"blue /nowhere 1000:1001:1001 7\n{place}",
        "command": "/var/volume\n755\n",
        "entrypoint": "x y z\n",
        "entrypoint-alone": place,
        "none": place,
        "script": "blue\n",
        "other": "red /nowhere 0:0:0\n/data\n",
        "group": f"blue /nowhere 1000:7:7\n{place}",
    }
    assert {name: ended.out for name, ended in found.items()} == expected
    assert found["command"].record["command"] == ["/bin/sh", "-c", jobs["command"]["command"][0]]


def test_users_and_signals_of_the_image(tmp_state: State, base: Path):
    images = {
        "number": ([base], {"user": "4242"}),
        "known": ([base], {"user": "1000"}),
        "both": ([base], {"user": "me:mine"}),
        "nobody": ([base], {"user": "nobody-here"}),
        "quit": ([base], {"stop_signal": "SIGQUIT"}),
        "bad": ([base], {"stop_signal": "SIGNONE"}),
        "nul": ([base], {"environment": [["A", "x\0y"]]}),
        "surrogate": ([base], {"command": ["/bin/true", "\ud800"]}),
        "empty": ([base], {}),
    }
    who = {"command": ["/bin/sh", "-c", "id -u; id -g"]}
    jobs: dict[str, Any] = {name: who | {"root": name} for name in images}
    wait = "trap 'echo caught; exit 0' QUIT; kill -QUIT $$; sleep 20"
    jobs["quit"] = {"root": "quit", "command": ["/bin/sh", "-c", "trap 'echo caught; exit 0' QUIT; "
                    "while :; do sleep 0.1; done"], "timeout": "1s"}  # fmt: skip
    del jobs["empty"]["command"], wait
    found = run_in(tmp_state, images, jobs)
    assert found["number"].out.split() == ["4242", "0"]
    assert found["known"].out.split() == ["1000", "1001"]
    assert found["both"].out.split() == ["1000", "7"]
    assert (found["nobody"].reason, found["nobody"].failure[0]) == ("start_failed", "user")
    assert 'no user "nobody-here"' in found["nobody"].record["detail"]
    assert (found["quit"].reason, found["quit"].out) == ("timeout", "caught\n")
    for name, said in (("bad", "SIGNONE"), ("nul", "configuration"), ("surrogate", "configuration"),
                       ("empty", "neither an entrypoint nor a command")):  # fmt: skip
        assert (found[name].reason, found[name].failure[0]) == ("start_failed", "image"), name
        assert said in found[name].record["detail"]


LOOK = """
for name in /proc/sys/kernel/core_pattern /proc/sysrq-trigger; do
    (: >>$name) 2>/dev/null && echo through $name
done
for name in /tmp /run /dev/shm /sys /proc /dev; do (echo x >$name/made) 2>/dev/null; done
cat /proc/keys /dev/console /dev/mem 2>/dev/null
true
"""

LINKS: dict[str, dict[str, str]] = {
    "proc": {"proc": "{outside}"},
    "proc-up": {"proc": "../../../../../../../..{outside}"},
    "dev": {"dev": "{outside}"},
    "tmp-descriptor": {"tmp": "/proc/self/fd/9", "run": "/proc/1/root"},
    "sys-loop": {"sys": "run", "run": "sys"},
    "etc": {"etc": "{outside}"},
    "etc-root": {"etc": "/proc/self/root/etc"},
    "mount": {"mnt": "{outside}"},
}


def test_links_in_a_layer_at_the_mount_points(tmp_state: State, base: Path, tmp_path: Path):
    """In a layer above, in the place of the directory that the one below has."""
    images, jobs = {}, {}
    for name, links in LINKS.items():
        over = layer(base, name)
        for at, target in links.items():
            (over / at).symlink_to(target.format(outside=tmp_path / "outside"))
        images[name] = ([over, base], NO_CONFIG)
        for write in ("read-only", "overlay"):
            job = script(LOOK, write=write) | {"root": name}
            if name == "mount":
                job["mounts"] = [f"{base}:/mnt/inner:ro"]
            jobs[f"{name}-{write}"] = job
    for name, ended in run_in(tmp_state, images, jobs).items():
        assert ended.reason in ("succeeded", "start_failed"), (name, ended.record, ended.err)
        assert ended.out == "", name
    assert untouched(base)


def test_a_user_is_never_looked_up_outside(tmp_state: State, base: Path):
    """The host's /etc/passwd knows daemon; the image's does not."""
    images = {}
    for name, target in (("absolute", "/etc/passwd"), ("up", "../../../../../../etc/passwd"),
                         ("magic", "/proc/self/root/etc/passwd")):  # fmt: skip
        over = layer(base, name)
        (over / "etc").mkdir()
        (over / "etc/passwd").symlink_to(target)
        images[name] = ([over, base], NO_CONFIG)
    over = layer(base, "directory")
    (over / "etc").symlink_to("/proc/1/root/etc")
    images["directory"] = ([over, base], NO_CONFIG)
    over = layer(base, "pipe")
    (over / "etc").mkdir()
    os.mkfifo(over / "etc/passwd")
    images["pipe"] = ([over, base], NO_CONFIG)
    over = layer(base, "device")
    (over / "etc").mkdir()
    os.mknod(over / "etc/passwd", 0o20666, os.makedev(1, 5))  # zero: endless
    images["device"] = ([over, base], NO_CONFIG)
    jobs = {name: script("true") | {"root": name, "user": "daemon"} for name in images}
    assert "daemon:" in Path("/etc/passwd").read_text()
    for name, ended in run_in(tmp_state, images, jobs).items():
        assert (ended.reason, ended.failure[0]) == ("start_failed", "user"), (name, ended.record)


PRIVILEGE = """
id -u
for node in /null /mem /disk; do (cat $node >/dev/null) 2>&1; done
grep NoNewPrivs /proc/self/status
mount -t tmpfs none /data 2>&1
mknod /data/null c 1 3 && cat /data/null 2>&1
"""


def test_devices_and_setuid_programs_of_a_layer(tmp_state: State, base: Path):
    over = layer(base, "over")
    for name, kind, major, minor in (("null", 0o20666, 1, 3), ("mem", 0o20666, 1, 1),
                                     ("disk", 0o60666, 7, 0)):  # fmt: skip
        os.mknod(over / name, kind, os.makedev(major, minor))
        os.chmod(over / name, 0o666)
    (base / "bin/sh").chmod(0o6755)  # it is what runs, and it gains nothing
    images = {"image": ([over, base], NO_CONFIG)}
    jobs = {
        f"{write}-{user}": script(PRIVILEGE, write=write, user=user)
        for write in ("read-only", "overlay") for user in ("0", "1000")
    }  # fmt: skip
    for name, ended in run_in(tmp_state, images, jobs).items():
        lines = ended.out.splitlines()
        user = name.rpartition("-")[2]
        assert lines[0] == user
        assert ["Permission denied" in line for line in lines[1:4]] == [True] * 3, (name, lines)
        assert lines[4].split() == ["NoNewPrivs:", "1"], (name, lines)
        assert not [line for line in lines[5:] if "denied" not in line and "not permitted" not in
                    line and "Read-only" not in line], (name, lines)  # fmt: skip


def test_a_mount_point_that_a_layer_takes_away(tmp_state: State, base: Path, tmp_path: Path):
    """A whiteout of /proc, /data and the like; an opaque directory where a mount is to be."""
    over = layer(base, "over")
    for name in ("proc", "dev", "data", "tmp"):
        whiteout(over / name)
    opaque(over / "etc")
    (over / "etc/inner").mkdir(mode=0o700)
    os.chown(over / "etc/inner", 1000, 1001)
    (over / "etc/inner/kept").write_text("kept")
    mounts = [f"{tmp_path}/outside:/data/deep:ro", f"{tmp_path}/outside:/etc/inner/mine:ro"]
    look = "cat /data/deep/file /etc/inner/mine/file /etc/inner/kept; stat -c '%a %u:%g' /etc/inner"
    jobs = {
        f"{write}-{space}": script(look, write=write, user_namespace=space, mounts=mounts)
        for write in ("read-only", "overlay")
        for space in in_user_namespace(base)
    }
    for name, ended in run_in(tmp_state, {"image": ([over, base], NO_CONFIG)}, jobs).items():
        lines = ended.out.splitlines()
        assert lines[:2] == ["the host's"] * 2, (name, ended.record, ended.err)
        assert lines[2] == "kept700 1000:1001", (name, lines)


def test_a_root_that_is_opaque_hides_all_below(tmp_state: State, base: Path):
    """overlayfs itself does not ask that of a layer's root."""
    hidden = layer(base, "hidden")
    (hidden / "secret").write_text("x")
    opaque(base)
    jobs = {"job": script("ls -d /secret /bin 2>&1")}
    found = run_in(tmp_state, {"image": ([base, hidden], NO_CONFIG)}, jobs)
    assert "/secret: No such file" in found["job"].out and "/bin" in found["job"].out


def many(base: Path, count: int, directory: str = "many") -> list[Path]:
    layers = []
    for number in range(count - 1):
        path = base.parent / directory / f"{number:064}"
        path.mkdir(parents=True)
        (path / f"file{number}").write_text("")
        layers.append(path)
    return [*layers, base]


@pytest.mark.parametrize("count", [2, 120, 497])
def test_many_layers(tmp_state: State, base: Path, count: int):
    """Their names are far longer than the page that mount(2) takes."""
    layers = many(base, count)
    assert count < 100 or len(":".join(map(str, layers))) > 8192
    look = "set -- /file*; echo $#"
    jobs = {
        f"{write}-{space}": script(look, write=write, user_namespace=space)
        for write in ("read-only", "overlay")
        for space in in_user_namespace(base)
    }
    for name, ended in run_in(tmp_state, {"image": (layers, NO_CONFIG)}, jobs).items():
        assert ended.out == f"{count - 1}\n", (name, ended.record["detail"], ended.err)


def test_too_many_layers_are_refused(tmp_state: State, base: Path):
    jobs = {"job": script("true")}
    ended = run_in(tmp_state, {"image": (many(base, 498), NO_CONFIG)}, jobs)["job"]
    assert (ended.reason, ended.failure[0]) == ("start_failed", "mounts")
    assert "498 layers, and the kernel takes 497" in ended.record["detail"]


def test_layers_with_names_that_mean_something_to_mount(tmp_state: State, base: Path):
    """ "," ":" and "\\" separate and quote its options."""
    layers = many(base, 4, "a,b:c\\d")
    jobs = {write: script("ls -d /file*", write=write) for write in ("read-only", "overlay")}
    for name, ended in run_in(tmp_state, {"image": (layers, NO_CONFIG)}, jobs).items():
        assert ended.out.split() == ["/file0", "/file1", "/file2"], (name, ended.record)


STACK = """cd {top}
for n in 1 2; do
    mkdir -p over$n/low over$n/up over$n/work over$n/root
done
mount -t tmpfs none over1/up
mkdir over1/up/up over1/up/work
mount -t overlay -o lowerdir=over1/low,upperdir=over1/up/up,workdir=over1/up/work none over1/root
cp -a base over1/root/base
mkdir over1/root/other
mount -t overlay -o lowerdir=over1/root:over1/low none over2/root
"""


def test_layers_that_lie_on_an_overlay(tmp_state: State, base: Path):
    """One is fine, and of two it is told: the kernel does not stack three."""
    top = base.parent
    images = {
        "once": ([top / "over1/root/other", top / "over1/root/base"], NO_CONFIG),
        "twice": ([top / "over2/root/other", top / "over2/root/base"], NO_CONFIG),
    }
    jobs = {name: script("echo runs") | {"root": name} for name in images}
    wrapper = private_mounts(STACK.format(top=top))
    found = run_in(tmp_state, images, jobs, wrapper=wrapper)
    assert found["once"].out == "runs\n", found["once"].record
    assert found["twice"].reason == "start_failed"
    assert "lies on an overlay" in found["twice"].record["detail"]


def test_without_user_attributes_a_user_namespace_is_refused(tmp_state: State, base: Path):
    """What an opaque directory hides would be back: nobody there reads the other attribute."""
    top = base.parent
    ramfs = (
        f"mkdir {top}/ram; mount -t ramfs none {top}/ram; cp -a {base} {top}/ram; mkdir {top}/ram/x"
    )
    images = {"image": ([top / "ram/x", top / "ram/base"], NO_CONFIG)}
    jobs = {space: script("echo runs", user_namespace=space) for space in SPACES}
    found = run_in(tmp_state, images, jobs, wrapper=private_mounts(ramfs))
    assert found["host"].out == "runs\n", found["host"].record
    assert found["auto"].reason == "start_failed"
    assert "user.* attributes" in found["auto"].record["detail"]
