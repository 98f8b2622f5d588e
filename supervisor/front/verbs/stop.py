"""`supervise stop` and `supervise kill`: end jobs, or the instance.

May import: `errors`, `front.verbs.{client,place,wait}`.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from supervisor.errors import KernelError, SupervisorError
from supervisor.front.verbs.client import Client
from supervisor.front.verbs.place import instance_flags
from supervisor.front.verbs.wait import wait

STOP_EPILOG = """\
Each job is sent its stop signal, and SIGKILL when its grace is over.  Without JOB all jobs are
stopped, and the instance ends.  Prints the jobs that are ending, one a line.

examples:
  supervise stop compress
  supervise stop --wait         # everything; returns when it is over
"""

KILL_EPILOG = """\
Without --signal the job's processes are killed at once, and nothing is run again.  Another signal
is sent to every process of the job, and changes nothing else.

examples:
  supervise kill compress
  supervise kill --signal HUP web
"""


def configure(verb: argparse.ArgumentParser) -> None:
    """The flags of `stop`."""
    verb.epilog = STOP_EPILOG
    verb.add_argument("jobs", metavar="JOB", nargs="*", help="(default: the whole instance)")
    verb.add_argument("--wait", action="store_true", help="return when they have ended")
    _common(verb)
    verb.set_defaults(verb=stop)


def configure_kill(verb: argparse.ArgumentParser) -> None:
    """The flags of `kill`."""
    verb.epilog = KILL_EPILOG
    verb.add_argument("jobs", metavar="JOB", nargs="+", help="a job")
    verb.add_argument(
        "-s", "--signal", metavar="SIGNAL", default="KILL", help="as HUP, USR1 (default: KILL)"
    )
    verb.add_argument("--wait", action="store_true", help="return when they have ended")
    _common(verb)
    verb.set_defaults(verb=kill)


def _common(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--why", metavar="TEXT", default="", help="written down with it")
    verb.add_argument("--json", action="store_true", help="what became of each, as JSON lines")
    instance_flags(verb)


def stop(args: argparse.Namespace) -> int:
    """Ask for it; the instance's own end when no job is named."""
    client = Client.of(args)
    if args.jobs:
        return each(args, client, "stop", {"why": args.why})
    with _until_gone(client.path, args.wait):
        answer = client.post("stop", body={"why": args.why})
        if args.json:
            print(json.dumps(answer))
    return 0


def kill(args: argparse.Namespace) -> int:
    """Send the signal to each."""
    return each(args, Client.of(args), "kill", {"signal": args.signal, "why": args.why})


def each(args: argparse.Namespace, client: Client, deed: str, body: dict[str, str]) -> int:
    """Do it to every job that can have it done; the others are told, and give the status."""
    status = 0
    done = []
    for job in args.jobs:
        try:
            answer = client.post("jobs", job, deed, body=body)
        except SupervisorError as error:
            print(f"supervise: {error}", file=sys.stderr)
            status = max(status, error.exit_status)
        else:
            done.append(job)
            if not args.wait:
                print(json.dumps(answer) if args.json else job)
    if args.wait and done:
        for told in wait(client, done, until="ended")["jobs"]:
            print(json.dumps(told) if args.json else told["name"])
    return status


@contextmanager
def _until_gone(path: Path, wanted: bool) -> Iterator[None]:
    """Leave when the instance has released its lock: then nothing of it is left."""
    if not wanted:
        yield
        return
    lock = path.with_name("lock")
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError("open", str(lock), error.errno or 0) from error
    try:
        yield
        fcntl.flock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)
