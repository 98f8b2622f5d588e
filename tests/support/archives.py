"""Tar archives put together byte by byte, so that they can be wrong in every way; and what results.

`entry` makes one member, `pax` the header before it, `archive` the whole.  `listing` tells all that
is in a directory, to be compared with what must be there.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

END = bytes(1024)


def octal(value: int, width: int) -> bytes:
    """A number as headers have it."""
    return b"%0*o\0" % (width - 1, value)


def base256(value: int, width: int) -> bytes:
    """A number as GNU tar writes those that are too large, or negative."""
    mark = 0xFF if value < 0 else 0x80
    return bytes([mark]) + value.to_bytes(width - 1, "big", signed=value < 0)


def header(
    name: bytes = b"f",
    kind: bytes = b"0",
    *,
    size: int | bytes = 0,
    mode: int | bytes = 0o644,
    uid: int | bytes = 0,
    gid: int | bytes = 0,
    mtime: int | bytes = 1_000_000_000,
    link: bytes = b"",
    device: tuple[int, int] = (0, 0),
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """512 bytes; a number may be given as the bytes of its field."""
    fields = [
        name.ljust(100, b"\0"),
        *(_field(value, 8) for value in (mode, uid, gid)),
        *(_field(value, 12) for value in (size, mtime)),
        b" " * 8,
        kind,
        link.ljust(100, b"\0"),
        magic.ljust(8, b"\0"),
        bytes(64),
        *(octal(number, 8) for number in device),
        prefix.ljust(155, b"\0"),
        bytes(12),
    ]
    block = b"".join(fields)
    assert len(block) == 512, "a field is too long"
    return resummed(block) if checksum is None else block[:148] + checksum + block[156:]


def _field(value: int | bytes, width: int) -> bytes:
    return octal(value, width) if isinstance(value, int) else value.ljust(width, b"\0")


def resummed(block: bytes) -> bytes:
    """The header with a right checksum."""
    total = sum(block[:148]) + 8 * 32 + sum(block[156:])
    return block[:148] + b"%06o\0 " % total + block[156:]


def padded(data: bytes) -> bytes:
    """Filled up to whole blocks."""
    return data + bytes(-len(data) % 512)


def file(name: bytes, data: bytes = b"", **fields: int | bytes) -> bytes:
    """A regular file; `fields` are those of `header`."""
    fields.setdefault("size", len(data))
    return header(name, **fields) + padded(data)  # type: ignore[arg-type]


def directory(name: bytes, mode: int = 0o755, **fields: int | bytes) -> bytes:
    return header(name, b"5", mode=mode, **fields)  # type: ignore[arg-type]


def symlink(name: bytes, target: bytes) -> bytes:
    return header(name, b"2", link=target, mode=0o777)


def hardlink(name: bytes, target: bytes) -> bytes:
    return header(name, b"1", link=target)


def record(key: bytes, value: bytes) -> bytes:
    """One line of a pax header; its length counts itself."""
    rest = b" %s=%s\n" % (key, value)
    length = len(rest)
    while len(b"%d" % length) + len(rest) != length:
        length = len(b"%d" % length) + len(rest)
    return b"%d" % length + rest


def pax(*records: tuple[bytes, bytes], kind: bytes = b"x") -> bytes:
    """A pax header for the member that follows; kind "g": for all that do."""
    data = b"".join(record(*one) for one in records)
    return header(b"pax", kind, size=len(data)) + padded(data)


def long(text: bytes, kind: bytes = b"L") -> bytes:
    """GNU tar's long name of the member that follows; kind "K": of its link."""
    data = text + b"\0"
    return header(b"././@LongLink", kind, size=len(data), magic=b"ustar  \0") + padded(data)


def archive(*members: bytes) -> bytes:
    return b"".join(members) + END


def listing(root: Path, *, times: bool = True) -> dict[bytes, tuple[object, ...]]:
    """Of each name below (b"." is the root): all that an archive can say of it, and its data."""
    found: dict[bytes, tuple[object, ...]] = {}
    links: dict[int, bytes] = {}
    waiting = [b"."]
    base = os.fsencode(root)
    while waiting:
        name = waiting.pop()
        path = os.path.join(base, name)
        status = os.lstat(path)
        if stat.S_ISDIR(status.st_mode):
            waiting += sorted((os.path.join(name, one) for one in os.listdir(path)), reverse=True)
        first = links.setdefault(status.st_ino, name)
        found[name] = (
            stat.filemode(status.st_mode), status.st_uid, status.st_gid,
            status.st_mtime_ns if times else 0, first, content(path, status), attributes(path),
        )  # fmt: skip
    return found


def content(path: bytes, status: os.stat_result) -> object:
    """What is in it: data, a target, a device's number."""
    if stat.S_ISREG(status.st_mode):
        if status.st_size > 1 << 24:
            return status.st_size
        return Path(os.fsdecode(path)).read_bytes()
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path)
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        return (os.major(status.st_rdev), os.minor(status.st_rdev))
    return None


def attributes(path: bytes) -> dict[str, bytes]:
    """The extended ones."""
    names = os.listxattr(path, follow_symlinks=False)
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in sorted(names)}
