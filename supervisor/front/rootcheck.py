"""The check of a new root: the loader of each program, inside, lists what it would load.

`LD --list PROGRAM` (ld.so(8), musl's too) does all of a start but its end: it finds and maps every
library, and runs nothing of the program.  It is done in containers of ours, with the new root
read-only and without a network, so that also a hostile loader stays inside.

May import: everything.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import trio

from supervisor.errors import RootError
from supervisor.front.kinds import Context
from supervisor.front.settings import default_runtime, default_state
from supervisor.model.job import JobSpec, UserNamespace
from supervisor.model.record import Reason, RunRecord
from supervisor.record.quiet import QuietLog
from supervisor.record.runs import StateDir
from supervisor.rootfs.closure import fits_host
from supervisor.rootfs.gather import Program
from supervisor.rootfs.tree import covered
from supervisor.supervise.admission import Room
from supervisor.supervise.instance import Instance, Settings, open_instance
from supervisor.supervise.shutdown import obey_signals, unhurried

LISTING = re.compile(r"ld(-linux.*|-musl-.*|64)?\.so(\.\d+)?")
"""Loaders that know --list."""
TIMEOUT = 30.0
AT_ONCE = 8
LONGEST = 4096
"""Bytes of a loader's complaint that are read."""
UNCHECKED = "--no-check builds it without its check"


def check(root: Path, programs: Sequence[Program]) -> list[str]:
    """The programs that were checked.  Raises RootError naming each that cannot start, and why."""
    here = os.uname().machine
    foreign = {p.path: p for p in programs if p.arch and not fits_host(p.arch, here)}
    if told := [
        f"{p.path}: is for {p.arch}, not for this host" for p in foreign.values() if p.named
    ]:
        raise RootError(told, hint=UNCHECKED)
    if hidden := [program for program in programs if program.named and covered(program.path)]:
        covering = [f"{p.path}: a job has a {covered(p.path)} of its own" for p in hidden]
        raise RootError(covering, hint="copy it to another place: --copy PATH:TARGET")
    listed = [p for p in programs if p.path not in foreign and _knows_list(p)]
    if listed:
        problems = trio.run(_check, root, listed)
        if problems:
            raise RootError(problems, hint=UNCHECKED)
    return [program.path for program in listed]


def _knows_list(program: Program) -> bool:
    loader = program.loader
    return loader is not None and LISTING.fullmatch(os.path.basename(loader)) is not None


async def _check(root: Path, programs: Sequence[Program]) -> list[str]:
    context = Context(base=Path.cwd(), uid=os.geteuid(), environment=dict(os.environ))
    name = f"rootfs-{os.getpid()}"
    runtime = default_runtime(context, default_state(context)) / name
    specs = {p.path: _job(root, number, p) for number, p in enumerate(programs)}
    with tempfile.TemporaryDirectory(prefix="supervise-") as directory:
        state = StateDir(Path(directory))
        state.make()
        settings = Settings(name=name, runtime=runtime, state=state, room=Room(jobs=AT_ONCE))
        with unhurried():
            async with (
                open_instance(settings, tuple(specs.values()), (), QuietLog(lambda _: None)) as one,
                trio.open_nursery() as nursery,
            ):
                await nursery.start(obey_signals, one)
                await one.run()
                nursery.cancel_scope.cancel()
        return _problems(one, specs, state)


def _job(root: Path, number: int, program: Program) -> JobSpec:
    assert program.loader is not None
    own_ids = os.geteuid() == 0
    return JobSpec(
        name=f"check-{number}",
        command=(program.loader, "--list", program.path),
        group=f"check-{number}",
        root=str(root),
        environment={"LC_ALL": "C"},
        user_namespace=UserNamespace("host" if own_ids else "auto"),
        timeout=TIMEOUT,
    )


def _problems(one: Instance, specs: dict[str, JobSpec], state: StateDir) -> list[str]:
    if one.interrupted:
        raise KeyboardInterrupt
    records = {record.job: record for record in one.records}
    found = ((path, records[spec.name]) for path, spec in specs.items())
    return [f"{path}: cannot start in the root: {_why(record, state)}"
            for path, record in found if record.reason is not Reason.SUCCEEDED]  # fmt: skip


def _why(record: RunRecord, state: StateDir) -> str:
    """What its loader said, or why there was none to say anything."""
    if record.start_error is not None:
        error = record.start_error
        why = os.strerror(error.errno) if error.errno else "failed"
        return ": ".join(filter(None, (error.stage, error.path, why)))
    for stream in ("err", "out"):
        text = _tail(state.log(record.job, record.run, stream))
        if text:
            return text
    return str(record.reason)


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        lines = file.read(LONGEST).decode(errors="replace").split("\n")
    kept = [line.strip() for line in lines if line.strip()]
    return "".join(char if char.isprintable() else "?" for char in "; ".join(kept[:3]))[:300]
