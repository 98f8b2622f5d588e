"""What `supervise init` prints: the example configuration, the unit for systemd.

May import: `errors`.  In a checkout the files lie beside the package, in a wheel inside it.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from supervisor.errors import SupervisorError

EXAMPLE = "config.toml.example"
UNIT = "systemd/supervise@.service"


def path() -> Path:
    """Where the example is.  Raises SupervisorError where an installation lacks it."""
    return _file(EXAMPLE, EXAMPLE)


def text() -> str:
    """The example as it is, comments included."""
    return path().read_text(encoding="utf-8")


def unit() -> str:
    """The unit that runs this very installation.  Raises SupervisorError where it is missing.

    systemd wants an absolute path, or looks in a few directories of its own.
    """
    template = _file(UNIT, f"docs/{UNIT}").read_text(encoding="utf-8")
    for line in ("ExecStart", "ExecReload"):
        template = template.replace(f"{line}=supervise ", f"{line}={_command()} ")
    return template


def _file(packed: str, checkout: str) -> Path:
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / packed, package.parent / checkout):
        if candidate.is_file():
            return candidate
    hint = "reinstall supervise-batch"
    raise SupervisorError(f"{package / packed}: missing in this installation", hint=hint)


def _command() -> str:
    """This command as it was called, in systemd's quotes (systemd.syntax(7))."""
    called = shutil.which(sys.argv[0])
    if called and Path(called).name == "supervise":
        return _quoted(os.path.abspath(called))
    return f"{_quoted(sys.executable)} -m supervisor"


def _quoted(word: str) -> str:
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if escaped != word or " " in word else word
