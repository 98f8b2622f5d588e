"""A run told as a chain: limit, event, who was asked, what was done, the end, and what to do.

Pure: from a `record.story.Story` and what a running instance says of the job, as JSON's types.

May import: `errors`, `model`, `record`, `front.{explain_end,lines}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from supervisor.front import lines
from supervisor.front.explain_end import Settings, explain
from supervisor.model.event import HOOK_OF
from supervisor.model.record import Reason, RunRecord
from supervisor.record.entries import ENTRY_OF

Entry = Mapping[str, Any]

HOOKS = {ENTRY_OF[event]: hook for event, hook in HOOK_OF.items() if event in ENTRY_OF}
"""Which hook is asked about which entry."""
UNTOLD = ("job_starting", "image_ready", "user_ids", "decision", "undecided", "supervisor_started")
"""Entries without a line of their own: they stand with others, or say nothing of the why."""
LIMITS = (
    "memory", "memory_high", "memory_low", "swap", "pids", "cpus", "disk", "output",
)  # fmt: skip


def tell(
    story: Mapping[str, Any] | None,
    status: Mapping[str, Any] | None = None,
    waits: Mapping[str, Any] | None = None,
) -> list[str]:
    """The lines.  `status` and `waits` are of a running instance, None without one.

    `status` is a `model.status.JobStatus`, `waits` a `supervise.waiting.Waits`.
    """
    return [lines.clean(line) for line in _told(story, status, waits)]


def _told(
    story: Mapping[str, Any] | None,
    status: Mapping[str, Any] | None,
    waits: Mapping[str, Any] | None,
) -> Iterator[str]:
    if status is not None:
        yield from _now(status, waits)
    if story is None:
        return
    live = status is not None and status["run"] == story["run"] != ""
    yield _head(story)
    yield from _limits(story)
    entries = story["entries"]
    for number, entry in enumerate(entries):
        if entry["event"] == "job_ended":
            yield from _end(entry, story)
            yield from _asked(entry, entries[number + 1 :], story, hook="on_exit")
        elif entry["event"] not in UNTOLD:
            yield from _happened(entry, entries[number + 1 :], story)
    if story["record"] is None and not live and story["run"]:
        yield "  no end was recorded: its supervisor was killed, or is still at it"


def _now(status: Mapping[str, Any], waits: Mapping[str, Any] | None) -> Iterator[str]:
    """What the job is doing."""
    ended = status["reason"] and status["state"] == "ended"
    yield f"{status['name']} is {status['state']}" + (f": {status['reason']}" if ended else "")
    if waits is not None:
        yield from (f"  {line}" for line in _waiting(waits))


def _waiting(waits: Mapping[str, Any]) -> Iterator[str]:
    match waits["kind"]:
        case "after":
            yield f"waits for {waits['what']}, which is {waits['state']} (after)"
        case "image":
            yield f"waits for its {waits['what']}"
        case "backoff":
            left = f" ({lines.duration(waits['seconds'])} from now)"
            yield f"waits until {_clock(waits['until'])}{left} before it is run again"
        case "capacity":
            yield f"waits for room: {waits['what']} is lacking (capacity)"
            yield from _room(waits)
        case _:
            yield f"waits for {waits['what']}"


def _room(waits: Mapping[str, Any]) -> Iterator[str]:
    """What is given out, to whom, and who comes first."""
    used = waits["use"]
    parts = [
        f"{lines.size(used['memory'])} of {lines.size(used['memory_limit'])} of memory"
        if used["memory_limit"] is not None
        else "",
        f"{used['cpus']:g} of {used['cpus_limit']:g} CPUs"
        if used["cpus_limit"] is not None
        else "",
        f"{used['jobs']} of {used['jobs_limit']} places" if used["jobs_limit"] is not None else "",
    ]
    yield "  given out: " + ", ".join(filter(None, parts))
    for name, demand in waits["holders"].items():
        share = [lines.size(demand["memory"])] if demand["memory"] else []
        share += [f"{demand['cpus']:g} CPUs"] if demand["cpus"] else []
        yield f"  {name} has {' and '.join(share) or 'a place'}"
    if waits["ahead"]:
        yield "  before it, by priority: " + ", ".join(waits["ahead"])


def _head(story: Mapping[str, Any]) -> str:
    starting = [one for one in story["entries"] if one["event"] == "job_starting"]
    if not starting:
        return f"{story['job']} was never started"
    begun = starting[0]
    return f"{story['job']}, run {story['run']}, attempt {begun['attempt']}: {_day(begun['time'])}"


def _limits(story: Mapping[str, Any]) -> Iterator[str]:
    """Those it was started with, by its own configuration (or a policy's `prepare`)."""
    spec = story["spec"] or {}
    limits = spec.get("limits")
    if not isinstance(limits, dict):
        return
    said = [f"{key} {_limit(key, limits[key])}" for key in LIMITS if _number(limits, key)]
    said += [
        f"{key} {lines.duration(spec[key])}"
        for key in ("timeout", "cpu_time")
        if _number(spec, key)
    ]
    yield "  limits: " + (", ".join(said) or "none")


def _limit(key: str, value: float) -> str:
    return lines.size(value) if key in ("memory_low", "output") else lines.limit_value(key, value)


def _number(table: Mapping[str, Any], key: str) -> bool:
    return isinstance(table.get(key), int | float) and not isinstance(table[key], bool)


def _happened(entry: Entry, rest: Sequence[Entry], story: Mapping[str, Any]) -> Iterator[str]:
    """What happened, on which evidence; who was asked, and what by default follows."""
    say = lines.SAYS.get(entry["event"])
    words = (
        say(entry)
        if say is not None
        else OWN[entry["event"]](entry)
        if entry["event"] in OWN
        else ""
    )
    if words:
        yield f"  {_time(entry['time'])} {words}{_by(entry)}"
    evidence = EVIDENCE.get(entry["event"])
    if evidence is not None:
        yield f"    read: {evidence(entry)}"
    if entry["event"] in HOOKS:
        yield from _asked(entry, rest, story, hook=HOOKS[entry["event"]])


OWN = {
    "job_waiting": lambda e: f"waited for {e['waiting_for']}",
    "prepared": lambda e: "before it was queued: " + "; ".join(map(_answer, e["answers"])),
}
EVIDENCE = {
    "memory_limit": lambda e: (
        f"{lines.size(e['usage'])} in use; at the limit {e['hits']}x, as the kernel counts"
    ),
    "pids_limit": lambda e: f"{e['refused']} forks refused in this run",
    "disk_limit": lambda e: (
        f"{lines.size(e['used'])} of {lines.size(e['limit'])} and {e['inodes']} inodes in use"
    ),
}


def _by(entry: Entry) -> str:
    return f", by {entry['by']}" if entry["event"] in ("retry", "restart") else ""


def _asked(
    entry: Entry, rest: Sequence[Entry], story: Mapping[str, Any], *, hook: str
) -> Iterator[str]:
    """Who was asked about an event, what they said, and what follows."""
    about = answered(entry, rest, hook)
    due = _default(entry, story)
    if about is None:
        if due:
            yield f"    asked: nobody, no policy has {hook} for this job; so {due}"
        return
    for answer in about.get("answers", ()):
        yield f"    asked: {_answer(answer, hook)}"
    if about["event"] == "decision":
        what = lines.decision(about).partition(": ")[2]
        yield f"    decided by {_who(about['by'], hook)}: {what}"
    elif due:
        yield f"    nobody decided; so {due}"


def answered(entry: Entry, rest: Sequence[Entry], hook: str) -> Entry | None:
    """The decision about an event: the next at its hook, before another of its kind."""
    for later in rest:
        if later["event"] == entry["event"]:
            return None
        if later["event"] in ("decision", "undecided") and later["hook"] == hook:
            return later
    return None


def _answer(answer: Mapping[str, Any], hook: str = "") -> str:
    took = f"{answer['seconds'] * 1000:.1f} ms"
    said = answer["error"] or answer["verdict"] or "abstained"
    return f"{_who(answer['policy'], hook)}: {said}" + (
        "" if answer["policy"] == hook else f" ({took})"
    )


def _who(name: str, hook: str) -> str:
    """What a job decides itself is called as the hook is."""
    return f"its own {hook}" if name == hook else name


def _default(entry: Entry, story: Mapping[str, Any]) -> str:
    """What is done when nobody decides; "" for nothing at all."""
    match entry["event"]:
        case "memory_limit" if entry["held"]:
            return "it was let go, and the kernel's OOM killer decides"
        case "memory_limit":
            return "the kernel makes room, or its OOM killer decides"
        case "oom_kill":
            whole = (story["spec"] or {}).get("oom", "kill") == "kill"
            return "the whole job was ended" if whole else 'the others went on (oom = "continue")'
        case "timeout":
            return "it was stopped"
        case "pids_limit":
            return "it went on, and has to cope"
        case "disk_limit" if entry["full"]:
            return "it went on, and has to cope"
    return ""


def _end(entry: Entry, story: Mapping[str, Any]) -> Iterator[str]:
    """The outcome on its evidence, and the way out."""
    record = record_of(story["record"])
    if record is None:
        yield f"  {_time(entry['time'])} ended: {entry.get('reason', 'its record cannot be read')}"
        return
    expected = ", as expected" if record.expected else ""
    told = explain(record, Settings()) or [lines.ending(record.to_json())]
    yield f"  {_time(entry['time'])} ended{expected}: {told[0]}"
    yield from (f"  {line}" for line in told[1:])
    if record.reason in (Reason.FAILED, Reason.SIGNAL) and story["output"]:
        yield f"    see what it printed: {' '.join(story['output'])}"


def record_of(value: object) -> RunRecord | None:
    """The record in JSON's types as itself; None for what is none."""
    import cattrs

    try:
        return cattrs.structure(value, RunRecord)
    except Exception:  # whatever cattrs makes of what somebody has written into a database
        return None


def _time(text: str) -> str:
    moment = _moment(text)
    return text if moment is None else moment.strftime("%H:%M:%S.%f")[:-3]


def _day(text: str) -> str:
    moment = _moment(text)
    return text if moment is None else moment.strftime("%Y-%m-%d %H:%M:%S")


def _clock(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%H:%M:%S")


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        return None
