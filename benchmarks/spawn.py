"""From start to exit of `true` in a full container: `python -m benchmarks.spawn`.

Contenders take turns, block by block, so that what else the machine does hits all of them; the
table shows medians over the rounds and their ratio to the first contender's (crun where it is
installed).  Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks import accounting, measure, ours, peers
from benchmarks.accounting import Account
from benchmarks.measure import Block

MODES = (1, 8)
ROOT = Path(__file__).parents[1]

OURS: dict[str, Callable[[Path, int, int, Account], Block]] = {"container": ours.containers}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spawn", description=__doc__)
    add = parser.add_argument
    add("--rounds", type=int, default=7)
    add("--jobs", type=int, default=40, help="in each block")
    add("--only", nargs="+", metavar="NAME", help="these contenders")
    add("--json", action="store_true", help="the blocks, not the table")
    add("--block", nargs=4, metavar=("NAME", "AT_A_TIME", "WORK", "ACCOUNT"),
        help=argparse.SUPPRESS)  # fmt: skip
    return parser.parse_args(argv)


def run_block(name: str, at_a_time: int, work: Path, jobs: int, account: Account) -> Block:
    """One block, in this process."""
    account.join()
    if name in OURS:
        return OURS[name](work, jobs, at_a_time, account)
    (peer,) = (peer for peer in peers.installed() if peer.name == name)
    scratch = Path(tempfile.mkdtemp(dir=work))
    try:
        peers.write_bundles(scratch, work / "root", at_a_time, account.name)
        measure.commands(partial(peer.argv, scratch), measure.WARM_UP, 1, account)
        return measure.commands(partial(peer.argv, scratch), jobs, at_a_time, account)
    finally:
        shutil.rmtree(scratch)


def in_process(name: str, at_a_time: int, work: Path, jobs: int, account: Account) -> Block:
    """One block, in a process of its own."""
    own = [sys.executable, "-m", "benchmarks.spawn", "--jobs", str(jobs)]
    block = ["--block", name, str(at_a_time), str(work), account.name]
    argv = [*peers.prefix(name), *own, *block]
    done = subprocess.run(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name}, {at_a_time} at a time: status {done.returncode}")
    return Block(**json.loads(done.stdout))


Results = dict[tuple[str, int], list[Block]]


def interleaved(names: list[str], rounds: int, jobs: int, work: Path, account: Account) -> Results:
    """Every contender in every mode, `rounds` times in turn; each round begins with another."""
    results: Results = {(name, mode): [] for mode in MODES for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            for mode in MODES:
                results[name, mode].append(in_process(name, mode, work, jobs, account))
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
    return results


def table(names: list[str], results: Results) -> str:
    """Medians over the rounds; in brackets the ratio to the first name's."""
    head = f"{'':12}{'latency ms':>18}{'jobs/s, 1':>18}{'jobs/s, 8':>18}{'CPU ms/job':>18}"
    lines = [head]
    base = _row(names[0], results)
    for name in names:
        cells = zip(_row(name, results), base, strict=True)
        lines.append(f"{name:12}" + "".join(f"{v:10.2f} ({v / b:4.2f})" for v, b in cells))
    return "\n".join(lines)


def _row(name: str, results: Results) -> tuple[float, float, float, float]:
    alone, together = results[name, 1], results[name, 8]
    return (
        1e3 * median(block.latency for block in alone),
        median(block.rate for block in alone),
        median(block.rate for block in together),
        1e3 * median(block.cpu for block in alone),
    )


def machine() -> str:
    """Where this was measured: figures of another machine cannot be compared."""
    model = "unknown CPU"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 30
    load = os.getloadavg()[0]
    versions = ", ".join(f"{peer.name} {peer.version}" for peer in peers.installed())
    return (
        f"{os.cpu_count()} x {model}, {memory} GiB, Linux {platform.release()}, load {load:.1f}\n"
        f"Python {platform.python_version()}, {versions}"
    )


def main() -> None:
    options = parse()
    if options.block:
        name, at_a_time, work, account = options.block
        found = accounting.find(account)
        block = run_block(name, int(at_a_time), Path(work), options.jobs, found)
        print(json.dumps(block.as_dict()))
        return
    busybox = shutil.which("busybox")
    if os.geteuid() != 0 or busybox is None:
        raise SystemExit("needs root, and busybox: apt-get install busybox-static")
    names = [*(peer.name for peer in peers.installed()), *OURS]
    names = [name for name in names if not options.only or name in options.only]
    with tempfile.TemporaryDirectory(prefix="bench.") as directory, accounting.opened() as account:
        work = Path(directory)
        peers.root_directory(work, Path(busybox))
        results = interleaved(names, options.rounds, options.jobs, work, account)
    if options.json:
        blocks = {f"{n} {m}": [b.as_dict() for b in found] for (n, m), found in results.items()}
        print(json.dumps({"machine": machine(), "blocks": blocks}))
    else:
        print(f"{machine()}\n\n{table(names, results)}")


if __name__ == "__main__":
    main()
