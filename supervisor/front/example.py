"""The example configuration, which `supervise init` prints.

May import: `errors`.  In a checkout it lies beside the package, in a wheel inside it.
"""

from __future__ import annotations

from pathlib import Path

from supervisor.errors import SupervisorError

NAME = "config.toml.example"


def path() -> Path:
    """Where the example is.  Raises SupervisorError where an installation lacks it."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / NAME, package.parent / NAME):
        if candidate.is_file():
            return candidate
    raise SupervisorError(
        f"{package / NAME}: the example is missing", hint="reinstall supervise-batch"
    )


def text() -> str:
    """The example as it is, comments included."""
    return path().read_text(encoding="utf-8")
