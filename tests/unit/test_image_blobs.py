"""Blobs: what is there has been verified, what was interrupted goes on, two never write one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supervisor.errors import ImageError
from supervisor.image.blobs import Blobs, Partial, hex_of
from supervisor.image.store import Store
from tests.support.images import sha256

DATA = os.urandom(3_000_000)
DIGEST = sha256(DATA)


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    store = Store(tmp_path / "store")
    store.prepare()
    return store.blobs


def begin(blobs: Blobs, size: int = len(DATA)) -> Partial:
    partial = blobs.begin(DIGEST, size)
    assert partial is not None
    return partial


def kept(blobs: Blobs) -> int:
    """How many bytes the next attempt finds."""
    partial = begin(blobs)
    partial.close()
    return partial.offset


def test_a_blob_is_there_when_it_is_whole(blobs: Blobs) -> None:
    partial = begin(blobs)
    partial.write(DATA[:1000])
    assert not blobs.has(DIGEST)
    partial.write(memoryview(DATA)[1000:])
    assert partial.found == DIGEST
    partial.finish()
    assert blobs.read(DIGEST, len(DATA)) == DATA
    assert list(blobs.partial.iterdir()) == []


def test_what_came_is_kept_and_goes_on(blobs: Blobs) -> None:
    first = begin(blobs)
    first.write(DATA[:1_500_000])
    first.close()
    second = begin(blobs)
    assert second.offset == 1_500_000
    second.write(DATA[1_500_000:])
    second.finish()
    assert blobs.has(DIGEST)


def test_nothing_is_kept_of_nothing(blobs: Blobs) -> None:
    begin(blobs).close()
    assert list(blobs.partial.iterdir()) == []


def test_a_rotten_beginning_is_found_and_thrown_away(blobs: Blobs) -> None:
    (blobs.partial / hex_of(DIGEST)).write_bytes(b"x" * 1000)
    partial = begin(blobs)
    assert partial.offset == 1000
    partial.write(DATA[1000:])
    with pytest.raises(ImageError, match="is not what it should be"):
        partial.finish()
    assert not blobs.has(DIGEST)
    assert kept(blobs) == 0


def test_what_is_too_long_to_be_a_beginning_is_none(blobs: Blobs) -> None:
    (blobs.partial / hex_of(DIGEST)).write_bytes(DATA + b"x")
    assert kept(blobs) == 0


def test_a_truncated_blob_is_refused_and_may_go_on(blobs: Blobs) -> None:
    partial = begin(blobs)
    partial.write(DATA[:10])
    with pytest.raises(ImageError, match=f"ends after 10 bytes, of {len(DATA)}"):
        partial.finish()
    assert kept(blobs) == 10


def test_more_than_announced_is_refused_before_it_is_written(blobs: Blobs) -> None:
    partial = begin(blobs, 100)
    with pytest.raises(ImageError, match="longer than the 100 bytes"):
        partial.write(DATA)
    assert list(blobs.partial.iterdir()) == []


def test_a_wrong_size_does_not_pass_for_right_data(blobs: Blobs) -> None:
    partial = begin(blobs, len(DATA) + 1)
    partial.write(DATA)
    with pytest.raises(ImageError, match="ends after"):
        partial.finish()


def test_reset_begins_again(blobs: Blobs) -> None:
    partial = begin(blobs)
    partial.write(b"wrong")
    partial.reset()
    partial.write(DATA)
    partial.finish()
    assert blobs.read(DIGEST, len(DATA)) == DATA


def test_two_do_not_write_one_blob(blobs: Blobs) -> None:
    first = begin(blobs)
    assert blobs.begin(DIGEST, len(DATA)) is None
    first.write(DATA)
    first.finish()
    assert blobs.has(DIGEST)
    again = begin(blobs)  # who waited and did not ask `has` harms nothing
    again.close()
    assert blobs.has(DIGEST)


def test_one_that_waited_does_not_get_the_file_that_is_gone(blobs: Blobs) -> None:
    """The name is looked at again once the lock is there."""
    first = begin(blobs)
    first.write(b"x")
    first.discard()
    second = begin(blobs)
    second.write(DATA)
    second.finish()
    assert blobs.read(DIGEST, len(DATA)) == DATA


def test_a_blob_that_has_changed_on_the_disk_is_not_used(blobs: Blobs) -> None:
    digest = blobs.put(b"a manifest")
    blobs.path(digest).write_bytes(b"another one")
    with pytest.raises(ImageError, match="had changed on the disk"):
        blobs.read(digest, 100)
    assert not blobs.has(digest)
    with pytest.raises(ImageError, match="is not in the store"):
        blobs.read(digest, 100)
    assert blobs.put(b"a manifest") == digest
    assert blobs.read(digest, 100) == b"a manifest"


@pytest.mark.parametrize("digest", ["", "sha256:", "../x", "sha256:../../x", DIGEST.upper()])
def test_a_digest_names_no_other_file(blobs: Blobs, digest: str) -> None:
    with pytest.raises(ImageError, match="no sha256 digest"):
        blobs.has(digest)


def test_a_link_is_not_followed_to_be_written(blobs: Blobs, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"")
    (blobs.partial / hex_of(DIGEST)).symlink_to(tmp_path / "precious")
    with pytest.raises(ImageError, match="cannot write"):
        begin(blobs)
