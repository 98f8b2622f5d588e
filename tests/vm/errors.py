"""The one error of the test guest."""

from __future__ import annotations

from pathlib import Path

TAIL = 3000


class RigError(Exception):
    """The guest itself failed; nothing is known of the command."""


def with_log(text: str, log: Path) -> RigError:
    """An error that ends in the last TAIL bytes of a log."""
    if not log.exists():
        return RigError(text)
    tail = log.read_bytes()[-TAIL:].decode(errors="replace")
    return RigError(f"{text}\n--- the end of its {log.name} log ---\n{tail}")
