"""Loop devices: a file as a block device that is gone when its last user is (loop(4)).

May import: `errors`, `linux`.  LOOP_CONFIGURE sets all at once (Linux 5.8); with
LO_FLAGS_AUTOCLEAR the device lets the file go when nobody has it open or mounted any more, so that
not even a killed supervisor leaves one behind.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from supervisor.errors import KernelError

CONTROL = "/dev/loop-control"
HINT = "the loop driver must be there (modprobe loop), and devices must not be closed to us"

# linux/loop.h
LOOP_CTL_GET_FREE = 0x4C82
LOOP_CONFIGURE = 0x4C0A
LO_FLAGS_AUTOCLEAR = 4
_CONFIG = struct.Struct("=II 5Q4I 64s64s32s2Q 8Q")
"""struct loop_config: fd, block size, struct loop_info64, eight reserved words."""
BLOCK = 4096

TRIES = 64
"""Others may take the device that was free, between our question and our taking it."""


def attach(image: int) -> tuple[int, str]:
    """A loop device over the open file `image`: a descriptor of it, and its path.

    It stays as long as that descriptor is open, or the device is mounted.  Raises KernelError.
    """
    control = _open(CONTROL)
    try:
        for _ in range(TRIES):
            path = f"/dev/loop{_free(control)}"
            device = _open(path)
            if _configure(device, image, path):
                return device, path
            os.close(device)
    finally:
        os.close(control)
    raise KernelError("attach", CONTROL, errno.EBUSY, hint="others take loop devices all the time")


def _open(path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError("open", path, error.errno or 0, hint=HINT) from None


def _free(control: int) -> int:
    try:
        return fcntl.ioctl(control, LOOP_CTL_GET_FREE)
    except OSError as error:
        raise KernelError("LOOP_CTL_GET_FREE", CONTROL, error.errno or 0, hint=HINT) from None


def _configure(device: int, image: int, path: str) -> bool:
    """False where somebody else has the device by now.  Raises KernelError."""
    empty = (b"", b"", b"")
    info = (0, 0, 0, 0, 0, 0, 0, 0, LO_FLAGS_AUTOCLEAR, *empty, 0, 0)
    try:
        fcntl.ioctl(device, LOOP_CONFIGURE, _CONFIG.pack(image, BLOCK, *info, *[0] * 8))
    except OSError as error:
        if error.errno == errno.EBUSY:
            return False
        os.close(device)
        raise KernelError("LOOP_CONFIGURE", path, error.errno or 0) from None
    return True
