"""A root from a distribution's packages, by mmdebstrap(1) or debootstrap(8), where installed.

mmdebstrap unpacks just these packages and what they depend on, and runs none of their scripts.
debootstrap knows no less than a minimal system, which it configures.

May import: `errors`, `rootfs`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from supervisor.errors import RootError
from supervisor.rootfs import elf
from supervisor.rootfs.gather import Program

NAME = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?")
"""Debian Policy 5.6.7, and an architecture; nothing that a tool would take for an option."""
TOLD = 6
"""Last lines of a failed tool that are shown."""


def bootstrap(root: Path, packages: tuple[str, ...]) -> None:
    """Unpack the packages, and what they depend on, into the empty directory `root`.

    The release and the sources are the host's.  Raises RootError: no tool, or it failed.
    """
    wrong = [name for name in packages if not NAME.fullmatch(name)]
    if wrong:
        raise RootError([f"{name}: not the name of a Debian package" for name in wrong])
    if not is_root():
        hint = "or name programs with --copy"
        raise RootError(["--from-packages needs root: packages have files of several owners"],
                        hint=hint)  # fmt: skip
    command = _command(root, packages, suite())
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}, check=False,
        )  # fmt: skip
    except OSError as error:
        raise RootError([f"{command[0]}: {error.strerror}"]) from error
    if done.returncode:
        lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
        raise RootError([f"{command[0]} failed:", *lines[-TOLD:]])
    for name in ("hostname", "resolv.conf"):  # the host's, which mmdebstrap puts there
        (root / "etc" / name).unlink(missing_ok=True)
    root.chmod(0o755)


def is_root() -> bool:
    """Whether files can be given to others."""
    return os.geteuid() == 0


def suite() -> str:
    """The host's release, by its code name.  Raises RootError where that is not Debian's kind."""
    for line in Path("/etc/os-release").read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "VERSION_CODENAME" and value.strip('"'):
            return value.strip('"')
    raise RootError(["/etc/os-release has no VERSION_CODENAME: packages are of Debian's kind only"])


def _command(root: Path, packages: tuple[str, ...], release: str) -> list[str]:
    names = ",".join(packages)
    if tool := shutil.which("mmdebstrap"):
        return [
            tool, "--quiet", "--mode=root", "--variant=extract", "--format=directory",
            "--skip=check/empty", f"--include={names}", release, str(root), *_sources(),
        ]  # fmt: skip
    if tool := shutil.which("debootstrap"):
        return [tool, "--variant=minbase", f"--include={names}", release, str(root)]
    hint = "apt-get install mmdebstrap, or name programs with --copy"
    raise RootError(["--from-packages needs mmdebstrap or debootstrap"], hint=hint)


def _sources() -> Iterator[str]:
    """The host's own lists, with whatever mirror and key they name."""
    top = Path("/etc/apt")
    for path in (top / "sources.list", *sorted((top / "sources.list.d").glob("*"))):
        if path.suffix in (".list", ".sources") and path.is_file() and path.stat().st_size:
            yield str(path)


def programs(root: Path) -> Iterator[Program]:
    """The programs in a root's own directories of programs; scripts and links are none."""
    for directory in ("bin", "sbin", "usr/bin", "usr/sbin"):
        if (root / directory).is_symlink() or not (root / directory).is_dir():
            continue
        for name in sorted(os.listdir(root / directory)):
            yield from _program(root, f"/{directory}/{name}")


def _program(root: Path, path: str) -> Iterator[Program]:
    full = f"{root}{path}"
    if os.path.islink(full) or not os.path.isfile(full):
        return
    try:
        binary = elf.read(full)
    except RootError:
        return  # a script
    kind: Literal["dynamic", "static"] = "dynamic" if binary.interpreter else "static"
    yield Program(path, kind, binary.arch, binary.interpreter)
