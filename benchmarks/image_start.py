"""What it costs to start in an image of many layers: `python -m benchmarks.image_start`.

Against the same tree as one plain directory, in blocks that take turns, in one supervisor: the
table shows the median of each round's ratio.  Needs root.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import trio
from attrs import evolve

from benchmarks import ours, peers
from benchmarks.spawn import machine
from supervisor.model import JobSpec, UserNamespace

LAYERS = 12
FILES = 200
"""In each layer, beside one that every layer changes."""
SPACES = {"": UserNamespace(), "userns": UserNamespace("map", 2**20, 65536)}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.image_start", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--jobs", type=int, default=20, help="in each block")
    parser.add_argument("--layers", type=int, default=LAYERS)
    return parser.parse_args()


def make(work: Path, busybox: Path, count: int) -> tuple[Path, tuple[str, ...]]:
    """The tree as one directory, and as layers, the top one first."""
    base = peers.root_directory(work / "layers", busybox)
    layers = [base]
    for number in range(1, count):
        layer = work / "layers" / str(number)
        (layer / "usr/share" / str(number)).mkdir(parents=True)
        (layer / "usr/share/last").write_text(str(number))
        for name in range(FILES):
            (layer / "usr/share" / str(number) / str(name)).write_text("content\n")
        layers.append(layer)
    plain = work / "plain"
    plain.mkdir()
    for layer in layers:
        subprocess.run(["cp", "-a", f"{layer}/.", str(plain)], check=True)
    return plain, tuple(map(str, reversed(layers)))


async def measure(work: Path, busybox: Path, options: argparse.Namespace) -> list[str]:
    plain, layers = make(work, busybox, options.layers)
    (work / "scratch").mkdir()
    lines = [f"{'':24}{'directory ms':>14}{options.layers:>4} layers ms{'ratio':>8}"]
    async with ours.opened(plain, work / "scratch") as bench:
        for write in ("overlay", "read-only"):
            for name, space in SPACES.items():
                spec = evolve(bench.spec, write=write, user_namespace=space)
                image = evolve(spec, root="image", layers=layers)
                rows = await _compare(bench, spec, image, options)
                ratio = median(after / before for before, after in rows)
                alone, united = (1e3 * median(column) for column in zip(*rows, strict=True))
                title = f"{write} {name}".strip()
                lines.append(f"{title:24}{alone:14.2f}{united:14.2f}{ratio:8.2f}")
    return lines


async def _compare(
    bench: ours.Bench, plain: JobSpec, image: JobSpec, options: argparse.Namespace
) -> list[tuple[float, float]]:
    """For each round, the median seconds from start to exit in the directory and in the image."""
    await _block(bench, plain, 3)
    await _block(bench, image, 3)
    rows = []
    for number in range(options.rounds):
        if number % 2:
            united = await _block(bench, image, options.jobs)
            rows.append((await _block(bench, plain, options.jobs), united))
        else:
            alone = await _block(bench, plain, options.jobs)
            rows.append((alone, await _block(bench, image, options.jobs)))
    return rows


async def _block(bench: ours.Bench, spec: JobSpec, jobs: int) -> float:
    with_spec = replace(bench, spec=spec)
    taken = []
    for number in range(jobs):
        start = time.perf_counter()
        await with_spec.job(f"job{number}")
        taken.append(time.perf_counter() - start)
    return median(taken)


def main() -> None:
    options = parse()
    busybox = shutil.which("busybox")
    if os.geteuid() != 0 or busybox is None:
        raise SystemExit("needs root, and busybox: apt-get install busybox-static")
    # not below /tmp, which a job has an own one of, and where the disk is
    with tempfile.TemporaryDirectory(prefix="bench.", dir="/var/tmp") as directory:
        os.chmod(directory, 0o711)  # the root of a user namespace walks through it
        lines = trio.run(measure, Path(directory), Path(busybox), options)
    print("\n".join([machine(), "", *lines]))


if __name__ == "__main__":
    main()
