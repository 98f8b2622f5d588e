"""The command line of the verdict matrix: `python -m tests.matrix [--runs N] [CASE ...]`.

Exit status: 0 when every record is what its case demands, 1 when one is not, 2 for wrong usage,
125 when the matrix could not be run.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NoReturn

from tests.matrix import report
from tests.matrix.groups import ALL, Round
from tests.support import host


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    add = parser.add_argument
    add("--runs", type=int, default=200, help="of each case (default: 200)")
    add("--round", type=int, default=10, help="runs of each case in one supervisor (default: 10)")
    add("--at-a-time", type=int, default=4 * (os.cpu_count() or 1), metavar="JOBS",
        help="default: four for each CPU")  # fmt: skip
    add("--list", action="store_true", help="name the cases")
    add("cases", nargs="*", metavar="CASE", help="these alone")
    options = parser.parse_args(argv)
    if unknown := set(options.cases) - set(ALL):
        parser.error(f"no case {', '.join(sorted(unknown))}: see --list")
    if min(options.runs, options.round, options.at_a_time) < 1:
        parser.error("counts begin at 1")
    return options


def measure(options: argparse.Namespace, busybox: Path) -> tuple[report.Tally, int]:
    """Round after round, until all are done or Ctrl-C; the tally, and the runs that are in it.

    Each round has directories of its own.  Progress goes to stderr.
    """
    names = frozenset(options.cases or ALL)
    tally = report.Tally({name: case for name, case in ALL.items() if name in names})
    done, number = 0, 0
    try:
        while done < options.runs:
            times = min(options.runs - done, options.round)
            with tempfile.TemporaryDirectory(prefix="sv-") as place:
                (runtime := Path(place) / "run").mkdir()
                one = Round(Path(place), runtime, busybox, times, options.at_a_time, number, names)
                tally.add(list(one.run()))
            done, number = done + times, number + 1
            note = f"{done} of {options.runs}, {len(tally.wrong)} wrong"
            print(note, file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print("interrupted: what is whole follows", file=sys.stderr)
    return tally, done


def interrupt(_number: int, _frame: object) -> NoReturn:
    """SIGTERM does as Ctrl-C does, also where the shell had that ignored (in the background)."""
    raise KeyboardInterrupt


def main() -> int:
    options = parse(sys.argv[1:])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    if options.list:
        print("\n".join(ALL))
        return 0
    busybox = host.static_busybox()
    why = host.lacks_privilege() or ("" if busybox else "needs a static busybox")
    if why or busybox is None:
        print(f"matrix: {why}", file=sys.stderr)
        return 125
    began = time.monotonic()
    tally, runs = measure(options, busybox)
    release = os.uname().release
    print(
        f"{runs} runs of {len(tally.cases)} cases, {time.monotonic() - began:.0f} s, "
        f"memory on cgroup {host.memory_version()}, Linux {release}, {os.cpu_count()} CPUs"
    )
    lacking = tally.missing(runs)
    print("\n".join([*report.matrix(tally), *report.wrong(tally), *lacking]))
    return 1 if tally.wrong or lacking else 0


if __name__ == "__main__":
    sys.exit(main())
