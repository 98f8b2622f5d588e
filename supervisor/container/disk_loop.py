"""A writable layer in an ext4 of its own, in a file without a name, through a loop device.

May import: `errors`, `linux`, `container.{disk,layers}`.  What holds it to its size is not the
file's: the kernel is told to keep the rest of the file system in reserve (`reserved_clusters`,
fs/ext4/sysfs.c), so that what is left for files is the limit to the block, whatever the inode
tables take, and can be more from one moment to the next.  Growing the file system itself, by
EXT4_IOC_RESIZE_FS, needs CAP_SYS_RESOURCE and knows no way back when it fails.
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator

from supervisor.container.disk import (
    BLOCK,
    MKFS,
    SYSFS,
    Size,
    Usage,
    Way,
    make_directories,
    mkfs_path,
    open_directory,
)
from supervisor.container.layers import Layers
from supervisor.errors import KernelError
from supervisor.linux import constants as c
from supervisor.linux import loop, newmount

INODE = 256
"""Bytes of an inode in its table."""
GROUP = 8 * BLOCK
"""Blocks of a block group: as many as a block has bits."""
OWN_INODES = 16
"""Those that ext4 sets aside, upper, work, and what overlayfs makes in it."""
SPARE = 64
"""Blocks for the superblock, the root, lost+found, upper and work."""

FEATURES = ",".join(
    ("none", "64bit", "dir_index", "dir_nlink", "ext_attr", "extents", "extra_isize", "filetype",
     "flex_bg", "huge_file", "large_file", "sparse_super", "uninit_bg")
)  # fmt: skip
"""All that a job can notice of ext4, and that makes an empty one small; no journal, no checksums of
metadata.  Said in full, so that the host's mke2fs.conf(5) does not matter."""

OPTIONS: dict[str, str | None] = {"errors": "remount-ro", "noinit_itable": None}
"""Without the second a thread of the kernel would write the empty inode tables out."""

HINT = 'see the kernel log, or say disk_by = "tmpfs"'


def blocks(size: Size) -> int:
    """Of the image: what files may ever have, and what ext4 takes for itself (at most)."""
    files = -(-size.most // BLOCK)
    # a table is rounded up to whole blocks, in each group
    tables = -(-size.inodes * INODE // BLOCK)
    both = files + tables
    groups = both // GROUP + 2
    # bitmaps, descriptors of 64 bytes, rounding of the tables, copies of the superblock
    own = groups * (2 + 2) + groups * groups // 64 // 16 + groups * 64 // BLOCK * 16
    # an extent's block for each 340 extents, were each a single block; what the kernel keeps back
    return both + own + SPARE + files // 340 + min(both // 50, 4096) + 16


def format_image(image: int, size: Size) -> None:
    """mkfs.ext4 on an open file, fit to be thrown away: no journal, nothing reserved for root.

    Raises KernelError.
    """
    program = shutil.which(MKFS, path=mkfs_path())
    if program is None:
        raise KernelError("execute", MKFS, errno.ENOENT, hint="apt-get install e2fsprogs")
    path = f"/proc/self/fd/{image}"
    extra = "lazy_itable_init=1,nodiscard,root_owner=0:0"
    inodes = str(size.inodes + OWN_INODES)
    done = subprocess.run(
        [program, "-q", "-F", "-b", str(BLOCK), "-I", str(INODE), "-m", "0",
         "-O", FEATURES, "-E", extra, "-N", inodes, path],
        pass_fds=(image,), stdin=subprocess.DEVNULL, capture_output=True, check=False,
        env={"LC_ALL": "C", "PATH": mkfs_path(), "MKE2FS_CONFIG": os.devnull},
    )  # fmt: skip
    if done.returncode:
        why = " ".join(done.stderr.decode(errors="replace").split()) or f"status {done.returncode}"
        raise KernelError(MKFS, None, errno.EIO, hint=why)


Template = tuple[tuple[int, bytes], ...]
"""What mkfs.ext4 wrote, and where: about 70 KB of a layer of 2 GiB."""
_templates: dict[tuple[int, int], Template] = {}
_making = threading.Lock()
MOST_TEMPLATES = 16


def lay_out(image: int, size: Size) -> None:
    """Make the empty image a file system: by mkfs.ext4 the first of its kind, then as that was.

    Two layers may have the same UUID: nobody looks for one by it.  Raises KernelError.
    """
    kind = (blocks(size), size.inodes)
    with _making:  # fifty jobs that start at once need one, not fifty
        template = _templates.get(kind)
        if template is None:
            format_image(image, size)
            if len(_templates) == MOST_TEMPLATES:
                del _templates[next(iter(_templates))]
            _templates[kind] = tuple(written(image))
            return
    try:
        for offset, data in template:
            os.pwrite(image, data, offset)
    except OSError as error:
        raise KernelError("write", "layer", error.errno or 0) from None


def written(image: int) -> Iterator[tuple[int, bytes]]:
    """The parts of a file that are no holes (SEEK_DATA), with their offsets."""
    end, position = os.fstat(image).st_size, 0
    while position < end:
        try:
            start = os.lseek(image, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                return
            raise
        position = os.lseek(image, start, os.SEEK_HOLE)
        yield start, os.pread(image, position - start, start)


class LoopSpace:
    """Made by `open_loop`."""

    way: Way = "loop"

    def __init__(self, directory: int, device: str, mounted: int, size: Size) -> None:
        self._directory = directory
        self._limit = size.limit
        self._most = size.most
        self._knob = f"{SYSFS}/{os.path.basename(device)}"
        self._device = device
        self._mounted = mounted
        self._empty = os.fstatvfs(mounted)
        self.layers = Layers(None, mounted=True)
        self.mounted: tuple[int, ...] = (mounted,)
        self._keep_back(size.limit)

    def enter(self, root: int) -> None:
        return

    def usage(self) -> Usage:
        now = os.fstatvfs(self._mounted)
        limit = -(-self._limit // BLOCK) * BLOCK
        used = limit - now.f_bavail * now.f_frsize
        inodes = self._empty.f_ffree - now.f_ffree
        return Usage(max(used, 0), self._limit, max(inodes, 0), self._empty.f_ffree)

    def grow(self, to: int) -> None:
        if to > self._most:
            hint = f"the layer was made to hold at most {self._most}"
            raise KernelError("grow", self._device, errno.ENOSPC, hint=hint)
        self._keep_back(to)
        self._limit = to

    def _keep_back(self, limit: int) -> None:
        """All but `limit` bytes of what was free when nothing was in it."""
        reserve = self._empty.f_bfree - -(-limit // BLOCK)
        path = f"{self._knob}/reserved_clusters"
        try:
            with open(path, "w") as file:  # noqa: PTH123
                file.write(str(reserve))
        except OSError as error:
            raise KernelError("write", path, error.errno or 0, hint=HINT) from None

    def trouble(self) -> str:
        """Of the disk below: a write of the kernel's that fails there is nobody's."""
        now = os.fstatvfs(self._mounted)
        below = os.fstatvfs(self._directory)
        told = []
        if now.f_flag & os.ST_RDONLY:
            told.append("its file system was made read-only after an error")
        if below.f_bavail * below.f_frsize < BLOCK * SPARE or below.f_favail == 0:
            told.append("the disk below it is full")
        return ", ".join(told)

    def close(self) -> None:
        for fd in (self._mounted, self._directory):
            os.close(fd)


def open_loop(base: str, size: Size, owner: int) -> LoopSpace:
    """A new layer in a file on the file system of the directory `base`, `owner`'s on the host.

    Blocking, some milliseconds: not on the event loop.  Raises KernelError.
    """
    image = unnamed(base, blocks(size) * BLOCK)
    try:
        lay_out(image, size)
        device, path = loop.attach(image)
    finally:
        os.close(image)
    try:
        mounted = newmount.mount("ext4", {"source": path, **OPTIONS}, c.MOUNT_ATTR_NODEV)
    finally:
        os.close(device)
    try:
        make_directories(mounted, owner)
        return LoopSpace(open_directory(base), path, mounted, size)
    except BaseException:
        os.close(mounted)
        raise


def unnamed(base: str, length: int) -> int:
    """An open file of so many bytes, none of them written, that no directory has (O_TMPFILE).

    Where the file system has none of these it is unlinked as soon as it is there.
    """
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        try:
            fd = os.open(base, flags | os.O_TMPFILE, 0o600)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT):
                raise
            path = f"{base}/layer.new"
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            os.unlink(path)
        try:
            os.ftruncate(fd, length)
        except OSError:
            os.close(fd)
            raise
    except OSError as error:
        raise KernelError("create", base, error.errno or 0) from None
    return fd
