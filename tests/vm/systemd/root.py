"""The Debian root with systemd: made by mmdebstrap(1) once, then taken from the cache.

May import: `tests.vm.kernel` (how things are put into the cache), the standard library.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path

from tests.vm.errors import RigError
from tests.vm.kernel import put, run

SUITE = "bookworm"
PACKAGES = (
    "systemd",
    "systemd-sysv",
    "dbus",
    "dbus-user-session",  # a user's own service manager is spoken to over the user's bus
    "libpam-systemd",
    "python3",
    "libseccomp2",
    "procps",
)
COMMAND = (
    *("mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=directory"),
    f"--include={','.join(PACKAGES)}",
    # What no test reads.
    *(
        f"--dpkgopt=path-exclude={path}"
        for path in ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*")
    ),
)


def prepare(cache: Path) -> Path:
    """The root, made now if the cache lacks it; about a minute, 220 MB.

    Raises RigError when mmdebstrap is missing or fails (no network, for one).
    """
    cache.mkdir(parents=True, exist_ok=True)
    recipe = hashlib.sha256(" ".join((*COMMAND, SUITE)).encode()).hexdigest()[:12]
    place = cache / f"root-{SUITE}-{recipe}"
    if place.is_dir():
        return place
    if not shutil.which("mmdebstrap"):
        raise RigError("no mmdebstrap here: apt-get install mmdebstrap")
    print(f"vm: making {place.name}", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        # mmdebstrap unpacks as root but downloads as _apt, who must get there.
        Path(scratch).chmod(0o755)
        made = Path(scratch, "root")
        run([*COMMAND, SUITE, str(made)])
        put(made, place)
    return place
