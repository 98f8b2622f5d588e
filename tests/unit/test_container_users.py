"""Looking up users in a root that somebody else made."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from supervisor.container import users
from supervisor.container.users import Identity
from supervisor.container.view import View
from supervisor.errors import SpawnError


def look_up(root: str, user: str | None, group: str | None) -> Identity:
    return users.look_up(View((root,), united=False), user, group)


PASSWD = """\
root:x:0:0:root:/root:/bin/sh
me:x:1000:1001:Me,,,:/home/me:/bin/sh
nohome:x:1002:1002:::
"""
GROUP = """\
root:x:0:
a:x:5:me,root
b:x:6:you,me
meat:x:7:meat,some
again:x:5:me
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root/etc").mkdir(parents=True)
    (tmp_path / "root/etc/passwd").write_text(PASSWD)
    (tmp_path / "root/etc/group").write_text(GROUP)
    return tmp_path / "root"


def passwd(root: Path) -> Path:
    return root / "etc/passwd"


@pytest.mark.parametrize(
    ("user", "group", "identity"),
    [
        (None, None, Identity(0, 0, (0, 5), "/root", "root")),
        ("root", None, Identity(0, 0, (0, 5), "/root", "root")),
        ("me", None, Identity(1000, 1001, (1001, 5, 6), "/home/me", "me")),
        ("1000", None, Identity(1000, 1001, (1001, 5, 6), "/home/me", "me")),
        ("me", "meat", Identity(1000, 7, (7, 5, 6), "/home/me", "me")),
        ("me", "99", Identity(1000, 99, (99, 5, 6), "/home/me", "me")),
        ("4242", None, Identity(4242, 4242, (4242,), "/", "")),
        ("4242", "b", Identity(4242, 6, (6,), "/", "")),
        ("nohome", None, Identity(1002, 1002, (1002,), "/", "nohome")),
    ],
)
def test_by_name_and_by_number(root, user, group, identity):
    assert look_up(str(root), user, group) == identity


@pytest.mark.parametrize(
    ("user", "group", "file"),
    [("nobody-here", None, "passwd"), ("me", "no-group", "group"), ("m", None, "passwd")],
)
def test_an_unknown_name_is_told_with_the_file(root, user, group, file):
    with pytest.raises(SpawnError, match=r"no (user|group)") as caught:
        look_up(str(root), user, group)
    assert (caught.value.stage, caught.value.errno) == ("user", 0)
    assert caught.value.path == f"{root}/etc/{file}"


def test_without_files_numbers_still_work(tmp_path):
    assert look_up(str(tmp_path), "12", "13") == Identity(12, 13, (13,), "/", "")
    with pytest.raises(SpawnError, match="no user"):
        look_up(str(tmp_path), "root", None)


@pytest.mark.parametrize(
    "line",
    [
        "evil:x:²:0::/:/bin/sh",  # str.isdigit() says yes, int() does not
        "evil:x:٣:0::/:/bin/sh",
        "evil:x:-1:0::/:/bin/sh",
        "evil:x:0x10:0::/:/bin/sh",
        "evil:x:4294967295:0::/:/bin/sh",
        "evil:x:99999999999999999999:0::/:/bin/sh",
        "evil:x:" + "9" * 5000 + ":0::/:/bin/sh",
        "evil:x:1:1::/",
        "evil:x:1:1::/:/bin/sh:more",
        "evil:x::::/:",
        "evil",
    ],
)
def test_a_malformed_entry_is_no_user(root, line):
    passwd(root).write_text(f"{line}\n{PASSWD}")
    (root / "etc/group").write_text(f"g:x:{'9' * 5000}:me\ng:x:²:me\ng:x\n{GROUP}")
    with pytest.raises(SpawnError, match='no user "evil"'):
        look_up(str(root), "evil", None)
    assert look_up(str(root), "me", None).groups == (1001, 5, 6)


def test_the_first_entry_counts(root):
    passwd(root).write_text(PASSWD + "me:x:0:0::/:/bin/sh\n")
    assert look_up(str(root), "me", None).uid == 1000


def test_bytes_that_are_no_text(root):
    passwd(root).write_bytes(b"\xff\xfe:x:1:1::/:\n\0:x:2:2::/:\n" + PASSWD.encode())
    assert look_up(str(root), "me", None).uid == 1000


@pytest.mark.parametrize("depth", [0, 3, 30])
def test_links_stay_inside_the_root(root, tmp_path, depth):
    """etc/passwd -> /secret means the root's own /secret, however many ".." it has."""
    (tmp_path / "secret").write_text("evil:x:666:666::/:\n")
    passwd(root).unlink()
    passwd(root).symlink_to("/" + "../" * depth + "secret")
    with pytest.raises(SpawnError, match="no user"):
        look_up(str(root), "evil", None)
    (root / "secret").write_text("evil:x:7:7::/:\n")
    assert look_up(str(root), "evil", None).uid == 7


def test_a_directory_that_is_a_link_stays_inside(root, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/passwd").write_text("evil:x:666:666::/:\n")
    passwd(root).unlink()
    (root / "etc/group").unlink()
    (root / "etc").rmdir()
    (root / "etc").symlink_to(tmp_path / "outside")
    with pytest.raises(SpawnError, match="no user"):
        look_up(str(root), "evil", None)
    (root / "etc").unlink()
    (root / "etc").symlink_to("../../outside")
    with pytest.raises(SpawnError, match="no user"):
        look_up(str(root), "evil", None)


@pytest.mark.parametrize("links", [{"etc/passwd": "passwd"}, {"a": "b", "b": "/a"}])
def test_a_loop_of_links_is_told(root, links):
    passwd(root).unlink()
    for name, target in links.items():
        (root / name).symlink_to(target)
    if "a" in links:
        passwd(root).symlink_to("../a")
    with pytest.raises(SpawnError) as caught:
        look_up(str(root), "me", None)
    assert (caught.value.stage, caught.value.errno) == ("user", errno.ELOOP)


def test_a_fifo_is_not_waited_for(root):
    passwd(root).unlink()
    os.mkfifo(passwd(root))
    with pytest.raises(SpawnError, match="Invalid argument"):
        look_up(str(root), "me", None)
    writer = os.open(passwd(root), os.O_RDWR)
    try:
        with pytest.raises(SpawnError) as caught:
            look_up(str(root), "me", None)
        assert caught.value.errno == errno.EINVAL
    finally:
        os.close(writer)


def test_a_directory_in_its_place_is_told(root):
    passwd(root).unlink()
    passwd(root).mkdir()
    with pytest.raises(SpawnError) as caught:
        look_up(str(root), "me", None)
    assert (caught.value.errno, caught.value.path) == (errno.EISDIR, str(passwd(root)))


@pytest.mark.timeout(20)
def test_a_huge_file_is_read_in_part(root):
    with passwd(root).open("w") as file:
        file.write(PASSWD)
        file.truncate(1 << 40)  # a hole
    assert look_up(str(root), "me", None).uid == 1000


@pytest.mark.timeout(20)
def test_a_link_to_an_endless_device_means_the_roots_own(root):
    passwd(root).unlink()
    passwd(root).symlink_to("/dev/zero")
    with pytest.raises(SpawnError, match="no user"):
        look_up(str(root), "me", None)
