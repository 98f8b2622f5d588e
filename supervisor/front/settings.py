"""What a configuration file becomes: the instance's settings and the jobs, frozen.

May import: `model`, `image.{hosts,platforms}`, `front.toml_lines`, `front.kinds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from attrs import field, frozen

from supervisor.front.kinds import Context
from supervisor.front.toml_lines import Lines
from supervisor.image.hosts import RegistrySettings
from supervisor.image.platforms import Platform
from supervisor.model.job import JobSpec

STORE = ".images"
"""Where images are kept, in a state directory; no instance can be named so."""


@frozen
class Capacity:
    """What the running jobs may take together: bytes, CPUs, jobs; None for no bound."""

    memory: int | None = None
    cpus: float | None = None
    jobs: int | None = None


@frozen
class History:
    """How long the history goes back: seconds, runs; None for no bound."""

    keep: float | None = 90 * 86400.0
    runs: int | None = 10000


@frozen
class Runs:
    """How long run directories and logs stay after a run's end: seconds, and how many.

    `layers`: also those of runs with a kept layer, or with results (`copy_out`).
    """

    keep: float | None = None
    count: int | None = None
    layers: bool = False


@frozen
class Events:
    """How large a file of the event log gets, in bytes (None: no bound), and how many there are."""

    size: int | None = 64 << 20
    files: int = 4


@frozen
class SupervisorSettings:
    """The instance.  `plugins` are names, or absolute paths of files, in the order of asking.

    `pool` is the bridge's IPv4 network, None for one that is free.
    """

    name: str
    state_dir: Path
    runtime_dir: Path
    plugins: tuple[str, ...] = ()
    on_missing: Literal["refuse", "warn"] = "refuse"
    capacity: Capacity = Capacity()
    cgroup_parent: str | None = None
    pool: str | None = None
    history: History = History()
    runs: Runs = Runs()
    events: Events = Events()
    when_done: Literal["exit", "stay"] = "exit"
    socket_group: str | None = None


@frozen
class LayerLimits:
    """What one layer may come to; the defaults are `image.unpack.Bounds`'s."""

    bytes: int = 64 * 1024**3
    entries: int = 2_000_000
    seconds: int = 3600


@frozen
class ImageSettings:
    """Where images come from, where they are kept, and what is wanted of them.

    store      None: `.images` in the state directory
    platform   None: this host's
    """

    registries: RegistrySettings = field(factory=RegistrySettings)
    store: Path | None = None
    platform: Platform | None = None
    limits: LayerLimits = field(factory=LayerLimits)

    def place(self, state_dir: Path) -> Path:
        """The store of an instance with this state directory."""
        return self.store or state_dir / STORE


@frozen
class Config:
    """One configuration, checked.

    `policies` holds each policy's arguments as written, under the policy's name; `where` tells
    the line of one, for whoever checks them.  `defaults` are as written, for jobs that come later.
    """

    filename: str
    supervisor: SupervisorSettings
    jobs: tuple[JobSpec, ...]
    policies: Mapping[str, Mapping[str, Any]] = field(factory=dict)
    images: ImageSettings = ImageSettings()
    lines: Lines = field(factory=lambda: Lines(""), eq=False, repr=False)
    defaults: Mapping[str, Any] = field(factory=dict)

    def where(self, *path: str | int) -> str:
        """ "FILE:LINE" of a key, as in `where("policies", "grow-memory", "max")`."""
        return f"{self.filename}:{self.lines.line(path)}"


def default_state(context: Context) -> Path:
    """Where instances keep their state unless told: of the system as root, else of the user."""
    if context.uid == 0:
        return Path("/var/lib/supervise")
    return _xdg(context, "XDG_STATE_HOME", ".local/state") / "supervise"


def default_runtime(context: Context, state: Path) -> Path:
    """Where the lock and the socket go unless told."""
    if context.uid == 0:
        return Path("/run/supervise")
    runtime = context.environment.get("XDG_RUNTIME_DIR", "")
    # The specification says: a path that is not absolute is to be ignored.
    return Path(runtime) / "supervise" if runtime.startswith("/") else state / "run"


def _xdg(context: Context, variable: str, fallback: str) -> Path:
    set_to = context.environment.get(variable, "")
    if set_to.startswith("/"):
        return Path(set_to)
    return Path(context.environment.get("HOME", "/")) / fallback
