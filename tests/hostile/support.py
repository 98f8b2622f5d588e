"""What the tests of this suite share: the commands of attempts, and where they stand in a job.

May import: `tests.support`.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.support import host
from tests.support.containers import PYTHON

HERE = Path(__file__).parent
MOUNT = f"{HERE}:/run/hostile:ro"
"""How a job sees the modules of attempts."""

OPEN: dict[str, Any] = {
    "capabilities": {"add": ["ALL"]}, "seccomp": "unconfined", "hide": "nothing",
    "write": "overlay",
}  # fmt: skip
"""A job whose walls have been taken down: what goes through here was a real attempt."""


def attempts(
    top: Path, modules: tuple[str, ...], *, apart: bool, only: tuple[str, ...] = ()
) -> list[str]:
    """The command that runs the attempts of `modules` (or `only` some), with hostile/ in `top`."""
    code = f"import sys; sys.path.insert(0, {str(top)!r})\nfrom hostile.inside import main\n"
    call = f"main({modules!r}, apart={apart})"
    return [PYTHON, "-I", "-S", "-B", "-c", code + call, *only]


def job(modules: tuple[str, ...], **settings: Any) -> dict[str, Any]:
    """A job that runs the attempts of `modules`."""
    command = attempts(Path("/run"), modules, apart="capabilities" in settings)
    patience = f"{60 * host.SLOWNESS}s"
    return {"command": command, "mounts": [MOUNT], "timeout": patience, **settings}


def on_the_host(modules: tuple[str, ...], names: tuple[str, ...]) -> dict[str, str]:
    """The same attempts outside of any job."""
    argv = attempts(HERE.parent, modules, apart=True, only=names)
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found
