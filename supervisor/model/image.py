"""An image that is ready: its layers unpacked on this host, and what it says of how to run it.

May import: attrs.  Made by `image.store`, used by whoever starts a job in it.
"""

from __future__ import annotations

from attrs import frozen


@frozen
class ImageConfig:
    """What the image says (image-spec/config.md); a job may say otherwise.

    `working_dir`, `user` and `stop_signal` are "" where it says nothing.  `user` is as written:
    "name", "1000", "name:group" or "1000:1000", by the image's own /etc/passwd.  `volumes` are
    absolute paths inside, `exposed_ports` are as "80/tcp".
    """

    environment: tuple[tuple[str, str], ...] = ()
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    working_dir: str = ""
    user: str = ""
    stop_signal: str = ""
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()


@frozen
class Image:
    """An image in the store.

    digest     of its manifest: "sha256:..."
    layers     host directories of the unpacked layers, TOP FIRST, as overlayfs takes them
    platform   "linux/amd64", "linux/arm64/v8"
    """

    name: str
    digest: str
    layers: tuple[str, ...]
    config: ImageConfig = ImageConfig()
    platform: str = ""
