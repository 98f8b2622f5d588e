"""Where a loader looks for a library: ld.so(8), ldconfig(8) and musl's, told from their settings.

glibc, for each name that an object wants:
  1. unless the object has a RUNPATH: its RPATH, then that of whoever loaded it, up to the program;
  2. the object's own RUNPATH;
  3. the directories of /etc/ld.so.conf in their order, which is the cache's, then the system's own
     (neither with DF_1_NODEFLIB).
musl: the RPATH or RUNPATH of the object and of its loaders, then /etc/ld-musl-ARCH.path or three
directories.  LD_LIBRARY_PATH counts for neither: a job has none unless it is given one.

May import: `errors`, `rootfs.elf`.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from attrs import field, frozen

from supervisor.errors import RootError
from supervisor.rootfs.elf import Arch, Binary

TRIPLETS = {
    ("EM_X86_64", 64): "x86_64-linux-gnu",
    ("EM_X86_64", 32): "x86_64-linux-gnux32",
    ("EM_386", 32): "i386-linux-gnu",
    ("EM_AARCH64", 64): "aarch64-linux-gnu",
    ("EM_ARM", 32): "arm-linux-gnueabihf",
    ("EM_RISCV", 64): "riscv64-linux-gnu",
    ("EM_PPC64", 64): "powerpc64le-linux-gnu",
    ("EM_S390", 64): "s390x-linux-gnu",
}
"""Debian's directories, by machine and word size (wiki.debian.org/Multiarch/Tuples)."""
PLATFORMS = {"EM_X86_64": ("x86_64", "haswell"), "EM_386": ("i686", "i586", "i486", "i386")}
"""What $PLATFORM can stand for; elsewhere the machine's name."""
MUSL = re.compile(r"ld-musl-(?P<arch>[\w-]+)\.so\.1")
MUSL_OWN = re.compile(r"lib(c|pthread|rt|m|dl|util|xnet)\.")
"""Libraries that are in musl's loader itself (ldso/dynlink.c: load_library)."""
CONF = "/etc/ld.so.conf"
DEEPEST = 8
"""How deep an `include` of ld.so.conf goes."""


@frozen
class Place:
    """A directory, where it is here and where it is to be in the root."""

    source: str
    target: str


@frozen
class Object:
    """A program or library that is loaded: at which path here, at which path in the root."""

    binary: Binary
    source: str
    target: str
    loader: Object | None = field(default=None, repr=False)

    @property
    def chain(self) -> Iterator[Object]:
        """It, and who loaded it, up to the program."""
        one: Object | None = self
        while one is not None:
            yield one
            one = one.loader


class Search:
    """What one kind of loader, glibc's or musl's, does for programs of one architecture."""

    def __init__(self, arch: Arch, interpreter: str | None) -> None:
        self.arch = arch
        self._musl = MUSL.search(os.path.basename(interpreter or ""))

    @property
    def is_musl(self) -> bool:
        return self._musl is not None

    def is_own(self, name: str) -> bool:
        """Whether the loader has this library in itself."""
        return self.is_musl and MUSL_OWN.match(name) is not None

    def places(self, by: Object) -> Iterator[Place]:
        """The directories in which a library that `by` wants is looked for, in order."""
        if self.is_musl:
            for one in by.chain:
                yield from self._expanded(one, one.binary.rpath or one.binary.runpath)
        elif by.binary.runpath:
            yield from self._expanded(by, by.binary.runpath)
        else:
            for one in by.chain:
                yield from self._expanded(one, one.binary.rpath)
        if not by.binary.no_default:
            yield from (Place(path, path) for path in self.common)

    def named(self, by: Object, name: str) -> Iterator[Place]:
        """Where a library lies whose name is a path; the last part of it included."""
        yield from self._expanded(by, (name,))

    @cached_property
    def common(self) -> tuple[str, ...]:
        """The directories that hold for every program."""
        if self._musl is not None:
            return musl_directories(self._musl["arch"])
        return tuple(dict.fromkeys((*configured(CONF), *self._system())))

    @property
    def _lib_names(self) -> tuple[str, ...]:
        """What $LIB can stand for: a Debian's, a Fedora's, anybody's."""
        triplet = TRIPLETS.get((self.arch.machine, self.arch.bits))
        wide = "lib64" if self.arch.bits == 64 else "lib32"
        return (*((f"lib/{triplet}",) if triplet else ()), wide, "lib")

    def _system(self) -> Iterator[str]:
        for name in self._lib_names:
            yield from (f"/{name}", f"/usr/{name}")

    def _expanded(self, of: Object, templates: tuple[str, ...]) -> Iterator[Place]:
        """With $ORIGIN, $LIB and $PLATFORM (or ${...}) for what they stand for.

        A relative one depends on where the program is started: nobody can copy that.
        """
        for template in templates:
            for text in self._variants(template):
                pair = (_with_origin(text, os.path.dirname(at)) for at in (of.source, of.target))
                source, target = (os.path.normpath(path) if path else "" for path in pair)
                if source.startswith("/"):
                    yield Place(source, target)

    def _variants(self, template: str) -> Iterator[str]:
        machine = self.arch.machine.removeprefix("EM_").lower()
        for lib in self._lib_names if _has(template, "LIB") else ("",):
            text = _put(template, "LIB", lib)
            names = PLATFORMS.get(self.arch.machine, (machine,))
            for platform in names if _has(text, "PLATFORM") else ("",):
                yield _put(text, "PLATFORM", platform)


def _has(text: str, token: str) -> bool:
    return re.search(rf"\$({token}\b|\{{{token}\}})", text) is not None


def _put(text: str, token: str, value: str) -> str:
    return re.sub(rf"\$({token}\b|\{{{token}\}})", lambda _: value, text)


def _with_origin(text: str, origin: str) -> str:
    return _put(text, "ORIGIN", origin)


def musl_directories(arch: str) -> tuple[str, ...]:
    """What musl's loader searches (ldso/dynlink.c): a file of paths, or its three directories."""
    try:
        text = Path(f"/etc/ld-musl-{arch}.path").read_text(errors="surrogateescape")
    except OSError:
        return ("/lib", "/usr/local/lib", "/usr/lib")
    return tuple(path for path in re.split(r"[:\n]+", text) if path.startswith("/"))


def configured(path: str, depth: int = 0) -> Iterator[str]:
    """The directories that an ld.so.conf(5) names, its includes followed, in their order."""
    try:
        text = Path(path).read_text(errors="surrogateescape")
    except OSError:
        return
    if depth > DEEPEST:
        raise RootError([f"{path}: includes itself, directly or by others"])
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if words[:1] == ["include"]:
            for pattern in words[1:]:
                for name in sorted(glob.glob(os.path.join(os.path.dirname(path), pattern))):
                    yield from configured(name, depth + 1)
        elif words[:1] != ["hwcap"]:
            found = re.split(r"[\s:,]+", line.partition("#")[0].partition("=")[0])
            yield from (os.path.normpath(name) for name in found if name.startswith("/"))
