"""The doctor's table as golden files have it: without what differs from machine to machine.

Where the doctor has changed, `SUPERVISE_GOLDEN=write` has tests write the files anew (a guest:
with `--writable tests/golden`).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from difflib import unified_diff
from pathlib import Path

import pytest

from tests.support.command import ROOT

GOLDEN = ROOT / "tests/golden"

CODE = """
import sys
from supervisor.front import doctor
doctor.LONGEST = 600  # a guest is slow, and every row is compared
as_json = "--json" in sys.argv
if "--cgroups" in sys.argv:
    doctor.GROUPS = {"host": doctor.GROUPS["host"]}
sys.exit(doctor.doctor(as_json=as_json, colour=False, say=print, width=1000))
"""
"""What prints the table, a row's detail on one line; with --json as the command does;
with --cgroups without what takes no control group."""

DIFFERS = (
    (r"Linux \S+, ", "Linux VERSION, "),
    (r"all \d+ that matter, says \S+", "all that matter, says FILE"),
    (r"(nothing is switched off); .*", r"\1"),
    (r"\d+ at once \(\S+\)", "N at once"),
    (r"the bound is \d+", "the bound is N"),
    (r"of \d+, in \d+ instances", "of N, in N instances"),
    (r"/var/lib(/supervise)?(?=, | has |: )", "STATE"),
    (r"\d+ GiB free(, \d+ inodes)?", "N GiB free"),
    (r"\d+ ranges of 65536, from \d+ on", "N ranges of 65536, from N on"),
    (r"libseccomp [\d.]+", "libseccomp VERSION"),
    (r"by nftables .*", "by nftables VERSION"),
    (r"for users without root: .*", "for users without root: VERSION"),
    (r"version \d+: a write", "version N: a write"),
    (r"(ok +delegation +runs get ).*", r"\1PLACES"),
    (r"(?<=cgroups in )/sys/fs/cgroup/\S+", "CGROUP"),
    (r"\d+(\.\d+)?% of a CPU", "N% of a CPU"),
    (r"got \d\.\d\d CPUs under", "got N CPUs under"),
    (r"throttled for \d+\.\d\ds", "throttled for TIME"),
    (r"took \d+\.\d\ds at (.*), \d+\.\d\ds without", r"took TIME at \1, TIME without"),
    (r"\d+ of (\d+) bytes, then", r"N of \1 bytes, then"),
    (r"a process saw CPU \d+ only", "a process saw CPU N only"),
    (r"/tmp/sv-\S+|/tmp/pytest-\S+", "PLACE"),
)
"""What is replaced, line by line, and by what: versions, sizes, counts, times, places.  Which rows
there are, what is said of each, and every fix is compared as it stands."""


def normal(table: str) -> str:
    """A table as the golden files have it."""
    for pattern, instead in DIFFERS:
        table = re.sub(pattern, instead, table, flags=re.MULTILINE)
    return table


TRIES = 3
"""A busy host keeps a loop from its CPU time: that row then says so.  What is wrong stays so."""


def compare(make: Callable[[], str], name: str) -> None:
    """Fails where the table that `make` has the doctor say is not that of the golden file."""
    path = Path(GOLDEN, f"doctor-{name}.txt")
    if os.environ.get("SUPERVISE_GOLDEN") == "write":
        path.write_text(normal(make()))
    kept = path.read_text().splitlines()
    for _ in range(TRIES):
        found = normal(make()).splitlines()
        if found == kept:
            return
    parted = unified_diff(kept, found, str(path), "the doctor", n=1, lineterm="")
    pytest.fail("\n".join(parted), pytrace=False)


def row(stdout: str, name: str) -> dict[str, str]:
    """That of `doctor --json`."""
    rows: list[dict[str, str]] = json.loads(stdout)
    return next(one for one in rows if one["name"] == name)
