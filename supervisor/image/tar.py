"""A reader of tar archives, once through and from a pipe: ustar, pax, GNU, and what was before.

Runs in the extraction's interpreter (`extractor`): imports zlib and `fields`.  Why an own one: a
layer takes tarfile of the standard library seven times as long; libarchive is as fast as this, but
is C, which hostile input is better kept from, and says little of what it let pass.

What is read is hostile: each number is checked when it is parsed, every size has a bound, and what
the formats do not define is refused (pax in POSIX.1-2017; "Basic Tar Format" and "Storing Sparse
Files" in the manual of GNU tar).
"""

from __future__ import annotations

import os
import struct
import zlib

from supervisor.image.fields import BILLION, TarError, decimal, number, pax_records, seconds, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    Map = list[tuple[int, int]]

BLOCK = 512
FILE, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = (b"%d" % n for n in range(7))
"""The types of `Entry.kind`."""

MAX_EXTENSION = 1 << 20
"""Bytes in one pax header or long name: what Go's archive/tar takes, and so every registry."""
MAX_NAME = 16 << 10
"""Bytes in a name; more than PATH_MAX, which holds for what one system call is given."""
MAX_SEGMENTS = 1 << 18
"""Pieces of one sparse file."""

_CAPACITY = MAX_EXTENSION
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s8s")
_ZERO = bytes(BLOCK)
_REGULAR = (b"0", b"\0", b"7")
_SPARSE = b"GNU.sparse."
_ATTRIBUTE = b"SCHILY.xattr."
_CUT = "it is cut off"


class Entry:
    """One member; `size` is that of its data in the archive, `mtime` is in nanoseconds.

    A sparse file has `pieces` (offset, length), which the data fills, and a `length`.
    """

    __slots__ = (
        "attributes", "device", "gid", "kind", "length", "link", "mode", "mtime", "name",
        "pieces", "size", "uid",
    )  # fmt: skip

    def __init__(self, kind: bytes, name: bytes, link: bytes, size: int) -> None:
        self.kind = kind
        self.name = name
        self.link = link
        self.size = size
        self.length = size
        self.mode = self.uid = self.gid = self.mtime = 0
        self.device = (0, 0)
        self.attributes: dict[bytes, bytes] = {}
        self.pieces: Map | None = None


class Source:
    """What comes out of a pipe, through one buffer."""

    __slots__ = ("_at", "_end", "_fd", "_view")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._view = memoryview(bytearray(_CAPACITY))
        self._at = self._end = 0

    def take(self, count: int) -> bytes:
        """`count` bytes, at most _CAPACITY; less only where the archive ends."""
        if self._end - self._at < count:
            self._fill(count)
        at = self._at
        self._at = min(at + count, self._end)
        return bytes(self._view[at : self._at])

    def some(self, most: int) -> memoryview:
        """At least one byte, at most `most`; valid until the next call.  Empty at the end."""
        if self._at == self._end:
            self._at, self._end = 0, os.readv(self._fd, [self._view])
        at = self._at
        self._at = min(at + most, self._end)
        return self._view[at : self._at]

    def _fill(self, count: int) -> None:
        """Have `count` bytes in the buffer, if there are as many."""
        view, rest = self._view, self._end - self._at
        view[:rest] = view[self._at : self._end]
        self._at = 0
        while rest < count:
            more = os.readv(self._fd, [view[rest:]])
            if not more:
                break
            rest += more
        self._end = rest

    def drain(self) -> None:
        """Read what follows the end of the archive, whatever it is: the writer is not to fail."""
        while self.some(_CAPACITY):
            pass


class Archive:
    """The members in their order: `next`, then `data` for those that have some."""

    __slots__ = ("_common", "_left", "_padding", "_read", "_source", "_usual")

    def __init__(self, source: Source) -> None:
        self._source = source
        self._common: dict[bytes, bytes] = {}  # of pax headers for all that follow
        self._left = self._padding = 0
        self._read = False
        self._usual: dict[bytes, tuple[int, int, int]] = {}

    def next(self) -> Entry | None:
        """None at the end of the archive.  Raises TarError."""
        self._skip(self._left + self._padding)
        records: list[tuple[bytes, bytes]] = []
        name = link = b""
        while (block := self._header()) is not None:
            kind = block[156:157]
            if kind == b"L":
                name = self._extension(block).partition(b"\0")[0]
            elif kind == b"K":
                link = self._extension(block).partition(b"\0")[0]
            elif kind in (b"x", b"X"):
                records += pax_records(self._extension(block))
            elif kind == b"g":
                self._common.update(pax_records(self._extension(block)))
            elif kind == b"V":  # the label of a volume
                self._extension(block)
            else:
                return self._entry(block, kind, name, link, records)
        if name or link or records:
            raise TarError(f"{_CUT} after the extension of a header")
        return None

    def data(self) -> Iterator[memoryview]:
        """The current entry's; each piece is valid until the next is asked for."""
        some = self._source.some
        while self._left:
            piece = some(self._left)
            if not piece:
                raise TarError(f"{_CUT} within a file")
            self._left -= len(piece)
            yield piece

    def _header(self) -> bytes | None:
        """The next block with a right checksum; None at the end."""
        block = self._source.take(BLOCK)
        if len(block) == BLOCK and block != _ZERO:
            verify(block)
            self._read = True
            return block
        if not block and not self._read:
            raise TarError("it is empty")
        if 0 < len(block) < BLOCK:
            raise TarError(f"{_CUT} within a header" if self._read else "it is no tar archive")
        if block and self._source.take(BLOCK) not in (_ZERO, b""):
            raise TarError("there is data after a block of zeros")
        self._source.drain()
        return None

    def _extension(self, block: bytes) -> bytes:
        size = number(block[124:136], "size")
        if size > MAX_EXTENSION:
            raise TarError(f"a header's extension has {size} bytes, {MAX_EXTENSION} are the most")
        data = self._source.take(size)
        if len(data) < size:
            raise TarError(f"{_CUT} within the extension of a header")
        self._skip(-size % BLOCK)
        return data

    def _skip(self, count: int) -> None:
        self._left = self._padding = 0
        some = self._source.some
        while count:
            piece = some(count)
            if not piece:
                raise TarError(f"{_CUT} within a file")
            count -= len(piece)

    def _entry(
        self, block: bytes, kind: bytes, name: bytes, link: bytes, own: list[tuple[bytes, bytes]]
    ) -> Entry:
        head, mode, uid, gid, size, mtime, _, _, target, magic = _HEADER.unpack_from(block)
        if not name:
            name = head.partition(b"\0")[0]
            if magic[:6] == b"ustar\0" and block[345]:
                name = block[345:500].partition(b"\0")[0] + b"/" + name
        entry = Entry(kind, name, link or target.partition(b"\0")[0], number(size, "size"))
        if mode + uid + gid not in self._usual:
            self._learn(mode, uid, gid)
        entry.mode, entry.uid, entry.gid = self._usual[mode + uid + gid]
        entry.mtime = number(mtime, "mtime", negative=True) * BILLION
        sparse: dict[bytes, bytes] = {}
        if own or self._common:
            sparse = apply(entry, [*self._common.items(), *own])
        if kind in _REGULAR:
            entry.kind = DIRECTORY if entry.name.endswith(b"/") else FILE
        elif kind == b"S":
            entry.kind = FILE
        elif kind in (CHARACTER, BLOCK_DEVICE):
            entry.device = (number(block[329:337], "device"), number(block[337:345], "device"))
        elif kind not in (LINK, SYMLINK, DIRECTORY, FIFO):
            raise TarError(f"{text(entry.name)}: entries of type {text(kind)} are not known")
        if kind not in _REGULAR and kind != b"S":
            entry.size = 0  # where a size stands in such a header, there is no data all the same
        check(entry)
        self._left, self._padding = entry.size, -entry.size % BLOCK
        if kind == b"S":
            self._old_sparse(entry, block)
        elif sparse and entry.kind == FILE:
            self._pax_sparse(entry, sparse)
        return entry

    def _learn(self, mode: bytes, uid: bytes, gid: bytes) -> None:
        """There are few combinations in an archive; parsing them each time is what would count."""
        if len(self._usual) > 1000:
            self._usual.clear()
        numbers = number(mode, "mode") & 0o7777, number(uid, "uid"), number(gid, "gid")
        self._usual[mode + uid + gid] = numbers

    def _old_sparse(self, entry: Entry, block: bytes) -> None:
        """The map is in the header, and in blocks that follow it."""
        entry.length = number(block[483:495], "size")
        pieces, table, more = [], block[386:482], block[482]
        while True:
            for at in range(0, len(table), 24):
                if not table[at]:
                    break
                pieces.append(
                    (number(table[at : at + 12], "map"), number(table[at + 12 : at + 24], "map"))
                )
            if not more:
                break
            block = self._source.take(BLOCK)
            if len(block) < BLOCK or len(pieces) > MAX_SEGMENTS:
                raise TarError(f"{text(entry.name)}: the map of a sparse file is too long")
            table, more = block[:504], block[504]
        entry.pieces = pieces
        check_map(entry)

    def _pax_sparse(self, entry: Entry, said: dict[bytes, bytes]) -> None:
        """Versions 0.0 and 0.1 have the map in the pax header, 1.0 before the data."""
        entry.name = said.get(b"name", entry.name)
        check(entry)
        length = said.get(b"realsize") or said.get(b"size")
        if length is None:
            raise TarError(f"{text(entry.name)}: a sparse file without its size")
        entry.length = decimal(length, "size")
        if said.get(b"major") == b"1":
            numbers = self._map_before_data()
        elif b"map" in said:
            numbers = [decimal(word, "map") for word in said[b"map"].split(b",") if word]
        else:
            raise TarError(f"{text(entry.name)}: a sparse file without its map")
        if len(numbers) % 2:
            raise TarError(f"{text(entry.name)}: the map of a sparse file is odd")
        entry.pieces = list(zip(numbers[::2], numbers[1::2], strict=True))
        entry.size = self._left
        check_map(entry)

    def _map_before_data(self) -> list[int]:
        """Lines of decimal numbers, the first the count of pieces, filled up to whole blocks."""
        read, wanted, lines = b"", None, 0
        while wanted is None or lines <= wanted:
            block = self._source.take(BLOCK) if self._left >= BLOCK else b""
            if len(block) < BLOCK:
                raise TarError(f"{_CUT} within the map of a sparse file")
            self._left -= BLOCK
            read += block
            lines += block.count(b"\n")
            if wanted is None:
                wanted = 2 * decimal(read.partition(b"\n")[0], "map")
                if wanted > 2 * MAX_SEGMENTS:
                    raise TarError("the map of a sparse file is too long")
        return [decimal(line, "map") for line in read.split(b"\n")[1 : wanted + 1]]


def verify(block: bytes) -> None:
    """The header's checksum: the sum of its bytes, with spaces for the field itself.

    Adler-32 of zlib has that sum in its lower half, plus one and modulo 65521.
    """
    said = number(block[148:156], "checksum")
    found = zlib.adler32(block[156:], zlib.adler32(block[:148])) & 0xFFFF
    if found != (said + 1 - 8 * 32) % 65521 and said != _signed_sum(block):
        raise TarError("a header's checksum is wrong: it is damaged, or no tar archive")


def _signed_sum(block: bytes) -> int:
    """As very old programs had it."""
    return 256 + sum(byte - (byte & 0x80) * 2 for byte in block[:148] + block[156:])


def apply(entry: Entry, records: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """What pax says instead of the header; given back is what it says of a sparse file."""
    sparse: dict[bytes, bytes] = {}
    pieces: list[bytes] = []
    for key, value in records:
        if key.startswith(_ATTRIBUTE):
            entry.attributes[key[len(_ATTRIBUTE) :]] = value
        elif key.startswith(_SPARSE):
            sparse[key[len(_SPARSE) :]] = value
            if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
                pieces.append(value)
        elif not value:
            continue  # as if it was not there
        elif key == b"path":
            entry.name = value
        elif key == b"linkpath":
            entry.link = value
        elif key == b"size":
            entry.size = entry.length = decimal(value, "size")
        elif key == b"uid":
            entry.uid = decimal(value, "uid")
        elif key == b"gid":
            entry.gid = decimal(value, "gid")
        elif key == b"mtime":
            entry.mtime = seconds(value)
    if pieces:
        sparse[b"map"] = b",".join(pieces)
    return sparse


def check(entry: Entry) -> None:
    """What holds for every entry, whatever the format allows.  Raises TarError."""
    for name in (entry.name, entry.link):
        if b"\0" in name:
            raise TarError(f"{text(name)}: a name with a NUL")
        if len(name) > MAX_NAME:
            raise TarError(f"{text(name)}: a name of {len(name)} bytes, {MAX_NAME} are the most")
    if entry.uid >= 0xFFFFFFFF or entry.gid >= 0xFFFFFFFF:  # -1 means "as it is" to chown(2)
        raise TarError(f"{text(entry.name)}: no user or group has the number it asks for")
    if entry.device[0] > 0xFFF or entry.device[1] > 0xFFFFF:
        raise TarError(f"{text(entry.name)}: no device has such a number")


def check_map(entry: Entry) -> None:
    """The pieces follow each other within the file, and are what the data is."""
    assert entry.pieces is not None
    at = total = 0
    for offset, length in entry.pieces:
        if offset < at or offset + length > entry.length:
            raise TarError(f"{text(entry.name)}: the map of a sparse file is out of order")
        at = offset + length
        total += length
    if total != entry.size:
        raise TarError(f"{text(entry.name)}: the map of a sparse file is not that of its data")
