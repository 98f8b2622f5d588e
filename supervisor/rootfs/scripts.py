"""The first line of a script: which program the kernel runs for it, and which that runs.

The kernel's rules (fs/binfmt_script.c): 256 bytes, blanks around the path, the rest one argument.
env(1) is the one interpreter whose own argument is looked at: it names the real one.

May import: `errors`.
"""

from __future__ import annotations

import os
import shlex

from attrs import frozen

from supervisor.errors import RootError

LINE = 256
"""BINPRM_BUF_SIZE of the kernel."""
DEEPEST = 5
"""How many scripts may be each other's interpreters (fs/exec.c: exec_binprm)."""


@frozen
class Shebang:
    """A script's interpreter, and the name that env(1) is to look up, if that is it."""

    interpreter: str
    through_env: str | None = None


def shebang(path: str, head: bytes) -> Shebang | None:
    """What the file's first bytes say; None: it is no script.

    Raises RootError for a line that no kernel could execute.
    """
    if not head.startswith(b"#!"):
        return None
    line, end, _ = head[2:LINE].partition(b"\n")
    words = os.fsdecode(line.strip(b" \t")).split(maxsplit=1)
    if not words:
        raise RootError([f"{path}: its first line names no interpreter"])
    if not end and len(head) >= LINE:
        raise RootError([f"{path}: its first line is longer than the {LINE} bytes of the kernel"])
    if line.endswith(b"\r"):
        raise RootError([f"{path}: its first line ends in a carriage return"])
    if not words[0].startswith("/"):
        raise RootError([f"{path}: its interpreter {words[0]} is not an absolute path"])
    return Shebang(words[0], _named(path, *words))


def _named(path: str, interpreter: str, argument: str = "") -> str | None:
    """What env(1) is told to run: without -S the whole argument is one name."""
    if os.path.basename(interpreter) != "env" or not argument:
        return None
    if not argument.startswith(("-S", "--split-string", "-vS")):
        return argument.strip()
    text = argument.removeprefix("--split-string").removeprefix("-vS").removeprefix("-S")
    try:
        words = shlex.split(text.lstrip("= "), comments=True)
    except ValueError as error:
        raise RootError([f"{path}: its first line: {error}"]) from None
    names = (word for word in words if not word.startswith("-") and "=" not in word)
    return next(names, None)
