"""`supervise status`: one job in full, or the instance.

May import: `front.lines`, `front.verbs.{client,place}`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from supervisor.front.lines import (
    BOLD,
    clean,
    duration,
    ending,
    limit_value,
    number,
    paint,
    size,
    use_colour,
)
from supervisor.front.verbs.client import Client
from supervisor.front.verbs.place import colour_flag, instance_flags
from supervisor.front.verbs.ps import note, tint

EPILOG = """\
Without JOB: the instance, where its files are, and how many jobs are in which state.

examples:
  supervise status
  supervise status compress
"""

Facts = Iterator[tuple[str, str]]

LIMITS = (
    *("memory", "memory_high", "memory_low", "swap", "pids", "cpus", "cpu_weight", "cpuset"),
    *("disk", "output", "open_files"),
)
"""As `limits` of a configuration has them, in this order; only those that are set are shown."""


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    verb.epilog = EPILOG
    verb.add_argument("job", metavar="JOB", nargs="?", help="(default: the instance)")
    verb.add_argument("--json", action="store_true", help="the whole answer as JSON")
    colour_flag(verb)
    instance_flags(verb)
    verb.set_defaults(verb=run)


def run(args: argparse.Namespace) -> int:
    """Print it."""
    client = Client.of(args)
    answer = client.get("jobs", args.job) if args.job else client.get("")
    if args.json:
        print(json.dumps(answer))
        return 0
    colour = use_colour(args.color, sys.stdout, os.environ)
    if args.job:
        status = answer["status"]
        print(paint(clean(status["name"]), BOLD, colour), end=": ")
        print(paint(_state(status, time.time()), tint(status), colour))
    else:
        print(paint(answer["name"], BOLD, colour), end=": ")
        print(", ".join(f"{count} {state}" for state, count in answer["jobs"].items()))
    facts = list(of_job(answer) if args.job else of_instance(answer))
    width = max(len(name) for name, _ in facts)
    for name, text in facts:
        print(f"  {name:{width}}  {clean(text)}")
    return 0


def _state(status: Mapping[str, Any], now: float) -> str:
    began, ended = status["since"], status["ended"]
    if began is None:
        return str(status["state"])
    if ended is None:
        return f"{status['state']} for {duration(now - began)}"
    return f"{status['state']} {duration(now - ended)} ago, after {duration(ended - began)}"


def of_job(answer: Mapping[str, Any]) -> Facts:
    """What there is to say of a job, below its state."""
    status, spec = answer["status"], answer["spec"]
    words = note(status)
    if words:
        yield "note", words
    yield "command", shlex.join(spec["command"]) or "as its image says"
    yield "root", f"{spec['root']}, {spec['write']}"
    if status["run"]:
        yield "run", status["run"]
    yield from _usage(status)
    limits = [
        f"{name} = {_limit(name, answer['limits'][name])}"
        for name in LIMITS
        if answer["limits"].get(name) is not None
    ]
    yield "limits", ", ".join(limits) or "none"
    if spec["after"]:
        yield "after", ", ".join(spec["after"])
    restart = spec["restart"]
    if restart["when"] != "never":
        most = "any number of" if restart["attempts"] is None else restart["attempts"]
        yield "restart", f"{restart['when']}, {most} times"
    for record in answer["runs"]:
        yield f"attempt {record['attempt']}", ending(record)


def _usage(status: Mapping[str, Any]) -> Facts:
    if status["cpu_seconds"] is not None:
        yield "cpu", duration(status["cpu_seconds"])
    if status["memory"] is not None:
        yield "memory", _of(size(status["memory"]), size(status["memory_limit"]))
    if status["pids"] is not None:
        yield "pids", _of(number(status["pids"]), number(status["pids_limit"]))


def _of(used: str, limit: str) -> str:
    return used if limit == "-" else f"{used} of {limit}"


def _limit(name: str, value: Any) -> str:
    sizes = {"memory_low": "memory", "output": "disk"}
    return value if isinstance(value, str) else limit_value(sizes.get(name, name), value)


def of_instance(answer: Mapping[str, Any]) -> Facts:
    """What there is to say of an instance."""
    began = datetime.fromisoformat(answer["started_at"]).timestamp()
    yield "pid", f"{answer['pid']}, for {duration(time.time() - began)}"
    yield "version", answer["version"]
    if answer["config"]:
        yield "config", answer["config"]
    yield "state", answer["state_dir"]
    yield "socket", answer["socket"]
    yield "cgroup", answer["cgroup"]
    capacity = answer["capacity"]
    parts = (("memory", size), ("cpus", number), ("jobs", number))
    taken = [
        f"{name} {_of(say(capacity[name]), say(capacity[f'{name}_limit']))}"
        for name, say in parts
        if capacity[f"{name}_limit"] is not None
    ]
    if taken:
        yield "capacity", ", ".join(taken)
    if answer["interrupted"]:
        yield "stopping", f"by {answer['interrupted']}"
