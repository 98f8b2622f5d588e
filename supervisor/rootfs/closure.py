"""From one program to all that its loader will load, breadth first as loaders do.

May import: `errors`, `rootfs.{elf,search}`.
"""

from __future__ import annotations

import glob
import os
import re
from collections import deque
from collections.abc import Iterator

from attrs import define, field, frozen

from supervisor.rootfs.elf import Arch, Binary, ElfError, read
from supervisor.rootfs.search import Object, Place, Search

HWCAPS = "glibc-hwcaps"
MUSL_ARCH = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64", "EM_386": "i386", "EM_ARM": "armhf"}
MOST = 4096
"""Libraries of one program."""


@frozen
class Missing:
    """A library that was not found, who wants it, and what was there but does not fit."""

    name: str
    by: str
    unfit: tuple[str, ...] = ()

    def __str__(self) -> str:
        but = f"; there is {', '.join(self.unfit)}" if self.unfit else ""
        return f"{self.name}: no such library, wanted by {self.by}{but}"


@define
class Closure:
    """What a program loads: the objects in the loader's order, and what is missing."""

    objects: list[Object] = field(factory=list)
    missing: list[Missing] = field(factory=list)


class Reader:
    """Files are read once: many programs share their libraries."""

    def __init__(self) -> None:
        self._known: dict[str, Binary | ElfError] = {}

    def __call__(self, path: str) -> Binary:
        """What `elf.read` says of the file to which `path` leads."""
        real = os.path.realpath(path)
        if real not in self._known:
            try:
                self._known[real] = read(real)
            except ElfError as error:
                self._known[real] = error
        found = self._known[real]
        if isinstance(found, ElfError):
            raise found
        return found


def closure(main: Object, loader: Object | None, reader: Reader) -> Closure:
    """Everything that is loaded for `main`, itself first; `loader` is its interpreter.

    Raises RootError for a file in the way that cannot be read.
    """
    return _Walk(main, loader, reader).walk()


class _Walk:
    """One breadth-first walk; `known` names and `files` are loaded already."""

    def __init__(self, main: Object, loader: Object | None, reader: Reader) -> None:
        self.search = Search(main.binary.arch, main.binary.interpreter or _musl(main.binary))
        self.reader = reader
        self.known: set[str] = set()
        self.files: set[str] = set()
        self.done = Closure([main])
        self.queue = deque([main])
        if loader is not None:
            self._know(loader)

    def walk(self) -> Closure:
        while self.queue and len(self.done.objects) < MOST:
            one = self.queue.popleft()
            for name, optional in _wanted(one.binary):
                if name not in self.known and not self.search.is_own(name):
                    self._load(one, name, optional)
        return self.done

    def _load(self, by: Object, name: str, optional: bool) -> None:
        self.known.add(name)
        unfit: list[str] = []
        for place in self._candidates(by, name):
            binary = self._fitting(place.source, unfit)
            if binary is not None:
                self._take(Object(binary, place.source, place.target, by))
                return
        if not optional:
            self.done.missing.append(Missing(name, by.source, tuple(dict.fromkeys(unfit))))

    def _take(self, found: Object) -> None:
        """It, and its variants for newer processors: the root may be used on any."""
        if os.path.realpath(found.source) in self.files:
            return
        self._know(found)
        for one in (found, *self._variants(found)):
            self.done.objects.append(one)
            self.queue.append(one)

    def _know(self, one: Object) -> None:
        self.files.add(os.path.realpath(one.source))
        self.known.add(os.path.basename(one.target))
        if one.binary.soname:
            self.known.add(one.binary.soname)

    def _candidates(self, by: Object, name: str) -> Iterator[Place]:
        if "/" in name:
            yield from self.search.named(by, name)
            return
        for place in self.search.places(by):
            yield Place(os.path.join(place.source, name), os.path.join(place.target, name))

    def _fitting(self, path: str, unfit: list[str]) -> Binary | None:
        """The file there, if it is a library for this program; one for another is passed over."""
        if not os.path.isfile(path):
            return None
        binary = self.reader(path)
        if binary.arch == self.search.arch:
            return binary
        unfit.append(f"{path} ({binary.arch})")
        return None

    def _variants(self, one: Object) -> Iterator[Object]:
        """glibc's subdirectories for processors (ld.so(8), "Hardware capabilities")."""
        if self.search.is_musl:
            return
        base, name = os.path.split(one.source)
        pattern = os.path.join(glob.escape(base), HWCAPS, "*", glob.escape(name))
        for path in sorted(glob.glob(pattern)):
            binary = self._fitting(path, [])
            if binary is not None:
                target = os.path.dirname(one.target) + path.removeprefix(base)
                yield Object(binary, path, target, one.loader)


def _wanted(binary: Binary) -> Iterator[tuple[str, bool]]:
    """The names that it wants, and whether it can do without."""
    yield from ((name, False) for name in binary.needed)
    yield from ((name, False) for name in binary.filters)
    yield from ((name, True) for name in binary.auxiliaries)


def _musl(library: Binary) -> str | None:
    """The loader that a library without a program must be for, if it wants musl's libc."""
    names = [name for name in library.needed if name.startswith("libc.")]
    if "libc.so" in names and library.arch.machine in MUSL_ARCH:
        return f"ld-musl-{MUSL_ARCH[library.arch.machine]}.so.1"
    found = (re.fullmatch(r"libc\.musl-([\w-]+)\.so\.1", name) for name in names)
    return next((f"ld-musl-{one[1]}.so.1" for one in found if one), None)


def fits_host(arch: Arch, machine: str) -> bool:
    """Whether a kernel of `machine` (uname(2)) executes files of this architecture."""
    runs = {
        "x86_64": {("EM_X86_64", 64), ("EM_386", 32), ("EM_X86_64", 32)},
        "aarch64": {("EM_AARCH64", 64), ("EM_ARM", 32)},
        "riscv64": {("EM_RISCV", 64)},
        "ppc64le": {("EM_PPC64", 64)},
        "s390x": {("EM_S390", 64)},
    }
    return (arch.machine, arch.bits) in runs.get(machine, set())
