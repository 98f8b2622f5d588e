"""`supervise CONFIG`: run a file's jobs, show them, sum them up.

May import: everything.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import trio

from supervisor import __version__
from supervisor.control.routes import About
from supervisor.control.server import NAME as SOCKET
from supervisor.control.server import served
from supervisor.errors import ConfigError
from supervisor.front import config as configuration
from supervisor.front import identity, imaging, journal, lines, live, notify, summary
from supervisor.front.config import Config
from supervisor.front.printer import Printer
from supervisor.front.reader import ConfigReader
from supervisor.model.record import iso
from supervisor.policy import registry
from supervisor.record.eventlog import EventLog
from supervisor.record.runs import Bounds, StateDir
from supervisor.supervise import historian
from supervisor.supervise.admission import Room
from supervisor.supervise.instance import Instance, Settings, examine, open_instance
from supervisor.supervise.retention import Rule, Sweeper
from supervisor.supervise.shutdown import obey_signals, unhurried


def up(path: Path, *, as_json: bool, plain: bool, color: str) -> int:
    """Run the jobs of the file at `path`; the exit status of the batch.

    Raises ConfigError and SupervisorError: then no job has been started.
    """
    service_manager = notify.take(os.environ)
    config = configuration.load(path)
    policies = registry.load(
        config.supervisor.plugins, config.policies, config.jobs, where=config.where
    )
    reader = ConfigReader(path, config, policies)
    return trio.run(_up, config, reader, _Show(as_json, plain, color), service_manager)


def _group(config: Config) -> int | None:
    """The number of the group that may look by the socket.  Raises ConfigError."""
    import grp

    name = config.supervisor.socket_group
    if name is None or name.isdecimal():
        return None if name is None else int(name)
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        where = config.where("supervisor", "socket_group")
        text = f"{where}: supervisor.socket_group: no group of this host is named {name}"
        raise ConfigError([text]) from None


class _Show:
    """What is shown where: chatter on stderr, results on stdout."""

    def __init__(self, as_json: bool, plain: bool, color: str) -> None:
        self.as_json = as_json
        self.colour_out = lines.use_colour(color, sys.stdout, os.environ)
        self.colour_err = lines.use_colour(color, sys.stderr, os.environ)
        self.live = not plain and live.available(sys.stderr, os.environ)

    @asynccontextmanager
    async def running(self, name: str, instance: Instance, log: EventLog) -> AsyncIterator[None]:
        """The view on stderr and, if asked for, the records on stdout, while the jobs run."""
        async with trio.open_nursery() as nursery:
            if self.as_json:
                records = Printer(sys.stdout, lines.record_line)
                log.subscribe(records)
                nursery.start_soon(records.run)
            if self.live:
                table = live.Live(sys.stderr, self.colour_err, time.time)
                log.subscribe(table)
                nursery.start_soon(table.run, instance.status)
            else:
                outlet = self._outlet(name)
                log.subscribe(outlet)
                nursery.start_soon(outlet.run)
            yield
            nursery.cancel_scope.cancel()

    def _outlet(self, name: str) -> journal.Journal | Printer:
        if journal.connected(2, os.environ):
            return journal.Journal(name, sys.stderr)
        return Printer(sys.stderr, lambda entry: lines.line_of(entry, self.colour_err))

    def summarise(self, instance: Instance, wall: float) -> None:
        out = sys.stderr if self.as_json else sys.stdout
        width = os.get_terminal_size(out.fileno()).columns if out.isatty() else None
        colour = self.colour_err if self.as_json else self.colour_out
        ordered = sorted(instance.records, key=lambda record: record.finished_at or "")
        try:
            out.write(summary.summary(ordered, wall, colour=colour, width=width))
            out.flush()
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            # the terminal has hung up; so that Python's exit does not try once more:
            os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())


async def _up(
    config: Config, reader: ConfigReader, show: _Show, told: notify.Address | None
) -> int:
    settings, group = settings_of(config), _group(config)
    assert settings.state is not None
    manager = examine(settings, config.jobs)
    settings.state.make()
    log = _log(config, settings.state)
    began = time.monotonic()
    policies = reader.first.policies
    with closing(log), unhurried():
        async with (
            _recorded(config, settings.state, log),
            open_instance(settings, config.jobs, policies, log, manager, reader) as instance,
            served(instance, log, _about(config, settings, instance), group),
        ):
            async with show.running(settings.name, instance, log), trio.open_nursery() as nursery:
                await nursery.start(obey_signals, instance)
                nursery.start_soon(_sweeper(config, instance, log).run)
                log.emit("supervisor_started", **_facts(config, instance))
                async with notify.informed(told, instance, log):
                    await instance.run()
                nursery.cancel_scope.cancel()
            status = _status(instance)
            log.emit("supervisor_stopped", interrupted=instance.interrupted, exit_status=status)
    show.summarise(instance, time.monotonic() - began)
    return status


def _about(config: Config, settings: Settings, instance: Instance) -> About:
    """What clients are told of an instance."""
    return About(
        name=settings.name,
        version=__version__,
        pid=os.getpid(),
        owner=os.geteuid(),
        started_at=iso(time.time()),
        state_dir=str(settings.state.root) if settings.state else "",
        socket=str(settings.runtime / SOCKET),
        config=str(Path(config.filename).absolute()),
        cgroup=instance.shared.manager.version,
    )


def _log(config: Config, state: StateDir) -> EventLog:
    own = config.supervisor.events
    given = historian.number_of(state)
    return EventLog(state.events, time.time, size=own.size, most=own.files, after=given)


@asynccontextmanager
async def _recorded(config: Config, state: StateDir, log: EventLog) -> AsyncIterator[None]:
    own = config.supervisor.history

    def late(text: str) -> None:
        print(f"supervise: {text}", file=sys.stderr)

    with historian.recorded(state, Bounds(own.keep, own.runs), log, late) as one:
        log.subscribe(one)
        yield


def _sweeper(config: Config, instance: Instance, log: EventLog) -> Sweeper:
    own, state = config.supervisor.runs, instance.shared.state
    assert state is not None
    rule = Rule(Bounds(own.keep, own.count), own.layers)
    sweeper = Sweeper(state, rule, lambda: instance.running, log)
    if rule.asks:
        log.subscribe(sweeper)
    return sweeper


def _facts(config: Config, instance: Instance) -> dict[str, Any]:
    """What the event log tells of an instance at its beginning."""
    return {
        **identity.own(),
        "version": __version__,
        "config": config.filename,
        "jobs": len(config.jobs),
        "cgroup": instance.shared.manager.version,
    }


def _status(instance: Instance) -> int:
    if instance.stays and instance.interrupted == "SIGTERM":
        return 0  # that is how it ends
    if instance.interrupted:
        return 130
    return 0 if instance.succeeded else 1


def settings_of(config: Config) -> Settings:
    """The instance that a configuration describes."""
    own = config.supervisor
    capacity = own.capacity
    return Settings(
        name=own.name,
        runtime=own.runtime_dir / own.name,
        state=StateDir(own.state_dir / own.name),
        state_dir=own.state_dir,
        room=Room(capacity.memory, capacity.cpus, capacity.jobs),
        on_missing=own.on_missing,
        cgroup_parent=own.cgroup_parent,
        pool=own.pool,
        images=imaging.later(config),
        stays=own.when_done == "stay",
    )
