"""`supervise set`, `pause`, `resume`, `restart`: change a job of a running instance.

May import: `errors`, `front.verbs.{client,place,stop}`.  What a limit may be the instance says: it
has the parsers of the configuration.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any, NoReturn

from supervisor.errors import ConfigError
from supervisor.front.verbs.client import Client, Refused
from supervisor.front.verbs.place import instance_flags
from supervisor.front.verbs.stop import each

SET_EPILOG = """\
Limits are named and written as in the configuration (docs/config.md, limits); "max" takes one
away.  All of them are set, or none.  They hold for the present run and those after it; --next: for
those after it alone.  docs/steering.md has what can change while a job runs.

examples:
  supervise set compress memory=2G cpus=0.5 pids=64
  supervise set compress swap=max 'io=/srv:write_bps=50M'
  supervise set --next compress cpuset=0-3 && supervise restart compress
"""

PAUSE_EPILOG = """\
Every process of it stands still where it is; it keeps its memory, its place and its files, and its
timeout stands still as well.

example:
  supervise pause compress
"""

RESUME_EPILOG = """\
What a policy has frozen stays frozen.

example:
  supervise resume compress
"""

RESTART_EPILOG = """\
The job's stop signal, its grace, and a new run, which does not count as a retry.  A job that waits
for its next run begins it at once; one that has ended is run again.

example:
  supervise restart web
"""


def configure_set(verb: argparse.ArgumentParser) -> None:
    """The flags of `set`."""
    verb.epilog = SET_EPILOG
    verb.add_argument("job", metavar="JOB", help="a job")
    verb.add_argument("limits", metavar="LIMIT=VALUE", nargs="+", help="as memory=2G")
    verb.add_argument("--next", action="store_true", help="not for the present run")
    verb.add_argument(
        "--force", action="store_true",
        help="also to less memory than is in use, where the kernel then kills (cgroup v2)",
    )  # fmt: skip
    _common(verb, set_limits)


def configure_pause(verb: argparse.ArgumentParser) -> None:
    """The flags of `pause`."""
    _of_jobs(verb, PAUSE_EPILOG, "pause")


def configure_resume(verb: argparse.ArgumentParser) -> None:
    """The flags of `resume`."""
    _of_jobs(verb, RESUME_EPILOG, "resume")


def configure_restart(verb: argparse.ArgumentParser) -> None:
    """The flags of `restart`."""
    _of_jobs(verb, RESTART_EPILOG, "restart")


def _of_jobs(verb: argparse.ArgumentParser, epilog: str, deed: str) -> None:
    verb.epilog = epilog
    verb.add_argument("jobs", metavar="JOB", nargs="+", help="a job")
    verb.set_defaults(deed=deed, wait=False)
    _common(verb, to_each)


def _common(verb: argparse.ArgumentParser, run: Any) -> None:
    verb.add_argument("--json", action="store_true", help="what became of it, as JSON lines")
    instance_flags(verb)
    verb.set_defaults(verb=run)


def to_each(args: argparse.Namespace) -> int:
    """Do it to every job that can have it done."""
    return each(args, Client.of(args), args.deed, {})


def set_limits(args: argparse.Namespace) -> int:
    """Set them; what holds then is printed, as it would be typed."""
    body = {"limits": parsed(args.limits), "next": args.next, "force": args.force}
    client = Client.of(args)
    try:
        found = client.ask("PATCH", "jobs", args.job, "limits", body=body)
    except Refused as refused:
        raise_problems(refused)
    if args.json:
        print(json.dumps(found))
    else:
        for name in body["limits"]:
            print(f"{name}={_shown(name, found[name])}")
    return 0


def raise_problems(refused: Refused) -> NoReturn:
    """All that is wrong, a line each, as ConfigError; or `refused` itself."""
    problems = refused.answer.get("problems")
    if not problems:
        raise refused
    raise ConfigError(
        [f"{one['field']}: {one['error']}" if isinstance(one, dict) else one for one in problems]
    ) from refused


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """Each LIMIT=VALUE, the value as text: what it means the instance says.  Raises ConfigError."""
    limits: dict[str, Any] = {}
    problems = []
    for word in words:
        name, equals, value = word.partition("=")
        name = name.replace("-", "_")
        if not equals or not name:
            problems.append(f'"{word}" is not LIMIT=VALUE, as in memory=2G')
        elif name in limits and name != "io":
            problems.append(f"{name} is there twice")
        elif name == "io":
            limits.setdefault("io", [])
            limits["io"] += [] if value in ("max", "") else [value]
        else:
            limits[name] = value
    if problems:
        raise ConfigError(problems)
    return limits


_SIZES = ("memory", "memory_high", "memory_low", "swap", "disk", "output")


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "max"
    if name in _SIZES:
        from supervisor.model.units import size_text

        return size_text(value)
    return json.dumps(value) if isinstance(value, list) else f"{value}"
