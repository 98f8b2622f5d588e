"""Layers and images, unpacked by us and by others: `python -m benchmarks.images`.

Two tables.  One layer, in each compression, against GNU tar with what it needs to give the same
(numbers for owners, all permissions and attributes).  An image from an OCI layout, against skopeo
copy with umoci unpack, and podman pull, as far as they are installed; each into a store of its own.
We check digests and hash what we unpack; tar does not.

Contenders take turns, each round beginning with another; before each, what the one before has
written is on the disk.  Medians, and the median of each round's ratio to the first.  Needs root,
and mmdebstrap or --archive.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.spawn import ROOT, machine
from supervisor.image.removal import remove_tree
from supervisor.image.unpack import unpack

COMPRESSIONS = {"none": [], "gzip": ["gzip", "-6"], "zstd": ["zstd", "-q", "-3"]}
TAR = ("tar", "--numeric-owner", "-p", "--xattrs", "--xattrs-include=*")
ACQUIRE = """
import sys, trio
from pathlib import Path
from supervisor.image.acquire import acquire
from supervisor.image.reference import parse
from supervisor.image.store import Store
trio.run(acquire, Store(Path(sys.argv[2])), parse(sys.argv[1]))
"""


@dataclass(frozen=True)
class Timing:
    """Seconds; `cpu` is of all processes."""

    wall: float
    cpu: float


Deed = Callable[[Path], None]
"""Do it once, in an empty directory."""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.images", description=__doc__)
    add = parser.add_argument
    add("--rounds", type=int, default=7)
    add("--archive", type=Path, metavar="FILE.tar", help="not a Debian of mmdebstrap's")
    add("--work", type=Path, default=Path("/var/tmp"), help="on the disk to be measured")
    add("--json", action="store_true", help="the seconds of each round, not the tables")
    return parser.parse_args(argv)


def run(*argv: str | Path, **options: str | Path) -> None:
    """Raises RuntimeError with its complaint when it fails."""
    words = list(map(str, argv))
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, cwd=options.get("cwd")
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(words[:3])}: {done.stderr[-500:]}")


def prepare(work: Path, archive: Path | None) -> Path:
    """The archive in every compression, and a layout with it as the image "image"."""
    layer = work / "layer.none"
    if archive is not None:
        shutil.copyfile(archive, layer)
    else:
        run("mmdebstrap", "--quiet", "--variant=minbase", "stable", work / "debian.tar")
        (work / "debian.tar").rename(layer)
    for name, command in COMPRESSIONS.items():
        if command:
            with layer.open("rb") as source, (work / f"layer.{name}").open("wb") as target:
                subprocess.run([*command, "-c"], stdin=source, stdout=target, check=True)
    return layer


def layout(work: Path) -> Path | None:
    """Where there is umoci to make it."""
    if shutil.which("umoci") is None:
        return None
    made = work / "layout"
    run("umoci", "init", "--layout", made)
    run("umoci", "new", "--image", f"{made}:image")
    run("umoci", "raw", "add-layer", "--image", f"{made}:image", work / "layer.none")
    return made


def layers(work: Path) -> dict[str, dict[str, Deed]]:
    """For each compression, who unpacks such a layer."""
    return {
        name: {
            "tar -x": partial(_tar, work / f"layer.{name}"),
            "supervise": partial(_ours, work / f"layer.{name}"),
        }
        for name in COMPRESSIONS
    }


def _tar(file: Path, at: Path) -> None:
    run(*TAR, "-xf", file, "-C", at)


def _ours(file: Path, at: Path) -> None:
    unpack(file, at)


def images(made: Path) -> dict[str, Deed]:
    """Who can get an image from the layout, each from nothing to a root."""
    found: dict[str, Deed] = {
        "supervise": lambda at: run(
            sys.executable, "-c", ACQUIRE, f"oci:{made}:image", at / "store", cwd=ROOT
        )
    }
    if shutil.which("skopeo"):
        found["skopeo + umoci"] = lambda at: _umoci(made, at)
    if shutil.which("podman"):
        found["podman pull"] = lambda at: run(*_podman(at), "pull", "-q", f"oci:{made}:image")
    return found


def _umoci(made: Path, at: Path) -> None:
    run("skopeo", "copy", "-q", f"oci:{made}:image", f"oci:{at}/copy:image")
    run("umoci", "unpack", "--image", f"{at}/copy:image", at / "bundle")


def _podman(at: Path) -> list[str]:
    """In a storage of its own, which is removed by its own command (an overlay is mounted)."""
    driver = ["--storage-driver", "overlay", "--events-backend", "none"]
    return ["podman", "--root", f"{at}/root", "--runroot", str(_runroot(at)), *driver]


def _runroot(at: Path) -> Path:
    """It may have 50 characters."""
    return Path("/tmp", at.parent.name)


def clean(at: Path, name: str) -> None:
    if name == "podman pull":
        run(*_podman(at), "rmi", "-af")
        if os.path.ismount(at / "root/overlay"):
            run("umount", at / "root/overlay")
        remove_tree(str(_runroot(at)))
    remove_tree(str(at))


def measured(deed: Deed, at: Path) -> Timing:
    at.mkdir()
    os.sync()
    before, start = _cpu(), time.perf_counter()
    deed(at)
    return Timing(time.perf_counter() - start, _cpu() - before)


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


Results = dict[str, list[Timing]]


def interleaved(deeds: dict[str, Deed], rounds: int, work: Path) -> Results:
    results: Results = {name: [] for name in deeds}
    names = list(deeds)
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            results[name].append(measured(deeds[name], work / "at"))
            clean(work / "at", name)
    return results


def table(title: str, results: Results) -> str:
    """Medians; a ratio above 1 means: that many times as fast as the first."""
    base, *_ = results.values()
    lines = [f"{title:24}{'s':>8}{'CPU s':>8}{'ratio':>8}{'least':>8}{'most':>8}"]
    for name, timings in results.items():
        ratios = sorted(one.wall / two.wall for one, two in zip(base, timings, strict=True))
        wall, cpu = median(one.wall for one in timings), median(one.cpu for one in timings)
        row = f"{wall:8.2f}{cpu:8.2f}{median(ratios):8.2f}{ratios[0]:8.2f}{ratios[-1]:8.2f}"
        lines.append(f"  {name:22}{row}")
    return "\n".join(lines)


def versions() -> str:
    found = []
    for name in ("tar", "skopeo", "umoci", "podman"):
        if shutil.which(name):
            said = subprocess.run([name, "--version"], capture_output=True, text=True, check=True)
            found.append(said.stdout.splitlines()[0])
    return ", ".join(found)


def main() -> None:
    options = parse()
    if os.geteuid() != 0:
        raise SystemExit("needs root")
    if options.archive is None and shutil.which("mmdebstrap") is None:
        raise SystemExit("needs --archive FILE.tar, or apt-get install mmdebstrap")
    results: dict[str, Results] = {}
    with tempfile.TemporaryDirectory(prefix="bench.", dir=options.work) as directory:
        work = Path(directory)
        archive = prepare(work, options.archive)
        size = archive.stat().st_size >> 20
        for name, deeds in layers(work).items():
            results[f"a layer, {name}"] = interleaved(deeds, options.rounds, work)
        made = layout(work)
        if made is not None:
            results["an image"] = interleaved(images(made), options.rounds, work)
    if options.json:
        raw = {t: {n: [one.wall for one in o] for n, o in r.items()} for t, r in results.items()}
        print(json.dumps({"machine": machine(), "seconds": raw}))
        return
    print(f"{machine()}\n{versions()}\narchive: {size} MiB\n")
    print("\n\n".join(table(title, found) for title, found in results.items()))


if __name__ == "__main__":
    main()
