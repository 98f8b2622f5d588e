"""`supervise wait`: until jobs have ended, or run.

May import: `front.verbs.{client,place}`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from typing import Any

from supervisor.front.verbs.client import Client
from supervisor.front.verbs.place import instance_flags

TIMED_OUT = 124
"""As timeout(1) has it, and `supervise run`."""

EPILOG = """\
Prints the jobs that have come so far, one a line.  Exit status: 0 all of them did, and ended as
expected; 1 one ended otherwise, or will never run; 124 the time is over.

examples:
  supervise wait compress && supervise status compress
  supervise wait --for running --timeout 30s database web
"""


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    verb.epilog = EPILOG
    verb.add_argument("jobs", metavar="JOB", nargs="*", help="(default: all)")
    verb.add_argument(
        "--for",
        dest="until",
        choices=("ended", "running"),
        default="ended",
        help="what to wait for: their end (the default), or that their commands run",
    )
    verb.add_argument("--any", action="store_true", help="one of them is enough")
    verb.add_argument("--timeout", metavar="TIME", help="no longer than this, as 30s or 2h")
    verb.add_argument("--json", action="store_true", help="each job's status, one a line as JSON")
    instance_flags(verb)
    verb.set_defaults(verb=run)


def run(args: argparse.Namespace) -> int:
    """Wait, print, and tell by the exit status."""
    answer = wait(Client.of(args), args.jobs, until=args.until, once=args.any, timeout=args.timeout)
    for job in answer["jobs"]:
        if args.json:
            print(json.dumps(job))
        elif there(job, args.until):
            print(job["name"])
    status = status_of(answer, args.until, once=args.any)
    if status == TIMED_OUT:
        late = ", ".join(job["name"] for job in answer["jobs"] if not there(job, args.until))
        print(f"supervise: not {args.until} within {args.timeout}: {late}", file=sys.stderr)
    return status


def wait(
    client: Client, jobs: list[str], *, until: str, once: bool = False, timeout: str | None = None
) -> Mapping[str, Any]:
    """The answer of GET /v1/wait."""
    query = {"job": jobs, "until": until, "any": "true" if once else None, "timeout": timeout}
    answer: Mapping[str, Any] = client.get("wait", query=query)
    return answer


def there(job: Mapping[str, Any], until: str) -> bool:
    """Whether the job has come so far; one that has run and ended has."""
    if until == "ended":
        return bool(job["state"] == "ended")
    never = job["reason"] in ("skipped", "start_failed")
    return job["state"] in ("running", "held", "frozen", "stopping") or (
        job["state"] == "ended" and not never
    )


def status_of(answer: Mapping[str, Any], until: str, *, once: bool) -> int:
    """The exit status that an answer comes to."""
    jobs = answer["jobs"]
    if answer["met"]:
        reached = [job for job in jobs if there(job, until)]
        fine = [until == "running" or job["expected"] for job in reached]
        return 0 if (any(fine) if once else all(fine)) else 1
    never = [job for job in jobs if job["state"] == "ended" and not there(job, until)]
    return 1 if never else TIMED_OUT
