"""The configuration of an instance: read, checked, shown, or made from `run`'s flags.

May import: `errors`, `model`, the other modules of `front` that concern the configuration.  Every
failure, be it a missing file or a misspelt key, is a ConfigError that tells all of them at once.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from supervisor.errors import ConfigError
from supervisor.front import toml_lines
from supervisor.front.checks import check_all
from supervisor.front.flags import add_job_flags, config_from_flags, from_flags
from supervisor.front.jobs import read_jobs
from supervisor.front.kinds import NAME, Context
from supervisor.front.problems import Problems, dotted, found, unknown
from supervisor.front.registries import registry_settings
from supervisor.front.schema import IMAGES, SUPERVISOR, TOP
from supervisor.front.settings import (
    Capacity,
    Config,
    Events,
    History,
    ImageSettings,
    LayerLimits,
    Runs,
    SupervisorSettings,
    default_runtime,
    default_state,
)
from supervisor.front.show import show
from supervisor.front.tables import flatten, parse_values, plain, sane, section

__all__ = [
    "Capacity", "Config", "Context", "SupervisorSettings",
    "add_job_flags", "config_from_flags", "from_flags", "load", "parse", "show",
]  # fmt: skip

LARGEST_FILE = 4 * 1024 * 1024
_POSITION = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")


def load(path: Path, context: Context | None = None) -> Config:
    """The configuration in a file.  Raises ConfigError, also for a file that cannot be read."""
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_FILE + 1)
    except OSError as err:
        why = (err.strerror or str(err)).lower()
        raise ConfigError([f"{path}: cannot read the configuration: {why}"]) from err
    except ValueError as err:  # a NUL in the path
        raise ConfigError([f"{path!r}: cannot read the configuration: {err}"]) from err
    if len(raw) > LARGEST_FILE:
        raise ConfigError([f"{path}: is larger than {LARGEST_FILE // 1024**2} MiB"])
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        line = raw.count(b"\n", 0, err.start) + 1
        raise ConfigError([f"{path}:{line}: is not UTF-8: {err.reason}"]) from err
    return parse(text, str(path), context)


def parse(text: str, filename: str, context: Context | None = None) -> Config:
    """The configuration in a text; relative paths start at the directory of `filename`.

    Raises ConfigError with every problem, each as "FILE:LINE: KEY: what is wrong".
    """
    document = _toml(text, filename)
    lines = toml_lines.Lines(text)
    context = context or Context(Path(filename).absolute().parent)
    problems = Problems(lambda path: _place(path, filename, lines))
    if sane(document, problems):
        config = _read(document, filename, lines, context, problems)
        problems.raise_any()
        return config
    problems.raise_any()
    raise AssertionError("a document that is not sane has a problem")


def _toml(text: str, filename: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as err:
        message = str(err)
        at = _POSITION.search(message)
        place = _end_of(text) if at is None or at[1] is None else f"{at[1]}:{at[2]}"
        what = _POSITION.sub("", message)
        raise ConfigError([f"{filename}:{place}: {what[:1].lower()}{what[1:]}"]) from err
    except RecursionError as err:
        raise ConfigError([f"{filename}: is nested too deep"]) from err
    except ValueError as err:  # a number of more digits than int() takes
        raise ConfigError([f"{filename}: a value is out of range: {err}"]) from err


def _end_of(text: str) -> str:
    lines = text.rstrip("\n").split("\n")
    return f"{len(lines)}:{len(lines[-1]) + 1}"


def _place(path: toml_lines.Path, filename: str, lines: toml_lines.Lines) -> tuple[int, str]:
    line = lines.line(path)
    return line, f"{filename}:{line}: {dotted(path)}" if path else f"{filename}:{line}"


def _read(
    document: dict[str, Any],
    filename: str,
    lines: toml_lines.Lines,
    context: Context,
    problems: Problems,
) -> Config:
    for key in document:
        if key not in TOP:
            problems.add((key,), f"unknown key; {unknown(key, TOP)}")
    settings = _supervisor(document.get("supervisor", {}), filename, context, problems)
    images = _images(document.get("images", {}), context, problems)
    policies = _policies(document.get("policies", {}), problems)
    jobs = read_jobs(document, context, problems)
    tables = document.get("jobs", {})
    check_all(jobs, settings, policies, tables if isinstance(tables, dict) else (), problems)
    return Config(
        filename, settings, tuple(jobs), policies, images, lines, document.get("defaults", {})
    )


def _policies(value: Any, problems: Problems) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict):
        problems.add(("policies",), f"must be a table, not {found(value)}")
        return {}
    for name, arguments in value.items():
        if not isinstance(arguments, dict):
            problems.add(("policies", name), f"must be a table, not {found(arguments)}")
    return {name: item for name, item in value.items() if isinstance(item, dict)}


def _supervisor(
    value: Any, filename: str, context: Context, problems: Problems
) -> SupervisorSettings:
    raw = flatten(SUPERVISOR, value, ("supervisor",), problems)
    values = parse_values(SUPERVISOR, raw, context, problems)
    single = plain(values)
    state = Path(single.pop("state_dir", None) or default_state(context))
    runtime = single.pop("runtime_dir", None) or default_runtime(context, state)
    name = single.pop("name", None) or default_name(filename)
    return SupervisorSettings(
        name=name,
        state_dir=state,
        runtime_dir=Path(runtime),
        capacity=Capacity(**section(values, "capacity")),
        history=History(**section(values, "history")),
        runs=Runs(**section(values, "runs")),
        events=Events(**section(values, "events")),
        **section(values, "network"),
        **single,
    )


def _images(value: Any, context: Context, problems: Problems) -> ImageSettings:
    raw = flatten(IMAGES, value, ("images",), problems)
    values = parse_values(IMAGES, raw, context, problems)
    store = values.get(("store",))
    return ImageSettings(
        registry_settings(values, problems),
        Path(store) if store is not None else None,
        values.get(("platform",)),
        LayerLimits(**section(values, "limits")),
    )


def default_name(filename: str) -> str:
    """An instance's name from its file's: config.toml.example is "config"."""
    stem = Path(filename).name.split(".toml")[0]
    safe = re.sub(r"[^A-Za-z0-9_.-]", "-", stem).lstrip(".-")[:64]
    return safe if NAME.fullmatch(safe) else "supervise"
