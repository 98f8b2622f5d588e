"""Who is at the other end of a connection, and what he may.

The kernel tells (unix(7): SO_PEERCRED, and SO_PEERGROUPS of Linux 4.13), as of the moment of his
connect(2).  Root and the instance's owner may do everything, members of its group may read.
Nobody may who is in a job: what has found a way from there to the socket is uid 0 or the owner,
unless the job has user numbers of its own.

May import: `errors`, `linux`, `control.routes`.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from pathlib import Path

from attrs import frozen

from supervisor.control.routes import Access, Refusal

SO_PEERGROUPS = 59
SO_PEERPIDFD = 77
"""asm-generic/socket.h; the latter since Linux 6.5."""

MOST_GROUPS = 256
"""What Python's getsockopt takes; who is in more is known by his first group alone."""

DEEPEST = 1000
"""Ancestors that are looked at; more than that is nobody who may."""

_UCRED = struct.Struct("iII")


@frozen
class Peer:
    """A client: `pid` as of its connect, 0 for one outside of our pid namespace."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]
    in_job: bool = False
    """Whether it is a process of a job, or nobody can tell any more."""

    @property
    def told(self) -> str:
        """For the event log: "root (uid 0)", "uid 1000"."""
        name = _NAMES.get(self.uid)
        return f"{name} (uid {self.uid})" if name else f"uid {self.uid}"


_NAMES: dict[int, str] = {0: "root"}
"""Names of users as they were first looked up."""


def learn_name(uid: int) -> None:
    """Look up a user's name, once; in a thread, as whoever is asked may be far away."""
    import pwd

    if uid not in _NAMES:
        try:
            _NAMES[uid] = pwd.getpwuid(uid).pw_name
        except (KeyError, OSError):
            _NAMES[uid] = ""


def peer_of(connection: socket.socket) -> Peer:
    """The process that connected.  Raises OSError."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, gid = _UCRED.unpack(raw)
    groups = _groups(connection) | {gid}
    # Without root no job is: it is in our own user namespace's numbers or in a range of ours.
    trusted = pid == 0 or (uid == 0 and os.geteuid() != 0)
    return Peer(pid, uid, gid, groups, in_job=not trusted and _in_job(connection, pid))


def _groups(connection: socket.socket) -> frozenset[int]:
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, 4 * MOST_GROUPS)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        return frozenset()
    return frozenset(struct.unpack(f"{len(raw) // 4}I", raw))


def _in_job(connection: socket.socket, pid: int) -> bool:
    """In a pid namespace below ours, and a descendant: orphans there are its init's, our child's.

    True as well for a process that has ended meanwhile: its number may be another's by now.
    """
    try:
        pidfd = _pidfd(connection, pid)
    except OSError:
        return True
    try:
        inside = _is_inside(pid, os.getpid())
        return inside or _ended(pidfd)
    except OSError:
        return True
    finally:
        os.close(pidfd)


def _ended(pidfd: int) -> bool:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


def _pidfd(connection: socket.socket, pid: int) -> int:
    """Of exactly the process that connected, where the kernel has it.  Raises OSError."""
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD, 4)
    except OSError as error:
        if error.errno not in (errno.ENOPROTOOPT, errno.EINVAL):
            raise
        return os.pidfd_open(pid)
    return int(struct.unpack("i", raw)[0])


def _is_inside(pid: int, supervisor: int) -> bool:
    """Raises OSError for a process that is gone."""
    parent, levels = _parent(pid)
    if levels == 1:
        return False
    for _ in range(DEEPEST):
        if parent == supervisor:
            return True
        if parent <= 1:
            return False
        parent, _levels = _parent(parent)
    return True


def _parent(pid: int) -> tuple[int, int]:
    """A process's parent, and in how many pid namespaces it is, ours and those below (proc(5))."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_bytes().splitlines():
        key, _, value = line.partition(b":\t")
        found[key] = value
    return int(found[b"PPid"]), len(found[b"NSpid"].split())


def permit(peer: Peer, access: Access, owner: int, group: int | None) -> None:
    """Raises Refusal (403) unless `peer` may; `group` is the one whose members may read."""
    if peer.in_job:
        raise Refusal(403, "a job may not speak to its own supervisor")
    if peer.uid in (0, owner):
        return
    member = group is not None and group in peer.groups
    if not member:
        raise Refusal(403, f"uid {peer.uid} may not: only root and uid {owner} may")
    if access != "read":
        hint = f"ask as root or as uid {owner}"
        raise Refusal(403, "the instance's group may look, and change nothing", hint=hint)
