"""What a loader reads of an ELF file, by pyelftools: interpreter, wanted libraries, search paths.

The file may be hostile.  pyelftools sees it through a stream that gives so many bytes and no more,
and without its section headers, which no loader looks at (elf(5)); whatever it raises then becomes
one message.  It is imported when a file is read: nobody else needs it.

May import: `errors`.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, cast

from attrs import frozen

from supervisor.errors import RootError

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

MAGIC = b"\x7fELF"
BUDGET = 8 << 20
"""Bytes that reading one file may take; the largest tables in use are some 100 KiB."""
COST = 64
"""What a read costs of the budget beside its bytes, so that a loop of empty ones ends too."""
LONGEST = 4096
"""Of a string; PATH_MAX."""
STRINGS = 4 << 20
"""Bytes of the string table in which names of functions are looked for."""
SEGMENTS = 1024
"""The kernel takes a table of 64 KiB at most (fs/binfmt_elf.c: load_elf_phdrs)."""

LIST_TAGS = {
    "DT_NEEDED": "needed",
    "DT_RPATH": "rpath",
    "DT_RUNPATH": "runpath",
    "DT_SONAME": "soname",
    "DT_FILTER": "filters",
    "DT_AUXILIARY": "auxiliaries",
}
NUMBERS = {0x7FFFFFFF: "DT_FILTER", 0x7FFFFFFD: "DT_AUXILIARY"}
"""The numbers of tags that pyelftools knows by another name for some machines."""
DF_1_NODEFLIB = 0x800
TELLING = ("dlopen", "getaddrinfo", "getpwnam", "iconv_open")
"""Functions whose callers need files that no header tells of."""


@frozen
class Arch:
    """For which processor a file is; the loader takes libraries of the same only."""

    machine: str
    bits: int
    little: bool

    def __str__(self) -> str:
        return f"{self.machine.removeprefix('EM_').lower()}, {self.bits} bits"


@frozen
class Binary:
    """One ELF file as its loader sees it; paths as they are written there."""

    arch: Arch
    kind: str
    interpreter: str | None = None
    soname: str | None = None
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()
    auxiliaries: tuple[str, ...] = ()
    no_default: bool = False
    calls: frozenset[str] = frozenset()

    @property
    def dynamic(self) -> bool:
        """Whether a loader has anything to do for it."""
        return bool(self.interpreter or self.needed)


class ElfError(RootError):
    """A file that is no ELF file, or not a whole one."""


def read(path: str) -> Binary:
    """The file's headers.  Raises ElfError, KernelError where it cannot be opened."""
    fd = open_regular(path)
    try:
        return _parse(path, _Stream(fd))
    finally:
        os.close(fd)


def open_regular(path: str) -> int:
    """A descriptor of a regular file, and of nothing else: opening a FIFO would wait for ever."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        raise RootError([f"{path}: {error.strerror}"]) from error
    if stat.S_ISREG(os.fstat(fd).st_mode):
        return fd
    os.close(fd)
    raise RootError([f"{path}: not a regular file"])


def _parse(path: str, stream: _Stream) -> Binary:
    from elftools.common.exceptions import ELFError

    try:
        return _binary(stream)
    except ELFError as error:
        why = str(error)
    except Exception as error:  # on a corrupt file pyelftools fails in any way there is
        why = f"{type(error).__name__}: {error}"
    short = " ".join(why.split())[:120]
    raise ElfError([f"{path}: not a valid ELF file: {short}"]) from None


def _binary(stream: _Stream) -> Binary:
    from elftools.elf.elffile import ELFFile

    elf = ELFFile(cast(IO[bytes], stream))
    if elf.header["e_phnum"] > SEGMENTS:
        raise ValueError(f"{elf.header['e_phnum']} segments")
    arch = Arch(str(elf.header["e_machine"]), elf.elfclass, elf.little_endian)
    strings = dict.fromkeys(LIST_TAGS.values(), ())
    found: dict[str, tuple[str, ...]] = {**strings}
    flags, calls, interpreter = 0, frozenset[str](), None
    for segment in elf.iter_segments():
        if segment["p_type"] == "PT_INTERP":
            interpreter = _string(stream, segment["p_offset"])
        elif segment["p_type"] == "PT_LOAD":
            stream.has(segment["p_offset"] + segment["p_filesz"])
        elif segment["p_type"] == "PT_DYNAMIC" and segment["p_filesz"]:
            found, flags, calls = _dynamic(elf, stream, segment["p_offset"], segment["p_filesz"])
    return Binary(
        arch=arch,
        kind=str(elf.header["e_type"]),
        interpreter=interpreter,
        soname=(found["soname"] or (None,))[0],
        needed=found["needed"],
        rpath=_paths(found["rpath"]) if not found["runpath"] else (),  # ld.so(8)
        runpath=_paths(found["runpath"]),
        filters=found["filters"],
        auxiliaries=found["auxiliaries"],
        no_default=bool(flags & DF_1_NODEFLIB),
        calls=calls,
    )


def _dynamic(
    elf: ELFFile, stream: _Stream, offset: int, size: int
) -> tuple[dict[str, tuple[str, ...]], int, frozenset[str]]:
    """The strings of a dynamic section by kind, its DT_FLAGS_1, and the telling functions."""
    tags = list(_tags(elf, stream, offset, size))
    numbers = dict(tags)
    found: dict[str, tuple[str, ...]] = dict.fromkeys(LIST_TAGS.values(), ())
    if "DT_STRTAB" not in numbers:
        return found, 0, frozenset()
    table = next(elf.address_offsets(numbers["DT_STRTAB"]))
    for tag, value in tags:
        if tag in LIST_TAGS:
            found[LIST_TAGS[tag]] += (_string(stream, table + value),)
    stream.seek(table)
    text = stream.read(min(numbers.get("DT_STRSZ", 0), STRINGS))
    calls = frozenset(name for name in TELLING if b"\0" + name.encode() + b"\0" in text)
    return found, numbers.get("DT_FLAGS_1", 0), calls


def _tags(elf: ELFFile, stream: _Stream, offset: int, size: int) -> Iterator[tuple[str, int]]:
    from elftools.common.utils import struct_parse

    entry = elf.structs.Elf_Dyn
    for number in range(size // entry.sizeof()):
        tag = struct_parse(entry, cast(IO[bytes], stream), offset + number * entry.sizeof())
        if tag["d_tag"] == "DT_NULL":
            return
        yield NUMBERS.get(tag["d_tag"], str(tag["d_tag"])), tag["d_val"]


def _string(stream: _Stream, offset: int) -> str:
    stream.seek(offset)
    text, end, _ = stream.read(LONGEST).partition(b"\0")
    if not end:
        raise ValueError("a string without an end")
    if not text or b"\n" in text:
        raise ValueError(f"the string {text[:40]!r}")
    return os.fsdecode(text)


def _paths(lists: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(path for one in lists for path in one.split(":") if path)


class _Stream:
    """A file for pyelftools: bounded, and without section headers."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._at = 0
        self._left = BUDGET
        self._size = os.fstat(fd).st_size
        self._head = _without_sections(os.pread(fd, 64, 0))

    def read(self, count: int = -1) -> bytes:
        count = max(0, min(count if count >= 0 else self._size, self._size - self._at))
        self._left -= count + COST
        if self._left < 0:
            raise ValueError("tables without end")
        data = os.pread(self._fd, count, self._at)
        data = self._head[self._at : self._at + len(data)] + data[max(0, 64 - self._at) :]
        self._at += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        if not 0 <= start + offset <= self._size:
            raise ValueError(f"offset {start + offset} in a file of {self._size} bytes")
        self._at = start + offset
        return self._at

    def has(self, end: int) -> None:
        """A program without its end starts, and dies of SIGBUS."""
        if end > self._size:
            raise ValueError(f"a segment ends at {end}, the file at {self._size}")

    def tell(self) -> int:
        return self._at


def _without_sections(head: bytes) -> bytes:
    """An ELF header that has e_shoff, e_shnum and e_shstrndx 0."""
    offset, width, numbers = (40, 8, 60) if head[4:5] == b"\x02" else (32, 4, 48)
    if len(head) < numbers + 4:
        return head
    cut = bytearray(head)
    cut[offset : offset + width] = bytes(width)
    cut[numbers : numbers + 4] = bytes(4)
    return bytes(cut)
