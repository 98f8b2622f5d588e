"""`supervise history`: the runs of before, read from the file, with or without an instance.

May import: `errors`, `model`, `record`, `front.{columns,config,layers,lines}`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from supervisor.errors import ConfigError
from supervisor.front import lines
from supervisor.model import units
from supervisor.model.record import Reason, iso

USAGE = 2
MOST = 50
"""Runs in a list, unless told."""

EPILOG = """\
examples:
  supervise history --job 'compress*' --reason oom --since 2d
  supervise history --run mx0lnjr9-compress --events
  supervise history --json --limit max | jq -s 'group_by(.job) | map({(.[0].job): length})'

The newest run comes first.  A run whose supervisor was killed has no reason.  Exit status: 0, or 2
when there is no such run or no history.
"""


def configure(verb: argparse.ArgumentParser) -> None:
    from supervisor.front.layers import place_flags

    verb.epilog = EPILOG
    verb.add_argument("--job", metavar="NAME", help="of this job; a pattern as 'compress*' will do")
    reasons = [str(reason) for reason in Reason]
    verb.add_argument("--reason", metavar="WORD", choices=reasons, help="ended for this reason")
    when = "as 2d, 1h30m (ago), 2026-11-28, or '2026-11-28 12:00'"
    verb.add_argument("--since", metavar="TIME", type=_moment, help=f"begun since then: {when}")
    verb.add_argument("--until", metavar="TIME", type=_moment, help="begun before then")
    verb.add_argument(
        "--limit", metavar="N", type=_limit, default=MOST, help=f"so many ({MOST}); max: all"
    )
    verb.add_argument("--run", metavar="ID", help="the whole record of one run")
    verb.add_argument("--events", action="store_true", help="what happened, entry by entry")
    verb.add_argument("--json", action="store_true", help="one run (or event) a line as JSON")
    verb.add_argument("--color", choices=("auto", "always", "never"), default="auto")
    verb.add_argument("-n", "--instance", metavar="NAME", help="of this instance (default: of all)")
    place_flags(verb)
    verb.set_defaults(verb=show)


def show(args: argparse.Namespace) -> int:
    """Carry out the verb.  Raises SupervisorError."""
    places = histories(args)
    if args.run is not None:
        return _one(places, args)
    if args.events:
        if args.job is None:
            raise ConfigError(["--events: of which run or job?  add --run or --job"])
        return _events(places, args)
    found = _searched(places, args)
    most = args.limit
    if most is not None and len(found) > most:
        found = found[:most]
        print(f"supervise: the newest {most} are shown: --limit shows more", file=sys.stderr)
    if args.json:
        for run in found:
            print(json.dumps(run))
    elif found:
        width = os.get_terminal_size(1).columns if sys.stdout.isatty() else None
        colour = lines.use_colour(args.color, sys.stdout, os.environ)
        print(table(found, width, many=len(places) > 1, colour=colour), end="")
    else:
        print("supervise: no such run is known", file=sys.stderr)
    return 0


def _moment(text: str) -> str:
    """A time as records have it, from one as people write it, in the local zone."""
    try:
        return iso(time.time() - units.duration(text))
    except ValueError:
        pass
    try:
        return iso(datetime.fromisoformat(text).astimezone().timestamp())
    except (ValueError, OverflowError, OSError):
        why = f"{text}: neither a duration (2d, 1h30m) nor a time (2026-11-28, 2026-11-28T12:00)"
        raise argparse.ArgumentTypeError(why) from None


def _limit(text: str) -> int | None:
    if text == "max":
        return None
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 1 << 62:
        raise argparse.ArgumentTypeError(f"{text}: a number from 1 on, or max")
    return int(text)


def histories(args: argparse.Namespace) -> dict[str, Path]:
    """The state directories of the instances that are meant, by name.  Raises SupervisorError."""
    from supervisor.front.layers import state_dir

    name = args.instance
    if name is None and args.config is not None:
        from supervisor.front import config

        name = config.load(args.config).supervisor.name
    top = state_dir(args)
    if name is not None and "/" in name:
        raise ConfigError([f"--instance {name}: not a name"])
    found = {one.name: one for one in sorted(top.glob(name or "*")) if _has_history(one)}
    if not found:
        what = f"instance {name}" if name else "instance"
        raise ConfigError(
            [f"{top}: no {what} has a history here (--state-dir or --config says where it is)"]
        )
    return found


def _has_history(state: Path) -> bool:
    from supervisor.record.runs import StateDir

    return StateDir(state).history.is_file()


def _searched(places: Mapping[str, Path], args: argparse.Namespace) -> list[dict[str, Any]]:
    """The newest of all, each with its instance; one more than asked for, if there is."""
    from supervisor.record.past import Query, open_past
    from supervisor.record.runs import StateDir

    most = None if args.limit is None else args.limit + 1
    query = Query(args.job, args.reason, args.since, args.until, most)
    found: list[dict[str, Any]] = []
    for name, place in places.items():
        with open_past(StateDir(place).history) as past:
            found += [{"instance": name, **run} for run in past.runs(query)]
    if len(places) > 1:
        found.sort(key=lambda run: str(run["started_at"]), reverse=True)
    return found[:most]


def _one(places: Mapping[str, Path], args: argparse.Namespace) -> int:
    """A record in full, and its events if they are asked for."""
    from supervisor.record.past import open_past
    from supervisor.record.runs import StateDir

    instance, _, run = args.run.rpartition("/")
    for name, place in places.items():
        if instance not in ("", name):
            continue
        with open_past(StateDir(place).history) as past:
            record = past.record(run)
            if record is None:
                continue
            if not (args.json and args.events):
                print(json.dumps(record, indent=None if args.json else 2))
            if args.events:
                _print_events(past.events(run), as_json=args.json)
            return 0
    print(f"supervise: {args.run}: no such run in {', '.join(places)}", file=sys.stderr)
    return USAGE


def _events(places: Mapping[str, Path], args: argparse.Namespace) -> int:
    """What happened to a job, from then to then."""
    from supervisor.record.past import open_past
    from supervisor.record.runs import StateDir

    for place in places.values():
        with open_past(StateDir(place).history) as past:
            _print_events(past.job_events(args.job, args.since, args.until), as_json=args.json)
    return 0


def _print_events(entries: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    for entry in entries:
        text = json.dumps(entry) if as_json else event_line(entry)
        if text:
            print(text)


def event_line(entry: Mapping[str, Any]) -> str:
    """Date and time, job, and what happened in words; every kind of entry has its line."""
    told = lines.line_of(entry) if entry["event"] != "job_ended" else None
    words = told.partition(" ")[2] if told else f"{entry.get('job', '')} {_bare(entry)}".strip()
    return f"{_local(entry['time'])} {words}"


def _bare(entry: Mapping[str, Any]) -> str:
    """An entry for which there are no words: its kind, and the fields that say something."""
    common = ("seq", "time", "event", "job", "run")
    said = [f"{k}={v}" for k, v in entry.items() if k not in common and v not in (None, "", [])]
    return lines.clean(" ".join([str(entry["event"]), *said]))


def _local(text: str) -> str:
    try:
        return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return text


def table(
    runs: Sequence[Mapping[str, Any]],
    width: int | None,
    *,
    many: bool = False,
    colour: bool = False,
) -> str:
    """The list; `width` cuts it to a terminal's columns, `many` names instances."""
    from supervisor.front.columns import Column, laid_out

    columns = (
        Column("RUN", shrinks=True),
        Column("JOB", shrinks=True),
        Column("REASON"),
        Column("STARTED"),
        Column("TIME", right=True),
        Column("CPU", right=True),
        Column("PEAK", right=True),
        Column("NOTE", shrinks=True),
    )
    rows = [(_cells(run, many=many), _tint(run)) for run in runs]
    return laid_out(columns, rows, width=width, colour=colour)


def _tint(run: Mapping[str, Any]) -> str:
    return lines.RED if run["expected"] is False else ""


def _cells(run: Mapping[str, Any], *, many: bool) -> tuple[str, ...]:
    name = lines.clean(run["run"] or "-")
    return (
        f"{run['instance']}/{name}" if many else name,
        lines.clean(run["job"]),
        run["reason"] or "-",
        _local(run["started_at"]),
        lines.duration(run["wall_seconds"]),
        lines.duration(run["cpu_seconds"]),
        lines.size(run["memory_peak"]),
        lines.clean("; ".join(_notes(run))),
    )


def _notes(run: Mapping[str, Any]) -> Iterator[str]:
    """What one should know beside the reason."""
    if run["reason"] is None:
        yield "no end was recorded"
    if run["reason"] == Reason.FAILED:
        yield f"exit code {run['exit_code']}"
    if run["reason"] == Reason.SIGNAL:
        yield f"signal {run['signal']}"
    if run["attempt"] > 1:
        yield f"attempt {run['attempt']}"
    if run["oom_kills"] and run["reason"] not in (Reason.OOM, Reason.OOM_HOST):
        yield f"{run['oom_kills']} killed by OOM"
    if run["pids_refused"]:
        yield f"{run['pids_refused']} forks refused"
    if run["decided_by"]:
        yield f"by {run['decided_by']}"
    if run["detail"]:
        yield str(run["detail"])
