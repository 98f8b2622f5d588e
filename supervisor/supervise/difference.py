"""How a job differs from what it was, setting by setting, and when each change takes effect.  Pure.

May import: `model`, `supervise.{limiting,reading}`, attrs.  `docs/steering.md` has the table of
what changes when; it rests on LIVE here and on `limiting.LIVE`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from attrs import fields, frozen, has

from supervisor.model.job import InlineAction, JobSpec, PolicyName
from supervisor.supervise import limiting

Effect = Literal["now", "restart", "next run"]

LIVE = ("stop", "restart", "priority", "after", "expect", "timeout", "cpu_time")
"""Settings (or their tables) that only the supervisor looks at: they hold at once."""

_NO_SETTINGS = ("name", "group", "layers", "places")
_KEYS = {"user_group": "group", "user_namespace.kind": "user_namespace"}


@frozen
class Change:
    """One setting: its key, its values as JSON has them, and when the new one holds.

    `why`: what kept it from taking effect sooner, if that was tried.
    """

    key: str
    before: Any
    after: Any
    effect: Effect = "now"
    why: str = ""


@frozen
class JobChange:
    """One job.  `changes` are those of one that is in both."""

    job: str
    what: Literal["added", "removed", "changed"]
    changes: tuple[Change, ...] = ()


@frozen
class Difference:
    """What a reload does, or did: to jobs, to settings of the instance, to policies.

    `refused` are settings that need the instance to be started again.
    """

    jobs: tuple[JobChange, ...] = ()
    settings: tuple[Change, ...] = ()
    policies: bool = False
    refused: tuple[Change, ...] = ()

    @property
    def nothing(self) -> bool:
        return not (self.jobs or self.settings or self.policies or self.refused)


def is_service(spec: JobSpec) -> bool:
    """Whether it is to run always: such a job is restarted for what else would wait for ever."""
    return spec.restart.when == "always"


def changes(old: JobSpec, new: JobSpec, *, restart: bool | None = None) -> tuple[Change, ...]:
    """Every setting that differs.  `restart`: whether the job is restarted for what must wait."""
    again = is_service(new) if restart is None else restart
    before, after = flat(old), flat(new)
    return tuple(
        Change(key, before.get(key), after.get(key), effect_of(key, again=again))
        for key in dict.fromkeys((*before, *after))
        if before.get(key) != after.get(key)
    )


def effect_of(key: str, *, again: bool) -> Effect:
    """When a change of this setting takes effect in a job that runs."""
    top, _, last = key.partition(".")
    live = last in limiting.LIVE if top == "limits" else top in LIVE
    if live:
        return "now"
    return "restart" if again else "next run"


def flat(spec: JobSpec) -> dict[str, Any]:
    """The job's settings by their dotted keys, as JSON has them."""
    found: dict[str, Any] = {}
    for name, value in ((f.name, getattr(spec, f.name)) for f in fields(JobSpec)):
        if name not in _NO_SETTINGS:
            found |= dict(_flattened(name, value))
    return found


def _flattened(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if name == "hooks":
        yield from ((hook, _hook(own)) for hook, own in value.items())
    elif isinstance(value, Mapping):
        yield from ((f"{name}.{key}", item) for key, item in value.items())
    elif has(type(value)):
        for each in fields(type(value)):
            key = f"{name}.{each.name}"
            yield _KEYS.get(key, key), plain(getattr(value, each.name))
    else:
        yield _KEYS.get(name, name), plain(value)


def _hook(own: InlineAction | PolicyName) -> Any:
    return own.name if isinstance(own, PolicyName) else {"action": own.action, **own.arguments}


def plain(value: Any) -> Any:
    """As JSON has it."""
    if isinstance(value, tuple):
        return [plain(item) for item in value]
    if has(type(value)):
        return {each.name: plain(getattr(value, each.name)) for each in fields(type(value))}
    return value
