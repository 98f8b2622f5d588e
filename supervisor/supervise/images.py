"""The images of an instance's jobs: each acquired once, held while the instance lives, and applied.

Whatever asks for an image while it is on its way waits for the same one; who gives up alone does
not end it, the last one does.  An image that was acquired stays the one of its name until the
instance ends: jobs that start later, and retries, get the same digest.

May import: everything above `front`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import trio
from attrs import define, evolve, field

from supervisor.container import users, view
from supervisor.errors import ImageError, SupervisorError
from supervisor.image import reference
from supervisor.image.progress import Listener, Progress
from supervisor.image.reference import Reference
from supervisor.model.image import Image
from supervisor.model.job import JobSpec

if TYPE_CHECKING:  # heavy, and of no use to jobs without an image
    from supervisor.image.acquire import OpenRemote
    from supervisor.image.install import Choice
    from supervisor.image.store import Store


class Lease(Protocol):
    """What keeps an image in the store: for as long as one copy of `fd` is open somewhere."""

    @property
    def fd(self) -> int: ...

    def close(self) -> None: ...


class Source(Protocol):
    """Where images come from: `image.acquire` over a store; in tests, something smaller."""

    async def acquire(self, wanted: Reference, told: Listener) -> Image: ...

    def lease(self, image: Image) -> Lease: ...


@define
class _Getting:
    """An image on its way, and how many jobs wait for it."""

    waiting: int = 0
    done: trio.Event = field(factory=trio.Event)
    scope: trio.CancelScope = field(factory=trio.CancelScope)
    image: Image | None = None
    error: SupervisorError | None = None
    steps: dict[str, Progress] = field(factory=dict)


class FromStore:
    """The store of images, and whatever a reference says that it may be filled from."""

    def __init__(
        self, store: Store, choice: Choice, remote: Callable[[Listener], OpenRemote]
    ) -> None:
        self._store = store
        self._choice = choice
        self._remote = remote

    async def acquire(self, wanted: Reference, told: Listener) -> Image:
        from supervisor.image import acquire

        return await acquire.acquire(
            self._store,
            wanted,
            choice=self._choice,
            progress=told,
            remote=self._remote(told),
        )

    def lease(self, image: Image) -> Lease:
        return self._store.lease(image)


class Images:
    """Those of one instance; `source` None: it can have none."""

    def __init__(
        self, source: Source | None, nursery: trio.Nursery, emit: Callable[..., None]
    ) -> None:
        self._source = source
        self._nursery = nursery
        self._emit = emit
        self._ready: dict[str, tuple[Image, Lease]] = {}
        self._getting: dict[str, _Getting] = {}

    async def get(self, root: str, job: str) -> Image:
        """The image that `root` names, which `job` wants.  Raises SupervisorError."""
        if root in self._ready:
            return self._ready[root][0]
        getting = self._getting.get(root)
        if getting is None:
            getting = self._getting[root] = _Getting()
            self._emit("image_wanted", job=job, image=root)
            self._nursery.start_soon(self._get, root, getting)
        getting.waiting += 1
        try:
            await getting.done.wait()
        finally:
            getting.waiting -= 1
            if not getting.waiting and not getting.done.is_set():
                self._getting.pop(root, None)
                getting.scope.cancel()
        if getting.error is not None:
            raise getting.error
        assert getting.image is not None
        return getting.image

    async def _get(self, root: str, getting: _Getting) -> None:
        def hear(step: Progress) -> None:
            getting.steps[step.digest] = step

        with getting.scope:
            try:
                self._ready[root] = await self._held(root, hear)
                getting.image = image = self._ready[root][0]
                self._emit(
                    "image_ready", image=image.name, digest=image.digest,
                    layers=len(image.layers), platform=image.platform,
                )  # fmt: skip
            except SupervisorError as error:
                getting.error = error
            except OSError as error:
                where = os.fsdecode(error.filename) if error.filename else root
                getting.error = ImageError(error.strerror or str(error), where)
            if self._getting.get(root) is getting:
                del self._getting[root]
            getting.done.set()

    async def _held(self, root: str, hear: Listener) -> tuple[Image, Lease]:
        """Acquired and leased: somebody may remove it in between, which is told as ImageError."""
        if self._source is None:
            raise ImageError("there is no store of images here", root)
        for last in (False, False, True):
            image = await self._source.acquire(reference.parse(root), hear)
            try:
                return image, self._source.lease(image)
            except ImageError:
                if last:
                    raise
        raise AssertionError("the last attempt returns or raises")

    def lease(self, root: str) -> int:
        """The descriptor that holds the image acquired for `root`."""
        return self._ready[root][1].fd

    def progress(self, root: str) -> str:
        """How far it has come, for people; "" while that is not known."""
        getting = self._getting.get(root)
        steps = list(getting.steps.values()) if getting is not None else []
        total = sum(step.total for step in steps)
        return f" ({sum(step.done for step in steps) * 100 // total}%)" if total else ""

    def close(self) -> None:
        """Let go of them; those that a job's init holds stay held."""
        for _image, lease in self._ready.values():
            lease.close()
        self._ready.clear()


def applied(spec: JobSpec, image: Image) -> JobSpec:
    """The job with what its image says wherever it says nothing itself (image-spec/config.md).

    Raises ImageError for what cannot be carried out.
    """
    config = image.config
    _check_text(image)
    layers = shown(image.layers)
    user, group = _user(spec, image, layers)
    working_dir = spec.working_dir or _inside(config.working_dir)
    wanted = (working_dir, *map(_inside, config.volumes))
    stop = spec.stop.signal or _signal(image)
    return evolve(
        spec,
        command=_command(spec, image),
        layers=layers,
        places=tuple(dict.fromkeys(path for path in wanted if path != "/")),
        environment=dict(config.environment) | dict(spec.environment),
        working_dir=working_dir,
        user=user,
        user_group=group,
        stop=evolve(spec.stop, signal=stop),
    )


def shown(layers: tuple[str, ...]) -> tuple[str, ...]:
    """Those that are not hidden whole: below an opaque root there is nothing to be seen.

    overlayfs itself does not ask that of a layer's root.
    """
    for number, layer in enumerate(layers):
        if view.is_opaque(layer):
            return layers[: number + 1]
    return layers


def _command(spec: JobSpec, image: Image) -> tuple[str, ...]:
    """As docker(1) has it: a command replaces the image's, an entrypoint both of the image's."""
    config = image.config
    if spec.entrypoint is None:
        command = config.entrypoint + (spec.command or config.command)
    else:
        command = spec.entrypoint + spec.command
    if not command or not command[0]:
        hint = "give the job a command"
        raise ImageError("the image has neither an entrypoint nor a command", image.name, hint=hint)
    return command


def _user(spec: JobSpec, image: Image, layers: tuple[str, ...]) -> tuple[str | None, str | None]:
    """User and group; of a bare number that the image has no user for, group 0, as docker(1)."""
    if spec.user is not None or not image.config.user:
        return spec.user, spec.user_group
    user, _, group = image.config.user.partition(":")
    if not group and spec.user_group is None and user.isdigit():
        group = "" if users.knows(view.View(layers, united=True), user) else "0"
    return user or None, spec.user_group or group or None


def _signal(image: Image) -> str:
    said = image.config.stop_signal
    name = said.upper().removeprefix("SIG")
    try:
        if not said:
            return "TERM"
        number = int(said) if said.isascii() and said.isdigit() else signal.Signals[f"SIG{name}"]
        return signal.Signals(number).name.removeprefix("SIG")
    except (ValueError, KeyError):
        hint = "set stop.signal"
        raise ImageError(f'its stop signal "{said}" is none', image.name, hint=hint) from None


def _inside(path: str) -> str:
    """An absolute path in the image; what is relative begins at its root."""
    return "/" + os.path.normpath("/" + path).lstrip("/")


def _check_text(image: Image) -> None:
    """execve(2) and paths take bytes without a zero, and JSON can say others."""
    config = image.config
    texts = [*config.entrypoint, *config.command, config.working_dir, config.user, *config.volumes]
    for text in (*texts, *(part for pair in config.environment for part in pair)):
        try:
            bad = b"\0" in os.fsencode(text)
        except UnicodeEncodeError:
            bad = True
        if bad:
            raise ImageError(f"its configuration has {text!r:.60}", image.name)
    for name, _value in config.environment:
        if not name or "=" in name:
            raise ImageError(f"its configuration has a variable {name!r:.60}", image.name)
