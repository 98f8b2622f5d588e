"""`supervise run`: one command, its streams the caller's own, its end explained.

May import: everything.
"""

from __future__ import annotations

import argparse
import json
import os
import sys

import trio
from attrs import evolve

from supervisor.errors import KernelError
from supervisor.front import imaging
from supervisor.front.config import Config, config_from_flags
from supervisor.front.exits import INTERRUPTED, exit_status
from supervisor.front.flags import where
from supervisor.front.lines import Entry, line_of
from supervisor.front.printer import Printer
from supervisor.model.record import Reason, RunRecord
from supervisor.policy import registry
from supervisor.policy.registry import Policy
from supervisor.record.quiet import QuietLog
from supervisor.record.runs import ONE_SHOTS, StateDir
from supervisor.supervise.instance import Instance, Settings, open_instance
from supervisor.supervise.shutdown import obey_signals, unhurried
from supervisor.supervise.surroundings import scratch_dir

TOLD = frozenset({"warning", "notify", "retry", "restart", "limit_changed", "cleanup_failed",
                  "copied_out", "kept"})  # fmt: skip
"""Entries that somebody who runs one command wants to hear of."""


def run(args: argparse.Namespace) -> int:
    """Run `args.command`; the exit status documented in `supervise --help`.

    Raises ConfigError and SupervisorError: then nothing was started.
    """
    config = config_from_flags(args, name=f"run-{os.getpid()}")
    policies = registry.load(config.supervisor.plugins, config.policies, config.jobs, where=where)
    (job,) = config.jobs
    own = config.supervisor
    kept = StateDir(own.state_dir / ONE_SHOTS) if job.keep != "never" else None
    with scratch_dir(job.write == "overlay" and kept is None) as scratch:
        settings = Settings(
            name=own.name,
            runtime=own.runtime_dir / own.name,
            state=None,
            on_missing=args.on_missing,
            scratch=scratch,
            kept=kept,
            state_dir=own.state_dir,
            images=imaging.shown(imaging.source(config), sys.stderr),
        )
        told = Printer(sys.stderr, _line)
        try:
            record, interrupted = trio.run(_run, _with_terminal(config), settings, policies, told)
        finally:
            sys.stderr.write(told.take())  # of the end, when nobody runs it any more
    _tell(record, args.record)
    if interrupted and record.reason is Reason.SKIPPED:
        return INTERRUPTED  # while its image was on the way
    return exit_status(record)


def _with_terminal(config: Config) -> Config:
    """TERM is the one variable that belongs to the streams, and they are the caller's."""
    (job,) = config.jobs
    term = os.environ.get("TERM")
    if term is None:
        return config
    return evolve(config, jobs=(evolve(job, environment={"TERM": term, **job.environment}),))


async def _run(
    config: Config, settings: Settings, policies: tuple[Policy, ...], told: Printer
) -> tuple[RunRecord, str]:
    with unhurried():
        async with (
            open_instance(settings, config.jobs, policies, QuietLog(told)) as instance,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(told.run)
            await nursery.start(obey_signals, instance)
            await instance.run()
            nursery.cancel_scope.cancel()
    return _last(instance), instance.interrupted


def _last(instance: Instance) -> RunRecord:
    return instance.records[-1]


def _line(entry: Entry) -> str | None:
    line = line_of(entry) if entry["event"] in TOLD else None
    return None if line is None else f"supervise: {line}"


def _tell(record: RunRecord, target: str | None) -> None:
    """The record where it was asked for, and a bad end in a few lines on stderr."""
    if target is not None:
        text = json.dumps(record.to_json()) + "\n"
        if target == "-":
            sys.stdout.write(text)
            sys.stdout.flush()
        else:
            try:
                with open(target, "w") as file:  # noqa: PTH123
                    file.write(text)
            except OSError as error:
                raise KernelError("write", target, error.errno or 0) from error
    if record.reason is not Reason.SUCCEEDED:
        from supervisor.front.explain_end import explain

        for line in explain(record):
            print(f"supervise: {line}", file=sys.stderr)
