"""`supervise plan`: what a start would do, from the same values that do it.

May import: everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from supervisor.cgroup.api import CgroupManager
from supervisor.cgroup.detect import detect
from supervisor.container import build, host
from supervisor.container.rootfs import Layers
from supervisor.errors import ConfigError
from supervisor.front import config as configuration
from supervisor.front.up import settings_of
from supervisor.model.job import JobSpec
from supervisor.supervise import storage
from supervisor.supervise.instance import Settings


def plan(path: Path, wanted: str | None) -> Iterator[str]:
    """The lines for the jobs of the file at `path`, or for one.  Raises ConfigError."""
    config = configuration.load(path)
    names = {job.name for job in config.jobs}
    if wanted is not None and wanted not in names:
        raise ConfigError([f"{path}: no job {wanted!r}; there are: {', '.join(sorted(names))}"])
    settings = settings_of(config)
    manager = detect(settings.name, settings.cgroup_parent)
    yield from (f"# {line}" for line in manager.describe())
    facts = host.look(str(settings.runtime / "work"))
    for job in config.jobs:
        if wanted in (None, job.name):
            yield ""
            yield f"{job.name}:"
            yield from (f"  {line}" for line in _job(job, settings, manager, facts))


def _job(
    spec: JobSpec, settings: Settings, manager: CgroupManager, facts: host.Facts
) -> Iterator[str]:
    """One start: the run's directories, its cgroup, then what the launcher carries out."""
    state = settings.state
    assert state is not None
    run = f"RUN-{spec.name}"
    yield f"mkdir {state.runs / run}, write spec.json, set {storage.RECORD_SIZE} bytes aside"
    yield f"open {state.log(spec.name, run, 'out')} and .err to append"
    entry, lines = manager.rehearse(run, spec.limits)
    yield from lines
    layers = Layers(str(state.runs / run) if spec.write == "overlay" else None)
    yield from build.describe(build.request(spec, run, entry, facts, layers))
