"""The hooks that a plugin implements, verified when it is registered, not when an event fires.

May import: `errors`, `policy.hookspec`, `policy.arguments`, pluggy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import ModuleType

import pluggy
from attrs import frozen

from supervisor.errors import ConfigError
from supervisor.policy import hookspec
from supervisor.policy.arguments import nearest


@frozen
class Implementation:
    """A hook's function and the names of the arguments it takes."""

    function: Callable[..., object]
    takes: tuple[str, ...]


def implementations(name: str, plugin: object, module: ModuleType) -> Mapping[str, Implementation]:
    """The hooks of `plugin`, an instance of its class or `module` itself.

    Raises ConfigError with a line for each that could never be called.
    """
    manager = pluggy.PluginManager(hookspec.PROJECT)
    manager.add_hookspecs(hookspec)
    hooks = {hook: caller.spec.argnames for hook, caller in vars(manager.hook).items()}
    marked = _marked(manager, plugin)
    problems = _unmarked(plugin, marked, hooks)
    if plugin is not module:
        problems += [
            f"{each}: beside the class Policy, it must be a method of it"
            for each in _marked(manager, module)
        ]
    for attribute, options in marked.items():
        implementation = pluggy.HookImpl(plugin, name, getattr(plugin, attribute), options)
        problems += _misuse(options["specname"] or attribute, implementation, hooks)
    if not marked and not problems:
        problems.append("has no hook: mark a function with @hookimpl")
    if problems:
        raise ConfigError(f"policy {name}: {problem}" for problem in problems)
    return _registered(manager, name, plugin)


def _marked(manager: pluggy.PluginManager, plugin: object) -> dict[str, pluggy.HookimplOpts]:
    found = {each: manager.parse_hookimpl_opts(plugin, each) for each in dir(plugin)}
    return {each: options for each, options in found.items() if options is not None}


def _unmarked(
    plugin: object, marked: Mapping[str, object], hooks: Mapping[str, object]
) -> list[str]:
    """Functions that look like hooks and would silently never be called."""
    problems = []
    for each in dir(plugin):
        looks = each in hooks or each.startswith("on_")
        if looks and each not in marked and inspect.isroutine(inspect.getattr_static(plugin, each)):
            known = "" if each in hooks else f", and no hook either; {nearest(each, hooks)}"
            problems.append(f"{each}: not marked with @hookimpl{known}")
    return problems


def _misuse(
    hook: str, implementation: pluggy.HookImpl, hooks: Mapping[str, tuple[str, ...]]
) -> list[str]:
    if hook not in hooks:
        return [f"{hook}: no such hook; {nearest(hook, hooks)}"]
    if implementation.wrapper or implementation.hookwrapper:
        return [f"{hook}: a hook cannot wrap those of others"]
    if implementation.tryfirst or implementation.trylast:
        return [f"{hook}: the order is that of the configuration"]
    takes = implementation.argnames
    problems = [
        f'{hook}: no such argument as "{each}"; {nearest(each, hooks[hook])}'
        for each in takes
        if each not in hooks[hook]
    ]
    return problems or _uncallable(hook, implementation.function, takes)


def _uncallable(hook: str, function: Callable[..., object], takes: tuple[str, ...]) -> list[str]:
    """pluggy does not look at keyword-only arguments."""
    try:
        inspect.signature(function).bind(**dict.fromkeys(takes))
    except TypeError as err:
        return [f"{hook}: cannot be called: {err}"]
    return []


def _registered(
    manager: pluggy.PluginManager, name: str, plugin: object
) -> dict[str, Implementation]:
    """pluggy's own verification has the last word."""
    try:
        manager.register(plugin, name)
        manager.check_pending()
    except pluggy.PluginValidationError as err:
        raise ConfigError([f"policy {name}: {' '.join(str(err).split())}"]) from err
    return {
        hook: Implementation(each.function, each.argnames)
        for hook, caller in vars(manager.hook).items()
        for each in caller.get_hookimpls()
    }
