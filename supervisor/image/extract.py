"""What the entries of a layer's archive become, in the directory that is this process's root.

Runs in the extraction's interpreter (`extractor`), which has shut itself in: a name can lead
nowhere else, whichever links it passes, so that nothing here has to resolve names by itself.  An
entry is always made anew (O_EXCL, mkdir, link ...), never opened: what lies there already goes
first, as containerd does it, except a directory that stays one.

Whiteouts (image-spec/layer.md) become what overlayfs takes for them: ".wh.NAME" a character device
0:0, ".wh..wh..opq" an attribute of its directory.  They hide what is in the layers below, never an
entry of their own layer, in whichever order they come: a directory that has both is opaque.
"""

from __future__ import annotations

import os
import stat

from supervisor.image import removal, tar
from supervisor.image.fields import TarError, text
from supervisor.image.names import allowed, clean, is_whiteout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

PATH_MAX = 4096
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TREE = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_LEFTOVER = b".wh..wh."
"""What aufs kept for itself: hard links of the layer may name files there."""
_UNSUPPORTED = frozenset({1, 22, 95})
"""EPERM, EINVAL, EOPNOTSUPP: this file, this file system or this user has no such attribute."""
_MARK = "user.overlay.opaque"
"""What overlayfs takes with `userxattr`; trusted.overlay.opaque, otherwise, is the parent's to set:
it takes a privilege that nothing here is to have."""


class Extraction:
    """One layer.  `owners`: whether ids are kept.  `limit`: how many entries there may be.

    `on_opaque` is given an open directory, and says whether it has marked it.
    """

    def __init__(
        self, archive: tar.Archive, *, owners: bool, limit: int, on_opaque: Callable[[int], bool]
    ) -> None:
        self.entries = 0
        self.devices_left_out = 0
        self.attributes_left_out = 0
        self.at = b""
        self._archive = archive
        self._owners = owners
        self._limit = limit
        self._on_opaque = on_opaque
        self._root = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        # some directory is setgid: what is made there is its group's
        self._inheriting = bool(os.stat(".").st_mode & stat.S_ISGID)
        self._path = b""
        self._directories: dict[bytes, tuple[int, tar.Entry]] = {}
        self._replaced: dict[bytes, int] = {}
        self._leftovers: set[bytes] = set()
        self._makers = {
            tar.FILE: self._file,
            tar.LINK: self._link,
            tar.SYMLINK: self._symlink,
            tar.CHARACTER: self._device,
            tar.BLOCK_DEVICE: self._device,
            tar.FIFO: self._fifo,
        }

    def run(self) -> None:
        """Raises TarError for what the archive has wrong, OSError for what the kernel refuses.

        Then `at` is the name of the entry.
        """
        archive = self._archive
        while (entry := archive.next()) is not None:
            self.at = entry.name
            self._count()
            path = self._path = clean(entry.name)
            base = path[path.rfind(b"/") + 1 :]
            if _WHITEOUT in path and self._hide(path, base):
                continue
            if entry.kind == tar.DIRECTORY:
                self._near(path, entry, self._directory)
                self._directories[path] = (self.entries, entry)
            elif not path:
                raise TarError("its root is no directory")
            else:
                self._near(path, entry, self._make)
        self._finish()

    def _count(self) -> None:
        self.entries += 1
        if self.entries > self._limit:
            raise TooManyEntries

    def _near(self, path: bytes, entry: tar.Entry, do: Callable[[bytes, tar.Entry], None]) -> None:
        """`do` it; what the kernel does not take as one name, from the directory it is in."""
        if len(path) < PATH_MAX:
            do(path, entry)
            return
        try:
            *above, base = path.split(b"/")
            for part in above:
                self._step(part)
            do(base, entry)
        finally:
            os.fchdir(self._root)

    def _step(self, part: bytes) -> None:
        try:
            os.chdir(part)
        except (FileNotFoundError, NotADirectoryError):
            self._parent(part)
            os.chdir(part)

    def _make(self, path: bytes, entry: tar.Entry) -> None:
        """An entry that is no directory."""
        make = self._makers[entry.kind]
        try:
            make(path, entry)
            return
        except (FileNotFoundError, NotADirectoryError):
            self._parents(path)
        except FileExistsError:
            if entry.kind == tar.LINK and self._is_linked(entry, path):
                return
            self._remove(path)
        try:
            make(path, entry)
        except FileExistsError:
            self._remove(path)
            make(path, entry)

    def _remove(self, path: bytes) -> None:
        removal.remove_tree(path)
        self._replaced[self._path] = self.entries

    def _parents(self, path: bytes) -> None:
        """Make those that no entry has made: what lies there stays, except a whiteout."""
        at = path.find(b"/")
        while at > 0:
            self._parent(path[:at])
            at = path.find(b"/", at + 1)

    def _parent(self, path: bytes) -> None:
        opaque = False
        try:
            os.mkdir(path, 0o755)
        except FileExistsError:
            opaque = is_whiteout(path)
            if not opaque:
                return
            os.unlink(path)
            os.mkdir(path, 0o755)
        self._count()
        if self._inheriting:
            if self._owners:
                os.chown(path, 0, 0)
            os.chmod(path, 0o755)
        if opaque:
            self._opaque(path)

    def _directory(self, path: bytes, entry: tar.Entry) -> None:
        opaque = False
        try:
            os.mkdir(path or b".", entry.mode)
        except (FileNotFoundError, NotADirectoryError):
            self._parents(path)
            os.mkdir(path, entry.mode)
        except FileExistsError:
            if path and not stat.S_ISDIR(os.lstat(path).st_mode):
                opaque = is_whiteout(path)
                os.unlink(path)
                os.mkdir(path, entry.mode)
            else:
                os.chmod(path or b".", entry.mode)
        path = path or b"."
        if self._owners and (entry.uid or entry.gid or self._inheriting or path == b"."):
            os.chown(path, entry.uid, entry.gid)
        if entry.mode & 0o6000 or self._inheriting:
            os.chmod(path, entry.mode)
            self._inheriting = True
        if opaque:
            self._opaque(path)

    def _file(self, path: bytes, entry: tar.Entry) -> None:
        mode = entry.mode
        fd = os.open(path, _NEW, mode & 0o777)
        try:
            if entry.pieces is None:
                for data in self._archive.data():
                    _write(fd, data)
            else:
                self._fill(fd, entry.pieces, entry.length)
            if self._owners and (entry.uid or entry.gid or self._inheriting):
                os.fchown(fd, entry.uid, entry.gid)
            if mode & 0o7000:
                os.fchmod(fd, mode)
            if entry.attributes:
                self._attributes(fd, entry)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(fd)

    def _fill(self, fd: int, pieces: tar.Map, length: int) -> None:
        """The pieces of a sparse file; between them there stay holes."""
        os.ftruncate(fd, length)
        todo = iter(pieces)
        offset = left = 0
        for data in self._archive.data():
            rest = data
            while rest:
                while not left:
                    offset, left = next(todo)
                done = os.pwrite(fd, rest[:left], offset)
                offset, left, rest = offset + done, left - done, rest[done:]

    def _link(self, path: bytes, entry: tar.Entry) -> None:
        """A link to a link is one to that link itself."""
        target = clean(entry.link)
        at, name = self._held(target)
        try:
            os.link(name, path, src_dir_fd=at, follow_symlinks=False)
        except FileNotFoundError:
            if _status(name, at) is None:
                raise TarError(
                    f"{text(entry.name)}: a hard link to {text(target)}, which is not in this layer"
                ) from None
            raise
        finally:
            self._release(at)

    def _is_linked(self, entry: tar.Entry, path: bytes) -> bool:
        """Whether the two names are of one file already."""
        at, name = self._held(clean(entry.link))
        try:
            found = _status(name, at)
        finally:
            self._release(at)
        if found is None or stat.S_ISDIR(found.st_mode):
            return False
        return os.path.samestat(found, os.lstat(path))

    def _held(self, path: bytes) -> tuple[int, bytes]:
        """A directory to start from, and a name from there that is short enough for the kernel."""
        at = self._root
        while len(path) >= PATH_MAX:
            cut = path.rindex(b"/", 0, PATH_MAX)
            below = os.open(path[:cut], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=at)
            self._release(at)
            at, path = below, path[cut + 1 :]
        return at, path

    def _release(self, at: int) -> None:
        if at != self._root:
            os.close(at)

    def _symlink(self, path: bytes, entry: tar.Entry) -> None:
        os.symlink(entry.link, path)
        self._ownership(path, entry)

    def _device(self, path: bytes, entry: tar.Entry) -> None:
        kind = stat.S_IFCHR if entry.kind == tar.CHARACTER else stat.S_IFBLK
        try:
            os.mknod(path, entry.mode | kind, os.makedev(*entry.device))
        except PermissionError:
            self.devices_left_out += 1
            return
        self._ownership(path, entry)

    def _fifo(self, path: bytes, entry: tar.Entry) -> None:
        os.mkfifo(path, entry.mode)
        self._ownership(path, entry)

    def _ownership(self, path: bytes, entry: tar.Entry) -> None:
        """Of what is not to be opened."""
        if self._owners and (entry.uid or entry.gid or self._inheriting):
            os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
        if entry.mode & 0o7000 and entry.kind != tar.SYMLINK:
            os.chmod(path, entry.mode)
        if entry.attributes:
            self._attributes(path, entry)
        os.utime(path, ns=(entry.mtime, entry.mtime), follow_symlinks=False)

    def _attributes(self, file: int | bytes, entry: tar.Entry) -> None:
        """Those that say something of the file itself; what overlayfs keeps there is ours alone."""
        for name, value in entry.attributes.items():
            if not allowed(name):
                self.attributes_left_out += 1
                continue
            try:
                if isinstance(file, int):
                    os.setxattr(file, name, value)
                else:
                    os.setxattr(file, name, value, follow_symlinks=False)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
                self.attributes_left_out += 1

    def _hide(self, path: bytes, base: bytes) -> bool:
        """Whether the entry is a whiteout, and that is what became of it."""
        above = path[: -len(base)].rstrip(b"/")
        top = path.partition(b"/")[0]
        if top.startswith(_LEFTOVER) and path != _OPAQUE:
            self._leftovers.add(top)
            return False
        if any(part.startswith(_WHITEOUT) for part in above.split(b"/")):
            raise TarError(f"{text(path)}: something in a whiteout")
        if base == _OPAQUE:
            self._near(above, _PLAIN, self._opaque_entry)
            return True
        if not base.startswith(_WHITEOUT):
            return False
        name = base[len(_WHITEOUT) :]
        if name in (b"", b".", b"..") or base.startswith(_LEFTOVER):
            raise TarError(f"{text(path)}: a whiteout of nothing")
        self._near(above + b"/" + name if above else name, _PLAIN, self._whiteout)
        return True

    def _opaque_entry(self, path: bytes, _entry: tar.Entry) -> None:
        self._parents(path + b"/")
        self._opaque(path or b".")

    def _whiteout(self, path: bytes, _entry: tar.Entry) -> None:
        try:
            os.mknod(path, stat.S_IFCHR, 0)
        except (FileNotFoundError, NotADirectoryError):
            self._parents(path)
            os.mknod(path, stat.S_IFCHR, 0)
        except FileExistsError:
            if stat.S_ISDIR(os.lstat(path).st_mode):
                self._opaque(path)

    def _opaque(self, path: bytes) -> None:
        fd = os.open(path, _TREE)
        try:
            marked = self._on_opaque(fd)
            try:
                os.setxattr(fd, _MARK, b"y")
            except OSError as error:
                if not marked or error.errno not in _UNSUPPORTED:
                    raise
        finally:
            os.close(fd)

    def _finish(self) -> None:
        """What later entries would have changed again, or have been changed by (default ACLs)."""
        for name in self._leftovers:
            if os.path.lexists(name):
                removal.remove_tree(name)
                self._replaced[name] = self.entries + 1
        for path, (order, entry) in self._directories.items():
            if not self._is_gone(path, order):
                self.at = path
                self._near(path, entry, self._settle)

    def _is_gone(self, path: bytes, order: int) -> bool:
        """Whether a later entry has replaced a directory, or one above it."""
        if not self._replaced:
            return False
        at = path.find(b"/")
        while at > 0:
            if self._replaced.get(path[:at], 0) > order:
                return True
            at = path.find(b"/", at + 1)
        return self._replaced.get(path, 0) > order

    def _settle(self, path: bytes, entry: tar.Entry) -> None:
        fd = os.open(path or b".", _TREE | os.O_NOFOLLOW)
        try:
            if entry.attributes:
                self._attributes(fd, entry)
            os.utime(fd, ns=(entry.mtime, entry.mtime))
        finally:
            os.close(fd)


class TooManyEntries(Exception):
    """The bound on entries was passed."""


_PLAIN = tar.Entry(tar.FILE, b"", b"", 0)


def _status(name: bytes, at: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=at, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _write(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]
