"""Any list of entries gives what a simple model says; any bytes give a layer or an ImageError.

SUPERVISE_FUZZ multiplies the examples (SUPERVISE_FUZZ=100: some minutes).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor.errors import ImageError
from supervisor.image.unpack import Bounds
from tests.support import archives as t
from tests.support import host
from tests.support.layers import Layer, Refused
from tests.support.unpacking import Place

pytestmark = [pytest.mark.kernel, host.outside("unpacking")]

EXAMPLES = 60 * int(os.environ.get("SUPERVISE_FUZZ", "1"))
SECONDS = 30
"""For one archive, far above what it takes."""
BOUNDS = Bounds(bytes=1 << 24, entries=10_000, seconds=10)

calmly = settings(
    max_examples=EXAMPLES, deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)  # fmt: skip

parts = st.sampled_from([b"a", b"b", b"c"])
paths = st.lists(parts, min_size=1, max_size=3).map(b"/".join)
targets = st.builds(
    lambda up, path: up + path, st.sampled_from([b"", b"/", b"../", b"../../../", b"./"]), paths
)
modes = st.sampled_from([0o755, 0o700, 0o4711, 0o2750, 0o1777, 0o000])
entries = st.one_of(
    st.tuples(st.just("file"), paths, modes, st.binary(max_size=3)),
    st.tuples(st.just("directory"), paths | st.just(b"."), modes, st.just(b"")),
    st.tuples(st.just("symlink"), paths, st.just(0o777), targets),
    st.tuples(st.just("link"), paths, st.just(0), paths),
    st.tuples(st.just("fifo"), paths, modes, st.just(b"")),
    st.tuples(st.just("whiteout"), paths, st.just(0), st.just(b"")),
    st.tuples(st.just("opaque"), paths | st.just(b"."), st.just(0), st.just(b"")),
)
Entry = tuple[str, bytes, int, bytes]


def member(entry: Entry) -> bytes:
    kind, path, mode, data = entry
    above, _, base = path.rpartition(b"/")
    below = above + b"/" if above else b""
    if kind == "whiteout":
        return t.file(below + b".wh." + base)
    if kind == "opaque":
        return t.file(path + b"/.wh..wh..opq")
    if kind == "file":
        return t.file(path, data, mode=mode)
    if kind == "directory":
        return t.directory(path, mode)
    if kind == "symlink":
        return t.symlink(path, data)
    return t.hardlink(path, data) if kind == "link" else t.header(path, b"6", mode=mode)


@contextmanager
def placed() -> Iterator[Place]:
    with tempfile.TemporaryDirectory(prefix="sv-fuzz-") as directory:
        place = Place(Path(directory) / "place")
        try:
            yield place
        finally:
            place.close()


@given(st.lists(entries, max_size=12))
@calmly
def test_any_entries_give_what_the_model_says(some: list[Entry]) -> None:
    layer = Layer()
    try:
        for entry in some:
            layer.add(*entry)
        wanted = layer.listing()
    except Refused:
        wanted = None
    with placed() as place:
        began = time.monotonic()
        try:
            place.unpack(t.archive(*map(member, some)), bounds=BOUNDS)
        except ImageError as error:
            assert wanted is None, error
        else:
            assert layer.seen(place.found()) == wanted
        assert time.monotonic() - began < SECONDS


VALID = t.archive(
    t.directory(b"d", 0o2755, uid=1),
    t.pax((b"path", b"d/long" * 40), (b"mtime", b"1.5"), (b"SCHILY.xattr.user.a", b"b")),
    t.file(b"x", b"data" * 200),
    t.long(b"n" * 150) + t.file(b"x", b"more"),
    t.symlink(b"s", b"../d"),
    t.long(b"n" * 150, b"K") + t.hardlink(b"h", b""),
    t.pax(
        (b"GNU.sparse.major", b"0"),
        (b"GNU.sparse.size", b"9000"),
        (b"GNU.sparse.map", b"0,2,8000,2"),
    )
    + t.file(b"sparse", b"abcd"),
    t.pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.realsize", b"9000"))
    + t.file(b"sparse1", t.padded(b"2\n0\n2\n8000\n2\n") + b"abcd"),
    t.file(b"d/.wh.x"),
    t.file(b"d/.wh..wh..opq"),
    t.header(b"p", b"6"),
)
HEADERS = [at for at in range(0, len(VALID), 512) if VALID[at + 257 : at + 262] == b"ustar"]
changes = st.lists(
    st.tuples(
        st.sampled_from(HEADERS),
        st.integers(0, 511),
        st.binary(min_size=1, max_size=12),
    ),
    max_size=4,
)


def mutated(some: list[tuple[int, int, bytes]], cut: int | None) -> bytes:
    """Headers changed, with right checksums, so that the change arrives."""
    data = bytearray(VALID)
    for at, offset, new in some:
        end = min(offset + len(new), 512)
        data[at + offset : at + end] = new[: end - offset]
        data[at : at + 512] = t.resummed(bytes(data[at : at + 512]))
    return bytes(data[:cut])


@given(changes, st.none() | st.integers(0, len(VALID)))
@calmly
def test_any_change_of_an_archive_gives_a_layer_or_an_error(
    some: list[tuple[int, int, bytes]], cut: int | None
) -> None:
    with placed() as place:
        began = time.monotonic()
        try:
            place.unpack(mutated(some, cut), bounds=BOUNDS)
        except ImageError as error:
            assert "\n" not in str(error) and "without a word" not in str(error)
            assert "Error(" not in str(error)  # nothing that it had not thought of
        assert time.monotonic() - began < SECONDS


@given(
    st.binary(max_size=600),
    st.sampled_from([b"", b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0"]),
)
@calmly
def test_any_bytes_are_no_layer(data: bytes, magic: bytes) -> None:
    """Such bytes hold no right checksum, but for nothing at all."""
    with placed() as place:
        try:
            done = place.unpack(magic + data, bounds=BOUNDS)
        except ImageError as error:
            assert "without a word" not in str(error) and "Error(" not in str(error)
        else:
            assert done.entries == 0 and not any(data[:512])
