"""What the configuration says of images, turned into where jobs get theirs from; and told ahead.

May import: everything.  What is heavy is imported once a job has an image for its root.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import trio

from supervisor.errors import ImageError, SupervisorError
from supervisor.front import live
from supervisor.front.lines import clean, use_colour
from supervisor.front.pulling import Pulling
from supervisor.front.settings import Config
from supervisor.front.show import toml
from supervisor.image import reference
from supervisor.image.progress import Listener, Progress
from supervisor.image.reference import Local, Reference, Remote
from supervisor.model.image import Image
from supervisor.model.job import JobSpec
from supervisor.supervise.images import FromStore, Lease, Source, applied

if TYPE_CHECKING:
    from supervisor.image.store import Store


def source(config: Config) -> FromStore | None:
    """For the jobs of a configuration; None where none of them has an image."""
    return _source(config) if any(job.in_image for job in config.jobs) else None


def later(config: Config) -> Source:
    """For jobs that may yet come, too: nothing is imported before one of them has an image."""
    return source(config) or _Later(config)


class _Later:
    def __init__(self, config: Config) -> None:
        self._config = config
        self._source: FromStore | None = None

    def _made(self) -> FromStore:
        self._source = self._source or _source(self._config)
        return self._source

    async def acquire(self, wanted: Reference, told: Listener) -> Image:
        return await self._made().acquire(wanted, told)

    def lease(self, image: Image) -> Lease:
        return self._made().lease(image)


def _source(config: Config) -> FromStore:
    from supervisor.image import remote
    from supervisor.image.install import Choice
    from supervisor.image.unpack import Bounds

    wanted = config.images
    limits = wanted.limits
    bounds = Bounds(bytes=limits.bytes, entries=limits.entries, seconds=limits.seconds)
    registries = partial(remote.opener, wanted.registries)
    return FromStore(_store(config), Choice(wanted.platform, bounds), registries)


def shown(source: FromStore | None, stream: TextIO) -> FromStore | _Shown | None:
    """The same, with what is going on shown on `stream`, and nothing more once it is over."""
    return None if source is None else _Shown(source, stream)


class _Shown:
    def __init__(self, source: FromStore, stream: TextIO) -> None:
        self._source = source
        self._stream = stream

    async def acquire(self, wanted: Reference, told: Listener) -> Image:
        view = Pulling(
            self._stream,
            live=live.available(self._stream, os.environ),
            colour=use_colour("auto", self._stream, os.environ),
        )

        def both(step: Progress) -> None:
            told(step)
            view(step)

        failed: SupervisorError | OSError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(view.run)
            try:
                image = await self._source.acquire(wanted, both)
            except (SupervisorError, OSError) as error:
                failed = error  # not in a group, which is what a nursery would make of it
            nursery.cancel_scope.cancel()
        if failed is not None:
            raise failed
        return image

    def lease(self, image: Image) -> Lease:
        return self._source.lease(image)


def _store(config: Config) -> Store:
    from supervisor.image.store import Store

    return Store(config.images.place(config.supervisor.state_dir))


def found(config: Config, job: JobSpec) -> Image | None:
    """The image of a job, if it is in the store already.  Raises ImageError."""
    from supervisor.image.acquire import name_of

    wanted = reference.parse(job.root)
    assert not isinstance(wanted, reference.Host | reference.Directory)
    return _store(config).find(name_of(wanted))


def resolved(config: Config, job: JobSpec) -> JobSpec:
    """The job with what its image says.  Raises ImageError where that is not there yet."""
    if not job.in_image:
        return job
    image = found(config, job)
    if image is None:
        raise ImageError(lacking(config, job), job.root)
    return applied(job, image)


def lacking(config: Config, job: JobSpec) -> str:
    """What is to be done about an image that is not in the store."""
    place = config.images.place(config.supervisor.state_dir)
    match reference.parse(job.root):
        case Local(name):
            pull = f"supervise image pull docker://{name}"
            return f"is not in the store {place}; {pull} gets it, and a directory begins with ./"
        case Remote():
            return f"is not in the store {place}: it is pulled before the job starts"
        case reference.Host() | reference.Directory():
            return ""
        case file:
            if not Path(file.path).exists():
                return f"is not in the store {place}, and {file.path} does not exist"
            return f"is not in the store {place}: it is taken from there before the job starts"


def told(config: Config) -> Iterator[str]:
    """For each job in an image, what that would give it, a line each; or that it is not there."""
    for job in config.jobs:
        if job.in_image:
            try:
                image = found(config, job)
                given = None if image is None else applied(job, image)
            except ImageError as error:
                yield clean(f"{job.name}: {error}")
                continue
            if image is None or given is None:
                yield clean(f"{job.name}: image {job.root} {lacking(config, job)}")
            else:
                yield clean(f"{job.name}: {_gives(image, given)}")


def _gives(image: Image, given: JobSpec) -> str:
    """The settings that depend on the image, as TOML has them."""
    user = ":".join(filter(None, (given.user or "0", given.user_group)))
    settings = {
        "command": list(given.command),
        "working_dir": given.working_dir,
        "user": user,
        "stop": {"signal": given.stop.signal},
        "environment": dict(given.environment),
    }
    says = ", ".join(f"{key} = {toml(value)}" for key, value in settings.items())
    layers = f"{len(image.layers)} layers"
    return f"image {image.name} ({image.digest[:19]}, {layers}): {says}"
