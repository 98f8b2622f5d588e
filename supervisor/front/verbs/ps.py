"""`supervise ps`: the jobs of a running instance, and what they are doing.

May import: `front.{lines,columns}`, `front.verbs.{client,place}`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from supervisor.front.verbs.client import Client
from supervisor.front.verbs.place import colour_flag, instance_flags

EPILOG = """\
examples:
  supervise ps
  supervise ps -q --state running | xargs supervise stop
"""

STATES = ("waiting", "starting", "running", "held", "frozen", "stopping", "backoff", "ended")

Status = Mapping[str, Any]


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    verb.epilog = EPILOG
    verb.add_argument(
        "--state", metavar="STATE", action="append", choices=STATES, help="only jobs in this state"
    )
    kind = verb.add_mutually_exclusive_group()
    kind.add_argument("-q", "--quiet", action="store_true", help="only their names, one a line")
    kind.add_argument("--json", action="store_true", help="one job a line as JSON")
    colour_flag(verb)
    instance_flags(verb)
    verb.set_defaults(verb=run)


def run(args: argparse.Namespace) -> int:
    """Print them."""
    found = Client.of(args).get("jobs")["jobs"]
    jobs = [job for job in found if args.state is None or job["state"] in args.state]
    if args.json:
        for job in jobs:
            print(json.dumps(job))
    elif args.quiet:
        for job in jobs:
            print(job["name"])
    else:
        print(table(jobs, args.color), end="")
    return 0


def table(jobs: list[Status], color: str) -> str:
    """Every job in a line, below a head."""
    from supervisor.front.columns import Column, laid_out
    from supervisor.front.lines import use_colour

    now = time.time()
    columns = (
        Column("JOB", shrinks=True),
        Column("STATE"),
        Column("TIME", right=True),
        Column("CPU", right=True),
        Column("MEMORY", right=True),
        Column("PIDS", right=True),
        Column("NOTE", shrinks=True),
    )
    rows = [(_cells(job, now), tint(job)) for job in jobs]
    width = os.get_terminal_size(sys.stdout.fileno()).columns if sys.stdout.isatty() else None
    colour = use_colour(color, sys.stdout, os.environ)
    return laid_out(columns, rows, width=width, colour=colour)


def _cells(job: Status, now: float) -> tuple[str, ...]:
    from supervisor.front.lines import clean, duration, number, size

    began, ended = job["since"], job["ended"]
    took = None if began is None else (ended if ended is not None else now) - began
    return (
        clean(job["name"]),
        job["state"],
        duration(took),
        duration(job["cpu_seconds"]),
        _of(size, job["memory"], job["memory_limit"]),
        _of(number, job["pids"], job["pids_limit"]),
        clean(note(job)),
    )


def _of(say: Any, value: float | None, limit: float | None) -> str:
    return say(value) if limit is None else f"{say(value)}/{say(limit)}"


def note(job: Status) -> str:
    """What there is to say beyond the numbers."""
    words = []
    if job["waiting_for"]:
        words.append(f"waits for {job['waiting_for']}")
    if job["paused_by"]:
        words.append(f"paused by {job['paused_by']}")
    if job["reason"] is not None and job["state"] in ("ended", "backoff"):
        words.append(job["reason"])
    if job["attempt"] > 1:
        words.append(f"attempt {job['attempt']}")
    return ", ".join(words)


def tint(job: Status) -> str:
    """The colour of its state."""
    from supervisor.front.lines import DIM, GREEN, RED, YELLOW

    if job["state"] == "ended":
        return DIM if job["expected"] else RED
    return {"running": GREEN, "held": YELLOW, "frozen": YELLOW, "stopping": YELLOW}.get(
        job["state"], ""
    )
