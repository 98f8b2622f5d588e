"""A screen of `supervise top`: what the socket tells of the jobs, as lines that fit a terminal.

Pure.  May import: `front.lines`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import define, frozen

from supervisor.front.lines import BOLD, DIM, RED, YELLOW, clean, duration, paint, size

Job = Mapping[str, Any]
"""`supervise.usage.JobUsage`, as JSON."""

REVERSE = "7"
NEAR, AT = 70.0, 90.0
"""Percent of a limit from which a number is yellow, and red."""


@frozen
class Column:
    """`rank`: the higher it is, the sooner the column gives way to a narrow terminal."""

    key: str
    head: str
    width: int
    rank: int
    cell: Callable[[Job], str]
    tint: Callable[[Job], str] = lambda _job: ""
    right: bool = True


def percent(value: float | None) -> str:
    """ "12.3", "123"; "-" for None."""
    if value is None:
        return "-"
    return f"{value:.1f}" if value < 99.95 else f"{value:.0f}"


def near(value: float | None) -> str:
    """The colour of a percentage of a limit."""
    if value is None or value < NEAR:
        return ""
    return RED if value >= AT else YELLOW


def rate(value: float | None) -> str:
    return "-" if value is None else size(value)


def share(job: Job) -> str:
    """ "99.8" of a quota; "c" after it: of the CPUs of its cpuset, "h": of the host's."""
    cpu = job["cpu"]
    mark = {"quota": "", "cpuset": "c", "host": "h"}[cpu["share_of"]]
    return "-" if cpu["share"] is None else percent(cpu["share"]) + mark


def share_tint(job: Job) -> str:
    """A job without a quota of its own is at nobody's limit."""
    return near(job["cpu"]["share"]) if job["cpu"]["share_of"] == "quota" else ""


def tasks(job: Job) -> str:
    pids = job["pids"]
    if pids["tasks"] is None:
        return "-"
    return f"{pids['tasks']}" if pids["limit"] is None else f"{pids['tasks']}/{pids['limit']}"


def pressure(job: Job) -> str:
    """Percent of time in which some task stood still: for CPU, memory, I/O."""
    found = [job["pressure"].get(name) for name in ("cpu", "memory", "io")]
    if not any(found):
        return "-"
    return "/".join("-" if one is None else f"{one['some_avg10']:.0f}" for one in found)


def pressure_tint(job: Job) -> str:
    """Memory and I/O alone: who waits for a CPU within its quota suffers nothing odd."""
    found = [job["pressure"].get(name) for name in ("memory", "io")]
    worst = max((one["some_avg10"] for one in found if one), default=0.0)
    return RED if worst >= 30 else YELLOW if worst >= 5 else ""


def counter(value: int | None) -> str:
    return "-" if value is None else f"{value}"


def _state(job: Job) -> str:
    return "" if job["state"] == "running" else str(job["state"])


def disk(job: Job) -> str:
    found = job["disk"]
    return "-" if found is None else percent(100 * found["used"] / max(found["limit"], 1))


def _disk_tint(job: Job) -> str:
    found = job["disk"]
    return "" if found is None else near(100 * found["used"] / max(found["limit"], 1))


COLUMNS = (
    Column("cpu", "CPU%", 6, 0, lambda j: percent(j["cpu"]["percent"])),
    Column("share", "QUOTA%", 7, 1, share, share_tint),
    Column("throttled", "THR%", 5, 2, lambda j: percent(j["cpu"]["throttled_percent"]),
           lambda j: near(j["cpu"]["throttled_percent"])),
    Column("memory", "MEMORY", 7, 0, lambda j: size(j["memory"]["working"])),
    Column("limit", "LIMIT", 7, 4, lambda j: size(j["memory"]["limit"])),
    Column("mem%", "MEM%", 5, 1, lambda j: percent(j["memory"]["working_percent"]),
           lambda j: near(j["memory"]["working_percent"])),
    Column("cache", "CACHE", 7, 3, lambda j: size(j["memory"]["file"])),
    Column("swap", "SWAP", 7, 8, lambda j: size(j["memory"]["swap"])),
    Column("pids", "PIDS", 9, 2, tasks, lambda j: near(j["pids"]["percent"])),
    Column("read", "READ/s", 7, 6, lambda j: rate(j["io"]["read_bps"])),
    Column("write", "WRITE/s", 7, 6, lambda j: rate(j["io"]["write_bps"])),
    Column("iops", "IOPS", 6, 9, lambda j: iops(j)),
    Column("pressure", "PRESSURE", 9, 7, pressure, pressure_tint),
    Column("disk", "DISK%", 5, 9, disk, _disk_tint),
    Column("oom", "OOM", 3, 5, lambda j: counter(j["memory"]["oom_kills"]),
           lambda j: RED if j["memory"]["oom_kills"] else ""),
    Column("refused", "REF", 4, 5, lambda j: counter(j["pids"]["refused"]),
           lambda j: YELLOW if j["pids"]["refused"] else ""),
    Column("state", "STATE", 8, 10, _state, lambda j: YELLOW, right=False),
)  # fmt: skip
"""In the order of the screen.  The job's name stands before them, and takes what is left."""

LEAST_NAME, MOST_NAME = 10, 32


def iops(job: Job) -> str:
    reads, writes = job["io"]["read_iops"], job["io"]["write_iops"]
    return "-" if reads is None or writes is None else f"{reads + writes:.0f}"


def _number(value: float | None) -> float:
    return -1.0 if value is None else float(value)


SORTS: dict[str, Callable[[Job], Any]] = {
    "cpu": lambda j: -_number(j["cpu"]["percent"]),
    "quota": lambda j: -_number(j["cpu"]["share"]),
    "throttled": lambda j: -_number(j["cpu"]["throttled_percent"]),
    "memory": lambda j: -_number(j["memory"]["working"]),
    "mem%": lambda j: -_number(j["memory"]["working_percent"]),
    "cache": lambda j: -_number(j["memory"]["file"]),
    "swap": lambda j: -_number(j["memory"]["swap"]),
    "pids": lambda j: -_number(j["pids"]["tasks"]),
    "io": lambda j: -_number(j["io"]["read_bps"]) - _number(j["io"]["write_bps"]),
    "oom": lambda j: -_number(j["memory"]["oom_kills"]),
    "refused": lambda j: -_number(j["pids"]["refused"]),
    "name": lambda j: j["job"],
}
"""What `--sort` takes: the most first, names from A on."""

PROCESS_SORTS: dict[str, Callable[[Mapping[str, Any]], Any]] = {
    "cpu": lambda p: (-_number(p["cpu_percent"]), -p["cpu_seconds"]),
    "memory": lambda p: -p["memory"],
    "pids": lambda p: -p["threads"],
    "name": lambda p: p["name"],
}


def ordered(jobs: Sequence[Job], sort: str, *, backwards: bool = False) -> list[Job]:
    """By what was chosen, then by name; names that are the same in both orders stay put."""
    found = sorted(jobs, key=lambda job: str(job["job"]))
    found.sort(key=SORTS[sort], reverse=backwards)
    return found


def columns_for(width: int) -> list[Column]:
    """Those that fit, those of the lowest rank first, in the order of the screen."""
    left = width - LEAST_NAME
    chosen = set()
    for column in sorted(COLUMNS, key=lambda one: one.rank):
        if column.width + 1 > left:
            break
        left -= column.width + 1
        chosen.add(column.key)
    return [column for column in COLUMNS if column.key in chosen]


def cells(text: str) -> int:
    """Columns that a text takes on a terminal."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def fit(text: str, width: int) -> str:
    """Exactly so wide, cut in the middle where it is longer: names differ at their ends."""
    if cells(text) > width:
        tail = text[-(width // 3) :] if width >= 9 else ""
        while cells(tail) > width // 3:
            tail = tail[1:]
        head = text
        while head and cells(head) + 1 + cells(tail) > width:
            head = head[:-1]
        text = f"{head}…{tail}"
    return text + " " * (width - cells(text))


def cut(text: str, width: int) -> str:
    """No wider than that, its end cut off."""
    if cells(text) <= width:
        return text
    while cells(text) >= width and text:
        text = text[:-1]
    return f"{text}…"


def every(view: View) -> str:
    return "" if view.interval is None else f"  every {view.interval:g}s"


@define
class View:
    """What the screen shows, and how: `at` is the first line shown, `chosen` the name in reverse.

    `interval` None: shown once.  `note` is told in the last line.
    """

    width: int
    height: int | None
    colour: bool
    sort: str = "cpu"
    backwards: bool = False
    at: int = 0
    chosen: str | None = None
    interval: float | None = None
    note: str = ""


@define
class Reading:
    """All lines of one look together."""

    at: str
    cpus: int
    own_cpus: int
    jobs: list[Job]
    problems: list[str]


def job_frame(reading: Reading, view: View) -> list[str]:
    """The jobs, as lines; no more than the view's height."""
    head = [_summary(reading, view), ""]
    columns = columns_for(view.width)
    name = max(LEAST_NAME, view.width - sum(column.width + 1 for column in columns))
    longest = max((cells(clean(job["job"])) for job in reading.jobs), default=LEAST_NAME)
    name = min(name, max(longest, LEAST_NAME), MOST_NAME)
    head.append(_titles(columns, name, view))
    jobs = ordered(reading.jobs, view.sort, backwards=view.backwards)
    body = [_job_line(job, columns, name, view) for job in jobs]
    return _framed(head, body, reading, view)


def _titles(columns: Sequence[Column], name: int, view: View) -> str:
    parts = [fit("JOB", name)]
    parts += [
        column.head.rjust(column.width) if column.right else column.head.ljust(column.width)
        for column in columns
    ]
    return paint(" ".join(parts)[: view.width].rstrip(), BOLD, view.colour)


def _job_line(job: Job, columns: Sequence[Column], name: int, view: View) -> str:
    chosen = view.chosen == job["job"]
    parts = [fit(clean(job["job"]), name)]
    for column in columns:
        text = fit(clean(column.cell(job)), column.width).rstrip()
        padded = text.rjust(column.width) if column.right else text.ljust(column.width)
        tint = column.tint(job) if text and not chosen else ""
        parts.append(paint(padded, tint, view.colour))
    line = " ".join(parts)
    return paint(line, REVERSE, view.colour) if chosen else line.rstrip()


def _framed(head: list[str], body: list[str], reading: Reading, view: View) -> list[str]:
    """Head, as much of the body as fits from `view.at` on, and what there is to tell below."""
    foot = [paint(cut(clean(text), view.width), RED, view.colour)
            for text in reading.problems[:3]]  # fmt: skip
    if view.height is None:
        return [*head, *body, *foot]
    room = max(view.height - len(head) - len(foot) - 1, 1)
    view.at = max(min(view.at, len(body) - room), 0)
    shown = body[view.at : view.at + room]
    lines = [*head, *shown, *([""] * (room - len(shown))), *foot, _keys(len(body), room, view)]
    return lines[: view.height]


def _keys(count: int, room: int, view: View) -> str:
    """The last line: where we are in the list, and the keys."""
    where = f"{view.at + 1}-{min(view.at + room, count)} of {count}  " if count > room else ""
    text = view.note or f"{where}q quit  h help  sorted by {view.sort}"
    return paint(cut(clean(text), view.width), DIM, view.colour)


def _summary(reading: Reading, view: View) -> str:
    """How much all of them use together."""
    jobs = reading.jobs
    cpu = sum(job["cpu"]["percent"] or 0.0 for job in jobs)
    used = sum(job["memory"]["working"] or 0 for job in jobs)
    cache = sum(job["memory"]["file"] or 0 for job in jobs)
    tasks_now = sum(job["pids"]["tasks"] or 0 for job in jobs)
    text = (
        f"{reading.at[11:19]}{every(view)}  {len(jobs)} job{'s' * (len(jobs) != 1)}"
        f"  CPU {percent(cpu)} of {100 * reading.cpus}%"
        f"  memory {size(used)} + {size(cache)} cache  {tasks_now} task{'s' * (tasks_now != 1)}"
    )
    return cut(text, view.width)


def process_frame(reading: Reading, view: View) -> list[str]:
    """One job: its numbers in short, and its processes."""
    job = reading.jobs[0]
    head = [cut(clean(line), view.width) for line in _heading(job, view)]
    head += ["", paint(_process_line("PID", "PPID", "S", "THR", "CPU%", "MEMORY", "TIME",
                                     "NAME", view.width), BOLD, view.colour)]  # fmt: skip
    processes = sorted(
        job["processes"] or [], key=PROCESS_SORTS.get(view.sort, PROCESS_SORTS["cpu"]),
        reverse=view.backwards,
    )  # fmt: skip
    body = [
        _process_line(
            str(one["pid"]), str(one["parent"]), one["state"], str(one["threads"]),
            percent(one["cpu_percent"]), size(one["memory"]), duration(one["cpu_seconds"]),
            clean(one["name"]), view.width,
        )
        for one in processes
    ]  # fmt: skip
    if job["processes_left_out"]:
        body.append(f"and {job['processes_left_out']} more, not looked at")
    return _framed(head, body, reading, view)


def _process_line(
    pid: str, parent: str, state: str, threads: str, cpu: str, memory: str, time: str, name: str,
    width: int,
) -> str:  # fmt: skip
    text = f"{pid:>8} {parent:>8} {state} {threads:>4} {cpu:>6} {memory:>8} {time:>7} {name}"
    return cut(text, width)


def _heading(job: Job, view: View) -> list[str]:
    cpu, memory, io = job["cpu"], job["memory"], job["io"]
    of = {"quota": "its quota", "cpuset": "its CPUs", "host": "the host"}[cpu["share_of"]]
    return [
        f"{job['job']}  {job['state']}{every(view)}",
        f"CPU {percent(cpu['percent'])}% of a CPU, {percent(cpu['share'])}% of {of}, "
        f"throttled in {percent(cpu['throttled_percent'])}% of periods",
        f"memory {size(memory['working'])} + {size(memory['file'])} cache of "
        f"{size(memory['limit'])}, swap {size(memory['swap'])}: {size(memory['anon'])} anon, "
        f"{size(memory['shmem'])} shared, {size(memory['kernel'])} kernel",
        f"pids {tasks(job)}  read {rate(io['read_bps'])}/s  write {rate(io['write_bps'])}/s  "
        f"pressure {pressure(job)}  OOM {counter(memory['oom_kills'])}  "
        f"refused {counter(job['pids']['refused'])}",
    ]
