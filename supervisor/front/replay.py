"""`supervise replay`: what other policies would have decided about events that were recorded.

The events go, in their order and with their time, to the very engine that asks policies in an
instance.  What was recorded after a decision that would have been another one is told as such: it
is what came of the old decision.

May import: everything.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from attrs import asdict, define, evolve, field, fields, frozen

from supervisor.errors import ConfigError
from supervisor.front import lines
from supervisor.front.explain import HOOKS, answered
from supervisor.front.recorded import World
from supervisor.front.settings import Config
from supervisor.model import Event, Exited, JobSpec, JobView, Notify, State
from supervisor.model.event import HOOK_OF
from supervisor.model.job import InlineAction, PolicyName
from supervisor.model.limits import Limits
from supervisor.policy.engine import Decision, Engine
from supervisor.policy.registry import Policy
from supervisor.record.entries import ACTION_NAMES, ENTRY_OF
from supervisor.record.eventfiles import Tail
from supervisor.supervise.restart import changed

Entry = dict[str, Any]
EVENTS: dict[str, type] = {name: event for event, name in ENTRY_OF.items()}


@frozen
class Compared:
    """One event: what was decided about it then, and what these policies decide.

    `then` and `now` have `action`, `arguments` and `by`; None: nobody decided.  `answers` are what
    each policy says now.  `holds`: the event is not what came of a decision that differs.
    `harmless`: nothing would come of this one.
    """

    seq: int
    time: str
    job: str
    run: str
    attempt: int
    hook: str
    what: str
    then: dict[str, Any] | None
    now: dict[str, Any] | None
    answers: tuple[dict[str, str], ...]
    differs: bool
    holds: bool
    harmless: bool


@define
class _Run:
    """A run as far as it has been read."""

    job: str
    run: str
    attempt: int
    spec: JobSpec
    limits: Limits
    started_at: float
    state: State = State.STARTING
    raised: dict[str, int] = field(factory=dict)
    holds: bool = True

    def view(self, reason: str | None) -> JobView:
        spec = evolve(self.spec, limits=self.limits) if self.attempt > 1 else self.spec
        return JobView(
            spec, self.run, self.attempt, self.state, self.limits, self.started_at,
            dict(self.raised), reason,
        )  # fmt: skip


@define
class Log:
    """The entries of a recorded log; `torn` lines were none."""

    path: Path
    entries: list[Entry]
    torn: int


def read(path: Path) -> Log:
    """The log at `path`, or in that directory, with the older files beside it.

    Raises ConfigError: it cannot be read, or there is no entry in it.
    """
    if path.is_dir():
        path = path / "events.ndjson"
    tail = Tail(path)
    found: list[Entry] = []
    try:
        if not path.is_file():
            raise ConfigError([f"{path}: no such event log"])
        while some := tail.read():
            found += [line.entry for line in some]
    except OSError as error:
        raise ConfigError([f"{path}: {error.strerror}"]) from error
    finally:
        tail.close()
    if not found:
        raise ConfigError([f"{path}: there is no event in it (it should be an events.ndjson)"])
    return Log(path, found, tail.torn)


class Replay:
    """One pass over a log, with these policies."""

    def __init__(
        self, log: Log, policies: Sequence[Policy], world: World, config: Config | None = None
    ) -> None:
        self.problems: list[str] = []
        self._log = log
        self._world = world
        self._engine = Engine(policies, world.ask)
        self._specs = {job.name: job for job in config.jobs} if config else {}
        self._runs: dict[str, _Run] = {}
        self._limits: dict[str, dict[str, float]] = {}
        self._broken: set[str] = set()

    def compared(self) -> Iterator[Compared]:
        """Every event that a policy could be asked about, in the order of the log."""
        by_run: dict[str, list[Entry]] = {}
        for entry in self._log.entries:
            by_run.setdefault(entry.get("run", ""), []).append(entry)
        places = {run: {id(e): n for n, e in enumerate(found)} for run, found in by_run.items()}
        for entry in self._log.entries:
            name = entry.get("run", "")
            try:
                run = self._follow(entry)
                event = _event_of(entry)
                if run is None or event is None:
                    continue
                rest = by_run[name][places[name][id(entry)] + 1 :]
                yield self._ask(run, entry, event, rest)
            except (LookupError, TypeError, ValueError, AttributeError) as error:
                self.problems.append(f"entry {entry['seq']} cannot be read: {error!r}")

    def _follow(self, entry: Entry) -> _Run | None:
        """Keep account of the run that an entry names; None: of none that is known."""
        kind, name = entry["event"], entry.get("run", "")
        if kind == "job_starting":
            self._runs[name] = self._begun(entry)
        if kind in ("retry", "restart"):
            self._limits.setdefault(entry["job"], {}).update(entry["limits"])
        run = self._runs.get(name)
        if run is None:
            return None
        if kind == "job_started":
            run.state = State.RUNNING
        elif kind == "memory_limit" and entry["held"]:
            run.state = State.HELD
        elif kind == "limit_changed" and entry["to"] is not None and not entry.get("next"):
            limit = entry["limit"]
            run.limits = changed(run.limits, {limit: entry["to"]})
            run.raised[limit] = run.raised.get(limit, 0) + 1
            run.state = State.RUNNING if run.state is State.HELD else run.state
        elif kind == "decision" and entry["action"] in ("freeze", "thaw"):
            run.state = State.FROZEN if entry["action"] == "freeze" else State.RUNNING
        elif kind == "job_stopping":
            run.state = State.STOPPING
        elif kind == "oom_kill" and run.state is State.HELD:
            run.state = State.RUNNING
        return run

    def _begun(self, entry: Entry) -> _Run:
        job, run = entry["job"], entry["run"]
        spec = self._specs.get(job) or _started_spec(self._log.path.parent, run)
        if spec is None:
            self.problems.append(f"run {run}: what it was started with is not known (--config)")
            spec = JobSpec(job, ("?",), job)
        limits = spec.limits
        if job in self._specs:
            limits = changed(limits, self._limits.get(job, {}))
        at = _unix(entry["time"])
        return _Run(job, run, entry["attempt"], spec, limits, at, holds=job not in self._broken)

    def _ask(self, run: _Run, entry: Entry, event: Event, rest: Sequence[Entry]) -> Compared:
        hook = HOOK_OF[type(event)]
        reason = entry["reason"] if entry["event"] == "job_ended" else None
        self._world.clock.now = event.at
        self._world.seed = str(entry["seq"])
        decision = _driven(self._engine.decide(event, run.view(reason)))
        old = answered(entry, rest, hook)
        then = _recorded(old) if old is not None and old["event"] == "decision" else None
        now = _decided(decision)
        differs = _deed(then) != _deed(now)
        holds, harmless = run.holds, _only_tells(then) and _only_tells(now)
        if differs and not harmless:
            run.holds = False
            self._broken.add(run.job)
        say = lines.SAYS.get(entry["event"])
        return Compared(
            entry["seq"], entry["time"], run.job, run.run, run.attempt, hook,
            say(entry) if say is not None else entry["event"], then, now,
            tuple(_said(one) for one in decision.answers), differs, holds, harmless,
        )  # fmt: skip


def _driven(asking: Any) -> Decision:
    """An engine whose Caller awaits nothing comes to its end in one step."""
    try:
        asking.send(None)
    except StopIteration as end:
        decision: Decision = end.value
        return decision
    raise AssertionError("the engine awaited something")


def _event_of(entry: Entry) -> Event | None:
    """The event that was written down; None for what is none.  Raises TypeError, ValueError."""
    at = _unix(entry["time"])
    if entry["event"] == "job_ended" and entry.get("run"):
        record = entry["record"]
        return Exited(at, record["exit_code"], record["signal"])
    kind = EVENTS.get(entry["event"])
    if kind is None or entry["event"] not in HOOKS:
        return None
    names = [one.name for one in fields(kind) if one.name != "at"]
    event: Event = kind(at=at, **{name: entry[name] for name in names})
    return event


def _started_spec(state: Path, run: str) -> JobSpec | None:
    """From runs/RUN/spec.json beside the log; None where it is gone, or not ours."""
    import cattrs

    from supervisor.record.runs import StateDir

    converter = cattrs.Converter()
    converter.register_structure_hook(InlineAction | PolicyName, _hook_of)
    try:
        document = json.loads(StateDir(state).spec(Path(run).name).read_text())
        return converter.structure(document["spec"], JobSpec)
    except Exception:  # what cattrs makes of a file that is not what it should be is no one class
        return None


def _hook_of(value: Mapping[str, Any], _kind: object) -> InlineAction | PolicyName:
    if "action" in value:
        return InlineAction(value["action"], value["arguments"])
    return PolicyName(value["name"])


def _recorded(entry: Mapping[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in ("action", "arguments", "by")}


def _decided(decision: Decision) -> dict[str, Any] | None:
    if decision.action is None:
        return None
    # as it would be read from a log
    arguments = json.loads(json.dumps(asdict(decision.action)))
    name = ACTION_NAMES[type(decision.action)]
    return {"action": name, "arguments": arguments, "by": decision.by}


def _said(answer: Any) -> dict[str, str]:
    return {"policy": answer.policy, "verdict": answer.verdict, "error": answer.error}


def _only_tells(decided: Mapping[str, Any] | None) -> bool:
    """Whether nothing comes of it: then what follows is the same."""
    return decided is None or bool(decided["action"] == ACTION_NAMES[Notify])


def _unix(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _deed(decided: Mapping[str, Any] | None) -> object:
    """What is done, be it decided by whom it may."""
    return None if decided is None else (decided["action"], decided["arguments"])


def worth_telling(one: Compared) -> bool:
    """Whether anybody had, or has, anything to say."""
    failed = any(answer["error"] for answer in one.answers)
    return one.then is not None or one.now is not None or failed


def told(one: Compared) -> Iterator[str]:
    """The lines for one event, below its run's; "?" before what came of another decision."""
    yield f"{' ' if one.holds else '?'} {one.time[11:23]} {one.hook}: {one.what}"
    yield f"      then  {_words(one.then, one.hook)}"
    for answer in one.answers:
        if answer["error"]:
            yield f"            {answer['policy']} failed: {answer['error']}"
    yield f"      now   {_words(one.now, one.hook)}" + ("  <- differs" if one.differs else "")
    if one.differs and one.holds and not one.harmless:
        yield "      from here on what was recorded need not have happened"


def _words(decided: Mapping[str, Any] | None, hook: str) -> str:
    if decided is None:
        return "nobody decides"
    entry = {"hook": hook, **decided, "arguments": dict(decided["arguments"])}
    what = lines.decision(entry).partition(": ")[2]
    return f"{what}, by {decided['by']}"
