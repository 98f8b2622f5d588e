"""Which names and attributes of an archive are taken, and as what.

Runs in the extraction's interpreter (`extractor`).
"""

from __future__ import annotations

import os
import stat

from supervisor.image.fields import TarError, text


def clean(name: bytes) -> bytes:
    """A name as it is seen from the root: without "/" before, "." within.  Raises TarError."""
    parts = [part for part in name.split(b"/") if part and part != b"."]
    if b".." in parts:
        raise TarError(f'{text(name)}: ".." in a name')
    return b"/".join(parts)


def allowed(attribute: bytes) -> bool:
    """Whether an extended attribute is taken over from an archive."""
    if b"\0" in attribute:
        return False
    if attribute.startswith(b"user."):
        return not attribute.startswith(b"user.overlay.")
    return attribute in (
        b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default"
    )  # fmt: skip


def is_whiteout(path: bytes) -> bool:
    """Whether there lies what hides a name of the layers below."""
    found = os.lstat(path)
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0
