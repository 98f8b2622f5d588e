"""What is looked at before anything is started: limits that hold here, privilege that is there.

May import: `errors`, `model`, `linux`, `cgroup.api`, `container.{devices,disk,pasta}`,
`supervise.storage`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from attrs import evolve

from supervisor.cgroup.api import CgroupManager, Missing
from supervisor.container import disk
from supervisor.container.devices import rests_on_cgroup
from supervisor.errors import LimitError, SupervisorError
from supervisor.linux import caps, nft, pasta
from supervisor.model.job import JobSpec
from supervisor.supervise.storage import place_of

WAYS_OUT = (
    "as root: sudo supervise ...",
    "below a delegated cgroup: systemd-run --user --scope -p Delegate=yes supervise ...",
    'on_missing = "warn" (--on-missing warn), without the limits that then do not hold',
)
"""What somebody without privilege can do."""


def check(manager: CgroupManager, specs: Iterable[JobSpec], on_missing: str) -> None:
    """Raises SupervisorError, all that is lacking in one message: then nothing was started."""
    jobs = tuple(specs)
    privileged = _privileged()
    lines = _limits(manager, jobs, fixes=privileged) if on_missing == "refuse" else []
    bridged = [job.name for job in jobs if job.network == "bridge"]
    if bridged and privileged and nft.program() is None:
        text = f'network = "bridge" of {_names(bridged)}: nft is not installed'
        raise SupervisorError(text, hint=f'{nft.HINT}, or set network = "none"')
    alone = [job.name for job in jobs if job.user_namespace.kind == "host" and not privileged]
    if alone:
        lines.append(
            f"namespaces of {_names(alone)}: they need CAP_SYS_ADMIN; "
            'or user_namespace = "auto" (--user-namespace auto)'
        )
    if bridged and not privileged:
        lines += _network(jobs)
    if not lines:
        return
    if privileged:
        raise LimitError(["this host lacks:", *lines], hint='or on_missing = "warn": without them')
    ways = [f"way {n} out: {way}" for n, way in enumerate(WAYS_OUT, 1)]
    raise SupervisorError("\n  ".join(["lacking privilege:", *lines, *ways]))


def check_disks(specs: Iterable[JobSpec], runs: Path | None) -> None:
    """Raises LimitError where a layer cannot be held to its size; `runs` is where layers lie."""
    found: dict[str, list[str]] = {}
    for job in specs:
        if job.limits.disk is None:
            continue
        privileged = _privileged()
        if privileged and job.user_namespace.kind == "auto":
            job = evolve(job, user_namespace=evolve(job.user_namespace, kind="map"))
        way, lines = disk.choose(job, place_of(job, runs), privileged=privileged)
        if way is None:
            found.setdefault("; ".join(lines), []).append(job.name)
    if found:
        told = [f"limits.disk of {_names(names)}: {why}" for why, names in found.items()]
        raise LimitError(["this host lacks:", *told], hint='or disk_by = "auto"')


def _privileged() -> bool:
    return os.geteuid() == 0 and bool(caps.effective() >> caps.CAP_SYS_ADMIN & 1)


def _network(jobs: tuple[JobSpec, ...]) -> list[str]:
    """What keeps jobs from the network without root: pasta itself, or what it has not."""
    from supervisor.container.pasta import lacks

    bridged = [job for job in jobs if job.network == "bridge"]
    found: dict[str, list[str]] = {}
    for job in bridged:
        for text in lacks(job):
            found.setdefault(text, []).append(job.name)
    lines = []
    there = pasta.lacking()
    if there is not None:
        what, hint = there
        names = _names([job.name for job in bridged])
        lines.append(f'network = "bridge" of {names}: {what} ({hint}; or network = "none")')
    for text, names_of in found.items():
        key, _, why = text.partition(": ")
        lines.append(f"{key} of {_names(names_of)}: {why}")
    return lines


def _limits(manager: CgroupManager, jobs: tuple[JobSpec, ...], *, fixes: bool) -> list[str]:
    """A line for each limit and each reason, with the jobs it is about."""
    found: dict[Missing, list[str]] = {}
    for job in jobs:
        watched = job.pressure.wanted() if "on_pressure" in job.hooks else ()
        lacking = [*manager.missing(job.limits), *manager.missing_pressure(watched)]
        unguarded = manager.missing_devices() if rests_on_cgroup(job) else None
        for one in (*lacking, *([unguarded] if unguarded else ())):
            found.setdefault(one, []).append(job.name)
    return [
        f"{one.key} of {_names(names)}: {one.why}" + f" (fix: {one.fix})" * fixes
        for one, names in found.items()
    ]


def _names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} jobs ({names[0]}, ...)"
