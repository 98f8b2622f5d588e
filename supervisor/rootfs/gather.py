"""From what the user names to the whole table: libraries, interpreters, companions.

What a program named by the user lacks is a problem; what a file inside of a named directory lacks
is a remark, for it lacks it on the host as well.  Nothing is executed, all is read.

May import: `errors`, `rootfs`.
"""

from __future__ import annotations

import os
import stat
from fnmatch import fnmatch
from typing import Literal

from attrs import define, field, frozen

from supervisor.errors import RootError
from supervisor.rootfs import elf
from supervisor.rootfs.closure import Reader, closure
from supervisor.rootfs.companions import companions
from supervisor.rootfs.scripts import DEEPEST, LINE, shebang
from supervisor.rootfs.search import MUSL, Object, musl_directories
from supervisor.rootfs.tree import Tree, is_kernels, kind_of, real_path, stat_of

SEARCH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
"""The PATH of a job."""


MISSING = "install what has it; LD_LIBRARY_PATH does not count; --no-check builds it without"


@frozen
class Copy:
    """What the user wants: a path of the host, and where it is to be in the root."""

    source: str
    target: str


@frozen
class Program:
    """Something in the root that can be started, for the check.  `loader` is in the root, too.

    `named`: the user asked for it, or what he asked for is run by it; else it lay in a directory.
    """

    path: str
    kind: Literal["dynamic", "static", "script"]
    arch: elf.Arch | None = None
    loader: str | None = None
    named: bool = True


@define
class Gathered:
    """The table, what can be started, and what is worth saying."""

    tree: Tree = field(factory=Tree)
    programs: dict[str, Program] = field(factory=dict)
    remarks: list[str] = field(factory=list)
    library_dirs: dict[str, None] = field(factory=dict)
    """Where libraries lie in the root, in the order of their discovery."""
    musl: dict[str, None] = field(factory=dict)
    """Architectures of musl's loaders."""
    callers: dict[str, list[str]] = field(factory=dict)
    """By function: who calls it, of those whose callers need what cannot be seen."""


class Gatherer:
    """Takes one wish after the other; `done` grows."""

    def __init__(self, outside: tuple[str, ...] = (), *, lenient: bool = False) -> None:
        """`outside`: where the root itself is made, which must not be copied into itself.

        `lenient`: what a program lacks is a remark only.
        """
        self._lenient = lenient
        self.done = Gathered()
        self._read = Reader()
        self._outside = outside
        self._links: list[tuple[str, str]] = []

    def copy(self, wish: Copy) -> None:
        """A file with all it needs, or a whole directory.  Raises RootError."""
        kind = kind_of(wish.source)
        if kind == "directory":
            self.directory(wish)
            return
        target = self._place(wish)
        self._file(real_path(wish.source), target, wish.source, strict=True)

    def directory(self, wish: Copy, without: tuple[str, ...] = (), *, scripts: bool = True) -> None:
        """All below a directory but `without`; ELF files with their libraries.

        `scripts`: those that can be executed bring their interpreters.
        """
        top = real_path(wish.source)
        if any(one == top or one.startswith(f"{top.rstrip('/')}/") for one in self._outside):
            raise RootError([f"{wish.source}: the new root would be a part of what is copied"])
        target = self._place(wish)
        files = _Copying(self, top, target, without).all()
        for source, place in files:
            self._file(source, place, source, strict=False, scripts=scripts)
        self._outward()

    def link_out(self, path: str, to: str) -> None:
        """Remember a link whose target may have to come along, once all of the tree is known."""
        self._links.append((path, to))

    def _place(self, wish: Copy) -> str:
        if wish.source == wish.target:
            return self.done.tree.add(wish.source)
        return self.done.tree.add_at(wish.source, wish.target)

    def _outward(self) -> None:
        """Links out of a directory: files come along, directories are only told of."""
        links, self._links = self._links, []
        for path, to in links:
            full = os.path.normpath(os.path.join(os.path.dirname(path), to))
            if self.done.tree.lies_at(full) or is_kernels(full) or not os.path.exists(full):
                continue
            real = os.path.realpath(full)
            if os.path.isdir(real):
                self.remark(f"{path}: leads to the directory {full}, which is not copied")
            elif os.path.isfile(real):
                self._file(real, self.done.tree.add(full), full, strict=False)

    def remark(self, text: str) -> None:
        if text not in self.done.remarks:
            self.done.remarks.append(text)

    def _file(
        self, source: str, target: str, told: str, *, strict: bool, scripts: bool = True
    ) -> None:
        """Bring what a file that is in the table needs."""
        if target in self.done.programs:
            return
        head, executable = _head(source)
        try:
            if head.startswith(elf.MAGIC):
                self._binary(source, target, strict=strict)
            elif executable and scripts and (line := shebang(told, head)) is not None:
                self.done.programs[target] = Program(target, "script")
                self._interpreters(told, line.interpreter, line.through_env)
        except RootError as error:
            if strict:
                raise
            for problem in error.problems:
                self.remark(f"{problem}, ignoring")
            self.done.programs.pop(target, None)

    def _binary(self, source: str, target: str, *, strict: bool) -> None:
        binary = self._read(source)
        if binary.kind not in ("ET_EXEC", "ET_DYN"):
            return  # object files and the like are data
        main = Object(binary, source, target)
        loader = self._loader(main)
        found = closure(main, loader, self._read)
        if found.missing:
            told = [str(one) for one in found.missing]
            if strict and not self._lenient:
                raise RootError(told, hint=MISSING)
            for text in told:
                self.remark(text)
        for one in found.objects[1:]:
            self._library(one)
        self._note_calls(main, *found.objects[1:])
        if found.missing and not strict:
            return
        if strict or binary.interpreter:
            self._program(main, loader, strict)
            self._companions(source, target)

    def _loader(self, main: Object) -> Object | None:
        """The program's interpreter, put into the table; None for a static one, or a library."""
        path = main.binary.interpreter
        if path is None:
            return None
        if not path.startswith("/"):
            raise RootError([f"{main.source}: its interpreter {path} is not an absolute path"])
        if not os.path.isfile(path):
            raise RootError([f"{main.source}: its interpreter {path} is not there"])
        binary = self._read(path)
        if binary.arch != main.binary.arch:
            raise RootError([f"{main.source}: its interpreter {path} is for {binary.arch}"])
        self.done.tree.add(path)
        if musl := MUSL.search(os.path.basename(path)):
            self._musl_settings(musl["arch"])
        return Object(binary, path, path)

    def _musl_settings(self, arch: str) -> None:
        self.done.musl[arch] = None
        settings = f"/etc/ld-musl-{arch}.path"
        if os.path.isfile(settings) and musl_directories(arch):
            self.done.tree.add(settings)

    def _library(self, one: Object) -> None:
        self._place(Copy(one.source, one.target))
        self.done.library_dirs.setdefault(os.path.dirname(one.target))

    def _program(self, main: Object, loader: Object | None, named: bool) -> None:
        binary = main.binary
        if loader is not None:
            kind: Literal["dynamic", "static"] = "dynamic"
        elif binary.kind == "ET_EXEC" or not binary.soname:
            kind = "static"
        else:
            return  # a library
        path = loader.target if loader else None
        self.done.programs[main.target] = Program(main.target, kind, binary.arch, path, named)

    def _companions(self, source: str, target: str) -> None:
        found = companions(source)
        if found is None:
            return
        if source != target:
            self.remark(
                f"{target}: reads more than its libraries, from beside {source}: "
                "copy it to the same path, or its directories with it"
            )
            return
        for path in found.directories:
            self.directory(Copy(path, path), found.without, scripts=False)

    def _interpreters(
        self, script: str, interpreter: str, name: str | None, depth: int = 1
    ) -> None:
        if depth > DEEPEST:
            raise RootError([f"{script}: more than {DEEPEST} interpreters are scripts themselves"])
        wanted = [interpreter] if name is None else [interpreter, _along_path(script, name)]
        for path in wanted:
            if not os.path.isfile(path):
                raise RootError([f"{script}: its interpreter {path} is not there"])
            real, target = real_path(path), self.done.tree.add(path)
            head, executable = _head(real)
            if not executable:
                raise RootError([f"{script}: its interpreter {path} may not be executed"])
            line = shebang(path, head)
            if line is None:
                self._file(real, target, path, strict=True)
            else:
                self.done.programs[target] = Program(target, "script")
                self._interpreters(script, line.interpreter, line.through_env, depth + 1)

    def _note_calls(self, *objects: Object) -> None:
        for one in objects:
            if _is_libc(one):
                continue  # it has them all, and calls none
            for name in one.binary.calls:
                self.done.callers.setdefault(name, [])
                if one.target not in self.done.callers[name]:
                    self.done.callers[name].append(one.target)


class _Copying:
    """One directory of the host, walked and put into the table."""

    def __init__(self, by: Gatherer, top: str, target: str, without: tuple[str, ...]) -> None:
        self.by = by
        self.top = top
        self.target = target
        self.without = without
        self.device = os.lstat(top).st_dev

    def all(self) -> list[tuple[str, str]]:
        """Puts all of it; the regular files, as (where here, where in the root)."""
        files: list[tuple[str, str]] = []
        waiting = [""]
        while waiting:
            below = waiting.pop()
            for name in self._names(below):
                relative = f"{below}/{name}"
                kind = self._put(relative)
                if kind == "directory":
                    waiting.append(relative)
                elif kind == "file":
                    files.append((self.top + relative, self.target + relative))
        return files

    def _names(self, below: str) -> list[str]:
        try:
            return sorted(os.listdir(self.top + below))
        except OSError as error:
            raise RootError([f"{self.top}{below}: {error.strerror}"]) from error

    def _put(self, relative: str) -> Literal["file", "directory", ""]:
        source, tree = self.top + relative, self.by.done.tree
        target = self.target.rstrip("/") + relative
        status = stat_of(source)
        if status is None or any(fnmatch(relative[1:], one) for one in self.without):
            return ""
        if stat.S_ISLNK(status.st_mode):
            to = os.readlink(source)
            tree.put_link(target, to)
            self.by.link_out(source, to)
            return ""
        if stat.S_ISDIR(status.st_mode) and status.st_dev != self.device:
            self.by.remark(f"{source}: another file system, which is not copied")
            tree.make(target)
            return ""
        if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
            self.by.remark(f"{source}: a device, socket or pipe, which is not copied")
            return ""
        tree.put_below(target, source)
        return "directory" if stat.S_ISDIR(status.st_mode) else "file"


def _along_path(script: str, name: str) -> str:
    """Where env(1) will find a program; as the job's PATH is, not the caller's."""
    if "/" in name:
        return name
    for directory in SEARCH:
        path = f"{directory}/{name}"
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise RootError([f"{script}: env finds no {name} in {':'.join(SEARCH)}"])


def _head(path: str) -> tuple[bytes, bool]:
    """The first bytes of a regular file, and whether anybody may execute it."""
    fd = elf.open_regular(path)
    try:
        return os.pread(fd, LINE, 0), bool(os.fstat(fd).st_mode & 0o111)
    finally:
        os.close(fd)


def _is_libc(one: Object) -> bool:
    return (one.binary.soname or "").startswith(("libc.so", "libc.musl", "ld-"))
