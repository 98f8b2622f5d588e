"""The systemd journal: the lines that people are told, as entries with fields to search by.

    journalctl SUPERVISE_JOB=compress SUPERVISE_REASON=oom

Used where stderr is connected to the journal, in place of plain lines.  The protocol is systemd's
own (`record.journald`).

An entry of the event log goes through a chain of structlog's: `fields`, then `encode`.

May import: `model`, `record`, `front.lines`, `front.outlet`.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from supervisor.front.lines import SAYS, Entry, lost
from supervisor.front.outlet import Outlet
from supervisor.record import journald
from supervisor.record.eventlog import import_structlog
from supervisor.record.journald import ERROR, INFO, NOTICE, SOCKET, WARNING, send

PRIORITIES = {
    "memory_limit": NOTICE,
    "oom_kill": WARNING,
    "pids_limit": WARNING,
    "disk_limit": WARNING,
    "pressure": NOTICE,
    "timeout": WARNING,
    "decision": NOTICE,
    "limit_changed": NOTICE,
    "notify": NOTICE,
    "cleanup_failed": ERROR,
    "output_lost": WARNING,
    "warning": WARNING,
}
"""All others are INFO; but the end of a run that was not meant to end so is an ERROR."""

Fields = dict[str, str]


def connected(descriptor: int, environ: Mapping[str, str]) -> bool:
    """Whether `descriptor` is a stream to the journal: $JOURNAL_STREAM is its device and inode.

    A descriptor that was redirected since the variable was set is none (systemd.exec(5)).
    """
    try:
        info = os.fstat(descriptor)
    except OSError:
        return False
    return environ.get("JOURNAL_STREAM") == f"{info.st_dev}:{info.st_ino}"


class Journal(Outlet[bytes]):
    """A subscriber of the event log that never blocks.

    When the journal takes nothing, the messages go to `fallback` as lines.
    """

    def __init__(self, instance: str, fallback: TextIO, path: str = SOCKET) -> None:
        super().__init__()
        structlog = import_structlog()
        self._instance = instance
        self._fallback = fallback
        self._path = path
        self._log = structlog.wrap_logger(
            self, [self._select, self._name, encode], structlog.BoundLogger
        ).bind()

    def __call__(self, entry: Entry) -> None:
        self._log.say(**entry)

    def _select(self, _logger: Any, _method: str, entry: Entry) -> Entry:
        if entry["event"] not in SAYS:
            raise import_structlog().DropEvent
        return entry

    def _name(self, _logger: Any, _method: str, entry: Entry) -> Fields:
        return {**fields(entry), "SUPERVISE_INSTANCE": self._instance}

    def write(self, items: Sequence[bytes], dropped: int) -> None:
        if dropped:
            last = {**_OWN, "MESSAGE": lost(dropped), "PRIORITY": str(WARNING)}
            items = (*items, encode(None, "", {**last, "SUPERVISE_INSTANCE": self._instance}))
        sent = 0
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
                journal.connect(self._path)
                for item in items:
                    send(journal, item)
                    sent += 1
        except OSError:
            self._fall_back(items[sent:])

    def _fall_back(self, items: Iterable[bytes]) -> None:
        try:
            for item in items:
                self._fallback.write(message(item) + "\n")
            self._fallback.flush()
        except OSError:
            self.closed = True  # stderr was the journal's too


_OWN = {"SYSLOG_IDENTIFIER": "supervise"}


def fields(entry: Entry) -> Fields:
    """An entry that is worth a line, by the journal's names.

    SUPERVISE_SEQ is its number in events.ndjson; SUPERVISE_RECORD, at the end of a run, the whole
    record as JSON.
    """
    job = entry.get("job") or ""
    said = SAYS[str(entry["event"])](entry)
    found = {
        **_OWN,
        "MESSAGE": f"{job} {said}" if job else said,
        "PRIORITY": str(_priority(entry)),
        "SUPERVISE_EVENT": str(entry["event"]),
        "SUPERVISE_SEQ": str(entry["seq"]),
        "SUPERVISE_JOB": str(job),
        "SUPERVISE_RUN": str(entry.get("run") or ""),
        "SUPERVISE_REASON": str(entry.get("reason") or ""),
        "SUPERVISE_RECORD": json.dumps(entry["record"]) if "record" in entry else "",
    }
    return {name: value for name, value in found.items() if value}


def _priority(entry: Entry) -> int:
    if entry["event"] == "job_ended" and not entry["expected"]:
        return ERROR
    return PRIORITIES.get(str(entry["event"]), INFO)


def encode(_logger: Any, _method: str, found: Mapping[str, str]) -> bytes:
    """The native protocol's form: the last of the chain."""
    return journald.encode({k: v.encode("utf-8", "backslashreplace") for k, v in found.items()})


def message(datagram: bytes) -> str:
    """MESSAGE of an encoded entry, on one line."""
    _, _, rest = datagram.partition(b"MESSAGE")
    if rest.startswith(b"\n"):
        (length,) = struct.unpack_from("<Q", rest, 1)
        return rest[9 : 9 + length].decode().replace("\n", " ")
    return rest[1:].partition(b"\n")[0].decode()
