"""`POST /jobs/{job}/attach`: a window to a job's own streams, on a connection of its own.

May import: `errors`, `model`, `record`, `supervise`, `control.{exec,routes,wire}`, attrs, trio.

What the job writes is read from its log files, by whoever may; what comes from here is the way in:
the writing end of its stdin, or the master of its terminal, as a descriptor of the client's own.
After the 101 both sides speak in JSON, an object a line, as in `control.exec`:

    ← {"attached": {"run", "terminal", "input", "logs"}}      `logs`: the path of each, and its end;
                                                              if `input`, with the way in
    ← {"ended": {"reason", "code", "signal"}}                 the run has ended; the end
    → {"ready": true}                                         first: descriptors may come now
    → {"eof": true}                                           its stdin is to have an end
    → end of file                                             the client leaves; the job goes on
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

import trio
from attrs import frozen

from supervisor.control.exec import Talk, running
from supervisor.control.routes import Answer, Ask, Refusal, Route, Takeover
from supervisor.control.wire import Wire
from supervisor.errors import SupervisorError
from supervisor.model.record import RunRecord
from supervisor.record.logs import Reader
from supervisor.supervise.run import Run
from supervisor.supervise.storage import STREAMS

PROTOCOL = "supervise-attach"


@frozen
class AttachJob:
    """`input`: whether the client wants the way in, too; a job without one is watched only."""

    input: bool = True


async def _attach(ask: Ask) -> Answer:
    run = running(ask)
    state = ask.instance.shared.state
    if state is None or "files" not in run.spec.log.sink:
        hint = 'log.sink must name "files"'
        raise Refusal(409, f"{run.spec.name} has no log files to be read", hint=hint)
    return Takeover(PROTOCOL, partial(_serve, ask, run, ask.body.input))


async def _serve(ask: Ask, run: Run, wanted: bool, wire: Wire, fds: tuple[int, ...]) -> None:
    for fd in fds:
        os.close(fd)
    talk = Talk(wire, eof=partial(_end_input, run))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.listen, nursery.cancel_scope)
        await _converse(ask, run, wanted, talk)
        nursery.cancel_scope.cancel()


def _end_input(run: Run) -> None:
    if run.storage is not None and not run.spec.terminal:
        run.storage.end_input()


async def _converse(ask: Ask, run: Run, wanted: bool, talk: Talk) -> None:
    try:
        await talk.ready()
    except SupervisorError:
        return
    way_in = run.storage.input if run.storage is not None and wanted else -1
    told = _told(ask, run, way_in)
    ask.steered("attach", job=run.spec.name, run=run.id, input=way_in >= 0)
    await talk.say({"attached": told}, way_in)
    await run.recorded.wait()
    assert run.record is not None
    await talk.say({"ended": _ending(run.record)})


def _told(ask: Ask, run: Run, way_in: int) -> dict[str, Any]:
    state = ask.instance.shared.state
    assert state is not None
    paths = {stream: state.log(run.spec.name, run.id, stream) for stream in STREAMS}
    return {
        "run": run.id,
        "terminal": run.spec.terminal,
        "input": way_in >= 0,
        "logs": {stream: {"path": str(path), "at": _end(path)} for stream, path in paths.items()},
    }


def _end(path: Path) -> int:
    """The position behind what is in a log now (`record.logs`)."""
    reader = Reader(path)
    try:
        return reader.bounds()[1]
    except FileNotFoundError:
        return 0
    finally:
        reader.close()


def _ending(record: RunRecord) -> dict[str, Any]:
    return {
        "reason": str(record.reason),
        "expected": record.expected,
        "code": record.exit_code,
        "signal": record.signal,
    }


ROUTES = (
    Route(
        "POST",
        "/jobs/{job}/attach",
        _attach,
        "steer",
        "a window to a job's own streams; takes the connection over (docs/exec.md)",
        body=AttachJob,
        upgrade=PROTOCOL,
    ),
)
