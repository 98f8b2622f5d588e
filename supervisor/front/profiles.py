"""The files of system call filters that a configuration names: read before a job needs them.

May import: `errors`, `container.{build,seccomp}`, `front.{problems,settings}`.
"""

from __future__ import annotations

from supervisor.container import build, seccomp
from supervisor.errors import ConfigError, SpawnError
from supervisor.front.problems import dotted
from supervisor.front.settings import Config
from supervisor.model.job import JobSpec


def check_profiles(config: Config) -> None:
    """Raises ConfigError with a line for each setting whose profile no job could be given.

    Raises SpawnError where there is no libseccomp to tell.
    """
    problems: dict[str, None] = {}
    for job in config.jobs:
        try:
            seccomp.try_profile(job.seccomp, build.capabilities(job))
        except SpawnError as error:
            if not error.path:
                raise
            path = _origin(config, job)
            problems[f"{config.where(*path)}: {dotted(path)}: {error.path}: {error.why}"] = None
    if problems:
        raise ConfigError(list(problems))


def _origin(config: Config, job: JobSpec) -> tuple[str, ...]:
    """Where it is set: in the job's table, or in that of the defaults."""
    own = ("jobs", job.group or job.name, "seccomp")
    return own if own in config.lines.of else ("defaults", "seccomp")
