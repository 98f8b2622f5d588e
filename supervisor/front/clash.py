"""Whether the PyPI distribution *supervisor* was installed over this one.

Asked at the start of every command: it imports next to nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

FOREIGN = "supervisord.py"
"""A file of the PyPI distribution *supervisor* that ours does not have."""


def name_clash(package: Path | None = None) -> str | None:
    """What is wrong when the PyPI distribution *supervisor* was installed over this one.

    Both have the import package `supervisor`, and pip overwrites without a word.  One stat and
    one attribute: cheap enough for every start.
    """
    ours = sys.modules["supervisor"]
    where = package or Path(str(ours.__file__)).parent
    if isinstance(getattr(ours, "__version__", None), str) and not (where / FOREIGN).exists():
        return None
    return (
        f"{where} holds files of another distribution named supervisor (supervisord) too, and "
        "neither can be trusted (give supervise-batch a virtual environment of its own: python3 "
        "-m venv .venv && .venv/bin/pip install supervise-batch)"
    )
