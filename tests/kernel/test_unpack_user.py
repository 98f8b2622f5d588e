"""Layers of somebody who is not root: in a user namespace of their own, or not at all."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.container.host import has_user_attributes
from supervisor.image.removal import remove_tree
from tests.support import archives as t
from tests.support.nobody import NOBODY, Nobody, nobody

pytestmark = pytest.mark.kernel

CODE = """
import sys
from pathlib import Path
from supervisor.errors import ImageError
from supervisor.image.unpack import unpack
try:
    done = unpack(Path(sys.argv[1]), Path(sys.argv[2]))
except ImageError as error:
    sys.exit(str(error))
print(done.entries, done.devices_left_out, done.attributes_left_out)
"""
REMOVE = "import sys; from supervisor.image.removal import remove_tree; remove_tree(sys.argv[1])"
LAYER = t.archive(
    t.directory(b"locked", 0o555, uid=3, gid=4, mtime=5),
    t.file(b"locked/f", b"1", mode=0o4400, uid=1000, gid=1000),
    t.directory(b"shut", 0),
    t.file(b"shut/deep/f", b"2"),
    t.file(b"shut/.wh.gone"),
    t.file(b"shut/deep/.wh..wh..opq"),
    t.header(b"null", b"3", device=(1, 3)),
    t.header(b"disk", b"4", device=(8, 0)),
    t.header(b"pipe", b"6"),
    t.hardlink(b"h", b"locked/f"),
    t.pax((b"SCHILY.xattr.user.x", b"1"), (b"SCHILY.xattr.user.overlay.opaque", b"y")),
    t.directory(b"d"),
)


def need_attributes(target: Path) -> None:
    """Without trusted.*, a directory is marked opaque by one of user.*, or not unpacked at all."""
    if not has_user_attributes(str(target)):
        pytest.skip("the files here have no attributes of users")


@pytest.fixture(scope="module")
def user() -> Iterator[Nobody]:
    with nobody() as found:
        yield found


@pytest.fixture
def place(user: Nobody) -> Iterator[tuple[Path, Path]]:
    """A layer, and a directory of nobody's to unpack it into."""
    _run, own = user
    blob, target = own / "layer", own / "target"
    blob.write_bytes(LAYER)
    target.mkdir()
    os.chown(target, NOBODY, NOBODY)
    yield blob, target
    if target.exists():
        remove_tree(str(target))


def test_files_are_the_users_and_devices_are_left_out(
    user: Nobody, place: tuple[Path, Path]
) -> None:
    run, _own = user
    blob, target = place
    need_attributes(target)
    done = run(blob, target, python=("-c", CODE))
    assert (done.stdout, done.stderr) == ("12 2 1\n", "")
    found = t.listing(target)
    assert {entry[1:3] for entry in found.values()} == {(NOBODY, NOBODY)}
    assert found[b"./locked"][0] == "dr-xr-xr-x" and found[b"./locked"][3] == 5 * 10**9
    assert found[b"./locked/f"][0] == "-r-S------"
    assert found[b"./shut"][0] == "d---------"
    assert found[b"./shut/gone"][0] == "c---------" and found[b"./shut/gone"][5] == (0, 0)
    assert found[b"./shut/deep"][6] == {"user.overlay.opaque": b"y"}
    assert found[b"./d"][6] == {"user.x": b"1"}
    assert found[b"./h"][4] == b"./h" and found[b"./locked/f"][4] == b"./h"
    assert found[b"./pipe"][0] == "prw-r--r--"
    assert len(found) == 10
    removed = run(target, python=("-c", REMOVE))
    assert (removed.returncode, removed.stderr) == (0, "") and not target.exists()


def _in_user_namespace(home: Path, script: str, *arguments: Path) -> tuple[str, str]:
    """Run CODE by a shell's `script` in a namespace with the host's first ids; stdout, stderr."""
    code = home / "code.py"
    code.write_text(CODE)
    code.chmod(0o644)
    with subprocess.Popen(
        ["unshare", "--user", "sh", "-ec", f"echo; read _; {script}", "sh",
         "/usr/bin/python3", str(code), *map(str, arguments)],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(home.parent / "lib")},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "\n"
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{process.pid}/{name}").write_text("0 0 65536\n")
        return process.communicate("\n")


def test_without_user_namespaces_nothing_is_unpacked(
    user: Nobody, place: tuple[Path, Path]
) -> None:
    """In a namespace in which no other may be made, which changes nothing on the host."""
    _run, own = user
    nobody_there = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups"
    none = "echo 0 >/proc/sys/user/max_user_namespaces"
    # a second shell: the first was executed without being anybody, and has no capability
    script = f'exec sh -ec \'{none}; exec {nobody_there} "$@"\' sh "$@"'
    out, err = _in_user_namespace(own, script, *place)
    assert out == "" and "user namespace" in err and "max_user_namespaces" in err
    assert not os.listdir(place[1])


def test_the_root_of_a_user_namespace_keeps_what_ids_it_has(
    user: Nobody, place: tuple[Path, Path]
) -> None:
    """As in a container: no user namespace in it is needed; devices and trusted.* are not its."""
    _run, own = user
    blob, target = place
    need_attributes(target)
    os.chown(target, 0, 0)
    assert _in_user_namespace(own, 'exec "$@"', blob, target) == ("12 2 1\n", "")
    found = t.listing(target)
    assert found[b"./locked"][1:3] == (3, 4) and found[b"./h"][:3] == ("-r-S------", 1000, 1000)
    assert found[b"./shut/deep"][6] == {"user.overlay.opaque": b"y"}


@pytest.mark.parametrize("lacking", ["-sys_admin", "-sys_admin,-sys_chroot"])
def test_a_container_that_may_not_mount(
    user: Nobody, place: tuple[Path, Path], lacking: str
) -> None:
    """Root without CAP_SYS_ADMIN is shut in by chroot(2) alone; without that it is refused."""
    _run, own = user
    blob, target = place
    os.chown(target, 0, 0)
    code = own / "code.py"
    code.write_text(CODE)
    done = subprocess.run(
        ["setpriv", f"--bounding-set={lacking}", f"--inh-caps={lacking}", "/usr/bin/python3",
         str(code), str(blob), str(target)],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(own.parent / "lib")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "chroot" in lacking:
        assert "must be shut in, and cannot be" in done.stderr and not os.listdir(target)
        return
    # trusted.overlay.opaque takes CAP_SYS_ADMIN: the layer has an opaque directory
    assert "trusted.* attributes" in done.stderr and (target / "locked/f").exists()
