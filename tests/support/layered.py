"""Jobs in images whose layers a test has made by hand, as no honest image would have them.

`python -m tests.support.layered IMAGES ARGUMENTS` is the command with a source of images that
reads the file IMAGES instead of a store; all else is as a user has it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from supervisor.front import cli, up
from supervisor.image.progress import Listener
from supervisor.image.reference import Reference
from supervisor.model.image import Image, ImageConfig
from tests.support.command import ROOT, State
from tests.support.containers import Ended, ended, write_config


@frozen
class Lease:
    fd: int

    def close(self) -> None:
        os.close(self.fd)


class ByHand:
    """A source of images: each name with its layers, and what it says."""

    def __init__(self, path: Path) -> None:
        self._images: dict[str, Any] = json.loads(path.read_text())

    async def acquire(self, wanted: Reference, told: Listener) -> Image:
        said = self._images[str(wanted)]
        config: dict[str, Any] = {
            key: tuple(tuple(one) if isinstance(one, list) else one for one in value)
            if isinstance(value, list) else value
            for key, value in said["config"].items()
        }  # fmt: skip
        return Image(
            str(wanted), "sha256:" + "0" * 64, tuple(said["layers"]), ImageConfig(**config)
        )

    def lease(self, image: Image) -> Lease:
        return Lease(os.open(image.layers[0], os.O_RDONLY | os.O_CLOEXEC))


def main(images: str, *arguments: str) -> int:
    settings_of = up.settings_of
    up.settings_of = lambda config: evolve(settings_of(config), images=ByHand(Path(images)))
    return cli.command(arguments)


def run_in(
    where: State,
    images: Mapping[str, tuple[Sequence[Path], Mapping[str, Any]]],
    jobs: Mapping[str, Mapping[str, Any]],
    *,
    wrapper: Sequence[str] = (),
) -> dict[str, Ended]:
    """Run `jobs`; `images` has for each root the layers, top first, and the configuration."""
    told = {
        name + ":latest": {"layers": list(map(str, layers)), "config": config}
        for name, (layers, config) in images.items()
    }
    path = where.state / "images.json"
    path.write_text(json.dumps(told))
    config = write_config(where, jobs)
    argv = [*wrapper, sys.executable, "-m", "tests.support.layered", str(path), str(config)]
    own = {**os.environ, **where.environment, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*argv, "--json", "--plain"], env=own, capture_output=True, text=True, check=False,
        timeout=90, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode in (0, 1), f"{done.returncode}: {done.stderr}"
    found = ended(where, done.stdout)
    assert set(found) == set(jobs), f"some jobs have no record\n{done.stderr}"
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main(*sys.argv[1:]))
