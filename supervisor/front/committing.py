"""`supervise commit`: what a run has written, on top of its image, as an image of its own.

May import: `errors`, `model`, `image`, `front.layers`.
"""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime
from typing import Any

from supervisor.errors import ImageError, KernelError, SupervisorError
from supervisor.front.layers import Left
from supervisor.image import oci
from supervisor.image.adding import NewLayer, add
from supervisor.image.pack import Packed, pack
from supervisor.image.reference import Local, parse
from supervisor.image.store import Record, Store
from supervisor.model.image import Image

NO_IMAGE = (
    "the root of a run to be committed is an image: supervise rootfs build --save makes one, and "
    "tar:FILE is one"
)


def commit(left: Left, name: str, store: Store, *, comment: str = "") -> tuple[Image, Packed]:
    """Put the image into the store under `name`; raises SupervisorError."""
    _check_name(name)
    base = _base(left, store)
    with store.workspace() as workspace:
        archive = workspace.directory() / "layer.tar"
        try:
            with archive.open("wb") as out:
                packed = pack(left.upper, out, upper=True, shift=_shift(left.spec))
        except OSError as error:
            raise KernelError(
                "pack", str(error.filename or left.upper), error.errno or 0
            ) from error
        layers: list[NewLayer | str] = [*base.layers, NewLayer(archive, packed.diff_id)]
        image = add(store, config=_config(left, base, store, comment), layers=layers, name=name)
    return image, packed


def _check_name(name: str) -> None:
    try:
        reference = parse(name)
    except ValueError as error:
        raise SupervisorError(str(error)) from None
    if not isinstance(reference, Local) or "@" in name or name.startswith("sha256:"):
        raise SupervisorError(f"{name}: not a name for an image in the store", hint="as NAME:TAG")


def _base(left: Left, store: Store) -> Record:
    if left.image is None:
        raise SupervisorError(f"{left.directory}: its root is {left.spec['root']}", hint=NO_IMAGE)
    record = store.record(left.image["digest"])
    if record is None:
        text = f"the run's image is no longer in the store {store.root}"
        raise ImageError(text, left.image["digest"], hint=f"get {left.image['name']} again")
    return record


def _shift(spec: dict[str, Any]) -> int:
    """What is taken off the numbers of a job that had its own."""
    space = spec["user_namespace"]
    return int(space["host_id"]) if space["kind"] == "map" else 0


def _config(left: Left, base: Record, store: Store, comment: str) -> dict[str, Any]:
    """The base's, with one more line of history."""
    config = dict(json.loads(store.blobs.read(base.config, oci.LARGEST_CONFIG)))
    now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    line = {"created": now, "created_by": shlex.join(left.spec["command"])}
    history = config.get("history") or []
    return {
        **config,
        "created": now,
        "history": [*history, line | ({"comment": comment} if comment else {})],
    }
