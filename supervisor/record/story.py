"""One run as it was written down: its entries, its record, the job as it was started.

Read from the history and, for what is not there yet, from the event log; both may be missing.
`front.explain` tells it to people, `supervise explain --json` and the socket give it as it is.

May import: `errors`, `model`, the rest of `record`.
"""

from __future__ import annotations

import json
from typing import Any

from attrs import frozen

from supervisor.record.eventfiles import entries as logged
from supervisor.record.runs import StateDir

Entry = dict[str, Any]


@frozen
class Story:
    """What is known of the run `run` of a job ("" for a job that was never started).

    entries   those of the event log that name the run, and those of the job between the end of the
              run before and the start of the one after, without the record
    record    of its end; None: it goes on, or its supervisor was killed
    output    the files that its output went to, if they are there
    spec      the job as it was started (runs/RUN/spec.json); None: it is not there any more
    """

    job: str
    run: str
    entries: tuple[Entry, ...]
    record: dict[str, Any] | None = None
    spec: dict[str, Any] | None = None
    output: tuple[str, ...] = ()


def story(state: StateDir, job: str, run: str | None = None) -> Story | None:
    """The last run of a job, or another; None when nothing is known of it.

    Raises SupervisorError where the history or the log cannot be read.
    """
    found = _entries(state, job, run)
    begins = [one for one in found if _begins(one)]
    if run is not None:
        begins = [one for one in begins if one.get("run") == run]
    if not begins:
        return None
    begin = begins[-1]
    named = str(begin.get("run", ""))
    mine = _chapter(found, begin["seq"], named)
    ends = [one for one in mine if one["event"] == "job_ended"]
    record = ends[-1].get("record") if ends else None
    told = tuple({k: v for k, v in one.items() if k != "record"} for one in mine)
    return Story(job, named, told, record, _spec(state, named), _output(state, job, named))


def jobs(state: StateDir) -> list[str]:
    """The jobs that something is known of, for who has mistyped one.  Raises SupervisorError."""
    known, position = set(), 0
    if state.history.is_file():
        from supervisor.record.past import open_past

        with open_past(state.history) as past:
            known, position = set(past.jobs()), past.position()
    known |= {line.entry["job"] for line in logged(state.events, position) if "job" in line.entry}
    return sorted(known)


def _begins(entry: Entry) -> bool:
    """A run's first entry, or the only one of a job that was skipped."""
    skipped = entry["event"] == "job_ended" and not entry.get("run")
    return entry["event"] == "job_starting" or skipped


def _chapter(found: list[Entry], at: int, run: str) -> list[Entry]:
    """From the end of the run before to the start of the one after."""
    ended = [one["seq"] for one in found if one["event"] == "job_ended" and one["seq"] < at]
    following = [one["seq"] for one in found if _begins(one) and one["seq"] > at]
    first, last = max(ended, default=0), min(following, default=found[-1]["seq"] + 1)
    return [
        one
        for one in found
        if first < one["seq"] and one.get("run", "") in ("", run)
        and (one["seq"] < last or one.get("run"))
    ]  # fmt: skip


def _entries(state: StateDir, job: str, run: str | None) -> list[Entry]:
    """Of the job, from some entry before the run on."""
    found: list[Entry] = []
    position = 0
    if state.history.is_file():
        from supervisor.record.past import open_past

        with open_past(state.history) as past:
            found, position = past.around(job, run), past.position()
    rest = (line.entry for line in logged(state.events, position))
    return found + [entry for entry in rest if entry.get("job") == job]


def _spec(state: StateDir, run: str) -> dict[str, Any] | None:
    if not run or "/" in run:
        return None
    try:
        document = json.loads(state.spec(run).read_text())
    except (OSError, ValueError):
        return None  # removed, or of a run that could not even write it
    spec = document.get("spec") if isinstance(document, dict) else None
    return spec if isinstance(spec, dict) else None


def _output(state: StateDir, job: str, run: str) -> tuple[str, ...]:
    paths = [state.log(job, run, stream) for stream in ("out", "err")] if run else []
    return tuple(str(path) for path in paths if path.exists())
