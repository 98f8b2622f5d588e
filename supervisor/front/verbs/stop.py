"""`supervise stop` and `supervise kill`: end jobs, or the instance.

May import: `front.verbs.{client,place}`.
"""

from __future__ import annotations

import argparse
import json
import sys

from supervisor.errors import SupervisorError
from supervisor.front.verbs.client import Client
from supervisor.front.verbs.place import instance_flags

STOP_EPILOG = """\
Each job is sent its stop signal, and SIGKILL when its grace is over.  Without JOB all jobs are
stopped, and the instance ends.

examples:
  supervise stop compress
  supervise stop                # everything, in order
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
    verb.add_argument("--why", metavar="TEXT", default="", help="written down with it")
    verb.add_argument("--json", action="store_true", help="what became of each, as JSON lines")
    instance_flags(verb)
    verb.set_defaults(verb=stop)


def configure_kill(verb: argparse.ArgumentParser) -> None:
    """The flags of `kill`."""
    verb.epilog = KILL_EPILOG
    verb.add_argument("jobs", metavar="JOB", nargs="+", help="a job")
    verb.add_argument("-s", "--signal", metavar="NAME", default="KILL", help="(default: KILL)")
    verb.add_argument("--why", metavar="TEXT", default="", help="written down with it")
    verb.add_argument("--json", action="store_true", help="what became of each, as JSON lines")
    instance_flags(verb)
    verb.set_defaults(verb=kill)


def stop(args: argparse.Namespace) -> int:
    """Ask for it; the instance's own end when no job is named."""
    client = Client.of(args)
    if args.jobs:
        return each(args, client, "stop", {"why": args.why})
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
    for job in args.jobs:
        try:
            answer = client.post("jobs", job, deed, body=body)
        except SupervisorError as error:
            print(f"supervise: {error}", file=sys.stderr)
            status = max(status, error.exit_status)
        else:
            print(json.dumps(answer) if args.json else job)
    return status
