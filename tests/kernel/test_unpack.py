"""What comes of good layers: each kind of entry, of whiteout, and of compression."""

from __future__ import annotations

import gzip
import hashlib
import io
import lzma
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from backports import zstd

from supervisor.container.host import has_user_attributes
from supervisor.errors import ImageError
from supervisor.image.unpack import Bounds, unpack
from tests.support import archives as t
from tests.support.unpacking import Place

pytestmark = pytest.mark.kernel

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
"""struct vfs_cap_data: cap_net_bind_service=ep."""
WHITEOUT = ("c---------", (0, 0))


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path / "place")
    yield found
    found.close()


def opaque(place: Place) -> dict[str, bytes]:
    """The marks that a directory gets; a tmpfs has attributes of users since Linux 6.6."""
    users = has_user_attributes(str(place.top))
    return dict.fromkeys(("trusted.overlay.opaque", *["user.overlay.opaque"] * users), b"y")


def kind(entry: tuple[Any, ...]) -> tuple[str, object]:
    """Mode and content of an entry of a listing."""
    return entry[0], entry[5]


def test_each_kind_of_entry(place: Place) -> None:
    data = t.archive(
        t.directory(b"./", 0o751, uid=3, gid=4, mtime=7),
        t.directory(b"./etc/", 0o2755, gid=5),
        t.file(b"./etc/f", b"hello", mode=0o640, uid=1000, gid=1001, mtime=12),
        t.file(b"./etc/su", b"#!", mode=0o4755, uid=33),
        t.symlink(b"./etc/s", b"/etc/../../f"),
        t.hardlink(b"./etc/h", b"./etc/f"),
        t.header(b"dev/null", b"3", mode=0o666, device=(1, 3)),
        t.header(b"dev/disk", b"4", mode=0o660, gid=6, device=(259, 70000)),
        t.header(b"dev/pipe", b"6", mode=0o600),
        t.directory(b"sticky", 0o1777),
    )
    done = place.unpack(data)
    assert (done.entries, done.size, done.devices_left_out) == (11, len(data), 0)
    assert done.diff_id == f"sha256:{hashlib.sha256(data).hexdigest()}"
    found = place.found()
    assert found[b"."][:4] == ("drwxr-x--x", 3, 4, 7 * 10**9)
    assert found[b"./etc"][:4] == ("drwxr-sr-x", 0, 5, 10**18)
    assert found[b"./etc/f"][:6] == ("-rw-r-----", 1000, 1001, 12 * 10**9, b"./etc/f", b"hello")
    assert found[b"./etc/su"][:3] == ("-rwsr-xr-x", 33, 0)
    assert kind(found[b"./etc/s"]) == ("lrwxrwxrwx", b"/etc/../../f")
    assert found[b"./etc/h"][4] == b"./etc/f"  # one file
    assert kind(found[b"./dev/null"]) == ("crw-rw-rw-", (1, 3))
    assert found[b"./dev/disk"][:3] == ("brw-rw----", 0, 6)
    assert kind(found[b"./dev/disk"])[1] == (259, 70000)
    assert found[b"./dev/pipe"][0] == "prw-------"
    assert found[b"./dev"][0] == "drwxr-xr-x"
    assert found[b"./sticky"][0] == "drwxrwxrwt"
    assert len(found) == 11


def test_pax_says_more(place: Place) -> None:
    name = "größer/".encode() + b"\xff\xfe" + b"n" * 200
    data = t.archive(
        t.pax(
            (b"path", name), (b"mtime", b"1234567890.123456789"), (b"uid", b"3000000000"),
            (b"size", b"4"), (b"SCHILY.xattr.user.a", b"b\0c=\n"),
            (b"SCHILY.xattr.security.capability", CAPABILITY),
        ),
        t.file(b"short", b"data", size=0),
        t.pax((b"mtime", b"-1.5")),
        t.directory(b"old"),
        t.pax((b"linkpath", b"l" * 300)),
        t.symlink(b"s", b"short"),
    )  # fmt: skip
    done = place.unpack(data)
    users = has_user_attributes(str(place.top))
    assert done.attributes_left_out == (0 if users else 1)
    found = place.found()
    big = found[b"./" + name]
    assert big[1] == 3000000000 and big[3] == 1234567890123456789 and big[5] == b"data"
    mine = {"user.a": b"b\0c=\n"} if users else {}
    assert big[6] == {"security.capability": CAPABILITY, **mine}
    assert found[b"./old"][3] == -1500000000
    assert found[b"./s"][5] == b"l" * 300


def test_the_attributes_of_overlayfs_are_not_an_archives(place: Place) -> None:
    names = (b"trusted.overlay.opaque", b"user.overlay.redirect", b"trusted.x", b"security.ima")
    done = place.unpack(
        t.archive(
            t.pax(*((b"SCHILY.xattr." + name, b"y") for name in names)),
            t.directory(b"d"),
            t.pax((b"SCHILY.xattr.user.y", b"1")),
            t.symlink(b"s", b"d"),
        )
    )
    assert place.found()[b"./d"][6] == {} and done.attributes_left_out == 5


def test_a_default_acl_is_not_inherited_while_unpacking(place: Place) -> None:
    acl = bytes.fromhex("02000000" "01000700ffffffff" "02000700e8030000" "04000500ffffffff"
                        "10000700ffffffff" "20000500ffffffff")  # fmt: skip
    place.unpack(
        t.archive(
            t.pax((b"SCHILY.xattr.system.posix_acl_default", acl)),
            t.directory(b"d"),
            t.file(b"d/f", mode=0o644),
        )
    )
    found = place.found()
    assert found[b"./d"][6] == {"system.posix_acl_default": acl}
    assert (found[b"./d/f"][0], found[b"./d/f"][6]) == ("-rw-r--r--", {})


def test_what_a_setgid_directory_gives_is_taken_back(place: Place) -> None:
    place.unpack(
        t.archive(
            t.directory(b"d", 0o2755, gid=7),
            t.file(b"d/f"),
            t.directory(b"d/e", 0o755),
            t.symlink(b"d/s", b"f"),
            t.file(b"d/implied/f"),
        )
    )
    found = place.found()
    assert [found[b"./d/" + name][2] for name in (b"f", b"e", b"s", b"implied")] == [0] * 4
    assert found[b"./d/e"][0] == found[b"./d/implied"][0] == "drwxr-xr-x"


def test_directories_have_their_times_after_all_that_is_in_them(place: Place) -> None:
    place.unpack(
        t.archive(
            t.directory(b"a", mtime=5),
            t.directory(b"a/b", mtime=6),
            t.file(b"a/b/c"),
            t.file(b"a/d"),
            t.file(b".wh.x"),
        )
    )
    found = place.found()
    assert (found[b"./a"][3], found[b"./a/b"][3]) == (5 * 10**9, 6 * 10**9)


# Whiteouts.


def test_whiteouts(place: Place) -> None:
    place.unpack(
        t.archive(
            t.file(b"d/.wh.gone"),
            t.file(b"./.wh.top", b"with data"),
            t.file(b"o/.wh..wh..opq"),
            t.file(b"o/new", b"1"),
            t.file(b"missing/parent/.wh.x"),
        )
    )
    found = place.found()
    for name in (b"./d/gone", b"./top", b"./missing/parent/x"):
        assert kind(found[name]) == WHITEOUT
    assert found[b"./o"][6] == opaque(place) and kind(found[b"./o/new"])[1] == b"1"
    assert found[b"./missing"][0] == "drwxr-xr-x" and found[b"./missing"][6] == {}
    assert len(found) == 9


@pytest.mark.parametrize("turned", [False, True])
def test_a_whiteout_hides_no_entry_of_its_own_layer(place: Place, turned: bool) -> None:
    """A directory that has both is opaque: what is below it is hidden, what is in it is not."""
    members = [
        t.file(b".wh.file") + t.file(b".wh.directory") + t.file(b".wh.implied"),
        t.file(b"file", b"1") + t.directory(b"directory", 0o700) + t.file(b"directory/f", b"2")
        + t.file(b"implied/f", b"3"),
    ]  # fmt: skip
    place.unpack(t.archive(*(reversed(members) if turned else members)))
    found = place.found()
    assert kind(found[b"./file"]) == ("-rw-r--r--", b"1")
    assert (found[b"./directory"][0], found[b"./directory"][6]) == ("drwx------", opaque(place))
    assert (found[b"./implied"][0], found[b"./implied"][6]) == ("drwxr-xr-x", opaque(place))
    assert len(found) == 6


def test_an_opaque_root_and_an_opaque_directory_before_its_entry(place: Place) -> None:
    place.unpack(
        t.archive(t.file(b".wh..wh..opq"), t.file(b"d/.wh..wh..opq"), t.directory(b"d", 0o711))
    )
    found = place.found()
    assert found[b"."][6] == found[b"./d"][6] == opaque(place) and found[b"./d"][0] == "drwx--x--x"


def test_what_aufs_left_goes_but_its_hard_links_stay(place: Place) -> None:
    place.unpack(
        t.archive(
            t.directory(b".wh..wh.plnk"),
            t.file(b".wh..wh.plnk/12.34", b"linked"),
            t.hardlink(b"a", b".wh..wh.plnk/12.34"),
            t.hardlink(b"b", b".wh..wh.plnk/12.34"),
            t.file(b".wh..wh.aufs"),
            t.directory(b".wh..wh.orph"),
        )
    )
    assert place.names() == ["-rw-r--r-- a", "-rw-r--r-- b"]
    assert place.found()[b"./a"][5] == b"linked"


# Names, and entries of one name.


@pytest.mark.parametrize(
    "name", [b"a/f", b"./a/f", b"/a/f", b"//a//./f", b"a/./f"], ids=os.fsdecode
)
def test_names_that_are_the_same(place: Place, name: bytes) -> None:
    place.unpack(t.archive(t.file(name, b"x")))
    assert place.names() == ["drwxr-xr-x a", "-rw-r--r-- a/f"]


def test_a_later_entry_replaces_an_earlier_one(place: Place) -> None:
    def entries(name: bytes) -> list[bytes]:
        return [
            t.file(name, b"1"), t.directory(name, 0o700) + t.file(name + b"/x/y", b"2"),
            t.symlink(name, b"target"), t.header(name, b"6"), t.hardlink(name, b"other"),
        ]  # fmt: skip

    count = len(entries(b""))
    pairs = [(one, other) for one in range(count) for other in range(count)]
    members = [t.file(b"other", b"o")]
    alone = [t.file(b"other", b"o")]
    for one, other in pairs:
        name = b"n%d%d" % (one, other)
        members += [entries(name)[one], entries(name)[other]]
        alone.append(entries(name)[other])
    place.unpack(t.archive(*alone))
    wanted = place.found(times=False)
    place.unpack(t.archive(*members))
    assert place.found(times=False) == wanted


def test_a_directory_keeps_what_is_in_it_and_a_link_to_itself_is_no_change(place: Place) -> None:
    place.unpack(
        t.archive(
            t.file(b"d/f", b"1"),
            t.hardlink(b"d/f", b"./d//f"),
            t.directory(b"d", 0o711, uid=9),
        )
    )
    found = place.found()
    assert found[b"./d"][:2] == ("drwx--x--x", 9) and found[b"./d/f"][5] == b"1"


def test_a_directory_that_was_replaced_does_not_pass_on_its_time(place: Place) -> None:
    place.unpack(
        t.archive(
            t.directory(b"d", mtime=1),
            t.directory(b"d/e", mtime=2),
            t.directory(b"kept", mtime=3),
            t.directory(b"kept/e", mtime=4),
            t.file(b"d"),
            t.symlink(b"d", b"kept"),
        )
    )
    found = place.found()
    assert (found[b"./kept"][3], found[b"./kept/e"][3]) == (3 * 10**9, 4 * 10**9)


def test_links_on_the_way_are_followed_within_the_root(place: Place) -> None:
    """As containerd and GNU tar do, with the layer as the root."""
    place.unpack(
        t.archive(
            t.directory(b"usr/lib"),
            t.symlink(b"lib", b"usr/lib"),
            t.symlink(b"absolute", b"/usr"),
            t.symlink(b"up", b"../../../../usr"),
            t.file(b"lib/a"),
            t.file(b"absolute/b"),
            t.file(b"up/c"),
        )
    )
    names = [name.split()[1] for name in place.names()]
    assert {"usr/lib/a", "usr/b", "usr/c"} <= set(names)


def test_very_long_names(place: Place) -> None:
    deep = b"/".join([b"d" * 255] * 40)  # 10 KiB
    place.unpack(
        t.archive(
            t.pax((b"path", deep + b"/f")),
            t.file(b"x", b"deep"),
            t.pax((b"path", deep + b"/h"), (b"linkpath", deep + b"/f")),
            t.hardlink(b"x", b"x"),
            t.pax((b"linkpath", deep + b"/f")),
            t.hardlink(b"near", b"x"),
            t.pax((b"path", deep + b"/.wh.w")),
            t.file(b"x"),
            t.pax((b"path", deep)),
            t.directory(b"x", 0o701, mtime=9),
            t.pax((b"path", deep + b"/h"), (b"linkpath", deep + b"/f")),
            t.hardlink(b"x", b"x"),
            t.long(b"g" * 255),
            t.file(b"x", b"gnu"),
            t.long(b"k" * 4000, b"K"),
            t.symlink(b"s", b"x"),
        )
    )
    assert (place.target / "near").read_bytes() == b"deep"
    assert os.lstat(place.target / "near").st_nlink == 3
    assert (place.target / ("g" * 255)).read_bytes() == b"gnu"
    assert os.readlink(place.target / "s") == "k" * 4000
    at = os.open(place.target, os.O_RDONLY)
    for _ in range(40):
        below = os.open(b"d" * 255, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    status = os.fstat(at)
    assert sorted(os.listdir(at)) == ["f", "h", "w"]
    os.close(at)
    assert (status.st_mode & 0o777, status.st_mtime_ns) == (0o701, 9 * 10**9)


# Sparse files.

MIB = 1 << 20
PIECES = ((0, b"begin"), (5 * MIB, b"x" * 1024), (9 * MIB - 3, b"end"))
SIZE = 20 * MIB
DATA = b"".join(data for _, data in PIECES)
NUMBERS = [number for offset, data in PIECES for number in (offset, len(data))]


def old_gnu() -> bytes:
    """Four pieces in the header; here there are 26, so that more follow."""
    pieces = [(offset, 1) for offset in range(0, 23 * 1024, 1024)]
    pieces += [(offset, len(data)) for offset, data in PIECES[1:]] + [(SIZE, 0)]
    data = b"b" * 23 + PIECES[1][1] + PIECES[2][1]
    block = bytearray(t.header(b"f", b"S", size=len(data), magic=b"ustar  \0"))
    table = [t.octal(offset, 12) + t.octal(length, 12) for offset, length in pieces]
    block[386:482] = b"".join(table[:4])
    block[482] = 1
    block[483:495] = t.octal(SIZE, 12)
    more = b"".join(table[4:25]).ljust(504, b"\0") + b"\1" + bytes(7)
    last = b"".join(table[25:]).ljust(512, b"\0")
    return t.resummed(bytes(block)) + more + last + t.padded(data)


def pax_sparse(version: str) -> bytes:
    said = [(b"GNU.sparse.major", b"1" if version == "1.0" else b"0"),
            (b"GNU.sparse.minor", version[-1:].encode())]  # fmt: skip
    data = DATA
    if version == "0.0":
        said += [(b"GNU.sparse.size", b"%d" % SIZE), (b"GNU.sparse.numblocks", b"3")]
        for at, number in enumerate(NUMBERS):
            said.append(
                (b"GNU.sparse.numbytes" if at % 2 else b"GNU.sparse.offset", b"%d" % number)
            )
        return t.pax(*said) + t.file(b"f", data)
    said.append((b"GNU.sparse.name", b"f"))
    if version == "0.1":
        said += [(b"GNU.sparse.size", b"%d" % SIZE),
                 (b"GNU.sparse.map", b",".join(b"%d" % n for n in NUMBERS))]  # fmt: skip
    else:
        said.append((b"GNU.sparse.realsize", b"%d" % SIZE))
        lines = b"".join(b"%d\n" % n for n in (len(PIECES), *NUMBERS))
        data = t.padded(lines) + data
    return t.pax(*said) + t.file(b"GNUSparseFile.1/f", data)


@pytest.mark.parametrize("version", ["old", "0.0", "0.1", "1.0"])
def test_sparse_files_keep_their_holes(place: Place, version: str) -> None:
    place.unpack(t.archive(old_gnu() if version == "old" else pax_sparse(version), t.file(b"g")))
    assert [name.split()[1] for name in place.names()] == ["f", "g"]
    status = os.stat(place.target / "f")
    assert status.st_size == SIZE and status.st_blocks * 512 < MIB // 2
    with (place.target / "f").open("rb") as file:
        for offset, data in PIECES[1:]:
            file.seek(offset)
            assert file.read(len(data)) == data
        file.seek(0)
        assert file.read(5) == (b"b\0\0\0\0" if version == "old" else b"begin")
        file.seek(6 * MIB)
        assert not any(file.read(2 * MIB))


# Compression.


def gz(data: bytes) -> bytes:
    return gzip.compress(data, 1)


SOME = t.archive(t.file(b"a", bytes(3_000_000)), t.file(b"b", os.urandom(300_000)))
HALF = len(SOME) // 2
SKIPPED = b"\x53\x2a\x4d\x18\x05\0\0\0abcde"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (SOME, "none"),
        (gz(SOME), "gzip"),
        (gz(SOME[:HALF]) + gz(SOME[HALF:]) + gz(b"") + bytes(700), "gzip"),
        (b"".join(gz(SOME[at : at + 40_000]) for at in range(0, len(SOME), 40_000)), "gzip"),
        (zstd.compress(SOME), "zstd"),
        (SKIPPED + zstd.compress(SOME[:HALF]) + SKIPPED + zstd.compress(SOME[HALF:]), "zstd"),
        (lzma.compress(SOME, preset=0), "xz"),
        (lzma.compress(SOME[:HALF], preset=0) + bytes(4) + lzma.compress(SOME[HALF:]), "xz"),
    ],
    ids=["none", "gzip", "members", "many", "zstd", "skippable", "xz", "streams"],
)
def test_compression(place: Place, data: bytes, name: Any) -> None:
    diff_id = f"sha256:{hashlib.sha256(SOME).hexdigest()}"
    read: list[int] = []
    for compression in (None, name):
        done = place.unpack(data, compression=compression, diff_id=diff_id, progress=read.append)
        assert (done.diff_id, done.size, done.entries) == (diff_id, len(SOME), 2)
    assert read[-1] == len(data) and read == sorted(read[: len(read) // 2]) * 2
    assert (place.target / "a").stat().st_size == 3_000_000


def test_garbage_after_the_end_counts_for_the_digest_only(place: Place) -> None:
    data = t.archive(t.file(b"a")) + b"garbage" * 300_000
    assert place.unpack(data).diff_id == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert place.names() == ["-rw-r--r-- a"]


def test_an_empty_layer_and_one_without_its_end(place: Place) -> None:
    assert place.unpack(t.END).entries == 0
    assert place.unpack(t.file(b"a", b"x" * 600)).entries == 1


# What tarfile writes, in each of its formats.


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_other_writers(place: Place, form: int) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as file:
        for name in ("d" * 60 + "/" + "e" * 90, "f" * 100):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.uid = 3, 12345, 77
            file.addfile(info, io.BytesIO(b"abc"))
    place.unpack(out.getvalue())
    found = place.found()
    for name in (b"./" + b"d" * 60 + b"/" + b"e" * 90, b"./" + b"f" * 100):
        assert found[name][1:4] == (77, 0, 12345 * 10**9) and found[name][5] == b"abc"


# Who may not unpack, and where it cannot be.


def test_the_target_must_be_there_and_empty(place: Place, tmp_path: Path) -> None:
    blob = tmp_path / "layer.tar"
    blob.write_bytes(t.archive(t.file(b"a")))
    (place.outside / "empty").mkdir()
    with pytest.raises(ImageError, match="cannot unpack there: No such"):
        unpack(blob, tmp_path / "nowhere")
    with pytest.raises(ImageError, match="empty directory"):
        unpack(blob, tmp_path)
    with pytest.raises(ImageError, match="Not a directory"):
        unpack(blob, blob)
    with pytest.raises(ImageError, match="cannot read it: No such file"):
        unpack(tmp_path / "no blob", place.outside / "empty")


def test_what_progress_raises_ends_it(place: Place) -> None:
    class Stop(Exception):
        pass

    def stop(_read: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        place.unpack(t.archive(t.file(b"a", bytes(5_000_000))), progress=stop)


def test_the_bounds_are_told_with_their_names(place: Place) -> None:
    three = t.archive(*(t.file(b"%d" % n, bytes(1000)) for n in range(3)))
    place.refuse(three, "more than 2 entries", "[images].entries",
                 bounds=Bounds(entries=2, name="[images]"))  # fmt: skip
    place.refuse(three, "more than 4000 bytes", "Bounds.bytes", bounds=Bounds(bytes=4000))
    place.unpack(three, bounds=Bounds(entries=3, bytes=len(three)))
