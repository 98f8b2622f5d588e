"""`supervise stats`: all that is known of what jobs use, once.

May import: `front.lines`, `front.verbs.{client,place,frame,top}`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from typing import Any

from supervisor.errors import ConfigError
from supervisor.front.lines import clean, duration, number, size
from supervisor.front.verbs.client import Client
from supervisor.front.verbs.frame import counter, percent, tasks
from supervisor.front.verbs.place import instance_flags

EPILOG = """\
Rates and percentages are of the second between two looks; --over changes that, and with
--over 0 there is one look, and no rates.  docs/top.md says where each number comes from.

examples:
  supervise stats compress
  supervise stats --json --over 5s | jq '{job, cpu: .cpu.share, memory: .memory.percent}'
"""

LONGEST = 60.0
"""Seconds, as the socket takes it."""

Job = Mapping[str, Any]


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    verb.epilog = EPILOG
    verb.add_argument("jobs", metavar="JOB", nargs="*", help="(default: all that run)")
    verb.add_argument("--json", action="store_true", help="one job a line as JSON")
    verb.add_argument("--processes", action="store_true", help="each process of theirs, too")
    verb.add_argument("--over", metavar="TIME", default="1s", help="between two looks")
    instance_flags(verb)
    verb.set_defaults(verb=run)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    processes = "true" if args.processes else None
    query = {"job": args.jobs or None, "over": over(args.over), "processes": processes}
    answer = Client.of(args).get("stats", query=query)
    for place, job in enumerate(answer["jobs"]):
        if args.json:
            print(json.dumps(job))
        else:
            print(*(() if not place else ("",)), *described(job, answer["cpus"]), sep="\n")
    for problem in answer["problems"]:
        print(f"supervise: {clean(problem)}")
    return 0


def over(text: str) -> float:
    """Raises ConfigError."""
    from supervisor.model.units import duration as parse

    try:
        value = 0.0 if text == "0" else parse(text)
    except ValueError as error:
        raise ConfigError([f"--over: {text}: {error}"]) from None
    if not 0 <= value <= LONGEST:
        raise ConfigError([f"--over: {text}: from 0 to {LONGEST:g}s"])
    return value


def described(job: Job, cpus: int) -> Iterator[str]:
    """One job in full: a line for each thing, its name before it."""
    yield f"{clean(job['job'])}: {job['state']}" + _run(job)
    if not job["run"]:
        return
    for name, text in _lines(job, cpus):
        yield f"  {name:12} {text}"
    for one in job["processes"] or ():
        yield (
            f"  {one['pid']:>10} {one['state']} {percent(one['cpu_percent'])}% CPU, "
            f"{duration(one['cpu_seconds'])}, {size(one['memory'])}, {clean(one['name'])}"
        )
    if job["processes_left_out"]:
        yield f"  and {job['processes_left_out']} processes more, not looked at"


def _run(job: Job) -> str:
    if not job["run"]:
        return ""
    attempt = f", attempt {job['attempt']}" if job["attempt"] > 1 else ""
    over = "" if job["seconds"] is None else f", over {duration(job['seconds'])}"
    return f", run {job['run']}{attempt}{over}"


def _lines(job: Job, cpus: int) -> Iterator[tuple[str, str]]:
    yield "CPU", _cpu(job["cpu"], cpus)
    yield "CPU time", _cpu_time(job["cpu"])
    if job["cpu"]["quota_cpus"] is not None:
        yield "throttled", _throttled(job["cpu"])
    yield "memory", _memory(job["memory"])
    yield "swap", _of(job["memory"]["swap"], job["memory"]["swap_limit"])
    refused = counter(job["pids"]["refused"])
    yield "pids", f"{tasks(job)}; forks refused: {refused}"
    yield "OOM kills", counter(job["memory"]["oom_kills"])
    yield "reads", _io(job["io"], "read")
    yield "writes", _io(job["io"], "write")
    for name in ("cpu", "memory", "io"):
        if name in job["pressure"]:
            yield f"{name} stall", _pressure(job["pressure"][name])
    if job["disk"] is not None:
        disk = job["disk"]
        inodes = f"{disk['inodes']} of {disk['inode_limit']} inodes"
        yield "disk", f"{_of(disk['used'], disk['limit'])}, {inodes}"


def _of(value: float | None, limit: float | None) -> str:
    return size(value) if limit is None else f"{size(value)} of {size(limit)}"


def _cpu(cpu: Mapping[str, Any], cpus: int) -> str:
    share, host = percent(cpu["share"]), percent(cpu["host_percent"])
    of = {
        "quota": f", {share}% of its quota of {number(cpu['quota_cpus'])}",
        "cpuset": f", without a quota {share}% of the {number(cpu['may_use'])} of its cpuset",
        "host": ", without a quota",
    }[cpu["share_of"]]
    return f"{percent(cpu['percent'])}% of a CPU{of}, {host}% of the host's {cpus}"


def _cpu_time(cpu: Mapping[str, Any]) -> str:
    user, system = duration(cpu["user_seconds"]), duration(cpu["system_seconds"])
    return f"{duration(cpu['seconds'])}: {user} user, {system} system"


def _throttled(cpu: Mapping[str, Any]) -> str:
    return (
        f"in {percent(cpu['throttled_percent'])}% of its periods; in all in "
        f"{counter(cpu['throttled_periods'])} of {counter(cpu['periods'])}, "
        f"{duration(cpu['throttled_seconds'])} long"
    )


def _memory(memory: Mapping[str, Any]) -> str:
    of = "" if memory["limit"] is None else f" of {size(memory['limit'])}"
    share = "" if memory["percent"] is None else f"; {percent(memory['percent'])}% with it"
    own = "" if memory["percent"] is None else f" ({percent(memory['working_percent'])}%)"
    return (
        f"{size(memory['working'])}{of}{own}: {size(memory['anon'])} of processes, "
        f"{size(memory['shmem'])} shared, {size(memory['kernel'])} of the kernel; "
        f"beside {size(memory['file'])} of page cache{share}"
    )


def _io(io: Mapping[str, Any], way: str) -> str:
    operations = "reads" if way == "read" else "writes"
    now = io[f"{way}_bps"]
    rate = "" if now is None else f"; now {size(now)}/s, {number(io[f'{way}_iops'])} operations/s"
    return f"{size(io[f'{way}_bytes'])} in {counter(io[operations])} operations{rate}"


def _pressure(one: Mapping[str, Any]) -> str:
    some = f"some {percent(one['some_avg10'])}% of 10 s, {duration(one['some_seconds'])} in all"
    if one["full_avg10"] is None:
        return some
    return f"{some}; all {percent(one['full_avg10'])}%, {duration(one['full_seconds'])}"
