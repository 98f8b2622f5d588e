"""References become images: each source, hostile ones, two at once, a full disk, and death."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from supervisor.errors import ImageError
from supervisor.image import collect, oci
from supervisor.image.acquire import Pull, acquire
from supervisor.image.adding import NewLayer, add
from supervisor.image.blobs import hex_of
from supervisor.image.collect import Wish
from supervisor.image.install import Choice
from supervisor.image.platforms import Platform
from supervisor.image.platforms import host as this_host
from supervisor.image.progress import Progress
from supervisor.image.reference import parse
from supervisor.image.store import Store
from supervisor.model import Image
from tests.support import host
from tests.support.command import ROOT
from tests.support.images import (
    Built,
    archive,
    compressed,
    file,
    folder,
    layer,
    layout_index,
    many_layers,
    opaque,
    sha256,
    symlink,
    whiteout,
    write_layout,
)
from tests.support.stores import age

pytestmark = [pytest.mark.kernel, host.outside("the store")]

HERE = this_host().architecture
BASE = layer(
    folder("etc"), file("etc/motd", b"hello\n"), file("etc/secret", b"x", 0o600, uid=1, gid=2),
    symlink("link", "etc/motd"),
)  # fmt: skip
TOP = layer(whiteout("etc/secret"), folder("var"), opaque("var"), file("var/new", b"new"))
CONFIG = {"Env": ["A=1"], "Cmd": ["/bin/sh"], "User": "1"}
IMAGE = Built([BASE, TOP], CONFIG, architecture=HERE)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "state" / ".images")


def get(store: Store, reference: str | Path, **more: Any) -> Image:
    """What a reference becomes."""
    return trio.run(partial(acquire, store, parse(str(reference)), **more))


def listing(store: Store) -> set[str]:
    """Every file and directory of the store down to the layers' trees."""
    found = set()
    for path in store.root.rglob("*"):
        name = path.relative_to(store.root)
        if "tree" not in name.parts[:-1]:
            found.add(str(name))
    return found


def test_every_form_of_an_image_becomes_the_same_layers(store: Store, tmp_path: Path) -> None:
    IMAGE.layout(tmp_path / "oci", "1")
    IMAGE.oci_archive(tmp_path / "oci.tar", "1")
    IMAGE.docker_archive(tmp_path / "docker.tar", "some/name:1")
    for name in ("oci.tar", "docker.tar"):
        for how in ("gzip", "xz", "zstd"):
            data = (tmp_path / name).read_bytes()
            (tmp_path / f"{name}.{how}").write_bytes(compressed(data, how))
    references = [
        f"oci:{tmp_path}/oci", f"oci:{tmp_path}/oci:1", f"oci-archive:{tmp_path}/oci.tar:1",
        *(f"oci-archive:{tmp_path}/oci.tar.{how}" for how in ("gzip", "xz", "zstd")),
        f"docker-archive:{tmp_path}/docker.tar",
        f"docker-archive:{tmp_path}/docker.tar:some/name:1",
        *(f"docker-archive:{tmp_path}/docker.tar.{how}" for how in ("gzip", "xz", "zstd")),
    ]  # fmt: skip
    images = [get(store, one) for one in references]
    assert len({one.layers for one in images}) == 1
    assert {one.config.command for one in images} == {("/bin/sh",)}
    assert {one.digest for one in images[:6]} == {IMAGE.digest}
    assert [one.name for one in images] == references
    top, base = map(Path, images[0].layers)
    assert (base / "etc/motd").read_bytes() == b"hello\n"
    secret = (base / "etc/secret").stat()
    assert (secret.st_mode & 0o7777, secret.st_uid, secret.st_gid) == (0o600, 1, 2)
    assert os.readlink(base / "link") == "etc/motd"
    assert (top / "etc/secret").stat().st_rdev == 0
    assert os.getxattr(top / "var", "trusted.overlay.opaque") == b"y"
    assert list(store.tmp.iterdir()) == []


@pytest.mark.parametrize("compression", ["none", "gzip", "zstd"])
@pytest.mark.parametrize("docker", [False, True])
def test_every_media_type(store: Store, tmp_path: Path, compression: Any, docker: bool) -> None:
    image = Built([BASE], CONFIG, compression=compression, docker=docker, architecture=HERE)
    image.layout(tmp_path / "oci")
    found = get(store, f"oci:{tmp_path}/oci")
    assert (Path(found.layers[0]) / "etc/motd").read_bytes() == b"hello\n"
    assert {path.name for path in store.blobs.whole.iterdir()} == {
        hex_of(image.digest), hex_of(sha256(image.raw_config))
    }  # fmt: skip


@pytest.mark.parametrize("how", ["none", "gzip", "xz", "zstd"])
def test_a_tar_file_is_an_image_of_one_layer(store: Store, tmp_path: Path, how: str) -> None:
    (tmp_path / "root").write_bytes(compressed(BASE, how))
    found = get(store, f"tar:{tmp_path}/root")
    assert (Path(found.layers[0]) / "etc/motd").read_bytes() == b"hello\n"
    assert Path(found.layers[0]) == store.layers.tree(sha256(BASE))
    assert found.platform == str(this_host())


def test_a_file_is_imported_again_only_when_it_has_changed(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "root.tar"
    told: list[Progress] = []

    def times(data: bytes | None, seconds: int) -> int:
        if data is not None:
            path.write_bytes(data)
        os.utime(path, (seconds, seconds))
        told.clear()
        get(store, f"tar:{path}", progress=told.append)
        return len([one for one in told if one.step == "done"])

    # its ctime is of now, so nothing is believed of it yet
    assert times(BASE, 1000) == 1
    assert store.stamp(f"tar:{path}") == ""
    store.name(f"tar:{path}", store.names()[f"tar:{path}"], stamp_of(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("supervisor.image.acquire._FRESH", -1e9)
        told.clear()
        get(store, f"tar:{path}", progress=told.append)
        assert told == []
        assert times(TOP, 1000) == 1  # the same size would do: the ctime is another
        assert times(None, 1000) == 1  # touched
        told.clear()
        get(store, f"tar:{path}", progress=told.append)
        assert told == []
        get(store, f"tar:{path}", progress=told.append, pull="always")
        assert told != []


def stamp_of(path: Path) -> str:
    one = path.stat()
    fields = (one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns)
    return ":".join(map(str, fields))


def test_a_tag_moves_and_the_old_image_goes_at_the_next_prune(store: Store, tmp_path: Path) -> None:
    IMAGE.layout(tmp_path / "oci", "1")
    old = get(store, f"oci:{tmp_path}/oci:1")
    new = Built([BASE], architecture=HERE)
    new.layout(tmp_path / "oci", "1")
    assert get(store, f"oci:{tmp_path}/oci:1").digest == new.digest
    with store.lease(old):
        assert collect.collect(store, Wish()).kept == [IMAGE.digest]
        assert Path(old.layers[0]).is_dir()
    assert collect.collect(store, Wish()).layers == [sha256(TOP)]


def test_nothing_is_got_where_that_is_not_wanted(store: Store, tmp_path: Path) -> None:
    IMAGE.layout(tmp_path / "oci")
    with pytest.raises(ImageError, match="no image of this name is in the store"):
        get(store, f"oci:{tmp_path}/oci", pull="never")
    get(store, f"oci:{tmp_path}/oci")
    (tmp_path / "oci/index.json").unlink()
    assert get(store, f"oci:{tmp_path}/oci", pull="never").digest == IMAGE.digest


def test_an_error_names_what_was_looked_for_and_where(store: Store, tmp_path: Path) -> None:
    IMAGE.layout(tmp_path / "oci", "12")
    get(store, f"oci:{tmp_path}/oci")
    store.name("debian:12", IMAGE.digest)
    cases = {
        "debian": ("debian:latest", str(store.root), "debian:12", "docker://debian:latest"),
        f"oci:{tmp_path}/oci:13": (f"{tmp_path}/oci", '"13"', "has the tags 12"),
        f"oci:{tmp_path}/none": (f"{tmp_path}/none", "no such directory"),
        f"oci:{tmp_path}": (f"{tmp_path}/index.json", "no such file"),
        f"oci-archive:{tmp_path}/none": (f"{tmp_path}/none", "no such file"),
        f"tar:{tmp_path}/oci": (f"{tmp_path}/oci", "no regular file"),
        f"oci-archive:{tmp_path}/oci/index.json": ("index.json", "tar archive"),
        "docker://debian:12": ("docker://", "no registry may be asked"),
    }
    for reference, words in cases.items():
        pull: Pull = "always" if reference.startswith("docker:") else "missing"
        with pytest.raises(ImageError) as caught:
            get(store, reference, pull=pull)
        for word in words:
            assert word in str(caught.value), reference


def test_an_index_gives_the_image_of_the_platform(store: Store, tmp_path: Path) -> None:
    foreign = Built([TOP], architecture="s390x")
    raw = layout_index([foreign.described(platform=True), IMAGE.described(platform=True)])
    blobs = {**foreign.blobs, **IMAGE.blobs, sha256(raw): raw}
    nested = {"mediaType": oci.OCI_INDEX, "digest": sha256(raw), "size": len(raw)}
    write_layout(tmp_path / "nested", [nested], blobs)
    flat = [foreign.described("1", platform=True), IMAGE.described("1", platform=True)]
    write_layout(tmp_path / "flat", flat, blobs)
    wanted = Choice(platform=Platform("linux", "s390x"))
    for reference in (f"oci:{tmp_path}/nested", f"oci:{tmp_path}/flat:1"):
        assert get(store, reference).digest == IMAGE.digest
        assert get(store, reference, choice=wanted).digest == foreign.digest
        with pytest.raises(ImageError, match=r"no image for linux/mips .it has linux/"):
            get(store, reference, choice=Choice(platform=Platform("linux", "mips")))


def test_what_an_image_says_of_its_platform_holds(store: Store, tmp_path: Path) -> None:
    foreign = Built([TOP], architecture="s390x")
    foreign.layout(tmp_path / "oci")
    with pytest.raises(ImageError, match="is for linux/s390x, not for"):
        get(store, f"oci:{tmp_path}/oci")
    wanted = Choice(platform=Platform("linux", "s390x"))
    assert get(store, f"oci:{tmp_path}/oci", choice=wanted).platform == "linux/s390x"


def test_indexes_in_indexes_end_somewhere(store: Store, tmp_path: Path) -> None:
    blobs = dict(IMAGE.blobs)
    entry = IMAGE.described()
    for _ in range(oci.DEEPEST_INDEX + 1):
        raw = layout_index([entry])
        entry = {"mediaType": oci.OCI_INDEX, "digest": sha256(raw), "size": len(raw)}
        blobs[sha256(raw)] = raw
    write_layout(tmp_path / "oci", [entry], blobs)
    with pytest.raises(ImageError, match="indexes within indexes"):
        get(store, f"oci:{tmp_path}/oci")


def hurt(blobs: dict[str, bytes], digest: str, how: str) -> dict[str, bytes]:
    """The blobs with one of them damaged."""
    data = blobs[digest]
    damaged = {
        "flipped": data[:-9] + bytes([data[-9] ^ 1]) + data[-8:],
        "truncated": data[:-1],
        "longer": data + b"x",
        "empty": b"",
    }.get(how)
    return {**blobs, digest: damaged} if damaged is not None else {
        key: one for key, one in blobs.items() if key != digest
    }  # fmt: skip


@pytest.mark.parametrize("how", ["flipped", "truncated", "longer", "empty", "missing"])
@pytest.mark.parametrize("which", ["manifest", "config", "layer"])
def test_a_damaged_blob_is_never_used(store: Store, tmp_path: Path, which: str, how: str) -> None:
    digest = {
        "manifest": IMAGE.digest, "config": sha256(IMAGE.raw_config),
        "layer": sha256(IMAGE.packed[1]),
    }[which]  # fmt: skip
    write_layout(tmp_path / "bad", [IMAGE.described()], hurt(IMAGE.blobs, digest, how))
    with pytest.raises(ImageError):
        get(store, f"oci:{tmp_path}/bad")
    assert store.images() == []
    assert not store.layers.ready(sha256(TOP))
    IMAGE.layout(tmp_path / "good")
    assert get(store, f"oci:{tmp_path}/good").digest == IMAGE.digest
    collect.collect(store, Wish())
    assert list(store.blobs.partial.iterdir()) == []


def test_a_layer_that_is_not_its_diff_id_is_never_used(store: Store, tmp_path: Path) -> None:
    lying = Built([BASE, TOP], architecture=HERE)
    lying.__dict__["diff_ids"] = [sha256(BASE), sha256(b"something else")]
    lying.layout(tmp_path / "oci")
    with pytest.raises(ImageError, match="must be"):
        get(store, f"oci:{tmp_path}/oci")
    assert store.images() == []
    assert list(store.tmp.iterdir()) == []


def test_a_damaged_store_is_mended_by_getting_the_image_again(store: Store, tmp_path: Path) -> None:
    IMAGE.layout(tmp_path / "oci")
    reference = f"oci:{tmp_path}/oci"
    first = get(store, reference)
    store.blobs.path(sha256(IMAGE.raw_config)).write_bytes(b"rotten")
    assert get(store, reference) == first
    age(store, sha256(TOP))
    assert get(store, reference) == first
    Path(first.layers[0]).parent.rename(store.root / "away")
    assert get(store, reference) == first


@pytest.mark.parametrize(
    "members",
    [
        {},
        {"manifest.json": b"{}"},
        {"manifest.json": b"[]"},
        {"manifest.json": b"[1]"},
        {"manifest.json": b'[{"Config": "../../etc/passwd", "RepoTags": [], "Layers": []}]'},
        {"manifest.json": b'[{"Config": "c", "Layers": ["l"]}]', "c": IMAGE.raw_config},
        {"manifest.json": b'[{"Config": "c", "Layers": ["l", "m"]}]', "c": IMAGE.raw_config},
    ],
)
def test_a_hostile_docker_archive_is_refused(
    store: Store, tmp_path: Path, members: dict[str, bytes]
) -> None:
    archive(tmp_path / "d.tar", members)
    with pytest.raises(ImageError, match=r"d\.tar"):
        get(store, f"docker-archive:{tmp_path}/d.tar")


def test_a_name_in_an_archive_that_is_a_link_is_followed_within(
    store: Store, tmp_path: Path
) -> None:
    """`docker save` wrote equal layers as links; what leads out of the archive is not in it."""
    one = Built([BASE, BASE], architecture=HERE)
    manifest = [{"Config": "c", "RepoTags": ["a:1"], "Layers": ["x/layer.tar", "y/layer.tar"]}]
    head = [file("c", one.raw_config), file("manifest.json", json.dumps(manifest).encode())]
    good = layer(*head, file("x/layer.tar", BASE), symlink("y/layer.tar", "../x/layer.tar"))
    (tmp_path / "good.tar").write_bytes(good)
    assert len(get(store, f"docker-archive:{tmp_path}/good.tar:a:1").layers) == 1
    for target in ("../../../etc/passwd", "/etc/passwd", "layer.tar", "../y/layer.tar"):
        bad = layer(*head, file("x/layer.tar", BASE), symlink("y/layer.tar", target))
        (tmp_path / "bad.tar").write_bytes(bad)
        with pytest.raises(ImageError, match=r"there is no y/layer.tar in it"):
            get(store, f"docker-archive:{tmp_path}/bad.tar:a:1")


def test_a_pipe_in_a_layout_does_not_hang(store: Store, tmp_path: Path) -> None:
    IMAGE.layout(tmp_path / "oci")
    path = tmp_path / "oci/blobs" / sha256(IMAGE.packed[0]).replace(":", "/")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ImageError, match="no regular file"):
        get(store, f"oci:{tmp_path}/oci")


def test_two_thousand_users_of_an_image_cost_one_copy(store: Store, tmp_path: Path) -> None:
    IMAGE.layout(tmp_path / "oci")
    get(store, f"oci:{tmp_path}/oci")
    before = listing(store)
    leases = []
    try:
        for _ in range(2000):
            image = store.find(f"oci:{tmp_path}/oci")
            assert image is not None
            leases.append(store.lease(image))
        assert len({lease.image.layers for lease in leases}) == 1
        assert listing(store) == before
    finally:
        for lease in leases:
            lease.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    point = tmp_path / "small"
    point.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4M,mode=700", "supervise-test", point], check=True
    )
    yield point
    subprocess.run(["umount", point], check=True)


def free(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def test_an_image_larger_than_the_disk_is_refused_at_once(small_disk: Path, tmp_path: Path) -> None:
    big = Built([layer(file("big", os.urandom(6 << 20)))], architecture=HERE)
    big.layout(tmp_path / "oci")
    store = Store(small_disk / ".images")
    with pytest.raises(ImageError, match=r"has room for 3 MiB .make room there: supervise image"):
        get(store, f"oci:{tmp_path}/oci")
    assert list(store.blobs.partial.iterdir()) == []


def test_a_disk_that_fills_up_in_the_middle_leaves_nothing_half(
    small_disk: Path, tmp_path: Path
) -> None:
    """The layers are small compressed, and do not fit unpacked."""
    layers = [layer(file(f"zeros{at}", bytes(3 << 20))) for at in range(2)]
    Built(layers, architecture=HERE).layout(tmp_path / "big")
    small = Built([BASE], architecture=HERE)
    small.layout(tmp_path / "small-image")
    store = Store(small_disk / ".images")
    get(store, f"oci:{tmp_path}/small-image")
    before = listing(store)
    with pytest.raises(ImageError, match=r"(?i)no space left on device"):
        get(store, f"oci:{tmp_path}/big")
    assert list(store.tmp.iterdir()) == []
    collect.collect(store, Wish())
    assert listing(store) == before
    assert free(small_disk) > 3 << 20
    assert get(store, f"oci:{tmp_path}/small-image").digest == small.digest


def test_a_full_disk_while_copying_takes_back_what_was_copied(
    small_disk: Path, tmp_path: Path
) -> None:
    data = [layer(file("a", os.urandom(1 << 20))), layer(file("b", os.urandom(2 << 20)))]
    Built(data, architecture=HERE, compression="none").layout(tmp_path / "oci")
    store = Store(small_disk / ".images")
    with pytest.raises(ImageError, match=r"(?i)no space left on device"):
        get(store, f"oci:{tmp_path}/oci")
    collect.collect(store, Wish())
    assert free(small_disk) > 3 << 20


GETTER = """
import sys, os, signal, trio
from functools import partial
from pathlib import Path
from supervisor.image.acquire import acquire
from supervisor.image.reference import parse
from supervisor.image.store import Store

stop_at = sys.argv[3]

def progress(one):
    global stop_at
    print(one.step, one.digest, flush=True)
    if one.step == stop_at:
        stop_at = ""  # it comes to the same step more than once
        os.kill(os.getpid(), signal.SIGSTOP)

image = trio.run(partial(acquire, Store(Path(sys.argv[1])), parse(sys.argv[2]), progress=progress))
print("got", image.digest, flush=True)
"""


@contextmanager
def getter(store: Store, reference: str, stop_at: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that gets an image, telling how; it stops itself when it comes to a step."""
    argv = [sys.executable, "-c", GETTER, str(store.root), reference, stop_at]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            yield process
        except BaseException:
            process.kill()  # or leaving the block would wait for one that is stopped
            raise


def until(process: subprocess.Popen[str], step: str) -> list[str]:
    """What it says, up to a step."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line.split()[0])
        if lines[-1] == step:
            return lines
    raise AssertionError(f"it ended without {step}: {lines}")


def test_two_processes_get_an_image_and_each_layer_is_unpacked_once(
    store: Store, tmp_path: Path
) -> None:
    Built(many_layers(1), architecture=HERE).layout(tmp_path / "oci")
    reference = f"oci:{tmp_path}/oci"
    with getter(store, reference, "unpacking") as first:
        until(first, "unpacking")
        os.waitid(os.P_PID, first.pid, os.WSTOPPED | os.WNOWAIT)
        with getter(store, reference) as second:
            until(second, "waiting")
            first.send_signal(signal.SIGCONT)
            assert "done" in until(first, "got")
            steps = until(second, "got")
    assert "unpacking" not in steps and "present" in steps
    assert (first.returncode, second.returncode) == (0, 0)


def test_a_prune_beside_a_process_at_work_takes_nothing_from_it(
    store: Store, tmp_path: Path
) -> None:
    IMAGE.layout(tmp_path / "oci")
    with getter(store, f"oci:{tmp_path}/oci", "done") as process:
        until(process, "done")
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        collect.collect(store, Wish(all=True))
        while process.poll() is None:
            process.send_signal(signal.SIGCONT)
            collect.collect(store, Wish())
            try:
                process.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
    assert process.returncode == 0
    assert store.find(f"oci:{tmp_path}/oci") is not None


def test_the_second_goes_on_where_the_first_was_killed(store: Store, tmp_path: Path) -> None:
    Built(many_layers(1), architecture=HERE).layout(tmp_path / "oci")
    with getter(store, f"oci:{tmp_path}/oci", "unpacking") as first:
        until(first, "unpacking")
        with getter(store, f"oci:{tmp_path}/oci") as second:
            until(second, "waiting")
            first.kill()
            assert "unpacking" in until(second, "got")
    collect.sweep(store)
    assert list(store.tmp.iterdir()) == []


INTERRUPTED = """
import sys, os, signal, trio
from functools import partial
from pathlib import Path
from supervisor.image.acquire import acquire
from supervisor.image.reference import parse
from supervisor.image.store import Store

def progress(one):
    if one.step == sys.argv[3]:
        os.kill(os.getpid(), signal.SIGINT)

try:
    trio.run(partial(acquire, Store(Path(sys.argv[1])), parse(sys.argv[2]), progress=progress))
except KeyboardInterrupt:
    sys.exit(42)
"""


@pytest.mark.parametrize("step", ["copying", "unpacking"])
@pytest.mark.parametrize("form", ["oci", "tar"])
def test_an_interruption_leaves_nothing_and_comes_as_what_it_is(
    store: Store, tmp_path: Path, form: str, step: str
) -> None:
    if (form, step) == ("tar", "copying"):
        step = "done"
    data = [layer(file(f"{at}", os.urandom(4 << 20))) for at in range(2)]
    Built(data, architecture=HERE).layout(tmp_path / "oci")
    (tmp_path / "tar").write_bytes(data[0])
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, str(store.root), f"{form}:{tmp_path}/{form}", step],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 42, done.stderr
    assert list(store.tmp.iterdir()) == []
    assert list(store.layers.locks.iterdir()) == []


def killed_at(store: Store, reference: str, count: int) -> bool:
    """Get an image in a child that SIGKILLs itself at the nth thing it does to the store.

    False when it had done all before.
    """
    child = os.fork()
    if child == 0:
        try:
            _die_at(count, str(store.root))
            get(store, reference)
            os._exit(0)
        except BaseException as err:
            print(f"child: {err!r}", file=sys.__stderr__)
            os._exit(1)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


def wait_for_the_dead(store: Store) -> None:
    """Until no lock is held: a process killed as it forks leaves a child that has them too.

    That one is on its way to an exec, which closes them, or to its own death.
    """
    for place in (store.tmp, store.layers.locks, store.blobs.partial):
        for path in place.iterdir() if place.is_dir() else ():
            fd = os.open(path, os.O_RDONLY)
            fcntl.flock(fd, fcntl.LOCK_EX)
            os.close(fd)


_TOUCHING = frozenset({
    "open", "os.mkdir", "os.rename", "os.link", "os.remove", "os.rmdir", "os.truncate",
    "fcntl.flock", "os.chmod", "subprocess.Popen",
})  # fmt: skip


def _die_at(count: int, root: str) -> None:
    left = [count]

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _TOUCHING:
            return
        if event in ("fcntl.flock", "subprocess.Popen") or root in str(arguments):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


@pytest.mark.timeout(600)
def test_killed_at_any_moment_it_leaves_nothing_half(tmp_path: Path) -> None:
    """Every step of a process that gets an image is the last one, one after the other."""
    Built([BASE, TOP], CONFIG, architecture=HERE).layout(tmp_path / "oci")
    reference = f"oci:{tmp_path}/oci"
    whole = Store(tmp_path / "whole")
    expected = get(whole, reference)
    count = 0
    stride = 1 if host.SLOWNESS == 1 else 11  # a guest has the time for some of them
    while True:
        count += stride
        store = Store(tmp_path / f"store{count}")
        killed = killed_at(store, reference, count)
        wait_for_the_dead(store)
        found = store.find(reference)  # raises if it is there half
        if found is not None:
            assert (found.digest, found.config) == (expected.digest, expected.config)
        collect.collect(store, Wish())
        if store.exists():
            left = {name for name in listing(store) if name != "lock"}
            assert left <= listing(whole), f"killed at {count}"
        got = get(store, reference)
        assert (got.digest, got.config) == (expected.digest, expected.config)
        assert listing(store) == listing(whole), f"killed at {count}"
        if not killed:
            break
    assert count > 50  # or the hook has seen little of it


def test_an_image_is_put_together_of_old_and_new_layers(store: Store, tmp_path: Path) -> None:
    IMAGE.layout(tmp_path / "oci")
    get(store, f"oci:{tmp_path}/oci")
    (tmp_path / "new.tar.gz").write_bytes(compressed(layer(file("new")), "gzip"))
    new = NewLayer(tmp_path / "new.tar.gz", sha256(layer(file("new"))), f"{oci.OCI_LAYER}+gzip")
    config = {"config": {"Cmd": ["new"]}}
    made = add(store, config=config, layers=[*IMAGE.diff_ids, new], name="mine:1")
    assert store.find("mine:1") == made
    assert [Path(one, "new").exists() for one in made.layers] == [True, False, False]
    assert made.config.command == ("new",)
    collect.remove(store, [f"oci:{tmp_path}/oci"])
    assert store.find("mine:1") == made
    with pytest.raises(ImageError, match="no such layer is in the store"):
        add(store, config={}, layers=[sha256(b"none")], name="x:1")
    lying = NewLayer(tmp_path / "new.tar.gz", sha256(b"x"), f"{oci.OCI_LAYER}+gzip")
    with pytest.raises(ImageError, match="must be"):
        add(store, config={}, layers=[lying], name="x:1")
    assert store.find("x:1") is None
