"""`supervise events`: what has happened, and what happens.

May import: `front.lines`, `front.verbs.{client,place}`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from supervisor.front.verbs.client import Client
from supervisor.front.verbs.place import colour_flag, instance_flags

EPILOG = """\
Without --since: all that this instance has written.  Lines for people leave out what only the log
has; --json prints every entry (docs/verdicts.md).

examples:
  supervise events -f
  supervise events --json --event job_ended | jq -r '.job + ": " + .reason'
"""


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    verb.epilog = EPILOG
    verb.add_argument("jobs", metavar="JOB", nargs="*", help="only of these jobs")
    verb.add_argument("-f", "--follow", action="store_true", help="and those to come")
    since = verb.add_mutually_exclusive_group()
    since.add_argument(
        "--since", metavar="SEQ", type=int, help="after this number; 0: of earlier instances too"
    )
    since.add_argument("--new", action="store_true", help="only those to come (implies -f)")
    verb.add_argument(
        "--event", metavar="KIND", action="append", help="only of this kind, as job_ended"
    )
    verb.add_argument("--json", action="store_true", help="one entry a line as JSON")
    colour_flag(verb)
    instance_flags(verb)
    verb.set_defaults(verb=run)


def run(args: argparse.Namespace) -> int:
    """Print them as they come, until the instance ends."""
    client = Client.of(args)
    query = {
        "since": client.get("")["seq"] if args.new else args.since,
        "follow": "true" if args.follow or args.new else None,
        "job": args.jobs,
        "event": args.event or [],
    }
    show = _Shown(args)
    for entry in client.lines("events", query=query):
        show(entry)
    return 0


class _Shown:
    """Prints an entry; a line at a time, as whoever reads may be a pipe."""

    def __init__(self, args: argparse.Namespace) -> None:
        from supervisor.front.lines import use_colour

        self._json = args.json
        self._colour = use_colour(args.color, sys.stdout, os.environ)

    def __call__(self, entry: Mapping[str, Any]) -> None:
        line = json.dumps(entry) if self._json else self._line(entry)
        if line is not None:
            print(line, flush=True)

    def _line(self, entry: Mapping[str, Any]) -> str | None:
        from supervisor.front.lines import line_of, lost

        if "gap" in entry:
            return lost(entry["gap"])
        return line_of(entry, self._colour)
