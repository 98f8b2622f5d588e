"""What some interpreters read beside their libraries, and no header tells of.

They are found by looking; none is asked, which would be running it.  For others, and for modules
that were installed beside an interpreter, the user names the directories.

May import: `errors`.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable

from attrs import frozen


@frozen
class Companions:
    """Directories that come along; in them, what is left out (names as in glob(7))."""

    directories: tuple[str, ...]
    without: tuple[str, ...] = ()


PYTHON = re.compile(r"python3\.\d+t?")
PYTHON_WITHOUT = (
    "config-*",
    "idlelib",
    "lib-dynload/_tkinter.*",
    "site-packages",
    "test",
    "tkinter",
    "turtledemo",
)
"""Not for a server, or, as site-packages, not the interpreter's own."""
PERL = ("/usr/lib/*/perl-base", "/usr/lib/*/perl/5.*", "/usr/share/perl/5.*",
        "/usr/lib64/perl5", "/usr/share/perl5", "/usr/lib/perl5/core_perl",
        "/usr/share/perl5/core_perl")  # fmt: skip
TCL = ("/usr/share/tcltk/tcl8*", "/usr/lib/tcl8*", "/usr/share/tcl8*")


def companions(program: str) -> Companions | None:
    """What comes along with a program, given by its path without links; None: nothing known."""
    name = os.path.basename(program)
    for pattern, find in _KNOWN.items():
        if re.fullmatch(pattern, name):
            return find(program)
    return None


def _python(program: str) -> Companions:
    """The standard library: PREFIX/lib/python3.N beside PREFIX/bin (Modules/getpath.py)."""
    prefix = os.path.dirname(os.path.dirname(program))
    name = os.path.basename(program)
    places = (f"{prefix}/{lib}/{name}" for lib in ("lib", "lib64"))
    return Companions(tuple(p for p in places if os.path.isdir(p)), PYTHON_WITHOUT)


def _there(*patterns: str) -> Companions:
    return Companions(tuple(path for one in patterns for path in sorted(glob.glob(one))))


_KNOWN: dict[str, Callable[[str], Companions]] = {
    PYTHON.pattern: _python,
    r"perl(5[\d.]*)?": lambda _: _there(*PERL),
    r"tclsh(8[\d.]*)?": lambda _: _there(*TCL),
}
