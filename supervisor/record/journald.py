"""The journal's own protocol: entries with fields, which may hold any bytes.

systemd.io/JOURNAL_NATIVE_PROTOCOL: one datagram an entry, NAME=VALUE lines, a value with a newline
in it preceded by its length; what is too long for a datagram goes as a sealed memfd.

May import: the standard library.
"""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
from collections.abc import Mapping
from errno import EMSGSIZE, ENOBUFS

SOCKET = "/run/systemd/journal/socket"

ERROR, WARNING, NOTICE, INFO = 3, 4, 5, 6
"""Priorities of syslog(3)."""


def encode(fields: Mapping[str, bytes]) -> bytes:
    """An entry.  A name is of A-Z, 0-9 and "_", and begins with a letter."""
    return b"".join(_field(name, value) for name, value in fields.items())


def _field(name: str, value: bytes) -> bytes:
    if b"\n" in value:
        return name.encode() + b"\n" + struct.pack("<Q", len(value)) + value + b"\n"
    return name.encode() + b"=" + value + b"\n"


def send(journal: socket.socket, datagram: bytes) -> None:
    """One entry, as a datagram or, where that is too long, in a memfd.  Raises OSError."""
    try:
        journal.send(datagram)
    except OSError as error:
        if error.errno not in (EMSGSIZE, ENOBUFS):
            raise
        _send_file(journal, datagram)


def _send_file(journal: socket.socket, data: bytes) -> None:
    """The journal maps the file, so it takes only one that cannot change any more."""
    file = os.memfd_create("supervise-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(file, "wb", closefd=False) as writer:
            writer.write(data)
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fcntl.fcntl(file, fcntl.F_ADD_SEALS, seals)
        passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [file]))]
        journal.sendmsg([], passed)
    finally:
        os.close(file)
