"""A small Debian as one tar file, made by mmdebstrap(1) once and kept for the next session."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path
from shutil import which

from tests.support import host
from tests.vm.kernel import cache_directory
from tests.vm.systemd.root import SUITE

COMMAND = (
    *("mmdebstrap", "--quiet", "--mode=root", "--variant=essential", "--format=tar"),
    # What no test reads.
    *(
        f"--dpkgopt=path-exclude={path}"
        for path in ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*")
    ),
)


def archive() -> Path:
    """The archive, uncompressed; made now if the cache lacks it, in a minute or two.  As root."""
    cache = cache_directory()
    place = cache / f"essential-{SUITE}.tar"
    if place.is_file():
        return place
    if which("mmdebstrap") is None:
        host.miss("tools", "needs mmdebstrap: apt-get install mmdebstrap")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        # mmdebstrap unpacks as root but downloads as _apt, who must get there.
        Path(scratch).chmod(0o755)
        made = Path(scratch, "made.tar")
        done = subprocess.run(
            [*COMMAND, SUITE, str(made)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        made.rename(place)
    return place
