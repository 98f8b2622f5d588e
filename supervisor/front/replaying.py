"""The verb `replay`: its flags, and what is printed.

May import: everything.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import asdict

from supervisor.errors import ConfigError
from supervisor.model.job import PolicyName

if TYPE_CHECKING:
    from supervisor.front.recorded import World
    from supervisor.front.replay import Compared
    from supervisor.front.settings import Config
    from supervisor.policy.registry import Policy

EPILOG = """\
example:
  supervise replay /var/lib/supervise/nightly/events.ndjson --policy ./policies/mine.py

Every recorded event is put to these policies again, with the time it happened at; nothing is done.
Events after a decision that differs are marked "?": they came of the old one.  The same log and the
same policies give the same bytes.  Exit status: 0 all is decided as it was, 1 something is not.
"""


def configure(verb: argparse.ArgumentParser) -> None:
    verb.epilog = EPILOG
    verb.add_argument("events", metavar="EVENTS", type=Path, help="events.ndjson, or its directory")
    verb.add_argument(
        "--policy", metavar="NAME|PATH", action="append", default=[],
        help="asked in this order (default: those of --config)",
    )  # fmt: skip
    verb.add_argument(
        "--config", metavar="FILE", type=Path, help="the jobs, and the policies' arguments"
    )
    verb.add_argument("--job", metavar="NAME", help="of this job alone")
    verb.add_argument("--run", metavar="ID", help="of this run alone")
    verb.add_argument("--json", action="store_true", help="one event a line as JSON")
    verb.set_defaults(verb=run)


def run(args: argparse.Namespace) -> int:
    """Carry out the verb.  Raises ConfigError."""
    settle_hashes()
    from supervisor.front.recorded import World

    world = World()
    world.install()
    return replay(args, world)


def settle_hashes() -> None:
    """Sets of strings have an order of their own in every process, unless it is told not to."""
    if os.environ.get("PYTHONHASHSEED") == "0":
        return
    argv = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, argv, {**os.environ, "PYTHONHASHSEED": "0"})


def replay(args: argparse.Namespace, world: World) -> int:
    """With the world in place."""
    from supervisor.front.replay import Replay, read

    config, policies = _policies(args)
    log = read(args.events)
    if log.torn:
        text = f"passed over {log.torn} lines that are no entries"
        print(f"supervise: {log.path}: {text}", file=sys.stderr)
    replayed = Replay(log, policies, world, config)
    found = [
        one
        for one in replayed.compared()
        if args.job in (None, one.job) and args.run in (None, one.run)
    ]
    for problem in replayed.problems:
        print(f"supervise: {problem}", file=sys.stderr)
    for line in (json.dumps(asdict(one)) for one in found) if args.json else report(found):
        print(line)
    return int(any(one.differs for one in found))


def _policies(args: argparse.Namespace) -> tuple[Config | None, tuple[Policy, ...]]:
    """The policies to ask, with the arguments that the configuration has for them."""
    from supervisor.front import config as configuration
    from supervisor.policy import registry

    config = configuration.load(args.config) if args.config is not None else None
    jobs = config.jobs if config else ()
    plugins = args.policy or (config.supervisor.plugins if config else ())
    if not plugins and not any(job.hooks for job in jobs):
        raise ConfigError(["no policy to ask: give --policy, or a --config that names some"])
    named = [one.name for job in jobs for one in job.hooks.values() if isinstance(one, PolicyName)]
    known = {registry.name_of(plugin) for plugin in (*plugins, *named)}
    tables = config.policies if config else {}
    mine = {name: table for name, table in tables.items() if name in known}
    return config, registry.load(plugins, mine, jobs)


def report(found: Sequence[Compared]) -> Iterator[str]:
    """Run by run what somebody had to say about, and a line of totals."""
    from supervisor.front.lines import clean
    from supervisor.front.replay import told, worth_telling

    runs: dict[str, list[Compared]] = {}
    for one in filter(worth_telling, found):
        runs.setdefault(one.run, []).append(one)
    for of_run in runs.values():
        first = of_run[0]
        note = "" if first.holds else "  (an earlier run of it was decided otherwise)"
        yield clean(f"{first.job}, run {first.run}, attempt {first.attempt}{note}")
        for one in of_run:
            yield from map(clean, told(one))
    other = [one for one in found if one.differs]
    where = len({one.run for one in other})
    yield (
        f"{len(found)} events, {len(other)} decided otherwise, "
        f"in {where} run{'s' * (where != 1)} of {len({one.run for one in found})}"
    )
