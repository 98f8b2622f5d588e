"""The store: names, records and leases, and that a collection takes what nobody needs, no more."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.errors import ImageError
from supervisor.image import collect, files
from supervisor.image.blobs import hex_of
from supervisor.image.collect import Wish
from supervisor.image.store import Lease, Store
from tests.support.command import ROOT
from tests.support.images import Built, file, layer, sha256
from tests.support.stores import age, found, put, put_layer

SHARED = layer(file("shared"))
ONE = Built([SHARED, layer(file("one"))], config={"Cmd": ["one"]})
TWO = Built([SHARED, layer(file("two"))], config={"Cmd": ["two"]})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def left(store: Store) -> tuple[set[str], set[str], set[str]]:
    """The digests of the images, layers and blobs that are there."""
    places = (store.images_dir, store.layers.root, store.blobs.whole)
    images, layers, blobs = ({f"sha256:{path.name}" for path in one.iterdir()} for one in places)
    return images, layers, blobs


def test_an_image_is_found_by_name_digest_and_the_start_of_one(store: Store) -> None:
    put(store, ONE, "one:latest")
    for name in ("one:latest", ONE.digest, ONE.digest[:20]):
        image = found(store, name)
        assert (image.digest, image.config.command) == (ONE.digest, ("one",))
        assert [Path(one, "of").read_text() for one in image.layers] == ONE.diff_ids[::-1]
    assert store.find("two:latest") is None
    assert store.find(TWO.digest) is None
    assert store.find(TWO.digest[:20]) is None


def test_looking_makes_nothing(store: Store) -> None:
    assert store.find("one") is None
    assert store.images() == []
    collect.collect(store, Wish(all=True))
    collect.sweep(store)
    assert not store.root.exists()


def test_the_start_of_two_digests_names_neither(store: Store) -> None:
    put(store, ONE, "one")
    for letter in "ab":
        (store.images_dir / ("abcdef" + letter * 58)).write_text("{}")
    with pytest.raises(ImageError, match="start of 2 digests"):
        store.find("sha256:abcdef")


def test_a_name_moves_on(store: Store) -> None:
    put(store, ONE, "name")
    put(store, TWO, "name")
    assert found(store, "name").digest == TWO.digest
    assert {one.record.digest: one.names for one in store.images()} == {
        ONE.digest: (),
        TWO.digest: ("name",),
    }


def test_an_equal_layer_stands_once_where_the_upper_one_was(store: Store) -> None:
    a, b = layer(file("a")), layer(file("b"))
    put(store, Built([a, b, a]), "x")
    names = [Path(one, "of").read_text() for one in found(store, "x").layers]
    assert names == [sha256(a), sha256(b)]


def test_the_list_tells_sizes_and_use(store: Store) -> None:
    put(store, ONE, "one")
    put(store, TWO, "two")
    with store.lease(found(store, "one")):
        first, second = store.images()
    assert (first.names, first.size, first.shared, first.leased) == (("one",), 200, 100, True)
    assert (second.leased, second.damage) == (False, "")
    assert store.images()[0].leased is False


def test_a_store_is_closed_to_others(store: Store) -> None:
    put(store, ONE, "one")
    assert store.root.stat().st_mode & 0o777 == 0o700
    store.root.chmod(0o770)
    with pytest.raises(ImageError, match="others may write"):
        Store(store.root).find("one")


def test_a_store_is_no_file_and_no_link(store: Store, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    store.root.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ImageError, match="no directory, so no store"):
        store.workspace()


def test_a_missing_layer_is_told_and_never_started_from(store: Store) -> None:
    put(store, ONE, "one")
    store.layers.directory(ONE.diff_ids[1]).rename(store.root / "away")
    with pytest.raises(ImageError, match=f"lacks its layer {ONE.diff_ids[1]}"):
        store.find("one")
    assert "lacks" in store.images()[0].damage


def test_a_layer_is_trusted_after_a_crash_only_if_it_was_written_out(store: Store) -> None:
    with store.workspace() as workspace:
        put_layer(store, workspace, sha256(b"new"))
        put_layer(store, workspace, sha256(b"old"), boot="an earlier boot")
    assert store.layers.ready(sha256(b"new"))
    assert not store.layers.ready(sha256(b"old"))
    put(store, ONE, "one")  # settles its layers
    facts = store.layers.facts(ONE.diff_ids[0])
    assert facts is not None and facts.settled


def test_a_layer_of_an_earlier_boot_is_damage(store: Store) -> None:
    put(store, ONE, "one")
    age(store, ONE.diff_ids[0])
    with pytest.raises(ImageError, match="lacks its layer"):
        store.find("one")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"diff_id": 1}'])
def test_torn_facts_make_no_layer(store: Store, content: bytes) -> None:
    put(store, ONE, "one")
    (store.layers.directory(ONE.diff_ids[0]) / "facts.json").write_bytes(content)
    assert not store.layers.ready(ONE.diff_ids[0])


def test_what_has_no_name_goes_and_what_others_share_stays(store: Store) -> None:
    put(store, ONE)
    put(store, TWO, "two")
    done = collect.collect(store, Wish())
    assert done.images == [ONE.digest]
    assert left(store) == (
        {TWO.digest},
        set(TWO.diff_ids),
        {TWO.digest, sha256(TWO.raw_config)},
    )
    assert done.size == 100 + len(ONE.raw_manifest) + len(ONE.raw_config)
    assert found(store, "two").digest == TWO.digest


def test_a_dry_collection_tells_the_same_and_does_nothing(store: Store) -> None:
    put(store, ONE)
    put(store, TWO, "two")
    before = left(store)
    told = collect.collect(store, Wish(all=True), dry=True)
    assert left(store) == before
    assert told == collect.collect(store, Wish(all=True))


def test_all_takes_what_is_named_but_not_what_is_used(store: Store) -> None:
    put(store, ONE, "one")
    put(store, TWO, "two")
    with store.lease(found(store, "one")):
        done = collect.collect(store, Wish(all=True))
        assert (done.images, done.kept, done.names) == ([TWO.digest], [ONE.digest], ["two"])
        assert left(store)[1] == set(ONE.diff_ids)
        assert found(store, "one").digest == ONE.digest
    assert collect.collect(store, Wish(all=True)).images == [ONE.digest]
    assert left(store) == (set(), set(), set())


def test_only_what_has_not_been_used_for_a_while(store: Store) -> None:
    put(store, ONE, "one")
    put(store, TWO, "two")
    old = time.time() - 1000
    for built in (ONE, TWO):
        os.utime(store.images_dir / hex_of(built.digest), (old, old))
    store.lease(found(store, "one")).close()  # uses it
    assert collect.collect(store, Wish(all=True, unused_for=500)).images == [TWO.digest]


def test_removing_takes_the_name_and_the_last_one_the_image(store: Store) -> None:
    put(store, ONE, "one")
    store.name("uno", ONE.digest)
    put(store, TWO, "two")
    assert collect.remove(store, ["one"]).images == []
    assert found(store, "uno").digest == ONE.digest
    done = collect.remove(store, ["uno"])
    assert (done.images, done.names) == ([ONE.digest], ["uno"])
    assert store.find("uno") is None


def test_a_digest_stands_for_all_names(store: Store) -> None:
    put(store, ONE, "one")
    store.name("uno", ONE.digest)
    done = collect.remove(store, [ONE.digest[:15]])
    assert (done.names, done.images) == (["one", "uno"], [ONE.digest])


def test_removing_what_is_not_there_does_nothing_at_all(store: Store) -> None:
    put(store, ONE, "one")
    with pytest.raises(ImageError, match="two: is not in the store"):
        collect.remove(store, ["one", "two"])
    assert found(store, "one").digest == ONE.digest


def test_removing_what_a_job_uses_leaves_it_until_the_job_is_gone(store: Store) -> None:
    put(store, ONE, "one")
    lease = store.lease(found(store, "one"))
    done = collect.remove(store, ["one"])
    assert (done.kept, done.images) == ([ONE.digest], [])
    assert left(store)[1] == set(ONE.diff_ids)
    lease.close()
    assert collect.collect(store, Wish()).images == [ONE.digest]


def test_a_duplicate_of_a_lease_holds_it(store: Store) -> None:
    """As the job's init does, after the supervisor has been killed."""
    put(store, ONE, "one")
    lease = store.lease(found(store, "one"))
    other = os.dup(lease.fd)
    lease.close()
    assert collect.collect(store, Wish(all=True)).kept == [ONE.digest]
    os.close(other)
    assert collect.collect(store, Wish(all=True)).images == [ONE.digest]


def test_no_lease_on_what_has_gone(store: Store) -> None:
    put(store, ONE, "one")
    image = found(store, "one")
    collect.remove(store, ["one"])
    with pytest.raises(ImageError, match="was removed from the store"):
        store.lease(image)


def test_a_record_is_never_replaced_under_a_lease(store: Store) -> None:
    """It is the lock: a second import of the same image must not put another file there."""
    put(store, ONE, "one")
    with store.lease(found(store, "one")):
        put(store, ONE, "uno")
        assert collect.collect(store, Wish(all=True)).kept == [ONE.digest]


def test_what_is_claimed_stays(store: Store) -> None:
    """As while another process is between the unpacking and the record."""
    with store.workspace() as workspace:
        workspace.claim([ONE.digest, *ONE.diff_ids])
        store.blobs.put(ONE.raw_manifest)
        put_layer(store, workspace, ONE.diff_ids[0])
        done = collect.collect(store, Wish(all=True))
        assert (done.layers, done.blobs) == ([], [])
    done = collect.collect(store, Wish())
    assert (done.layers, done.blobs) == ([ONE.diff_ids[0]], [ONE.digest])


def test_a_record_that_cannot_be_read_stops_a_collection(store: Store) -> None:
    """What it needs is not known, and may be in use."""
    put(store, ONE)
    (store.images_dir / hex_of(ONE.digest)).write_bytes(b"{")
    before = left(store)
    with pytest.raises(ImageError, match="no JSON"):
        collect.collect(store, Wish(all=True))
    assert left(store) == before


def test_a_collection_takes_downloads_and_locks_that_nobody_holds(store: Store) -> None:
    store.prepare()
    held, dead = sha256(b"held"), sha256(b"dead")
    partials = [store.blobs.begin(digest, 10) for digest in (held, dead)]
    for partial in partials:
        assert partial is not None
        partial.write(b"12345")
    assert partials[1] is not None and partials[0] is not None
    partials[1].close()
    lock = store.layers.try_lock(held)
    assert lock is not None
    (store.layers.locks / hex_of(dead)).write_bytes(b"")
    (store.names_dir / ".0123").write_bytes(b"half a na")
    collect.collect(store, Wish(partials=False))
    assert (store.blobs.partial / hex_of(dead)).exists()
    collect.collect(store, Wish())
    assert [one.name for one in store.blobs.partial.iterdir()] == [hex_of(held)]
    assert [one.name for one in store.layers.locks.iterdir()] == [hex_of(held)]
    assert list(store.names_dir.iterdir()) == []
    partials[0].close()
    store.layers.unlock(held, lock)


HOLDER = """
import sys
from pathlib import Path
from supervisor.image.store import Store
store = Store(Path(sys.argv[1]))
workspace = store.workspace()
workspace.claim(["sha256:" + "0" * 64])
(workspace.directory() / "half").write_bytes(b"x" * 1000)
image = store.find("one")
lease = store.lease(image) if image else None
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(store: Store) -> Iterator[subprocess.Popen[str]]:
    """Another process at work in the store, with a lease on "one"."""
    put(store, ONE, "one")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(store.root)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
    ) as process:  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_a_killed_process_leaves_what_the_next_sweep_takes(
    store: Store, holder: subprocess.Popen[str]
) -> None:
    collect.sweep(store)
    assert len(list(store.tmp.iterdir())) == 1
    assert collect.collect(store, Wish(all=True)).kept == [ONE.digest]
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    collect.sweep(store)
    assert list(store.tmp.iterdir()) == []
    assert collect.collect(store, Wish(all=True)).images == [ONE.digest]


def test_a_lease_waits_for_a_collector_and_then_sees_what_it_did(store: Store) -> None:
    put(store, ONE, "one")
    image = found(store, "one")
    path = store.images_dir / hex_of(ONE.digest)
    collector = files.try_lock(path, os.O_RDONLY)
    assert collector is not None
    import threading

    outcome: list[Lease | ImageError] = []

    def lease() -> None:
        try:
            outcome.append(store.lease(image))
        except ImageError as err:
            outcome.append(err)

    thread = threading.Thread(target=lease)
    thread.start()
    path.unlink()
    os.close(collector)
    thread.join()
    (told,) = outcome
    assert isinstance(told, ImageError)


def test_a_file_is_written_whole_or_not(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write_atomically(path, b"one")
    files.write_atomically(path, b"two")
    files.write_once(path, b"three")
    assert path.read_bytes() == b"two"
    with pytest.raises(IsADirectoryError):
        (tmp_path / "directory").mkdir()
        files.write_atomically(tmp_path / "directory", b"x")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["directory", "file"]
