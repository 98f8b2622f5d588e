"""The configuration of an instance that runs, read again: for `reload`, `submit` and `set`.

May import: everything.  Called in threads, by what `supervise.reading.Reader` says.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import stat
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from attrs import evolve, fields

from supervisor.errors import ConfigError
from supervisor.front import config as configuration
from supervisor.front.checks import check_all
from supervisor.front.config import Config, Context
from supervisor.front.jobs import read_jobs
from supervisor.front.problems import Problems, dotted
from supervisor.front.profiles import check_profiles
from supervisor.front.schema import JOB, Key
from supervisor.front.settings import SupervisorSettings
from supervisor.front.tables import Found, flatten, parse_values, sane, section
from supervisor.front.toml_lines import Path as KeyPath
from supervisor.model.job import JobSpec, PolicyName
from supervisor.policy import registry
from supervisor.policy.registry import Policy, name_of
from supervisor.supervise.admission import Room
from supervisor.supervise.reading import Read, Submitted

_LIVE = ("capacity", "on_missing", "plugins", "when_done")
"""Settings of [supervisor] that a reload changes."""


class ConfigReader:
    """The parsers of one instance, over the file at `path`."""

    def __init__(self, path: Path, config: Config, policies: tuple[Policy, ...]) -> None:
        self._path = path.absolute()
        self._config = config
        self.first = self._read(config, policies)

    def reload(self) -> Read:
        """Raises ConfigError, also for a file that somebody is writing."""
        config = load_whole(self._path)
        policies = registry.load(
            config.supervisor.plugins, config.policies, config.jobs, where=config.where
        )
        check_profiles(config)
        return self._read(config, policies)

    def _read(self, config: Config, policies: tuple[Policy, ...]) -> Read:
        own = config.supervisor
        self._latest = config
        return Read(
            filename=config.filename,
            jobs=config.jobs,
            policies=policies,
            policies_id=_identity(config, policies),
            room=Room(own.capacity.memory, own.capacity.cpus, own.capacity.jobs),
            on_missing=own.on_missing,
            stays=own.when_done == "stay",
            fixed=_fixed(config),
        )

    def accept(self) -> None:
        """What was read last holds now."""
        self._config = self._latest

    def submitted(
        self, name: str, table: Mapping[str, Any], base: str, present: Sequence[JobSpec]
    ) -> Submitted:
        """Raises ConfigError."""
        problems = Problems(_place)
        config = self._config
        context = Context(Path(base), defaults=self._path.parent)
        document = {"defaults": config.defaults, "jobs": {name: table}}
        jobs: list[JobSpec] = []
        if sane(document, problems):
            jobs = read_jobs(document, context, problems)
            check_all([*present, *jobs], config.supervisor, (), (name,), problems)
        problems.raise_any()
        policies = self._named(jobs)
        check_profiles(evolve(config, jobs=tuple(jobs)))
        return Submitted(tuple(jobs), policies)

    def _named(self, jobs: Sequence[JobSpec]) -> tuple[Policy, ...]:
        """The policies that their hooks name, with the arguments that the file has for them."""
        hooks = (hook for job in jobs for hook in job.hooks.values())
        names = {name_of(hook.name) for hook in hooks if isinstance(hook, PolicyName)}
        arguments = {name: self._config.policies.get(name, {}) for name in names}
        given = {name: table for name, table in arguments.items() if table}
        return registry.load((), given, jobs)

    def limits(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """Raises ConfigError, each problem led by "limits.NAME"."""
        problems = Problems(_place)
        document = {"limits": dict(table)}
        if not sane(document, problems):
            problems.raise_any()
        found = flatten(JOB, document, (), problems)
        raw = {key: Found(_raw(key, item.value), item.origin) for key, item in found.items()}
        values = parse_values(JOB, raw, Context(self._path.parent), problems)
        problems.raise_any()
        return section(values, "limits")


def _raw(key: Key, value: Any) -> Any:
    """What TOML would have said for text, as of a flag: "64" is a number, "0-3" a list of CPUs."""
    setting = JOB.find(key)
    if setting is None or isinstance(value, Mapping):
        return value
    if isinstance(value, list):
        return [_raw(key, each) for each in value]
    return setting.kind.raw(value) if isinstance(value, str) else value


def _place(path: KeyPath) -> tuple[int, str]:
    return 0, dotted(path) if path else "the job"


def load_whole(path: Path) -> Config:
    """The configuration in a file that nobody is writing.  Raises ConfigError.

    A file is not changed in one step by those who write into it: half of one can be right TOML,
    with jobs missing that are then stopped.
    """
    before = _state(path)
    config = configuration.load(path)
    if _state(path) != before:
        raise ConfigError([f"{path}: has changed while it was read"], hint="reload once more")
    return config


def _state(path: Path) -> tuple[int, ...]:
    """Which file it is, and of which moment.  Raises ConfigError where it is open for writing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ConfigError([f"{path}: cannot read the configuration: {why}"]) from error
    try:
        _nobody_writes(descriptor, path)
        now = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    if not stat.S_ISREG(now.st_mode):
        raise ConfigError([f"{path}: is no file that could be read again"])
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns


def _nobody_writes(descriptor: int, path: Path) -> None:
    """A read lease is granted only while nobody has the file open for writing (fcntl(2)).

    It is given back at once.  Whoever opens the file in between would have us signalled by SIGIO,
    which kills; by SIGURG, which is ignored.  Where leases cannot be had (another's file, a file
    system without them) only the look at the file before and after tells.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES) and _may_lease(descriptor):
            hint = "reload when that is done"
            raise ConfigError([f"{path}: somebody is writing it"], hint=hint) from error


def _may_lease(descriptor: int) -> bool:
    """EACCES is also what somebody hears who owns the file not, and is not root."""
    return os.geteuid() in (0, os.fstat(descriptor).st_uid)


def _identity(config: Config, policies: Sequence[Policy]) -> str:
    """Another one for other policies, another order, other arguments or other code."""
    said = sha256(json.dumps([config.supervisor.plugins, config.policies], default=str).encode())
    for policy in policies:
        said.update(f"\0{policy.name}\0{policy.source}\0".encode())
        if os.path.isfile(policy.source):
            said.update(Path(policy.source).read_bytes())
    return said.hexdigest()


def _fixed(config: Config) -> dict[str, str]:
    own = config.supervisor
    names = (each.name for each in fields(SupervisorSettings) if each.name not in _LIVE)
    found = {name: str(getattr(own, name)) for name in names}
    return {**found, "images": str(config.images)}
