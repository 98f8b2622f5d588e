"""From a user's name to numbers, by the passwd and group files of the root the job will see.

Files of a foreign root are opened with RESOLVE_IN_ROOT semantics: no link in it leads out.

May import: `errors`, `linux`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from supervisor.errors import SpawnError

_MAX = 4 << 20
"""No passwd file is larger; a hostile root's could be endless."""


@frozen
class Identity:
    """Who the payload is: ids inside its user namespace, home and login name."""

    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()
    home: str = "/"
    name: str = ""


def look_up(root: str, user: str | None, group: str | None) -> Identity:
    """The identity of `user` (a name or a number; None: root) in `root`.

    Raises SpawnError (stage `user`) for a name that the root's /etc/passwd does not have.
    """
    wanted = user or "0"
    entry = _find(root, wanted)
    if entry is None and not _is_id(wanted):
        raise SpawnError(
            "user",
            0,
            _path(root, "etc/passwd"),
            f'no user "{wanted}"',
            hint="give a name that the job's root knows, or a number",
        )
    name, _, uid, gid, _, home, *_ = entry or ("", "", wanted, wanted, "", "/")
    number = int(gid) if group is None else _group(root, group)
    return Identity(int(uid), number, _supplementary(root, name, number), home or "/", name)


def _is_id(text: str) -> bool:
    """Whether it is a uid_t: ASCII digits, and not -1, which setresuid(2) takes for "leave it"."""
    digits = text.isascii() and text.isdigit() and len(text) <= 10
    return digits and int(text) < 2**32 - 1


def _find(root: str, wanted: str) -> tuple[str, ...] | None:
    column = 2 if _is_id(wanted) else 0
    for fields in _lines(root, "etc/passwd", 7):
        if fields[column] == wanted and _is_id(fields[2]) and _is_id(fields[3]):
            return fields
    return None


def _group(root: str, wanted: str) -> int:
    if _is_id(wanted):
        return int(wanted)
    for fields in _lines(root, "etc/group", 4):
        if fields[0] == wanted and _is_id(fields[2]):
            return int(fields[2])
    raise SpawnError("user", 0, _path(root, "etc/group"), f'no group "{wanted}"')


def _supplementary(root: str, name: str, primary: int) -> tuple[int, ...]:
    if not name:
        return (primary,)
    found = [
        int(fields[2])
        for fields in _lines(root, "etc/group", 4)
        if name in fields[3].split(",") and _is_id(fields[2])
    ]
    return tuple(dict.fromkeys([primary, *found]))


def _path(root: str, name: str) -> str:
    return str(Path("/" if root == "host" else root) / name)


def _lines(root: str, name: str, columns: int) -> Iterator[tuple[str, ...]]:
    """The well-formed lines of a colon-separated file; none when it is not there."""
    text = _read(root, name)
    for line in text.splitlines():
        fields = tuple(line.split(":"))
        if len(fields) == columns:
            yield fields


def _read(root: str, name: str) -> str:
    path = _path(root, name)
    if root != "host":
        # A link such as etc/passwd -> /etc/passwd means the root's own file, not the host's.
        path = resolve_in(root, "/" + name)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return ""
    except OSError as error:
        raise SpawnError("user", error.errno or 0, path, "") from error
    try:
        return os.read(fd, _MAX).decode(errors="replace")
    except OSError as error:
        raise SpawnError("user", error.errno or 0, path, "") from error
    finally:
        os.close(fd)


def resolve_in(root: str, path: str) -> str:
    """Where `path` of a job lies on the host, links followed inside `root` as if it were /.

    What does not exist is kept as it is written.  Raises SpawnError for a loop of links.
    """
    parts = [part for part in reversed(path.split("/")) if part]
    at: list[str] = []
    links = 0
    while parts:
        part = parts.pop()
        if part == ".." and at:
            at.pop()
        if part in (".", ".."):
            continue
        full = os.path.join(root, *at, part)
        target = _link(full)
        if target is None:
            at.append(part)
            continue
        links += 1
        if links > 40:
            raise SpawnError("user", 40, full, "")  # ELOOP
        at = [] if target.startswith("/") else at
        parts += [piece for piece in reversed(target.split("/")) if piece]
    return os.path.join(root, *at)


def _link(path: str) -> str | None:
    """Where a link leads; None: it is none, or not there.  One look, as a root may change."""
    try:
        return os.readlink(path)
    except OSError:
        return None
