"""ELF files for tests: small, synthetic, of any architecture; nothing that could be executed."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

X86_64, I386, AARCH64 = 62, 3, 183
EXECUTABLE, SHARED = 2, 3
PT_LOAD, PT_DYNAMIC, PT_INTERP = 1, 2, 3
TAGS = {
    "needed": 1,
    "soname": 14,
    "rpath": 15,
    "runpath": 29,
    "auxiliary": 0x7FFFFFFD,
    "filter": 0x7FFFFFFF,
}
STRTAB, STRSZ, FLAGS_1 = 5, 10, 0x6FFFFFFB
INTERPRETER = "/lib64/ld-linux-x86-64.so.2"


def elf(
    *,
    machine: int = X86_64,
    bits: int = 64,
    kind: int = SHARED,
    interpreter: str | None = None,
    flags_1: int = 0,
    strings: Sequence[str] = (),
    **tags: str | Sequence[str],
) -> bytes:
    """The bytes of a file with these dynamic tags: `needed=["libc.so.6"]`, `rpath="$ORIGIN"`.

    `strings` are more names in its string table.
    """
    wide = bits == 64
    word = "<Q" if wide else "<I"
    table, dynamic = b"\0" + b"".join(one.encode() + b"\0" for one in strings), b""
    for name, value in tags.items():
        for text in [value] if isinstance(value, str) else value:
            dynamic += struct.pack(word, TAGS[name]) + struct.pack(word, len(table))
            table += text.encode() + b"\0"
    header, entry = (64, 56) if wide else (52, 32)
    start = header + 3 * entry
    path = (interpreter or "").encode() + b"\0"
    at_table = start + len(path)
    at_dynamic = at_table + len(table)
    for tag, number in ((STRTAB, at_table), (STRSZ, len(table)), (FLAGS_1, flags_1), (0, 0)):
        dynamic += struct.pack(word, tag) + struct.pack(word, number)
    size = at_dynamic + len(dynamic)
    segments = [(PT_LOAD, 0, size), (PT_DYNAMIC, at_dynamic, len(dynamic))]
    segments += [(PT_INTERP, start, len(path))] if interpreter else []
    heads = b"".join(_segment(wide, *one) for one in segments).ljust(3 * entry, b"\0")
    return _header(wide, kind, machine, len(segments)) + heads + path + table + dynamic


def _header(wide: bool, kind: int, machine: int, segments: int) -> bytes:
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
    first, entry, section = (64, 56, 64) if wide else (52, 32, 40)
    words = (0, first, 0)  # entry point, program headers, section headers
    return (
        ident
        + struct.pack("<HHI", kind, machine, 1)
        + struct.pack("<QQQ" if wide else "<III", *words)
        + struct.pack("<IHHHHHH", 0, first, entry, segments, section, 0, 0)
    )


def _segment(wide: bool, kind: int, offset: int, size: int) -> bytes:
    if wide:
        return struct.pack("<IIQQQQQQ", kind, 4, offset, offset, offset, size, size, 1)
    return struct.pack("<IIIIIIII", kind, offset, offset, offset, size, size, 4, 1)


def write(path: Path, data: bytes, mode: int = 0o755) -> Path:
    """A file with its directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(mode)
    return path
