"""Values made of several: mounts, tmpfs, devices, I/O throttles, the user namespace.

May import: `errors`, `model`, `front.kinds` and what that imports.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from supervisor.front import kinds
from supervisor.front.kinds import Context, Parser, must
from supervisor.front.problems import Wrong, collect, found, unknown
from supervisor.front.toml_lines import Path
from supervisor.linux import caps
from supervisor.model.job import HIDDEN, Device, Mount, Tmpfs, UserNamespace, Volume
from supervisor.model.limits import IoLimit

LARGEST_ID = 2**32 - 2
MOST_IOPS = 2**32 - 1
FILES = ("try", "mapped", "plain")
PROTECTED = ("/", "/proc")
"""Where nothing of a job's own is mounted: its root is set up first, its /proc last."""

_IO_RATES: dict[str, Parser] = {
    "read_bps": kinds.size(1),
    "write_bps": kinds.size(1),
    "read_iops": kinds.integer(1, MOST_IOPS),
    "write_iops": kinds.integer(1, MOST_IOPS),
}


def table(
    value: Any, parsers: Mapping[str, Parser], context: Context, required: tuple[str, ...] = ()
) -> dict[str, Any]:
    """A table whose keys are those of `parsers`; all its problems at once."""
    if not isinstance(value, dict):
        raise must("a table", value)
    problems: list[tuple[Path, str]] = []
    results = {}
    for key, item in value.items():
        if key not in parsers:
            problems.append(((key,), f"unknown key; {unknown(key, parsers)}"))
            continue
        try:
            results[key] = parsers[key](item, context)
        except Wrong as wrong:
            problems += [((key, *at), message) for at, message in wrong.problems]
    problems += [((), f'lacks "{key}"') for key in required if key not in value]
    collect(problems)
    return results


def _target(value: Any, context: Context) -> str:
    path = kinds.job_path(value, context)
    if path in PROTECTED or path.startswith("/proc/"):
        raise Wrong(f'{found(path)} cannot be mounted over: "/" and "/proc" are the job\'s own')
    return path


def mount(value: Any, context: Context) -> Mount:
    """A bind mount: a table, or "SOURCE:TARGET[:ro]" as on the command line."""
    if isinstance(value, str):
        return _short_mount(value, context)
    parsers = {"source": kinds.host_path, "target": _target, "read_only": kinds.boolean}
    return Mount(**table(value, parsers, context, ("source", "target")))


def _short_mount(text: str, context: Context) -> Mount:
    parts = text.split(":")
    if not 2 <= len(parts) <= 3 or parts[2:] not in ([], ["ro"], ["rw"]):
        raise must('"SOURCE:TARGET", "SOURCE:TARGET:ro" or a table', text)
    source, target = kinds.host_path(parts[0], context), _target(parts[1], context)
    return Mount(source, target, read_only=parts[2:] == ["ro"])


def volume(value: Any, context: Context) -> Volume:
    """A named volume: a table, or "NAME:TARGET[:ro]" as on the command line."""
    if isinstance(value, str):
        parts = value.split(":")
        if not 2 <= len(parts) <= 3 or parts[2:] not in ([], ["ro"], ["rw"]) or "/" in parts[0]:
            hint = "a directory of the host's is one of mounts" if "/" in parts[0] else ""
            raise must('"NAME:TARGET", "NAME:TARGET:ro" or a table', value, hint)
        value = {"name": parts[0], "target": parts[1], "read_only": parts[2:] == ["ro"]}
    parsers = {"name": kinds.name, "target": _target, "read_only": kinds.boolean}
    return Volume(**table(value, parsers, context, ("name", "target")))


def tmpfs(value: Any, context: Context) -> Tmpfs:
    """ "TARGET", or "TARGET:size=SIZE", "TARGET:inodes=N" or both with a comma between."""
    target, colon, text = kinds.string(value, context).partition(":")
    options = dict(option.partition("=")[::2] for option in text.split(",")) if colon else {}
    if not set(options) <= {"size", "inodes"} or len(options) < text.count(",") + bool(colon):
        raise must('"/PATH", "/PATH:size=64M" or "/PATH:size=64M,inodes=1000"', value)
    found: dict[str, int | None] = {}
    if "size" in options:
        found["size"] = kinds.size(kinds.PAGE)(options["size"], context)
    if "inodes" in options:
        found["inodes"] = kinds.integer(1, 1 << 31)(kinds.scalar(options["inodes"]), context)
    return Tmpfs(_target(target, context), **found)


def device(value: Any, context: Context) -> Device:
    """A table, or "PATH", "PATH:ACCESS", "PATH:TARGET", "PATH:TARGET:ACCESS"."""
    if isinstance(value, str):
        return _short_device(value, context)
    parsers = {"path": kinds.host_path, "target": _device_target, "access": _access}
    found = table(value, parsers, context, ("path",))
    return Device(**{"target": _device_target(found["path"], context), **found})


def _short_device(text: str, context: Context) -> Device:
    path, *rest = text.split(":")
    if len(rest) == 1 and not rest[0].startswith("/"):
        rest = [path, *rest]
    if len(rest) > 2:
        raise must('"PATH", "PATH:ACCESS", "PATH:TARGET", "PATH:TARGET:ACCESS" or a table', text)
    target = _device_target(rest[0] if rest else kinds.host_path(path, context), context)
    return Device(kinds.host_path(path, context), target, *[_access(a, context) for a in rest[1:]])


def _device_target(value: Any, context: Context) -> str:
    path = _target(value, context)
    if path in ("/dev", "/dev/pts", "/dev/shm"):
        raise Wrong(f"{found(path)} is a directory of the job's own")
    return path


def _access(value: Any, context: Context) -> str:
    letters = kinds.string(value, context)
    if not letters or len(set(letters)) < len(letters) or not set(letters) <= set("rwm"):
        raise must('of the letters "r", "w" and "m"', value)
    return "".join(letter for letter in "rwm" if letter in letters)


def io_limit(value: Any, context: Context) -> IoLimit:
    """A throttle on the device that holds `path`; at least one rate."""
    parsers = {"path": kinds.host_path, **_IO_RATES}
    limit = IoLimit(**table(value, parsers, context, ("path",)))
    if len(value) < 2:
        raise Wrong("limits nothing; add " + ", ".join(_IO_RATES))
    return limit


def io_from_flag(text: str) -> dict[str, Any]:
    """ "PATH:read_bps=50M,write_iops=500" as the table it stands for."""
    path, _, rates = text.rpartition(":")
    if not path:
        return {"path": text}
    pairs = (pair.partition("=") for pair in rates.split(",") if pair)
    return {"path": path, **{key: kinds.scalar(value) for key, _, value in pairs}}


def capabilities(value: Any, context: Context) -> tuple[str, ...]:
    """Names of capabilities as "NET_RAW" or "CAP_NET_RAW", or "ALL"."""
    return kinds.each(value, _capability, context, "an array of capabilities")


def _capability(value: Any, context: Context) -> str:
    name = kinds.string(value, context).upper().removeprefix("CAP_")
    return kinds.word(name, ("ALL", *caps.NAMES))


def seccomp(value: Any, context: Context) -> str:
    """ "default", "log", "unconfined", or a profile's path."""
    text = kinds.string(value, context)
    if text in ("default", "log", "unconfined"):
        return text
    if text.startswith(("/", "./", "../")):
        return kinds.host_path(text, context)
    raise must('"default", "log", "unconfined", or a path that begins with "/" or "./"', value)


def hide(value: Any, context: Context) -> tuple[str, ...]:
    """ "default", "nothing", or paths to be hidden beside the default ones."""
    if value == "default":
        return HIDDEN
    if value == "nothing":
        return ()
    more = kinds.each(value, kinds.host_path, context, '"default", "nothing" or an array of paths')
    if "/" in more:
        raise Wrong('"/" cannot be hidden; say root = "/DIR" instead')
    return (*HIDDEN, *more)


def hide_from_flag(text: str) -> Any:
    """ "default", "nothing", or paths with colons between them."""
    return text if text in ("default", "nothing") else text.split(":")


def user_namespace(value: Any, context: Context) -> UserNamespace:
    """ "host", "self", "auto", or a table; without ids it is "auto" with what else it says."""
    if value in ("host", "self", "auto"):
        return UserNamespace(value)
    if not isinstance(value, dict):
        raise must('"host", "self", "auto" or { host_id = 100000, size = 65536 }', value)
    parsers: dict[str, Parser] = {
        "host_id": kinds.integer(0, LARGEST_ID),
        "size": kinds.integer(1, LARGEST_ID + 1),
        "files": lambda text, context: kinds.word(kinds.string(text, context), FILES),
    }
    required = () if set(value) == {"files"} else ("host_id", "size")
    ids = table(value, parsers, context, required)
    if not required:
        return UserNamespace("auto", **ids)
    if ids["host_id"] + ids["size"] - 1 > LARGEST_ID:
        raise Wrong(f"reaches beyond the largest user number, {LARGEST_ID}")
    return UserNamespace("map", **ids)


def default_user_namespace(context: Context) -> UserNamespace:
    """Where a job says nothing: none as root; who is not root cannot do without."""
    return UserNamespace("host" if context.uid == 0 else "auto")


def user_namespace_from_flag(text: str) -> Any:
    """ "host", "self", "auto", "auto:FILES" or "HOST_ID:SIZE[:FILES]"."""
    first, colon, second = text.partition(":")
    if not colon:
        return text
    if first == "auto":
        return {"files": second}
    size, colon, files = second.partition(":")
    ids = {"host_id": kinds.scalar(first), "size": kinds.scalar(size)}
    return ids | ({"files": files} if colon else {})
