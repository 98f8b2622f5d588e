"""`supervise diff` and what else looks at the layer that a run left (`keep`).

May import: `errors`, `model`, `record`, `image`, `front.{config,kinds,settings}`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from attrs import frozen

from supervisor.errors import KernelError, SupervisorError
from supervisor.front.kinds import Context
from supervisor.front.settings import default_state
from supervisor.image.changes import Change, changes
from supervisor.record.runs import StateDir

OWN = ("/dev", "/proc", "/run", "/sys", "/tmp")
"""Mount points that every job has."""


@frozen
class Left:
    """A run of before: its directory, and its job as spec.json has it."""

    directory: Path
    spec: dict[str, Any]
    image: dict[str, str] | None = None

    @property
    def upper(self) -> Path:
        """Raises SupervisorError where nothing was kept."""
        path = self.directory / "upper"
        if not path.is_dir():
            kept = self.spec.get("keep", "never")
            why = (
                "its job had no writable layer"
                if self.spec["write"] != "overlay"
                else f"keep = {kept}"
            )
            hint = 'write = "overlay" and keep = "always" (or "on-failure") keep it'
            raise SupervisorError(
                f"{self.directory}: nothing of its layer is left: {why}", hint=hint
            )
        return path

    @property
    def lowers(self) -> tuple[Path, ...]:
        """The layers below, top first."""
        root = self.spec["root"]
        layers = self.spec.get("layers") or ["/" if root == "host" else root]
        return tuple(Path(layer) for layer in layers)

    @property
    def mount_points(self) -> frozenset[str]:
        """What is in the layer for the mounts alone, with the directories above."""
        kinds = ("mounts", "tmpfs", "devices")
        targets = [one["target"] for kind in kinds for one in self.spec.get(kind, ())]
        found = [Path(target) for target in (*OWN, *targets)]
        return frozenset(str(path) for one in found for path in (one, *one.parents))


def place_flags(verb: argparse.ArgumentParser) -> None:
    """Where a verb that needs no instance looks."""
    verb.add_argument("--config", metavar="FILE", type=Path, help="with its state_dir")
    verb.add_argument("--state-dir", metavar="DIR", type=Path, help="(default: as of a file)")


def state_dir(args: argparse.Namespace) -> Path:
    """By these flags; raises ConfigError."""
    if args.state_dir is not None:
        return Path(args.state_dir)
    if args.config is not None:
        from supervisor.front import config

        return config.load(args.config).supervisor.state_dir
    return default_state(Context(Path.cwd()))


def find(run: str, state_dir: Path) -> Left:
    """The run of this id, as "RUN" or "INSTANCE/RUN", or by its directory.

    Raises SupervisorError: there is none, or more than one.
    """
    if run.startswith(("/", "./", "../")):
        return _read(Path(run))
    instance, slash, name = run.rpartition("/")
    tops = [state_dir / instance] if slash else sorted(state_dir.glob("*"))
    found = [path for top in tops if (path := StateDir(top).runs / name).is_dir()]
    if len(found) > 1:
        named = " or ".join(f"{path.parents[1].name}/{name}" for path in found)
        raise SupervisorError(f"{run}: there are {len(found)} such runs", hint=f"say {named}")
    if not found:
        where = state_dir / (instance or "*") / "runs"
        raise SupervisorError(
            f"{run}: no such run in {where}", hint="events.ndjson names them; --state-dir elsewhere"
        )
    return _read(found[0])


def _read(directory: Path) -> Left:
    path = directory / "spec.json"
    try:
        document = json.loads(path.read_text())
        return Left(directory, dict(document["spec"]), document.get("image"))
    except OSError as error:
        raise KernelError("read", str(path), error.errno or 0) from error
    except (ValueError, KeyError, TypeError) as error:
        raise SupervisorError(f"{path}: not the description of a run: {error!r}") from error


def diff(left: Left) -> Iterator[Change]:
    """What the run changed, but for the mount points that were made for it."""
    for lower in left.lowers:
        if not lower.is_dir():
            raise SupervisorError(f"{lower}: the root of the run is not there any more")
    try:
        found = list(changes(left.upper, left.lowers))
    except OSError as error:
        path = str(error.filename or left.directory)
        raise KernelError("read", path, error.errno or 0) from error
    yield from _without(left.mount_points, found)


def _without(made: frozenset[str], found: Sequence[Change]) -> Iterator[Change]:
    """From the end, so that what is in a directory has been seen before it."""
    kept: list[Change] = []
    for change in reversed(found):
        has_more = bool(kept) and kept[-1].path.startswith(change.path + "/")
        if change.path not in made or change.kind == "D" or has_more:
            kept.append(change)
    yield from reversed(kept)
