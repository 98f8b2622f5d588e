"""What each wall adds to a start: `python -m benchmarks.walls`.

Jobs that differ in one setting take turns, job by job, under one supervisor; the table shows the
median from start to exit and the CPU time, and their ratio to the first, which has the walls that
are always there.  Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import trio
from attrs import evolve

from benchmarks import accounting, measure, ours, peers
from benchmarks.accounting import Account
from benchmarks.spawn import ROOT, machine
from supervisor.linux import nft
from supervisor.model import JobSpec, UserNamespace

MAPPED = UserNamespace("map", 1 << 20, 65536)
PLAIN = evolve(MAPPED, files="plain")


def variants(spec: JobSpec) -> dict[str, JobSpec]:
    """By what they add to the first; the last two are pairs of their own."""
    bare = evolve(spec, seccomp="unconfined", network="host", landlock="off")
    host = evolve(bare, root="host", command=("/bin/true",), write="read-only")
    return {
        "the walls that are always there": bare,
        "seccomp": evolve(bare, seccomp="default"),
        'network = "none"': evolve(bare, network="none"),
        **({'network = "bridge"': evolve(bare, network="bridge")} if nft.program() else {}),
        'proc = "limits"': evolve(bare, proc="limits"),
        "user namespace": evolve(bare, user_namespace=MAPPED),
        "user namespace, files not mapped": evolve(bare, user_namespace=PLAIN),
        "all three": evolve(spec, user_namespace=MAPPED),
        'root = "host", hide = "nothing"': evolve(host, hide=()),
        'root = "host"': host,
        'root = "host", user namespace': evolve(host, user_namespace=MAPPED),
        'root = "host", Landlock': evolve(host, landlock="require"),
    }


Samples = dict[str, list[tuple[float, float]]]


async def sample(root: Path, work: Path, rounds: int, account: Account) -> Samples:
    """Seconds from start to exit, and of CPU, of each job."""
    async with ours.opened(root, work) as bench:
        benches = {name: replace(bench, spec=one) for name, one in variants(bench.spec).items()}
        always, first = next(iter(benches.items()))
        plain = {"the same, no rule for devices": replace(first, confined=False)}
        benches = {always: first, **plain, **benches}
        found: Samples = {name: [] for name in benches}
        for number in range(-measure.WARM_UP, rounds):
            for place, (name, one) in enumerate(benches.items()):
                before, start = account.seconds(), time.perf_counter()
                await one.job(f"job{place}.{number}")
                wall, cpu = time.perf_counter() - start, account.seconds() - before
                if number >= 0:
                    found[name].append((wall, cpu))
    return found


def table(found: Samples) -> str:
    """Medians; in brackets the ratio to the first of the same root."""
    lines = [f"{'':38}{'latency ms':>16}{'CPU ms':>16}"]
    base = (1.0, 1.0)
    for name, samples in found.items():
        row = tuple(1e3 * median(sample[column] for sample in samples) for column in (0, 1))
        if name in ("the walls that are always there", 'root = "host", hide = "nothing"'):
            base = row[0], row[1]
        cells = (f"{value:8.2f} ({value / one:4.2f})" for value, one in zip(row, base, strict=True))
        lines.append(f"{name:38}" + " ".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


def sampled(work: Path, rounds: int, account: Account) -> Samples:
    """`sample` in a process of its own, which alone is accounted; no bridge is the host's."""
    own = ["unshare", "--net", sys.executable, "-m", "benchmarks.walls", "--rounds", str(rounds)]
    argv = [*own, "--sample", str(work), account.name]
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    found: Samples = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.walls", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--sample", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.sample:
        work, account = Path(options.sample[0]), accounting.find(options.sample[1])
        account.join()
        print(json.dumps(trio.run(sample, work / "root", work / "own", options.rounds, account)))
        return
    busybox = shutil.which("busybox")
    if os.geteuid() != 0 or busybox is None:
        sys.exit("needs root, and busybox: apt-get install busybox-static")
    with tempfile.TemporaryDirectory(prefix="bench.") as directory, accounting.opened() as account:
        work = Path(directory)
        work.chmod(0o711)  # the root of a user namespace walks through it
        peers.root_directory(work, Path(busybox))
        (work / "own").mkdir(mode=0o711)
        print(f"{machine()}\n\n{table(sampled(work, options.rounds, account))}")


if __name__ == "__main__":
    main()
