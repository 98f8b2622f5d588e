"""Hooks set in a job itself: `on_memory_limit = { action = "raise", to = "1G" }`.

May import: `errors`, `model`, `front.kinds`, `front.compounds`.  The arguments are parsed here,
into the units and the names of the fields of `model.action`, so that nothing is left to go wrong
when the event fires.
"""

from __future__ import annotations

from typing import Any

from supervisor.front import kinds
from supervisor.front.compounds import table
from supervisor.front.kinds import Context, Parser, must
from supervisor.front.problems import Wrong, found, unknown
from supervisor.model import units
from supervisor.model.job import InlineAction, PolicyName

MOST_PIDS = 4194304
"""PID_MAX_LIMIT of include/linux/threads.h."""
FEWEST_CPUS = 0.01
"""The kernel takes no quota below 1 ms, and the period is 100 ms."""
MOST_CPUS = 8192.0

CHANGEABLE: dict[str, Parser] = {
    "memory": kinds.size(kinds.PAGE, share=True),
    "memory_high": kinds.size(kinds.PAGE, share=True),
    "swap": kinds.size(),
    "pids": kinds.integer(1, MOST_PIDS),
    "cpus": kinds.number(FEWEST_CPUS, MOST_CPUS),
    "cpu_weight": kinds.integer(1, 10000),
    "disk": kinds.size(units.LEAST_DISK),
}
"""The limits an action may change, `model.action.LimitName`."""


def _limits(value: Any, context: Context) -> dict[str, Any]:
    limits = table(value, CHANGEABLE, context)
    if not limits:
        raise Wrong("changes nothing; allowed: " + ", ".join(CHANGEABLE))
    return limits


_ARGUMENTS: dict[str, dict[str, Parser]] = {
    "raise": {},  # depends on the limit: see _raise
    "retry": {"limits": _limits, "after": kinds.duration()},
    "kill": {"why": kinds.string, "now": kinds.boolean},
    "signal": {"signal": kinds.signal_name},
    "freeze": {},
    "notify": {"message": kinds.string},
    "stop-all": {"why": kinds.string},
    "ignore": {},
}
_RAISED = {"on_pids_limit": "pids", "on_disk_limit": "disk"}
"""What "raise" is about where it does not say."""
_REQUIRED = {"signal": ("signal",), "notify": ("message",)}
_WHEN_ENDED = ("retry", "notify", "stop-all", "ignore")
_FLAG_ARGUMENT = {"raise": "to", "kill": "why", "signal": "signal", "notify": "message",
                  "stop-all": "why"}  # fmt: skip
"""What stands behind the colon of a flag: `--on-memory-limit raise:1G`."""


def hook(name: str) -> Parser:
    """The parser of the hook `name`: an action with its arguments, or a policy (name or path)."""
    allowed = _WHEN_ENDED if name == "on_exit" else tuple(_ARGUMENTS)

    def parse(value: Any, context: Context) -> InlineAction | PolicyName:
        if isinstance(value, str):
            return _policy(value, context)
        if not isinstance(value, dict):
            raise must('a table like { action = "ignore" }, a policy\'s name or its path', value)
        action = value.get("action")
        if not isinstance(action, str):
            raise Wrong('lacks "action"; allowed: ' + ", ".join(allowed))
        if action not in allowed:
            raise Wrong(_not_allowed(name, action, allowed), ("action",))
        rest = {key: item for key, item in value.items() if key != "action"}
        if action == "raise":
            return InlineAction(action, _raise(name, rest, context))
        required = _REQUIRED.get(action, ())
        return InlineAction(action, table(rest, _ARGUMENTS[action], context, required))

    return parse


def _not_allowed(hook: str, action: str, allowed: tuple[str, ...]) -> str:
    if action in _ARGUMENTS:
        return f'"{action}" is too late in {hook}: the job has ended; allowed: {", ".join(allowed)}'
    return f"{found(action)} is no action; {unknown(action, allowed)}"


def _policy(value: str, context: Context) -> PolicyName:
    if value in _ARGUMENTS:
        raise Wrong(f'an action is a table: write {{ action = "{value}" }}')
    return PolicyName(kinds.plugin(value, context))


def _raise(hook: str, rest: dict[str, Any], context: Context) -> dict[str, Any]:
    """The arguments of "raise": `limit` follows from the hook unless it is written."""
    limit = rest.get("limit", _RAISED.get(hook, "memory"))
    if not isinstance(limit, str) or limit not in CHANGEABLE:
        raise Wrong(f"{found(limit)} cannot be raised; {unknown(str(limit), CHANGEABLE)}")
    parsers: dict[str, Parser] = {"to": CHANGEABLE[limit], "limit": kinds.string}
    return {"limit": limit, "to": table(rest, parsers, context, ("to",))["to"]}


def hook_from_flag(text: str) -> Any:
    """What TOML would say for "raise:1G", "retry:memory=1G,after=10s", "kill", or a policy."""
    action, _, argument = text.partition(":")
    if action not in _ARGUMENTS:
        return text
    if action == "retry":
        return {"action": action, **_retry_from_flag(argument)}
    key = _FLAG_ARGUMENT.get(action, "argument")
    value = kinds.scalar(argument) if action == "raise" else argument
    return {"action": action, key: value} if argument else {"action": action}


def _retry_from_flag(text: str) -> dict[str, Any]:
    pairs = [pair.partition("=") for pair in text.split(",") if pair]
    limits = {key: kinds.scalar(value) for key, _, value in pairs if key != "after"}
    after = {key: kinds.scalar(value) for key, _, value in pairs if key == "after"}
    return {**after, **({"limits": limits} if limits else {})}
