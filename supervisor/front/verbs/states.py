"""The state directories of instances, for verbs that read files: of running ones, else of all.

May import: `errors`, `record`, `front` (where nothing runs), `front.verbs`.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from supervisor.errors import ConfigError, SupervisorError
from supervisor.front.verbs import place
from supervisor.front.verbs.client import Client
from supervisor.record.runs import StateDir


def tiers(args: argparse.Namespace) -> list[list[StateDir]]:
    """Where to look, and where if nothing is found there.

    By --state-dir or --config; else those of running instances, and then all there are where
    instances keep theirs unless told.  Raises SupervisorError.
    """
    if args.state_dir is not None:
        return [below(args.state_dir, args.instance)]
    if args.config is not None:
        from supervisor.front import config

        own = config.load(args.config).supervisor
        return [[StateDir(own.state_dir / own.name)]]
    if args.socket or (args.instance is None and os.environ.get(place.VARIABLE)):
        return [[_state_of(Client.of(args))]]
    return [running(args.instance), below(_default(), args.instance)]


def running(name: str | None) -> list[StateDir]:
    """Of the instances that run here and let us ask."""
    found = []
    for path in place.sockets(place.directories(os.environ)):
        if name in (None, path.parent.name) and place.alive(path):
            try:
                found.append(_state_of(Client(path)))
            except SupervisorError:
                continue  # it has ended meanwhile, or it is not for us to see
    return found


def all_of(state: StateDir, told: str | None) -> frozenset[str]:
    """The jobs of the instance there, if it runs and can be asked; else none.

    `told`: the path of its socket, if somebody said so.
    """
    known = told or os.environ.get(place.VARIABLE)
    paths = [Path(known)] if known else list(place.sockets(place.directories(os.environ)))
    for path in paths:
        client = Client(path)
        try:
            if _state_of(client).root == state.root:
                return frozenset(str(job["name"]) for job in client.get("jobs")["jobs"])
        except SupervisorError:
            continue
    return frozenset()


def _state_of(client: Client) -> StateDir:
    return StateDir(Path(client.get("")["state_dir"]))


def below(top: Path, name: str | None) -> list[StateDir]:
    """Of all instances in the directory `top`, or the one of this name."""
    if name is not None and "/" in name:
        raise ConfigError([f"--instance {name}: not a name"])
    found = [StateDir(path) for path in sorted(top.glob(name or "[!.]*"))]
    return [state for state in found if state.runs.is_dir()]


def _default() -> Path:
    from supervisor.front.kinds import Context
    from supervisor.front.settings import default_state

    return default_state(Context(Path.cwd()))
