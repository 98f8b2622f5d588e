"""From a user's name to numbers, by the passwd and group files of the root the job will see.

May import: `errors`, `container.view`.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import frozen

from supervisor.container.view import View
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


def look_up(root: View, user: str | None, group: str | None) -> Identity:
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


def knows(root: View, user: str) -> bool:
    """Whether the root's /etc/passwd has that name or number."""
    return _find(root, user) is not None


def _is_id(text: str) -> bool:
    """Whether it is a uid_t: ASCII digits, and not -1, which setresuid(2) takes for "leave it"."""
    digits = text.isascii() and text.isdigit() and len(text) <= 10
    return digits and int(text) < 2**32 - 1


def _find(root: View, wanted: str) -> tuple[str, ...] | None:
    column = 2 if _is_id(wanted) else 0
    for fields in _lines(root, "etc/passwd", 7):
        if fields[column] == wanted and _is_id(fields[2]) and _is_id(fields[3]):
            return fields
    return None


def _group(root: View, wanted: str) -> int:
    if _is_id(wanted):
        return int(wanted)
    for fields in _lines(root, "etc/group", 4):
        if fields[0] == wanted and _is_id(fields[2]):
            return int(fields[2])
    raise SpawnError("user", 0, _path(root, "etc/group"), f'no group "{wanted}"')


def _supplementary(root: View, name: str, primary: int) -> tuple[int, ...]:
    if not name:
        return (primary,)
    found = [
        int(fields[2])
        for fields in _lines(root, "etc/group", 4)
        if name in fields[3].split(",") and _is_id(fields[2])
    ]
    return tuple(dict.fromkeys([primary, *found]))


def _path(root: View, name: str) -> str:
    """Where on the host it is looked for; of an image, in the layer that was added last."""
    return f"{root.layers[0]}/{name}"


def _lines(root: View, name: str, columns: int) -> Iterator[tuple[str, ...]]:
    """The well-formed lines of a colon-separated file; none when it is not there."""
    text = _read(root, name)
    for line in text.splitlines():
        fields = tuple(line.split(":"))
        if len(fields) == columns:
            yield fields


def _read(root: View, name: str) -> str:
    try:
        data = root.read("/" + name, _MAX)
    except FileNotFoundError:
        return ""  # it was there just now
    except OSError as error:
        raise SpawnError("user", error.errno or 0, _path(root, name), "") from error
    return "" if data is None else data.decode(errors="replace")
