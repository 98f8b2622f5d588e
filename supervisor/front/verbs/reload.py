"""`supervise reload`: have a running instance read its configuration again.

May import: `errors`, `front.verbs.{client,place}`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from supervisor.errors import ConfigError
from supervisor.front.verbs.client import Client, Refused
from supervisor.front.verbs.place import instance_flags
from supervisor.front.verbs.steer import raise_problems

EPILOG = """\
New jobs are started, those that are gone are stopped in order, and those that have changed become
what they are to be: limits at once, where the kernel can, what else must wait by the next run, or
by a restart of jobs that always run.  Jobs that have not changed are not touched.  A wrong file
changes nothing.  SIGHUP does the same.

examples:
  supervise reload --dry-run       # what would change?
  supervise reload
"""

Entry = Mapping[str, Any]


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    verb.epilog = EPILOG
    verb.add_argument("--dry-run", action="store_true", help="only show what would change")
    again = verb.add_mutually_exclusive_group()
    again.add_argument(
        "--restart", action="store_true", default=None,
        help="restart every running job that needs it (default: those that always run)",
    )  # fmt: skip
    again.add_argument(
        "--no-restart", action="store_false", dest="restart", help="restart none of them"
    )
    verb.add_argument("--json", action="store_true", help="the difference as JSON")
    instance_flags(verb)
    verb.set_defaults(verb=run, restart=None)


def run(args: argparse.Namespace) -> int:
    """Ask for it, and show what has changed."""
    body = {"dry_run": args.dry_run, "restart": args.restart}
    try:
        found = Client.of(args).post("reload", body=body)
    except Refused as refused:
        return _refused(refused)
    if args.json:
        print(json.dumps(found))
    else:
        for line in lines(found):
            print(line)
    return 0


def _refused(refused: Refused) -> int:
    """A file that is wrong, and all that is: as `supervise check` tells of it."""
    try:
        raise_problems(refused)
    except ConfigError as error:
        print(*error.problems, sep="\n", file=sys.stderr)
    print("supervise: nothing was changed", file=sys.stderr)
    return 2


def lines(found: Entry) -> Iterator[str]:
    """What a person reads: a line for each job, and below it one for each setting."""
    from supervisor.front.lines import clean

    for job in found["jobs"]:
        yield f"{job['what']} {clean(job['job'])}"
        for change in job["changes"]:
            yield "  " + clean(_setting(change)) + f"   ({_when(change)})"
    for change in found["settings"]:
        yield clean(_setting(change))
    if found["policies"]:
        yield "policies are others now"
    for change in found["refused"]:
        yield clean(_setting(change)) + "   (not changed: takes another start of the instance)"
    if not any(found.values()):
        yield "nothing has changed"


def _setting(change: Entry) -> str:
    key = change["key"]
    return f"{key}: {_value(key, change['before'])} -> {_value(key, change['after'])}"


def _value(key: str, value: Any) -> str:
    """A limit in its unit, as everywhere; else as JSON has it."""
    from supervisor.front.lines import limit_value

    table, _, limit = key.rpartition(".")
    if table == "limits" and (value is None or isinstance(value, int | float)):
        return limit_value(limit, value)
    return "none" if value is None else json.dumps(value)


def _when(change: Entry) -> str:
    when = {"now": "now", "restart": "by a restart", "next run": "at its next run"}
    why = f": {change['why']}" if change["why"] else ""
    return when[change["effect"]] + why
