"""The checks that need the whole configuration: names that must exist, cycles, capacity.

May import: `model`, `policy.registry`, `front.problems`, `front.settings`.  Whether a policy can
be loaded is not asked here: that runs its code, and is `policy.registry.load`'s to tell.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from supervisor.front.problems import Problems, found, unknown
from supervisor.front.settings import Capacity, SupervisorSettings
from supervisor.front.toml_lines import Path
from supervisor.model.job import JobSpec, PolicyName
from supervisor.model.units import size_text
from supervisor.policy.registry import name_of


def check_all(
    jobs: Sequence[JobSpec],
    settings: SupervisorSettings,
    policies: Iterable[str],
    tables: Collection[str],
    problems: Problems,
) -> None:
    """Every check between jobs, settings and policies; `tables` are the names under [jobs]."""
    plugins = [name_of(plugin) for plugin in settings.plugins]
    for index, name in enumerate(plugins):
        if name in plugins[:index]:
            problems.add(("supervisor", "plugins", index), f'the policy "{name}" is there twice')
    used = [*plugins, *_named_in_hooks(jobs)]
    for name in policies:
        if name not in used:
            problems.add(("policies", name), _unused(name, used))
    origins = {job.name: _origin(job, tables) for job in jobs}
    for job in jobs:
        _check_capacity(job, settings.capacity, origins[job.name], problems)
    _check_reach(jobs, origins, problems)
    if _check_after(jobs, origins, problems):
        _check_cycle(jobs, origins, problems)


def _origin(job: JobSpec, tables: Collection[str]) -> Path:
    return ("jobs", job.name if job.name in tables else job.group)


def _named_in_hooks(jobs: Iterable[JobSpec]) -> dict[str, None]:
    """The policies that jobs' own hooks name: in use without being among the plugins."""
    hooks = (hook for job in jobs for hook in job.hooks.values())
    return {name_of(hook.name): None for hook in hooks if isinstance(hook, PolicyName)}


def _unused(name: str, used: Sequence[str]) -> str:
    if not used:
        return f"{found(name)} is not in use: name it in supervisor.plugins, or in a job's hook"
    return f"{found(name)} is neither among the plugins nor in a hook; {unknown(name, used)}"


def _check_capacity(job: JobSpec, capacity: Capacity, origin: Path, problems: Problems) -> None:
    """A job that needs more than there ever is would wait for ever."""
    memory, cpus = job.limits.memory, job.limits.cpus
    never = "; it could never start"
    if capacity.memory is not None and memory is None:
        _uncounted("memory", origin, problems)
    if capacity.memory is not None and memory is not None and memory > capacity.memory:
        shown = f"{size_text(memory)} is more than capacity.memory, {size_text(capacity.memory)}"
        problems.add((*origin, "limits", "memory"), shown + never)
    if capacity.cpus is not None and cpus is None:
        _uncounted("cpus", origin, problems)
    if capacity.cpus is not None and cpus is not None and cpus > capacity.cpus:
        shown = f"{cpus:g} is more than capacity.cpus, {capacity.cpus:g}"
        problems.add((*origin, "limits", "cpus"), shown + never)


def _uncounted(limit: str, origin: Path, problems: Problems) -> None:
    """A job that is not counted would make the capacity a promise not kept."""
    key = ("limits", limit)
    if any(problems.about((*where, *key)) for where in (origin, ("defaults",))):
        return  # there is a limit: it is just wrong
    problems.add(
        (*origin, *key),
        f"is not set, so the job would not count against capacity.{limit}; set it here or in "
        f"[defaults], or leave capacity.{limit} out",
    )


def _check_after(jobs: Sequence[JobSpec], origins: Mapping[str, Path], problems: Problems) -> bool:
    """Whether every name in `after` is a job or a group of jobs."""
    known = {name: None for job in jobs for name in (job.group, job.name)}
    missing: dict[str, str] = {}
    for job in jobs:
        for name in job.after:
            if name in known:
                continue
            if name not in missing:
                missing[name] = f"{found(name)} is no job; {unknown(name, known)}"
            problems.add((*origins[job.name], "after"), missing[name])
    return not missing


def _check_reach(jobs: Sequence[JobSpec], origins: Mapping[str, Path], problems: Problems) -> None:
    """Whether every name in `reach` is a job on the bridge, or a group of such."""
    known = {name: job for job in jobs for name in (job.group, job.name)}
    for job in jobs:
        for name in job.reach:
            if name not in known:
                text = f"{found(name)} is no job; {unknown(name, known)}"
            elif known[name].network != "bridge":
                text = f'{found(name)} has no network = "bridge"'
            else:
                continue
            problems.add((*origins[job.name], "reach"), text)


def _check_cycle(jobs: Sequence[JobSpec], origins: Mapping[str, Path], problems: Problems) -> None:
    cycle = _find_cycle(_edges(jobs))
    if cycle:
        first = next(job for job in jobs if cycle[0] in (job.name, job.group))
        message = "these wait for each other: " + " -> ".join(cycle)
        problems.add((*origins[first.name], "after"), message)


def _edges(jobs: Sequence[JobSpec]) -> dict[str, list[str]]:
    """Who waits for whom.  A group waits for its members, so that no edge is multiplied."""
    edges: dict[str, list[str]] = {job.name: list(job.after) for job in jobs}
    for job in jobs:
        if job.group != job.name:
            edges.setdefault(job.group, []).append(job.name)
    return edges


def _find_cycle(edges: Mapping[str, list[str]]) -> list[str]:
    """One way from a node back to it, or nothing.  Without recursion: chains may be long."""
    done: set[str] = set()
    for start in edges:
        way, todo = [start], [iter(edges[start])]
        on_way = {start}
        if start in done:
            continue
        while todo:
            after = next(todo[-1], None)
            if after is None:
                todo.pop()
                leaving = way.pop()
                on_way.discard(leaving)
                done.add(leaving)
            elif after in on_way:
                return [*way[way.index(after) :], after]
            elif after not in done:
                way.append(after)
                on_way.add(after)
                todo.append(iter(edges[after]))
    return []
