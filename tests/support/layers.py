"""A simple model of what a layer's entries become, to compare the unpacking with.

A tree of nodes in memory; names are looked up as in a root of its own, links on the way included.
"""

from __future__ import annotations

import stat
from typing import Any


class Refused(Exception):
    """No layer comes of these entries."""


class Node:
    """Anything but a directory: "-", "l", "p", or "c" for a whiteout."""

    def __init__(self, kind: str, mode: int, data: object) -> None:
        self.kind = kind
        self.mode = mode
        self.data = data


class Folder(Node):
    def __init__(self, mode: int = 0o755, *, opaque: bool = False) -> None:
        super().__init__("d", mode, None)
        self.opaque = opaque
        self.children: dict[bytes, Node] = {}


class Layer:
    """`add` entries, then compare `listing` with what `seen` makes of a real listing."""

    def __init__(self) -> None:
        self.root = Folder()

    def add(self, kind: str, path: bytes, mode: int, data: bytes) -> None:
        if kind == "opaque":
            self._walk(path.split(b"/"))[-1].opaque = True
            return
        if path == b".":
            self.root.mode = mode
            return
        if kind == "link":
            self._find(data)  # before anything else
        *above, base = path.split(b"/")
        there = self._walk(above)[-1].children
        old = there.get(base)
        if kind == "whiteout":
            if isinstance(old, Folder):
                old.opaque = True
            elif old is None:
                there[base] = Node("c", 0, (0, 0))
        elif kind == "directory":
            if isinstance(old, Folder):
                old.mode = mode
            else:
                there[base] = Folder(mode, opaque=old is not None and old.kind == "c")
        elif kind == "link":
            self._link(there, base, data)
        else:
            letter = {"file": "-", "symlink": "l", "fifo": "p"}[kind]
            there[base] = Node(letter, mode, None if kind == "fifo" else data)

    def _link(self, there: dict[bytes, Node], base: bytes, target: bytes) -> None:
        found = self._find(target)
        if there.get(base) is found and not isinstance(found, Folder):
            return
        there.pop(base, None)
        found = self._find(target)  # it may have been in there
        if isinstance(found, Folder):
            raise Refused
        there[base] = found

    def _find(self, path: bytes) -> Node:
        """What is there, a link itself."""
        *above, base = path.split(b"/")
        folder = self._walk(above, make=False)[-1]
        if base not in folder.children:
            raise Refused
        return folder.children[base]

    def _walk(self, parts: list[bytes], *, make: bool = True) -> list[Folder]:
        """The directories on the way; the entry's own are made, those that links name are not."""
        trail = [self.root]
        todo = [(part, make) for part in parts]
        links = 0
        while todo:
            part, own = todo.pop(0)
            if part in (b"", b"."):
                continue
            if part == b"..":
                trail = trail[:-1] or trail
                continue
            children = trail[-1].children
            found = children.get(part)
            if own and (found is None or found.kind == "c"):
                found = children[part] = Folder(opaque=found is not None)
            if isinstance(found, Folder):
                trail.append(found)
            elif found is not None and found.kind == "l" and links < 40:
                links += 1
                assert isinstance(found.data, bytes)
                todo = [(one, False) for one in found.data.split(b"/")] + todo
                trail = [self.root] if found.data.startswith(b"/") else trail
            else:
                raise Refused
        return trail

    def listing(self) -> dict[bytes, tuple[Any, ...]]:
        """Of each name: mode, the first name of the file, its data, whether it is opaque."""
        found: dict[bytes, tuple[Any, ...]] = {}
        first: dict[int, bytes] = {}
        waiting: list[tuple[bytes, Node]] = [(b".", self.root)]
        while waiting:
            name, node = waiting.pop()
            kind = {"d": stat.S_IFDIR, "-": stat.S_IFREG, "l": stat.S_IFLNK, "p": stat.S_IFIFO,
                    "c": stat.S_IFCHR}[node.kind]  # fmt: skip
            opaque = isinstance(node, Folder) and node.opaque
            shown = first.setdefault(id(node), name)
            found[name] = (stat.filemode(kind | node.mode), shown, node.data, opaque)
            if isinstance(node, Folder):
                below = sorted(node.children.items(), reverse=True)
                waiting += [(name + b"/" + part, child) for part, child in below]
        return found

    @staticmethod
    def seen(listing: dict[bytes, tuple[Any, ...]]) -> dict[bytes, tuple[Any, ...]]:
        """The same of `archives.listing`."""
        return {
            name: (entry[0], entry[4], entry[5], "trusted.overlay.opaque" in entry[6])
            for name, entry in listing.items()
        }
