"""A flag of `supervise run` for every setting of a job, made from the table of settings.

May import: `errors`, `model`, the tables and parsers of `front`.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from supervisor.front.checks import check_all
from supervisor.front.jobs import build
from supervisor.front.kinds import Context, Kind, plugin
from supervisor.front.problems import Problems, Wrong
from supervisor.front.schema import BOOLEAN, JOB, Key, Setting
from supervisor.front.settings import Config, SupervisorSettings, default_runtime, default_state
from supervisor.front.tables import Found, parse_values, sane
from supervisor.front.toml_lines import Path as KeyPath
from supervisor.model.job import JobSpec

_DEST = "job:"
"""What the flags' names in the parsed arguments begin with, so that they meet no other."""


def add_job_flags(parser: argparse.ArgumentParser, *, plugins: bool = True) -> None:
    """Add `--memory`, `--mount` and the others, and `--plugin NAME` for policies to be asked.

    Without `plugins` that one is left out: the policies are those of an instance.
    """
    groups = {
        section: parser.add_argument_group(title)
        for section, title in (("limits", "limits"), ("", "the container"), ("on", "what to do"))
    }
    for setting in JOB.settings:
        if setting.flag:
            _add(groups[_group(setting)], setting)
    if plugins:
        groups["on"].add_argument(
            "--plugin", action="append", default=[], metavar="NAME|PATH", dest="plugins",
            help="a policy to ask; may be repeated",
        )  # fmt: skip


def _group(setting: Setting) -> str:
    if setting.path[0] in ("limits", "timeout", "cpu_time"):
        return "limits"
    is_reaction = setting.path[0].startswith("on_") or setting.path[0] in _REACTIONS
    return "on" if is_reaction else ""


_REACTIONS = ("stop", "restart", "oom", "expect")


def _add(group: argparse._ArgumentGroup, setting: Setting) -> None:
    name, dest = f"--{setting.flag}", _DEST + setting.key
    text = setting.help.replace("%", "%%").replace("`", "")
    if setting.kind is BOOLEAN:
        group.add_argument(name, dest=dest, action="store_true", default=None, help=text)
    elif setting.kind.many:
        text += " May be repeated."
        group.add_argument(
            name, dest=dest, action="append", metavar=setting.kind.metavar, help=text
        )
    elif setting.kind.bare:
        group.add_argument(
            name, dest=dest, nargs="?", const=setting.kind.bare, metavar=setting.kind.metavar,
            help=f"{text} Alone: {setting.kind.bare}.",
        )  # fmt: skip
    else:
        group.add_argument(name, dest=dest, metavar=setting.kind.metavar, help=text)


def from_flags(args: argparse.Namespace, context: Context | None = None) -> JobSpec:
    """The job that the flags and `args.command` (a list of strings) describe.

    Relative paths start at the working directory.  Raises ConfigError, each problem as
    "--FLAG: what is wrong".
    """
    return config_from_flags(args, context=context).jobs[0]


def config_from_flags(
    args: argparse.Namespace, name: str = "run", context: Context | None = None
) -> Config:
    """The same with an instance around it, called `name`, with the policies of `--plugin`."""
    context = context or Context(Path.cwd())
    problems = Problems(_place)
    raw = _raw(args, problems)
    if args.command:
        raw[("command",)] = Found(list(args.command), ("command",))
    if not sane({".".join(key): item.value for key, item in raw.items()}, problems):
        problems.raise_any()
    values = parse_values(JOB, raw, context, problems)
    named = args.command or [values.get(("root",), "")]
    job = build(job_name(named), raw, values, ("command",), problems, context)
    plugins = _plugins(args, context, problems)
    state = default_state(context)
    settings = SupervisorSettings(name, state, default_runtime(context, state), plugins)
    check_all([job], settings, (), (), problems)
    problems.raise_any()
    return Config("the command line", settings, (job,))


def table_from_flags(args: argparse.Namespace) -> dict[str, Any]:
    """A job's table, as a configuration would have it.

    Raises ConfigError for single values that are wrong; what does not fit together is not asked.
    """
    problems = Problems(_place)
    raw = _raw(args, problems)
    parse_values(JOB, raw, Context(Path.cwd()), problems)
    problems.raise_any()
    table: dict[str, Any] = {}
    for key, item in raw.items():
        inner = table
        for part in key[:-1]:
            inner = inner.setdefault(part, {})
        inner[key[-1]] = item.value
    return table


def _plugins(args: argparse.Namespace, context: Context, problems: Problems) -> tuple[str, ...]:
    """The policies named by `--plugin`, paths made absolute."""
    result: list[str] = []
    for text in args.plugins:
        try:
            result.append(plugin(text, context))
        except Wrong as wrong:
            problems.add_all(("plugins",), wrong)
    return tuple(result)


def _raw(args: argparse.Namespace, problems: Problems) -> dict[Key, Found]:
    """Each flag that was given, as TOML would have said it."""
    raw: dict[Key, Found] = {}
    for setting in JOB.settings:
        given = getattr(args, _DEST + setting.key, None) if setting.flag else None
        if given is None:
            continue
        if setting.path[-1] == "*":
            raw |= _variables(setting, given, problems)
        else:
            raw[setting.path] = Found(_value(setting.kind, given), setting.path)
    return raw


def _value(kind: Kind, given: Any) -> Any:
    if isinstance(given, list):
        return [kind.raw(text) for text in given]
    return kind.raw(given) if isinstance(given, str) else given


def _variables(setting: Setting, given: list[str], problems: Problems) -> dict[Key, Found]:
    raw: dict[Key, Found] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals:
            problems.add(setting.path, f'"{text}" is not NAME=VALUE')
        raw[(*setting.path[:-1], name)] = Found(value, setting.path)
    return raw


def where(*path: str | int) -> str:
    """The flag that stands for a key of a configuration, as in `where("jobs", NAME, "on_exit")`."""
    return _place(path)[1]


def _place(path: KeyPath) -> tuple[int, str]:
    """A flag's name for the path of a setting ("jobs", JOB and "limits" in front of it or not)."""
    keys = tuple(str(key) for key in path if not isinstance(key, int))
    if keys[:1] == ("jobs",):
        keys = keys[2:]
    elif keys[:1] == ("supervisor",):
        keys = keys[1:]
    for end in range(len(keys), 0, -1):
        setting = JOB.find(keys[:end]) or JOB.find(tuple(".".join(keys[:end]).split(".")))
        if setting is not None and setting.flag:
            return JOB.settings.index(setting), f"--{setting.flag}"
    return -1, "--plugin" if keys[:1] == ("plugins",) else ".".join(keys) or "the job"


def job_name(command: list[str]) -> str:
    """A job's name from its program's, or its image's."""
    stem = Path(command[0]).name if command else ""
    safe = re.sub(r"[^A-Za-z0-9_.-]", "-", stem).lstrip(".-")[:64]
    return safe or "run"
