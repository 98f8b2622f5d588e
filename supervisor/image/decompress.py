"""The bytes of a layer's archive, whichever way it is compressed: in pieces of bounded size.

May import: `errors`.  zstd is `compression.zstd` of Python 3.14, or the package backports.zstd.
All formats may be several streams one after the other: eStargz has one for each file.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Literal, Protocol

from supervisor.errors import ImageError

Compression = Literal["none", "gzip", "zstd", "xz"]

PIECE = 256 << 10
"""Bytes at most in a piece of what comes out, however well it was compressed."""
_MAGIC: tuple[tuple[bytes, Compression], ...] = (
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\0", "xz"),
)
_SKIPPABLE = b"\x2a\x4d\x18"
"""The last three of four bytes of a zstd frame that holds something else (RFC 8878, 3.1.2)."""
_XZ_MEMORY = 256 << 20
"""Bytes a decompressor may take; `xz -9` asks for 65 MiB."""
_ZSTD_WINDOW = 27
"""log2 of the largest window, as `zstd` without --long and every registry's client."""

Read = Callable[[], bytes]


class _Decompressor(Protocol):
    """What lzma and zstd have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes: ...


def recognize(head: bytes) -> Compression:
    """By the first bytes; "none" for all else."""
    for magic, name in _MAGIC:
        if head.startswith(magic):
            return name
    if head[1:4] == _SKIPPABLE and head[0] >> 4 == 5:
        return "zstd"
    return "none"


def pieces(file: BinaryIO, compression: Compression, read: Read) -> Iterator[bytes]:
    """Decompress what `read` gives, a piece of `file` for each call and b"" at the end.

    Raises ImageError where it is damaged, is cut off, or goes on with something else.
    """
    where = str(file.name)
    try:
        if compression == "gzip":
            yield from _gzip(read)
        elif compression == "none":
            while data := read():
                yield data
        else:
            yield from _streams(read, *_makers(compression))
    except EOFError:
        hint = "it was not copied whole: get it again"
        raise ImageError(f"the {compression} data is cut off", where, hint=hint) from None
    except _errors(compression) as error:
        raise ImageError(f"the {compression} data is damaged: {error}", where) from None


def _gzip(read: Read) -> Iterator[bytes]:
    data = read()
    while data:
        stream = zlib.decompressobj(zlib.MAX_WBITS + 16)
        while not stream.eof:
            out = stream.decompress(data, PIECE)
            data = stream.unconsumed_tail
            if out:
                yield out
            elif not stream.eof and not data and not (data := read()):
                raise EOFError
        data = _next(stream.unused_data, read)


def _streams(read: Read, make: Callable[[], _Decompressor], padded: bool) -> Iterator[bytes]:
    data = read()
    while data:
        stream = make()
        while not stream.eof:
            if stream.needs_input and not data and not (data := read()):
                raise EOFError
            out, data = stream.decompress(data, PIECE), b""
            if out:
                yield out
        data = _next(stream.unused_data, read) if padded else stream.unused_data or read()


def _next(data: bytes, read: Read) -> bytes:
    """Where the next stream begins: gzip and xz files may be filled up with zeros."""
    while not (data := data.lstrip(b"\0")):
        if not (data := read()):
            break
    return data


def _makers(compression: Compression) -> tuple[Callable[[], _Decompressor], bool]:
    """How to begin a stream, and whether zeros may follow one."""
    if compression == "xz":
        return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _XZ_MEMORY), True
    zstd = _zstd()
    options = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW}
    return lambda: zstd.ZstdDecompressor(options=options), False


def _zstd() -> Any:
    try:
        from compression import zstd
    except ImportError:
        try:
            from backports import zstd
        except ImportError:
            hint = "pip install 'supervise-batch[images]', or Python 3.14"
            raise ImageError("zstd cannot be read here", hint=hint) from None
    return zstd


def _errors(compression: Compression) -> tuple[type[Exception], ...]:
    if compression == "zstd":
        return (_zstd().ZstdError,)
    return (zlib.error, lzma.LZMAError)
