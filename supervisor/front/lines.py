"""Plain lines: an entry of the event log as one line of text, and how values are written.

The plain view (no terminal, or no rich), the live view's margin notes, the summary and the
explanations all write sizes, durations and reasons by the functions here.  Pure, and quick to
import, as every verb does.

May import: `errors`, `model`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from errno import EBADF, EIO, EPIPE
from typing import Any, TextIO

from supervisor.model.record import Reason

Entry = Mapping[str, Any]

RED, GREEN, YELLOW, BLUE, DIM, BOLD = "31", "32", "33", "34", "2", "1"

REASON_COLOURS = {
    Reason.SUCCEEDED: GREEN,
    Reason.STOPPED: YELLOW,
    Reason.POLICY: YELLOW,
    Reason.SKIPPED: DIM,
}
"""All others are red."""


def use_colour(choice: str, stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether to colour what goes to `stream`; `choice` is --color's: auto, always or never.

    auto: a terminal that is not dumb, and no NO_COLOR in the environment (no-color.org: set and
    not empty).
    """
    if choice != "auto":
        return choice == "always"
    return is_terminal(stream, environ) and not environ.get("NO_COLOR")


def is_terminal(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """Whether `stream` is a terminal that can do more than lines."""
    return environ.get("TERM", "dumb") not in ("dumb", "") and stream.isatty()


def paint(text: str, colour: str, on: bool) -> str:
    """`text` in an SGR colour (ECMA-48), if colours are `on`."""
    return f"\033[{colour}m{text}\033[0m" if on and colour else text


def clean(text: str) -> str:
    """`text` on one line and harmless to a terminal: control characters as Python escapes.

    A job's name, its command and a policy's words are others' text; bytes that are no UTF-8
    (surrogates) could not be written at all.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "replace").decode()
        for char in text
    )


def size(value: float | None) -> str:
    """Bytes for people, base 1024: 512B, 64.0M, 1.5G; `-` for None."""
    if value is None:
        return "-"
    if value < 1024:
        return f"{int(value)}B"
    for unit in "KMGT":
        value /= 1024
        if value < 1023.95 or unit == "T":
            break
    return f"{value:.1f}{unit}"


def duration(seconds: float | None) -> str:
    """Seconds for people: 0.25s, 3.2s, 41s, 3m07s, 2h05m, 3d04h; `-` for None."""
    if seconds is None:
        return "-"
    if seconds < 0.995:
        return f"{max(seconds, 0):.2f}s"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def number(value: float | None) -> str:
    """A number without a tail of zeros; `-` for None."""
    return "-" if value is None else f"{value:g}"


SIZES = ("memory", "memory_high", "memory_low", "swap", "disk", "output")


def reloaded(difference: Mapping[str, Any]) -> str:
    """`a added, b changed (timeout), c removed`."""
    words = []
    for job in difference["jobs"]:
        keys = ", ".join(change["key"] for change in job["changes"])
        words.append(f"{job['job']} {job['what']}" + (f" ({keys})" if keys else ""))
    words += [change["key"] for change in difference["settings"]]
    words += ["policies"] if difference["policies"] else []
    words += [f"{change['key']} only by another start" for change in difference["refused"]]
    return ", ".join(words) or "nothing has changed"


def limit_value(limit: str, value: Any) -> str:
    """A limit's value in its own unit: sizes for memory (high as well), swap and disk."""
    if value is None:
        return "max"
    if isinstance(value, list | str | bool):
        return str(value)
    return size(value) if limit in SIZES else number(value)


def ending(record: Mapping[str, Any]) -> str:
    """How a run ended, from its JSON record: `oom after 3.2s, peak 64.0M of 64.0M`."""
    reason = str(record["reason"])
    if record["reason"] == Reason.FAILED:
        reason += f" with exit code {record['exit_code']}"
    elif record["reason"] == Reason.SIGNAL:
        reason += f" {record['signal']}"
    if record["wall_seconds"] is not None:
        reason += f" after {duration(record['wall_seconds'])}"
    memory = record["memory"]
    if memory["peak"] is not None:
        reason += f", peak {size(memory['peak'])}"
        reason += f" of {size(memory['limit'])}" if memory["limit"] is not None else ""
    return reason + (f": {record['detail']}" if record["detail"] else "")


def decision(entry: Entry) -> str:
    """`grow-memory decided at on_memory_limit: raise memory to 1.0G`."""
    arguments = dict(entry["arguments"])
    words = [str(entry["action"])]
    if "limit" in arguments:
        limit = arguments.pop("limit")
        words += [limit, "to", limit_value(limit, arguments.pop("to"))]
    changed = arguments.pop("limits", None) or {}
    words += [f"with {key} {limit_value(key, value)}" for key, value in changed.items()]
    if arguments.get("after"):
        words += ["after", duration(arguments["after"])]
    words += [str(arguments[key]) for key in ("signal", "message", "why") if arguments.get(key)]
    return f"{entry['by']} decided at {entry['hook']}: {' '.join(words)}"


SAYS: dict[str, Callable[[Entry], str]] = {
    "image_wanted": lambda e: f"waits for its image {e['image']}",
    "image_ready": lambda e: f"image {e['image']} is there: {e['digest'][:19]}",
    "job_started": lambda e: f"started (pid {e['pid']})",
    "memory_limit": lambda e: (
        f"reached its memory limit of {size(e['limit'])}" + (", held" if e["held"] else "")
    ),
    "oom_kill": lambda e: f"lost {e['new']} to the OOM killer ({e['total']} in this run)",
    "pids_limit": lambda e: f"was refused a fork at its limit of {e['limit']} tasks",
    "disk_limit": lambda e: (
        f"has {'no room' if e['full'] else 'little room'} left of its disk limit of "
        + (size(e["limit"]) if e["scarce"] == "bytes" else f"{e['inode_limit']} inodes")
    ),
    "pressure": lambda e: (
        f"stands still for want of {e['resource']}"
        + ("" if e["share"] is None else f": {e['share']:.0%} of the last 10s")
    ),
    "timeout": lambda e: f"used up its {e['kind']} time of {duration(e['limit'])}",
    "decision": decision,
    "limit_changed": lambda e: (
        f"has a {e['limit']} limit of {limit_value(e['limit'], e['to'])} "
        + ("in its next run" if e.get("next") else "now")
        + f", by {e['by']}"
    ),
    "reloaded": lambda e: "reread the configuration: " + reloaded(e["difference"]),
    "reload_failed": lambda e: (
        "did not take the configuration, and changed nothing: " + "; ".join(e["problems"])
    ),
    "job_stopping": lambda e: (
        f"is being ended: {e['reason']}, by {e['by']}" + (f": {e['why']}" if e["why"] else "")
    ),
    "signal_sent": lambda e: f"was sent SIG{e['signal']}",
    "steered": lambda e: (
        f"steered by {e['by']}: {e['verb']}" + (f" ({e['why']})" if e.get("why") else "")
    ),
    "output_lost": lambda e: f"lost {e['bytes']} bytes of its std{e['stream']}: {e['why']}",
    "session_ended": lambda e: (
        f"exec {e['session']} ended: "
        + (f"signal {e['signal']}" if e["exit_code"] is None else f"exit {e['exit_code']}")
    ),
    "copied_out": lambda e: f"left {e['path']} in {e['to']} ({size(e['bytes'])})",
    "kept": lambda e: f"left what it wrote in {e['path']}, run {e['run']}",
    "job_ended": lambda e: "ended: " + ending(e["record"]),
    "retry": lambda e: f"is run again in {duration(e['after'])}, attempt {e['attempt']}",
    "restart": lambda e: f"is started again in {duration(e['after'])}, attempt {e['attempt']}",
    "notify": lambda e: f"{e['by']} says: {e['message']}",
    "cleanup_failed": lambda e: f"could not be cleaned up: {e['text']}",
    "warning": lambda e: f"warning: {e['text']}",
}
"""What people are told; the other kinds of entries are in the log only."""


def line_of(entry: Entry, colour: bool = False) -> str | None:
    """One line with local time, or None for an entry that is not worth one.

    `12:03:01 compress.level=9 ended: oom after 3.2s, peak 64.0M of 64.0M`
    """
    say = SAYS.get(str(entry["event"]))
    if say is None:
        return None
    at = datetime.fromisoformat(str(entry["time"])).astimezone().strftime("%H:%M:%S")
    job = clean(str(entry["job"])) + " " if entry.get("job") else ""
    return f"{paint(at, DIM, colour)} {job}{paint(clean(say(entry)), _tint(entry), colour)}"


_TINTS = {"oom_kill": RED} | dict.fromkeys(("warning", "cleanup_failed", "output_lost"), YELLOW)


def _tint(entry: Entry) -> str:
    if entry["event"] == "job_ended":
        return GREEN if entry["expected"] else RED
    return _TINTS.get(str(entry["event"]), "")


def record_line(entry: Entry) -> str | None:
    """The record of a run as one line of JSON, when `entry` tells of its end (--json)."""
    return json.dumps(entry["record"]) if entry["event"] == "job_ended" else None


GONE = (EPIPE, EIO, EBADF)
"""What a stream says whose reader, or whose terminal, is there no more."""


def lost(count: int) -> str:
    """What stands for the lines that were dropped."""
    return f"({count} lines are not shown: they came too fast)"
