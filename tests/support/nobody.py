"""The command as somebody without root: `nobody`, with a copy of the tree and a home."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.command import ROOT

NOBODY = 65534
PATIENCE = 60
PACKAGES = ("attr", "attrs", "cattrs", "cattr", "pluggy", "trio", "outcome", "sniffio",
            "sortedcontainers", "idna", "structlog", "typing_extensions.py", "pyinotify.py",
            "pyroute2", "pyseccomp.py", "elftools", "h11")  # fmt: skip

Nobody = tuple[Callable[..., subprocess.CompletedProcess[str]], Path]
"""How to run the command, and nobody's home.

`wrapper`: what to put before it; `python`: what his Python is to run instead of the command.
"""


@contextmanager
def nobody() -> Iterator[Nobody]:
    """Skips the test where his Python, /usr/bin/python3, cannot run the command."""
    home = Path(tempfile.mkdtemp(prefix="sv-nobody-"))
    try:
        _copy_tree(home / "lib")
        (home / "own").mkdir()
        os.chown(home / "own", NOBODY, NOBODY)
        subprocess.run(["chmod", "-R", "a+rX", str(home)], check=True)

        def run(
            *arguments: str | Path,
            wrapper: Sequence[str] = (),
            python: Sequence[str] = ("-m", "supervisor"),
        ) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*wrapper, "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
                 "/usr/bin/python3", *python, *map(str, arguments)],
                cwd=home / "own", capture_output=True, text=True, timeout=PATIENCE, check=False,
                env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(home / "lib"),
                     "HOME": str(home / "own"), "XDG_RUNTIME_DIR": str(home / "own")},
            )  # fmt: skip

        probe = run("--version")
        if probe.returncode:
            pytest.skip(f"nobody has no Python that runs this: {probe.stderr[-300:]}")
        yield run, home / "own"
    finally:
        shutil.rmtree(home)


def _copy_tree(lib: Path) -> None:
    """The package and what it imports: the tree itself may lie where nobody may not look."""
    for name in ("supervisor", "plugins"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, lib / name, ignore=ignore)
    packages = sysconfig.get_paths()["purelib"]
    for name in PACKAGES:
        source = Path(packages, name)
        if source.is_dir():
            shutil.copytree(source, lib / name)
        elif source.exists():
            shutil.copy(source, lib / name)
