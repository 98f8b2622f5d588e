"""Layers, unpacked once for every image and every job that has them.

    layers/HEX/tree          what the layer holds, for overlayfs; HEX is of its diff id
    layers/HEX/facts.json    its size, its blob, and since which boot it is unpacked

A layer is made in a workspace and renamed into place whole.  Its data need not have reached the
disk then: `settled` is false until `settle` has seen to that, and a layer that a crash of the host
may have left with empty files is not `ready` in the boot after.

May import: `errors`, `image.blobs`, `image.files`, `linux.durable`.  All of it blocks.
"""

from __future__ import annotations

import json
from pathlib import Path

from attrs import asdict, evolve, frozen

from supervisor.errors import ImageError
from supervisor.image import files
from supervisor.image.blobs import hex_of
from supervisor.image.documents import Document
from supervisor.linux.durable import fsync_directory, syncfs

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_LARGEST_FACTS = 64 * 1024


@frozen
class Facts:
    """What is known of an unpacked layer.

    size         bytes of its archive, uncompressed
    blob         the digest of the file it came in
    boot         of the kernel it was unpacked under
    settled      it has been written out: no crash takes it back
    left_out     device nodes and attributes that this user or file system cannot have
    """

    diff_id: str
    size: int
    entries: int
    blob: str
    boot: str
    settled: bool = False
    left_out: int = 0


def boot_id() -> str:
    """Which boot of the kernel this is (random(4))."""
    return _BOOT_ID.read_text(encoding="ascii").strip()


class Layers:
    """The unpacked layers below a directory; `locks` holds a lock file while one is made."""

    def __init__(self, root: Path) -> None:
        self.root = root / "layers"
        self.locks = root / "locks"

    def directory(self, diff_id: str) -> Path:
        return self.root / hex_of(diff_id)

    def tree(self, diff_id: str) -> Path:
        """What overlayfs is given."""
        return self.directory(diff_id) / "tree"

    def facts(self, diff_id: str) -> Facts | None:
        """None where it is not there, or is not to be trusted."""
        path = self.directory(diff_id) / "facts.json"
        try:
            facts = read_facts(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ImageError):
            return None  # torn by a crash of the host: as good as absent, and made anew
        if facts.diff_id != diff_id or not self.tree(diff_id).is_dir():
            return None
        return facts if facts.settled or facts.boot == boot_id() else None

    def ready(self, diff_id: str) -> bool:
        return self.facts(diff_id) is not None

    def try_lock(self, diff_id: str) -> int | None:
        """To unpack this layer; None while another does.  `unlock` what it returns."""
        path = self.locks / hex_of(diff_id)
        with files.told(path, "cannot lock"):
            return files.try_lock(path)

    def unlock(self, diff_id: str, fd: int) -> None:
        (self.locks / hex_of(diff_id)).unlink(missing_ok=True)
        files.close(fd)

    def publish(self, made: Path, facts: Facts) -> None:
        """Put a directory with `tree` in it into its place; the caller holds the layer's lock.

        What lies there without being ready must have been moved away.
        """
        target = self.directory(facts.diff_id)
        with files.told(target, "cannot write"):
            write_facts(made, facts)
            made.rename(target)

    def settle(self, diff_ids: list[str]) -> None:
        """Have the data of these layers on the disk, and write down that it is."""
        new = [facts for one in diff_ids if (facts := self.facts(one)) and not facts.settled]
        if not new:
            return
        with files.told(self.root, "cannot write out"):
            fsync_directory(self.root)
            syncfs(self.root)
            for facts in new:
                write_facts(self.directory(facts.diff_id), evolve(facts, settled=True))


def write_facts(directory: Path, facts: Facts) -> None:
    """Into a layer's directory."""
    files.write_atomically(directory / "facts.json", json.dumps(asdict(facts)).encode())


def read_facts(path: Path) -> Facts:
    """Raises OSError and ImageError."""
    document = Document.parse(path.read_bytes(), str(path), limit=_LARGEST_FACTS)
    huge = 2**62
    return Facts(
        diff_id=document.text("diff_id"),
        size=document.number("size", 0, huge),
        entries=document.number("entries", 0, huge),
        blob=document.text("blob"),
        boot=document.text("boot"),
        settled=document.value.get("settled") is True,
        left_out=document.number("left_out", 0, huge, default=0),
    )
