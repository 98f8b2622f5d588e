"""The two file formats of a Linux boot: the initrd (cpio "newc") and the bzImage.

Facts: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst and
Documentation/arch/x86/boot.rst.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

ELF = b"\x7fELF"
PACKERS = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x02\x21\x4c\x18": "lz4",
    b"\xfd7zXZ": "xz",
    b"\x1f\x8b": "gzip",
}


@dataclass(frozen=True)
class Member:
    """One file or directory of an archive; `mode` with its type bits, as in st_mode."""

    name: str
    mode: int
    data: bytes = b""


def cpio(members: Iterable[Member]) -> bytes:
    """A newc archive; the kernel accepts several after one another, each padded to 512 bytes."""
    out = bytearray()
    for inode, member in enumerate((*members, Member("TRAILER!!!", 0)), 1):
        out += _header(member, inode)
        out += member.name.encode() + b"\0"
        out += bytes(-len(out) % 4)
        out += member.data
        out += bytes(-len(out) % 4)
    out += bytes(-len(out) % 512)
    return bytes(out)


def _header(member: Member, inode: int) -> bytes:
    """The magic and thirteen numbers of eight hexadecimal digits."""
    size, length = len(member.data), len(member.name.encode()) + 1
    numbers = (inode, member.mode, 0, 0, 1, 0, size, 0, 0, 0, 0, length, 0)
    return b"070701" + b"".join(b"%08x" % number for number in numbers)


def vmlinux(bzimage: bytes) -> bytes | None:
    """The plain ELF kernel inside a bzImage, or None where its packer's tool is missing.

    Booted directly (PVH) it saves the guest the decompression, which emulation makes slow.
    """
    sectors = bzimage[0x1F1] or 4
    start = (sectors + 1) * 512 + int.from_bytes(bzimage[0x248:0x24C], "little")
    payload = bzimage[start : start + int.from_bytes(bzimage[0x24C:0x250], "little")]
    tool = next((name for magic, name in PACKERS.items() if payload.startswith(magic)), None)
    if tool is None or not shutil.which(tool):
        return None
    # The payload ends in a size word the packer does not know, so its status says nothing.
    image = subprocess.run([tool, "-dc"], input=payload, capture_output=True, check=False).stdout
    whole = image.startswith(ELF) and len(image) == int.from_bytes(payload[-4:], "little")
    return image if whole else None
