"""A directory to unpack into, with something around it that must not change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from supervisor.errors import ImageError
from supervisor.image.removal import remove_tree
from supervisor.image.unpack import Unpacked, unpack
from tests.support.archives import listing


class Place:
    """`target`, beside and below things that an archive may try to reach (CANARIES)."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.blob = top / "blob"
        self.target = top / "around" / "target"
        self.outside = top / "around" / "outside"
        self.outside.mkdir(parents=True)
        for name in ("secret", "passwd"):
            (self.outside / name).write_text(f"{name} of the host\n")
        (self.outside / "directory").mkdir()
        (self.outside / "directory" / "below").write_text("the host's\n")
        (self.outside / "link").symlink_to("secret")
        os.link(self.outside / "secret", self.outside / "other name")

    def unpack(self, data: bytes, **options: Any) -> Unpacked:
        """Into a new directory; nothing around it has changed, whatever comes of it."""
        self.blob.write_bytes(data)
        if self.target.exists():
            remove_tree(str(self.target))
        self.target.mkdir()
        with self.untouched():
            return unpack(self.blob, self.target, **options)

    def refuse(self, data: bytes, *words: str, **options: Any) -> ImageError:
        """It is an error whose text has these words."""
        with pytest.raises(ImageError) as caught:
            self.unpack(data, **options)
        for word in words:
            assert word in str(caught.value)
        return caught.value

    @contextmanager
    def untouched(self) -> Iterator[None]:
        before = (listing(self.outside), sorted(os.listdir(self.target.parent)))
        try:
            yield
        finally:
            assert (listing(self.outside), sorted(os.listdir(self.target.parent))) == before

    def found(self, *, times: bool = True) -> dict[bytes, tuple[Any, ...]]:
        return listing(self.target, times=times)

    def names(self) -> list[str]:
        """Of all that is below, with what it is: "-rw-r--r-- a/f"."""
        entries = sorted(self.found().items())[1:]
        return [f"{entry[0]} {os.fsdecode(name[2:])}" for name, entry in entries]

    def close(self) -> None:
        if self.target.exists():
            remove_tree(str(self.target))
        shutil.rmtree(self.top)
