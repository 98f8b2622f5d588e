"""`supervise explain`: why a job ended as it did, what happened to it so far, or what it waits for.

A running instance is asked by its socket; where none runs, or none that knows the job, its state
directory is read.  May import: `errors`, `record`, `front`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from supervisor.errors import ConfigError, SupervisorError
from supervisor.front.verbs.client import Client, Refused
from supervisor.front.verbs.place import NoInstance, instance_flags

EPILOG = """\
examples:
  supervise explain compress
  supervise explain compress --run mx0lnjr9-compress

Exit status: 0, or 2 when nothing is known of such a job.
"""


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    from supervisor.front.layers import place_flags

    verb.epilog = EPILOG
    verb.add_argument("job", metavar="JOB")
    verb.add_argument("--run", metavar="ID", help="this run (default: its last)")
    verb.add_argument("--json", action="store_true", help="what it is told from, as JSON")
    instance_flags(verb)
    place_flags(verb)
    verb.set_defaults(verb=run)


def run(args: argparse.Namespace) -> int:
    """Print it.  Raises SupervisorError."""
    from supervisor.front.explain import tell

    found = _asked(args) or _read(args)
    if args.json:
        print(json.dumps(found))
    else:
        for line in tell(found["story"], found["status"], found["waits"]):
            print(line)
    return 0


def _asked(args: argparse.Namespace) -> Mapping[str, Any] | None:
    """By the instance; None where it is the state directory that is to be read."""
    if args.state_dir is not None or args.config is not None:
        return None
    named = args.socket is not None or bool(os.environ.get("SUPERVISE_SOCKET"))
    try:
        answer = Client.of(args).get("jobs", args.job, "explain", query={"run": args.run})
    except NoInstance:
        if named:
            raise
        return None
    except Refused as error:
        if error.status != 404 or named:
            raise
        return None
    return dict(answer)


def _read(args: argparse.Namespace) -> Mapping[str, Any]:
    """From the state directory; of several instances the one that ran it last."""
    from attrs import asdict

    from supervisor.record.runs import StateDir
    from supervisor.record.story import Story, story

    places = [StateDir(place) for place in _places(args)]
    found = [told for place in places if (told := story(place, args.job, args.run))]
    if not found:
        raise ConfigError([_unknown(args, places)])

    def begun(one: Story) -> str:
        return str(one.entries[0]["time"]) if one.entries else ""

    if len(found) > 1:
        print(f"supervise: {len(found)} instances know it, this is the last run", file=sys.stderr)
    return {"status": None, "waits": None, "story": asdict(max(found, key=begun))}


def _places(args: argparse.Namespace) -> list[Path]:
    from supervisor.front.layers import state_dir

    name = args.instance
    if name is None and args.config is not None:
        from supervisor.front import config

        name = config.load(args.config).supervisor.name
    if name is not None and "/" in name:
        raise ConfigError([f"--instance {name}: not a name"])
    top = state_dir(args)
    return [one for one in sorted(top.glob(name or "*")) if (one / "events.ndjson").is_file()]


def _unknown(args: argparse.Namespace, places: list[Any]) -> str:
    from supervisor.record.story import jobs

    where = f" run {args.run}" if args.run else ""
    if not places:
        return f"{args.job}: no instance runs, and none has left anything (--state-dir, --config)"
    names: list[str] = []
    for place in places:
        try:
            names += jobs(place)
        except SupervisorError as error:
            print(f"supervise: {error}", file=sys.stderr)
    near = get_close_matches(args.job, names, 1)
    meant = f"; did you mean {near[0]}?" if near and near[0] != args.job else ""
    known = ", ".join(place.root.name for place in places)
    return f"{args.job}{where}: nothing is known of it in {known}{meant}"
