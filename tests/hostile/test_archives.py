"""Layers that try to write elsewhere, to fill the disk, or to confuse who reads them.

Each says what exactly results, or which error; around the target there is a tree that must be as
before, whatever comes (`Place.unpack`).  Names of the host are absolute: of that tree, /proc, /dev.
"""

from __future__ import annotations

import gzip
import lzma
import os
import select
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from backports import zstd

from supervisor.image.unpack import Bounds
from tests.support import archives as t
from tests.support import host
from tests.support.command import ROOT
from tests.support.unpacking import Place

pytestmark = [pytest.mark.kernel, host.outside("unpacking")]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place(tmp_path / "place")
    yield found
    found.close()


# Out of the directory.


@pytest.mark.parametrize(
    "name",
    [b"../outside/secret", b"a/../../outside/secret", b"/../outside/secret", b"..", b"a/..",
     b"./../outside/new", b"../target/f"],
    ids=os.fsdecode,
)  # fmt: skip
def test_dots_in_a_name_are_refused(place: Place, name: bytes) -> None:
    for member in (
        t.file(name, b"!"), t.directory(name), t.symlink(name, b"x"), t.header(name, b"6"),
        t.hardlink(b"l", name), t.pax((b"path", name)) + t.file(b"f", b"!"),
        t.long(name) + t.file(b"f", b"!"), t.file(name + b"/.wh.x"),
        t.file(name + b"/.wh..wh..opq"),
    ):  # fmt: skip
        place.refuse(t.archive(member), '".." in a name')


def test_an_absolute_name_is_one_below_the_root(place: Place) -> None:
    name = os.fsencode(place.outside) + b"/secret"
    place.unpack(t.archive(t.file(name, b"!"), t.hardlink(b"l", name)))
    assert (place.target / "l").read_bytes() == b"!"
    assert (place.target / os.fsdecode(name.lstrip(b"/"))).read_bytes() == b"!"


@pytest.mark.parametrize("where", ["absolute", "relative", "root", "proc", "dev", "chain"])
def test_nothing_is_written_through_a_link(place: Place, where: str) -> None:
    """It leads to a place in the layer, and there is none of that name there."""
    outside = os.fsencode(place.outside)
    links = {
        "absolute": [t.symlink(b"l", outside)],
        "relative": [t.symlink(b"l", b"../outside")],
        "root": [t.symlink(b"up", b"../../../../../../../../.."), t.symlink(b"l", b"up" + outside)],
        "proc": [t.symlink(b"l", b"/proc/self/cwd")],
        "dev": [t.symlink(b"l", b"/dev/fd")],
        "chain": [t.symlink(b"l", b"m"), t.symlink(b"m", b"n"), t.symlink(b"n", outside)],
    }[where]
    for member in (
        t.file(b"l/secret", b"!"), t.directory(b"l/directory"), t.symlink(b"l/link", b"x"),
        t.hardlink(b"l/new", b"l/secret"), t.file(b"l/.wh.secret"), t.file(b"l/.wh..wh..opq"),
        t.file(b"l/directory/new", b"!"), t.header(b"l/pipe", b"6"),
    ):  # fmt: skip
        place.refuse(t.archive(*links, member))


def test_a_link_is_replaced_and_not_written_through(place: Place) -> None:
    target = os.fsencode(place.outside) + b"/secret"
    place.unpack(t.archive(t.symlink(b"l", target), t.file(b"l", b"mine")))
    assert place.names() == ["-rw-r--r-- l"]
    place.unpack(t.archive(t.symlink(b"l", os.fsencode(place.outside)), t.directory(b"l", 0o700)))
    assert place.names() == ["drwx------ l"]
    place.unpack(t.archive(t.symlink(b"l", os.fsencode(place.outside)), t.file(b".wh.l")))
    assert place.names() == ["lrwxrwxrwx l"]


def test_a_hard_link_leads_nowhere_else(place: Place) -> None:
    outside = os.fsencode(place.outside)
    for members in (
        [t.hardlink(b"l", outside + b"/secret")],
        [t.symlink(b"s", outside), t.hardlink(b"l", b"s/secret")],
        [t.hardlink(b"l", b"/proc/self/exe")],
        [t.hardlink(b"l", b"/etc/passwd"), t.file(b"l", b"!")],
    ):
        place.refuse(t.archive(*members), "a hard link to", "not in this layer")
    place.unpack(t.archive(t.symlink(b"s", outside + b"/secret"), t.hardlink(b"l", b"s"),
                           t.file(b"l", b"mine")))  # fmt: skip
    assert place.names() == ["-rw-r--r-- l", "lrwxrwxrwx s"]  # the link itself was linked


def test_a_directory_that_becomes_a_link_takes_nothing_with_it(place: Place) -> None:
    """The parent of what follows is swapped; its mode and times are set last of all."""
    outside = os.fsencode(place.outside)
    place.refuse(
        t.archive(
            t.directory(b"d", 0o700, mtime=1),
            t.file(b"d/f"),
            t.symlink(b"d", outside),
            t.file(b"d/secret", b"!"),
        ),
        "cannot unpack d/secret",
    )
    place.unpack(t.archive(t.directory(b"d", 0o700, mtime=1), t.symlink(b"d", outside)))
    assert place.names() == ["lrwxrwxrwx d"]


def test_a_device_is_made_but_never_opened(place: Place) -> None:
    """What follows under its name is a new file."""
    for kind, device in ((b"3", (1, 5)), (b"4", (7, 200))):
        place.unpack(t.archive(t.header(b"d", kind, device=device), t.file(b"d", b"not for it")))
        assert place.found()[b"./d"][5] == b"not for it"
    place.refuse(t.archive(t.header(b"d", b"6"), t.file(b"d/f", b"!")), "Not a directory")


def test_the_root_is_a_directory(place: Place) -> None:
    for name in (b".", b"/", b"./", b"//."):
        place.refuse(t.archive(t.symlink(name, b"/etc")), "its root is no directory")
        place.refuse(t.archive(t.hardlink(name, b"x")), "its root is no directory")


@pytest.mark.parametrize("name", [b".wh.", b".wh..", b".wh...", b"d/.wh...", b"d/.wh..wh.x"])
def test_whiteouts_of_nothing_are_refused(place: Place, name: bytes) -> None:
    place.refuse(t.archive(t.file(b"d/keep"), t.file(name)), "a whiteout of nothing")
    place.refuse(t.archive(t.file(b".wh.x/y")), "something in a whiteout")


# What it costs.


def test_bombs_are_stopped_where_they_are_told_to_be(place: Place) -> None:
    """100 MB of nothing in all formats: small on the disk, until somebody unpacks it."""
    zeros = t.header(b"f", size=100_000_000) + bytes(100_000_512)
    for data in (gzip.compress(zeros, 1), zstd.compress(zeros), lzma.compress(zeros, preset=0)):
        assert len(data) < 500_000
        place.refuse(data, "more than 10000000 bytes", "raise", bounds=Bounds(bytes=10_000_000))
        written = sum(path.stat().st_size for path in place.target.rglob("*"))
        assert written <= 10_000_000


def test_a_sparse_file_is_bounded_by_its_length(place: Place) -> None:
    said = [(b"GNU.sparse.major", b"0"), (b"GNU.sparse.size", b"4611686018427387000"),
            (b"GNU.sparse.map", b"0,1")]  # fmt: skip
    data = t.archive(t.pax(*said) + t.file(b"f", b"x"))
    place.refuse(data, "bytes", "raise Bounds.bytes")


def test_directories_that_an_entry_takes_for_granted_are_counted(place: Place) -> None:
    name = b"d/" * 8000 + b"f"
    data = t.archive(t.pax((b"path", name)) + t.file(b"x"))
    place.refuse(data, "more than 5000 entries", bounds=Bounds(entries=5000))
    assert place.unpack(data).entries == 8001  # and so deep a tree can be removed, too


def test_a_name_of_a_megabyte_is_too_long(place: Place) -> None:
    place.refuse(t.archive(t.pax((b"path", b"d/" * 9000)) + t.file(b"x")), "16384 are the most")
    place.refuse(t.archive(t.header(b"x", b"x", size=1 << 21) + bytes(1 << 21)), "1048576")
    place.refuse(
        t.archive(t.header(b"x", b"L", size=t.base256(1 << 40, 12))), "1048576 are the most"
    )
    place.refuse(t.archive(t.pax((b"path", b"n" * 256)) + t.file(b"x")), "File name too long")


def test_time_is_bounded(place: Place) -> None:
    """Each name costs the kernel a walk of many links that are 4000 bytes long.

    Not 40: a walk that it begins anew goes on counting, and ends with ELOOP (fs/namei.c).
    """
    members = [t.directory(b"d")]
    for number in range(18):
        target = b"d/../" * 700 + (b"s%d" % (number - 1) if number else b"d")
        members.append(t.pax((b"linkpath", target)) + t.symlink(b"s%d" % number, b""))
    slow = [t.file(b"s17/f%d" % number) for number in range(100_000)]
    place.refuse(t.archive(*members, *slow), "more than 1 seconds", bounds=Bounds(seconds=1))


# What is not as it must be.


def broken() -> dict[str, tuple[bytes, str]]:
    good = t.file(b"good", b"data")
    sparse = (b"GNU.sparse.major", b"0")
    size = (b"GNU.sparse.size", b"100")
    return {
        "empty": (b"", "it is empty"),
        "text": (b"this is no archive", "it is no tar archive"),
        "long text": (b"this is no archive" * 100, "a header's checksum"),
        "checksum": (t.header(checksum=b"000000\0 ") + t.END, "checksum is wrong"),
        "checksum is no number": (t.header(checksum=b"bad sum!") + t.END, "checksum is no number"),
        "within a header": (good + t.header()[:300], "cut off within a header"),
        "within a file": (good + t.header(size=5000) + bytes(1000), "cut off within a file"),
        "within the padding": (t.header(size=5) + b"12345" + bytes(9), "cut off within a file"),
        "within a name": (t.header(b"x", b"L", size=3000) + bytes(100), "within the extension"),
        "after a name": (t.long(b"name") + t.END, "after the extension"),
        "one zero block": (good + bytes(512) + good + t.END, "data after a block of zeros"),
        "negative size": (t.header(size=t.base256(-1, 12)) + t.END, "size is negative"),
        "absurd size": (t.header(size=t.base256(1 << 80, 12)) + t.END, "size is absurd"),
        "signed size": (t.header(size=b"-0000000001") + t.END, "size is no number"),
        "python's size": (t.header(size=b"0000_0010") + t.END, "size is no number"),
        "decimal size": (t.header(size=b"00000000089") + t.END, "size is no number"),
        "huge size": (t.header(size=t.base256(1 << 50, 12)) + t.END, "cut off within a file"),
        "negative id": (t.header(uid=t.base256(-1, 8)) + t.END, "uid is negative"),
        "minus one": (t.header(gid=t.base256(0xFFFFFFFF, 8)) + t.END, "no user or group"),
        "pax id": (t.pax((b"uid", b"4294967296")) + good + t.END, "no user or group"),
        "pax negative size": (t.pax((b"size", b"-1")) + good + t.END, "size is no number"),
        "pax absurd size": (t.pax((b"size", b"9" * 30)) + good + t.END, "size is no number"),
        "pax time": (t.pax((b"mtime", b"1e9")) + good + t.END, "mtime is no number"),
        "pax fraction": (t.pax((b"mtime", b"1.-5")) + good + t.END, "mtime is no number"),
        "device": (t.header(b"d", b"3", device=(4096, 0)) + t.END, "no device"),
        "unknown": (t.header(b"d", b"M") + t.END, "entries of type M are not known"),
        "unknown, hidden": (t.header(b"d", b"\x1b") + t.END, "type \\x1b are not known"),
        "nul": (t.pax((b"path", b"a\0b")) + good + t.END, "a name with a NUL"),
        "nul in a link": (t.pax((b"linkpath", b"a\0b")) + good + t.END, "a name with a NUL"),
        "empty link": (t.symlink(b"l", b"") + t.END, "cannot unpack l"),
        "link to a directory": (t.directory(b"d") + t.hardlink(b"l", b"d") + t.END, "unpack l"),
        "link to itself": (t.directory(b"d") + t.hardlink(b"d", b"d") + t.END, "not in this layer"),
        "a file's child": (t.file(b"f") + t.file(b"f/x") + t.END, "Not a directory"),
        "cycle": (t.symlink(b"a", b"b") + t.symlink(b"b", b"a") + t.file(b"a/x") + t.END,
                  "Too many levels"),
        "odd map": (t.pax(sparse, size, (b"GNU.sparse.map", b"0,1,2")) + good + t.END, "odd"),
        "no map": (t.pax(sparse, size) + good + t.END, "without its map"),
        "no size": (t.pax(sparse, (b"GNU.sparse.map", b"0,4")) + good + t.END, "without its size"),
        "map beyond": (t.pax(sparse, size, (b"GNU.sparse.map", b"97,4")) + good + t.END, "order"),
        "map twice": (t.pax(sparse, size, (b"GNU.sparse.map", b"0,3,2,1")) + good + t.END, "order"),
        "map of less": (t.pax(sparse, size, (b"GNU.sparse.map", b"0,3")) + good + t.END, "data"),
        "map 1.0": (t.pax((b"GNU.sparse.major", b"1"), size) + t.file(b"f", b"9\n") + t.END,
                    "within the map"),
        "long map 1.0": (t.pax((b"GNU.sparse.major", b"1"), size)
                         + t.file(b"f", b"99999999\n".ljust(512)) + t.END, "too long"),
    }  # fmt: skip


@pytest.mark.parametrize("name", broken())
def test_what_is_broken_is_refused(place: Place, name: str) -> None:
    data, words = broken()[name]
    place.refuse(data, words, str(place.blob))


@pytest.mark.parametrize(
    "data",
    [b"5 a=b\n", b"7 a=b\n", b"6 a=bc", b"99 a=b\n", b"a=b\n", b"-6 a=b\n", b"6 a-b\n", b"0 a=b\n",
     b"+6 a=b\n", b"1_0 a=bcde\n", b"6 a=b\n\0", b" 6 a=b\n", b"3 \n", b"9" * 30 + b" a=b\n"],
)  # fmt: skip
def test_malformed_pax_headers_are_refused(place: Place, data: bytes) -> None:
    header = t.header(b"x", b"x", size=len(data)) + t.padded(data)
    place.refuse(t.archive(header, t.file(b"f")), "a pax header is malformed")


def compressed() -> dict[str, tuple[bytes, str, str]]:
    data = t.archive(t.file(b"f", os.urandom(100_000)))
    gz, xz = gzip.compress(data), lzma.compress(data)
    zs = zstd.compress(data, options={zstd.CompressionParameter.checksum_flag: 1})
    stream = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 30})
    wide = stream.compress(bytes(1000), stream.FLUSH_BLOCK) + stream.flush()
    found = {}
    for name, whole in (("gzip", gz), ("zstd", zs), ("xz", xz)):
        middle = len(whole) // 2
        found |= {
            f"{name} cut": (whole[:-20], name, "cut off"),
            f"{name} head only": (whole[:7], name, "cut off"),
            f"{name} flipped": (
                whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], name, "damaged"),
            f"{name} and garbage": (whole + b"garbage", name, "damaged"),
            f"{name} and more, cut": (whole + whole[:50], name, "cut off"),
        }  # fmt: skip
    found["gzip with another checksum"] = (gz[:-8] + struct.pack("<II", 1, len(data)), "gzip",
                                           "damaged")  # fmt: skip
    found["zlib, not gzip"] = (zlib.compress(data), "gzip", "damaged")
    found["gzip, said to be zstd"] = (gz, "zstd", "damaged")
    found["tar, said to be gzip"] = (data, "gzip", "damaged")
    found["a window of a gigabyte"] = (wide, "zstd", "damaged")
    return found


@pytest.mark.parametrize("name", compressed())
def test_damaged_compression_is_refused(place: Place, name: str) -> None:
    data, compression, words = compressed()[name]
    place.refuse(data, f"the {compression} data is", words, compression=compression)


def test_the_digest_is_that_of_all_the_bytes(place: Place) -> None:
    data = t.archive(t.file(b"f", b"data"))
    right = place.unpack(data).diff_id
    assert place.unpack(data, diff_id=right).diff_id == right
    for other in (data + b"\0", data.replace(b"data", b"Data"), data[:-512]):
        place.refuse(other, "must be", right, diff_id=right)


def test_names_in_errors_do_not_steer_a_terminal(place: Place) -> None:
    error = place.refuse(t.archive(t.file(b"\x1b[2Jf"), t.file(b"\x1b[2Jf/x\n")), "Not a directory")
    assert "\x1b" not in str(error) and "\n" not in str(error)


# Who extracts.


def test_the_process_has_shut_itself_in(place: Place) -> None:
    """Looked at while it waits for the rest of its archive."""
    fifo = place.top / "fifo"
    os.mkfifo(fifo)
    place.target.mkdir()
    code = (
        "import sys; from pathlib import Path; from supervisor.image.unpack import unpack; "
        "print(unpack(Path(sys.argv[1]), Path(sys.argv[2])).entries)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(fifo), str(place.target)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True,
    ) as parent:  # fmt: skip
        with fifo.open("wb") as out:
            out.write(t.file(b"first"))
            out.write(t.header(b"second", size=600_000) + bytes(600_000 + 64))
            out.flush()
            pid = _extractor_of(parent.pid, place.target / "second")
            seen = _seen(pid)
        assert parent.stdout is not None
        assert parent.stdout.read() == "2\n"
    assert seen["names"] == {"first", "second"}
    assert seen["CapEff"] == seen["CapPrm"] == seen["CapBnd"] == 0x8000000B | 1 << 27 | 0x10
    assert (seen["NoNewPrivs"], seen["CapInh"], seen["CapAmb"]) == (1, 0, 0)
    assert seen["mounts"] == [["nosuid", "nodev", "noexec"]]
    assert seen["spaces"] == {"mnt", "net", "ipc", "uts"}
    assert seen["open"] <= {"/dev/null", "pipe", "socket", "/", "/second"}


def _extractor_of(parent: int, sign: Path) -> int:
    """Its process, once it has begun with the file that shows where it is."""
    while True:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
        if children and sign.exists():
            return int(children[0])
        os.sched_yield()


def _seen(pid: int) -> dict[str, object]:
    proc = Path(f"/proc/{pid}")
    status = dict(line.split(":\t") for line in (proc / "status").read_text().splitlines()
                  if ":\t" in line)  # fmt: skip
    caps = {name: int(status[name], 16)
            for name in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb")}  # fmt: skip
    mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    names = ("mnt", "net", "ipc", "uts", "pid", "user")
    own = Path("/proc/self/ns")
    spaces = {name for name in names if os.readlink(proc / "ns" / name) != os.readlink(own / name)}
    targets = (os.readlink(link).partition(":")[0] for link in (proc / "fd").iterdir())
    return {
        **caps,
        "NoNewPrivs": int(status["NoNewPrivs"]),
        "names": set(os.listdir(proc / "root")),
        "mounts": [[one for one in row[5].split(",") if one.startswith("no") and one != "noatime"]
                   for row in mounts],
        "spaces": spaces,
        "open": set(targets),
    }  # fmt: skip


def test_it_dies_with_its_parent(place: Place) -> None:
    fifo = place.top / "fifo"
    os.mkfifo(fifo)
    place.target.mkdir()
    code = (
        "import sys; from pathlib import Path; from supervisor.image.unpack import unpack; "
        "unpack(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(fifo), str(place.target)], cwd=ROOT
    ) as parent:
        with fifo.open("wb") as out:
            out.write(t.header(b"f", size=600_000) + bytes(600_000))
            out.flush()
            pidfd = os.pidfd_open(_extractor_of(parent.pid, place.target / "f"))
            parent.kill()
            parent.wait()
            assert _ended(pidfd)
        os.close(pidfd)


def _ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 30)[0])
