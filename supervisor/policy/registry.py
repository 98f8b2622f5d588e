"""Loading policies: by path, by the name of a bundled one, or of an installed entry point.

May import: `errors`, `model`, the rest of `policy`, pluggy.  A plugin is a module.  Its hooks are
functions of the module marked with `@hookimpl` or, where it takes arguments, methods of its class
`Policy`, which is built with an instance of its attrs class `Arguments`.  Everything that can be
wrong with a plugin is found here, at start.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import attrs
from attrs import frozen

from supervisor.errors import ConfigError, PolicyError
from supervisor.model import JobSpec, PolicyName
from supervisor.policy.arguments import ArgumentsError, nearest, structure
from supervisor.policy.asking import described
from supervisor.policy.implementations import Implementation, implementations

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "supervise.plugins"
"""The entry point group of installed policies."""

Where = Callable[..., str]
"""`where("policies", "grow-memory", "max")` is "FILE:LINE" of that key."""


@frozen
class Policy:
    """A loaded plugin.  `general`: asked about every job, not only about those that name it."""

    name: str
    source: str
    hooks: Mapping[str, Implementation]
    general: bool = True


def load(
    plugins: Sequence[str],
    arguments: Mapping[str, Mapping[str, Any]] | None = None,
    jobs: Iterable[JobSpec] = (),
    *,
    where: Where | None = None,
) -> tuple[Policy, ...]:
    """The policies of `plugins` (names, or paths of files), in that order, ready to be asked.

    `arguments` are the tables `[policies.NAME]`.  A policy that only a hook of one of `jobs`
    names is loaded too, for that hook alone.  Raises ConfigError with everything that is wrong,
    one line each, led by `where` it stands in the configuration.
    """
    loading = _Loading(arguments or {}, where)
    for at, plugin in enumerate(plugins):
        loading.add(plugin, ("supervisor", "plugins", at))
    for job in jobs:
        for hook, own in job.hooks.items():
            if isinstance(own, PolicyName):
                loading.add_named(own.name, job, hook)
    loading.check_leftover()
    if loading.problems:
        raise ConfigError(loading.problems)
    return tuple(policy for policy in loading.policies.values() if policy is not None)


def name_of(plugin: str) -> str:
    """The name a policy goes by in `[policies.NAME]` and in hooks: a file's is its stem."""
    return Path(plugin).stem if "/" in plugin else plugin


def bundled() -> dict[str, Path]:
    """The policies that come with the command, by name."""
    package = Path(__file__).resolve().parent.parent
    # An installed wheel carries them inside the package; beside it lies a stranger's `plugins`.
    inside, beside = package / "bundled", package.parent / "plugins"
    files = (inside if inside.is_dir() else beside).glob("*.py")
    return {file.stem.replace("_", "-"): file for file in sorted(files) if file.stem[0] != "_"}


def installed() -> dict[str, EntryPoint]:
    """The policies that installed distributions offer, by name."""
    from importlib.metadata import entry_points  # 30 ms, for who uses one

    return {entry.name: entry for entry in entry_points(group=GROUP)}


class _Loading:
    """The policies and the problems so far; a policy that failed stands as None."""

    def __init__(self, arguments: Mapping[str, Mapping[str, Any]], where: Where | None) -> None:
        self.arguments = arguments
        self.where = where
        self.policies: dict[str, Policy | None] = {}
        self.problems: list[str] = []

    def add(self, plugin: str, at: tuple[str | int, ...], *, general: bool = True) -> None:
        name = name_of(plugin)
        if name in self.policies:
            self.tell(at, f'two policies are called "{name}": rename a file, or drop one')
            return
        self.policies[name] = None
        try:
            source, module = _module(plugin)
            instance = _instance(module, name, source, self.arguments.get(name))
            hooks = implementations(name, instance, module)
            self.policies[name] = Policy(name, source, hooks, general)
        except ArgumentsError as err:
            for path, text in err.problems:
                key = ".".join(path)
                told = f"{key}: {text}" if key else text
                self.tell(("policies", name, *path), f"[policies.{name}] {told}")
        except ConfigError as err:
            for problem in err.problems:
                self.tell(at, problem)
        except PolicyError as err:
            self.tell(at, str(err))

    def add_named(self, plugin: str, job: JobSpec, hook: str) -> None:
        at = ("jobs", job.group or job.name, hook)
        name = name_of(plugin)
        if name not in self.policies:
            self.add(plugin, at, general=False)
        policy = self.policies[name]
        if policy is not None and "/" in plugin and policy.source != plugin:
            self.tell(at, f'two policies are called "{name}": {policy.source} and {plugin}')
        if policy is not None and hook not in policy.hooks:
            has = ", ".join(policy.hooks)
            self.tell(at, f'jobs.{job.name}.{hook}: policy "{name}" has no {hook} (it has {has})')

    def check_leftover(self) -> None:
        for name in self.arguments:
            if name not in self.policies:
                way = nearest(name, self.policies) if self.policies else "name it in plugins"
                self.tell(("policies", name), f"[policies.{name}] no such policy is loaded; {way}")

    def tell(self, at: tuple[str | int, ...], problem: str) -> None:
        line = f"{self.where(*at)}: {problem}" if self.where else problem
        if line not in self.problems:
            self.problems.append(line)


def _module(plugin: str) -> tuple[str, ModuleType]:
    """The file and the module of a plugin; raises PolicyError."""
    if "/" in plugin:
        return _from_file(Path(plugin), plugin)
    ours = bundled()
    if plugin in ours:
        return _from_file(ours[plugin], plugin)
    theirs = installed()
    if plugin not in theirs:
        raise PolicyError(
            f'no policy is called "{plugin}"; {nearest(plugin, [*ours, *theirs])}',
            hint=f"looked among the bundled and the entry points {GROUP}; a file needs a path",
        )
    module = _guarded(theirs[plugin].load, f"{plugin} ({theirs[plugin].value})", "")
    if not isinstance(module, ModuleType):
        raise PolicyError(f"{plugin}: the entry point {theirs[plugin].value} names no module")
    return module.__file__ or plugin, module


def _from_file(path: Path, plugin: str) -> tuple[str, ModuleType]:
    if not path.is_file():
        near = [str(each) for each in path.parent.glob("*.py")] if path.parent.is_dir() else []
        way = f"; {nearest(str(path), near)}" if near else ""
        raise PolicyError(f"policy {path}: no such file{way}")
    # Annotations written as strings are looked up in sys.modules; the name must be nobody else's.
    name = f"supervise_policy_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PolicyError(f"policy {path}: not a Python file (its name must end in .py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader = spec.loader
    try:
        _guarded(lambda: loader.exec_module(module), plugin, str(path))
    except PolicyError:
        del sys.modules[name]
        raise
    return str(path), module


def _instance(
    module: ModuleType, name: str, source: str, table: Mapping[str, Any] | None
) -> object:
    """What carries the hooks: the module itself, or its `Policy` built with its arguments."""
    arguments = getattr(module, "Arguments", None)
    policy = getattr(module, "Policy", None)
    if arguments is None and table:
        raise ArgumentsError([((key,), "this policy takes no arguments") for key in table])
    if policy is None and arguments is not None:
        raise PolicyError(f"policy {name}: has a class Arguments, but no class Policy to take it")
    if policy is None:
        return module
    if arguments is None:
        return _guarded(policy, name, source)
    if not (isinstance(arguments, type) and attrs.has(arguments)):
        raise PolicyError(f"policy {name}: Arguments must be an attrs class")
    return _guarded(lambda: policy(structure(arguments, table or {})), name, source)


def _guarded(run: Callable[[], Any], who: str, source: str) -> Any:
    """Run a plugin's code; whatever it raises, sys.exit() included, becomes a PolicyError."""
    try:
        return run()
    except (KeyboardInterrupt, ArgumentsError):
        raise
    except BaseException as err:
        raise PolicyError(f"policy {who}: {described(err, source)}") from err
