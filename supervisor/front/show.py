"""A configuration written back as TOML: merged, resolved, every matrix expanded.

May import: `model`, the tables of `front`.  What `show` writes reads back as the same jobs.
"""

from __future__ import annotations

import datetime
import math
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import asdict, fields

from supervisor.front import networks
from supervisor.front.problems import is_bare
from supervisor.front.settings import (
    Config,
    Events,
    History,
    ImageSettings,
    LayerLimits,
    Runs,
    SupervisorSettings,
)
from supervisor.model.job import (
    HIDDEN,
    Device,
    Egress,
    InlineAction,
    JobSpec,
    Mount,
    PolicyName,
    Port,
    PressureAt,
    Tmpfs,
    UserNamespace,
    Volume,
)
from supervisor.model.limits import IoLimit
from supervisor.model.units import duration_text, size_text

_SIZES = ("memory", "memory_high", "memory_low", "swap", "output", "disk", "read_bps", "write_bps",
          "core", "fsize", "memlock", "stack", "bytes")  # fmt: skip
_TIMES = ("timeout", "cpu_time", "time_offset", "grace", "backoff", "max_backoff", "after")
_NONE_IS_MAX = ("attempts",)
"""Where None is no bound, and leaving the key out would mean the default."""


_NOT_SETTINGS = ("name", "group", "command", "hooks", "layers", "places")


def show(config: Config) -> str:
    """The whole configuration as TOML, one table per job."""
    lines = ["[supervisor]", *_pairs(_supervisor(config.supervisor))]
    if images := _images(config.images):
        lines += ["", "[images]", *_pairs(images)]
    for name, arguments in config.policies.items():
        lines += ["", f"[policies.{_key(name)}]", *_pairs(arguments)]
    for job in config.jobs:
        lines += ["", f"[jobs.{_key(job.name)}]", *_pairs(_job(job))]
    return "\n".join(lines) + "\n"


def _pairs(table: Mapping[str, Any]) -> Iterator[str]:
    return (f"{_key(key)} = {toml(value)}" for key, value in table.items())


def _supervisor(settings: SupervisorSettings) -> dict[str, Any]:
    return {
        "name": settings.name,
        "state_dir": str(settings.state_dir),
        "runtime_dir": str(settings.runtime_dir),
        "plugins": list(settings.plugins),
        "on_missing": settings.on_missing,
        **_set({"cgroup_parent": settings.cgroup_parent}),
        **_set({"network": {"pool": settings.pool} if settings.pool else None}),
        **_nonempty({"capacity": _units(asdict(settings.capacity))}),
        **_nonempty(
            {key: _bounds(getattr(settings, key)) for key in ("history", "runs", "events")}
        ),
    }


def _bounds(section: History | Runs | Events) -> dict[str, Any]:
    """What is not as it is by default; None is no bound."""
    found: dict[str, Any] = {}
    for one in fields(type(section)):
        value = getattr(section, one.name)
        if value != one.default:
            found[one.name] = "max" if value is None else _bound(one.name, value)
    return found


def _bound(name: str, value: Any) -> Any:
    if name == "keep":
        return duration_text(value)
    return size_text(value) if name == "size" else value


def _images(settings: ImageSettings) -> dict[str, Any]:
    registries = settings.registries
    mirrors = {name: list(texts) for name, texts in registries.mirrors.items()}
    table = {"mirrors": mirrors, "insecure": list(registries.insecure)}
    single = {"ca": registries.ca, "store": settings.store, "platform": settings.platform}
    texts = {key: None if value is None else str(value) for key, value in single.items()}
    limits = asdict(settings.limits) if settings.limits != LayerLimits() else {}
    return _nonempty(table) | _set(texts) | _nonempty({"limits": _units(limits)})


def _job(job: JobSpec) -> dict[str, Any]:
    """One job's settings by their names in the file; what is not set is left out."""
    table: dict[str, Any] = {"command": list(job.command)}
    for attribute in fields(JobSpec):
        if attribute.name not in _NOT_SETTINGS:
            key = "group" if attribute.name == "user_group" else attribute.name
            table[key] = _plain(key, getattr(job, attribute.name))
    table["hide"] = _hidden(job.hide)
    table |= {hook: _hook(action) for hook, action in job.hooks.items()}
    if job.in_image:  # "" is what the image says
        table["working_dir"] = table["working_dir"] or None
        table["stop"] = {key: value for key, value in table["stop"].items() if value}
    return _nonempty(_set(table)) | _empty_but_set(job)


def _empty_but_set(job: JobSpec) -> dict[str, Any]:
    """Arrays that say something by being empty: leaving them out would mean the default."""
    return {key: [] for key in ("egress", "dns", "entrypoint") if getattr(job, key) == ()}


def _hidden(paths: tuple[str, ...]) -> str | list[str]:
    """What is hidden beside the default, or the word for all or nothing."""
    if not {*HIDDEN} <= {*paths}:
        return "nothing"
    return [path for path in paths if path not in HIDDEN] or "default"


def _plain(key: str, value: Any) -> Any:
    """A field of a job in the types of TOML."""
    match value:
        case Tmpfs():
            return _tmpfs(value)
        case Port() | Egress():
            return networks.text(value)
        case UserNamespace(kind, host_id, size, files):
            ids = {"host_id": host_id, "size": size} if kind == "map" else {}
            more = {"files": files} if files != "try" else {}
            return ids | more or kind
        case PressureAt():
            shares = {one.name: getattr(value, one.name) for one in fields(PressureAt)}
            return {name: _share(part) for name, part in shares.items()}
        case Device() | Mount() | IoLimit() | Volume():
            return _units(asdict(value))
        case tuple():
            return [_plain(key, item) for item in value]
        case Mapping():
            return dict(value)
        case float() if key in _TIMES:
            return duration_text(value)
    if hasattr(value, "__attrs_attrs__"):
        return _units({one.name: getattr(value, one.name) for one in fields(type(value))})
    return value


def _tmpfs(tmpfs: Tmpfs) -> str:
    options = [f"size={size_text(tmpfs.size)}"] if tmpfs.size is not None else []
    options += [f"inodes={tmpfs.inodes}"] if tmpfs.inodes is not None else []
    return ":".join([tmpfs.target, *([",".join(options)] if options else [])])


def _units(table: Mapping[str, Any]) -> dict[str, Any]:
    """A section with its sizes and times as people write them, and without what is not set."""
    result: dict[str, Any] = {}
    for key, value in table.items():
        if value is None and key in _NONE_IS_MAX:
            result[key] = "max"
        elif isinstance(value, int) and key in _SIZES:
            result[key] = size_text(value)
        elif value is not None:
            result[key] = _plain(key, value)
    return {key: value for key, value in result.items() if value != []}


def _share(part: float | None) -> str:
    """None is written out: leaving the key away would mean the default."""
    return "max" if part is None else f"{part * 100:.6g}%"


def _hook(action: InlineAction | PolicyName) -> Any:
    if isinstance(action, PolicyName):
        return action.name
    arguments = dict(action.arguments)
    if "limits" in arguments:
        arguments["limits"] = _units(arguments["limits"])
    if arguments.get("limit") in _SIZES:
        arguments["to"] = size_text(arguments["to"])
    return {"action": action.action, **_units(arguments)}


def _set(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None}


def _nonempty(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value not in ([], {})}


def toml(value: Any) -> str:
    """Any value tomllib can give, as TOML on one line."""
    match value:
        case bool():
            return str(value).lower()
        case str():
            return _string(value)
        case float():
            return _float(value)
        case list():
            return "[" + ", ".join(map(toml, value)) + "]"
        case Mapping():
            inside = ", ".join(_pairs(value))
            return f"{{ {inside} }}" if inside else "{}"
        case datetime.datetime() | datetime.date() | datetime.time():
            return value.isoformat()
    return str(value)


def _float(value: float) -> str:
    if math.isfinite(value):
        return repr(value)
    return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"


def _key(key: str) -> str:
    return key if is_bare(key) else _string(key)


def _string(text: str) -> str:
    return '"' + "".join(map(_character, text)) + '"'


def _character(char: str) -> str:
    if char in '"\\':
        return "\\" + char
    if char == "\n":
        return "\\n"
    if ord(char) < 0x20 or ord(char) == 0x7F:
        return f"\\u{ord(char):04x}"
    return char
