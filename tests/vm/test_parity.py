"""One configuration, two generations of control groups: the same verdicts, the same records.

config.toml.example runs on this host and in a guest of the other generation.  What a record says is
compared word by word; what depends on the machine and the moment (EXCLUDED) by its kind only: a
number stays a number, and null stays null.  Evidence is compared by what it is about, as the files
have other names on v2.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import host
from tests.support.command import ROOT
from tests.support.containers import own_state

pytestmark = [pytest.mark.kernel, pytest.mark.vm, pytest.mark.timeout(600)]

Record = dict[str, Any]
Runs = dict[str, list[Record]]

EXCLUDED = frozenset(
    {
        "run",  # an identity
        "started_at", "finished_at", "wall_seconds", "at",
        "cpu.user_seconds", "cpu.system_seconds", "cpu.throttled_seconds",
        "memory.peak", "pids.peak", "io.read_bytes", "io.write_bytes",
        "memory.oom_kills",  # v2 kills the group, and counts each; v1 its first victim
        "pids.refused", "detail",  # of a fork bomb: how often until it was ended
    }
)  # fmt: skip
"""By the last word of its path, or the last two."""

GROWING = frozenset({"memory.limit", "memory.limit_history"})
"""How often a job was held on its way up depends on how fast it went: of a job whose limit a policy
has raised, only the beginning and who raised it are compared."""

ABOUT = {
    "memory.limit_in_bytes": "memory limit",
    "memory.max": "memory limit",
    "memory.max_usage_in_bytes": "memory peak",
    "memory.peak": "memory peak",
    "memory.oom_control": "memory events",
    "memory.failcnt": "memory events",
    "memory.memsw.failcnt": "memory events",
    "memory.events": "memory events",
    "memory.events.local": "memory events",
    "pids.max": "pids limit",
    "pids.events": "pids events",
    "pids.events.local": "pids events",
    "kmsg": "kernel log",
}
"""What a file that evidence was read from is about, on either generation."""


def configuration(directory: Path, state: Path, name: str) -> Path:
    """The example, with a name and directories of this test's own."""
    text = (ROOT / "config.toml.example").read_text()
    head = f'[supervisor]\nstate_dir = "{state}/state"\nruntime_dir = "{state}/run"\n'
    ours = re.sub(r'^\[supervisor\]\nname = "example"', f'{head}name = "{name}"', text, flags=re.M)
    assert ours != text
    path = directory / f"{name}.toml"
    path.write_text(ours)
    return path


def records(*wrapper: str, config: Path) -> Runs:
    """The records of a batch, by job, in the order of its runs."""
    argv = [*wrapper, sys.executable, "-m", "supervisor", str(config), "--json"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: Runs = defaultdict(list)
    for line in done.stdout.splitlines():
        record = json.loads(line)
        found[record["job"]].append(record)
    return found


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Runs, Runs]:
    """The example's records from this host and from the guest."""
    other = "v2" if host.memory_version() == "v1" else "hybrid"
    base = tmp_path_factory.mktemp("parity")
    name = f"parity-{os.getpid()}"
    with own_state(base) as state:
        here = records(config=configuration(base, state.runtime, name))
    guest = configuration(base, Path("/scratch"), f"{name}-guest")
    vm = (sys.executable, "-m", "tests.vm", "--hierarchy", other, "--timeout", "500", "--")
    return here, records(*vm, config=guest)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a record with its path, `memory.limit`; evidence apart."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key != "evidence":
                yield from leaves(inner, f"{path}.{key}" if path else key)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        yield path, len(value)
        for entry in value:
            yield from leaves(entry, path)
    else:
        yield path, value


def compared(record: Record) -> list[tuple[str, Any]]:
    """What must be equal: values, or for what is excluded whether it is null."""
    found = []
    grown = len(record["memory"].get("limit_history", ())) > 1
    for path, value in leaves(record):
        words = path.split(".")
        if words[-1] in EXCLUDED or ".".join(words[-2:]) in EXCLUDED:
            found.append((path, "null" if value is None else "some"))
        elif not (grown and any(path.startswith(name) for name in GROWING)):
            found.append((path, value))
    return sorted(found, key=str)


def beginning(record: Record) -> list[tuple[int, str]]:
    """A growing limit: what it was at first, and all who changed it, once each."""
    history = record["memory"]["limit_history"]
    return [(history[0]["value"], history[0]["by"]), *{(0, e["by"]) for e in history[1:]}]


def about(record: Record) -> set[str]:
    return {ABOUT[Path(entry["source"]).name] for entry in record["evidence"]}


def test_the_same_jobs_end_for_the_same_reasons(both: tuple[Runs, Runs]) -> None:
    here, there = both
    story = [
        {job: [(r["reason"], r["exit_code"], r["signal"], r["expected"]) for r in runs]
         for job, runs in side.items()}
        for side in both
    ]  # fmt: skip
    assert story[0] == story[1]
    assert len(here) == len(there) >= 12


def test_the_records_say_the_same(both: tuple[Runs, Runs]) -> None:
    here, there = both
    for job in here:
        for one, other in zip(here[job], there[job], strict=True):
            assert compared(one) == compared(other), job
            assert beginning(one) == beginning(other), job


def test_the_evidence_is_of_the_same_kinds(both: tuple[Runs, Runs]) -> None:
    here, there = both
    for job in here:
        for one, other in zip(here[job], there[job], strict=True):
            assert about(one) == about(other), job
    (oom, *_), (other, *_) = here["histogram"], there["histogram"]
    assert "kernel log" in about(oom) or not kernel_log_is_read()
    assert oom["memory"]["oom_kills"] > 0 < other["memory"]["oom_kills"]
    assert here["bomb"][0]["pids"]["refused"] > 0 < there["bomb"][0]["pids"]["refused"]


def kernel_log_is_read() -> bool:
    try:
        os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


def test_a_missing_key_would_be_noticed(both: tuple[Runs, Runs]) -> None:
    """The comparison is proven: take any one thing from a record, and it is another."""
    here, _there = both
    record = here["compress@level=1"][0]
    for path, _value in leaves(record):
        changed = json.loads(json.dumps(record))
        *above, last = path.split(".")
        place = changed
        for word in above:
            place = place[word][0] if isinstance(place[word], list) else place[word]
        del place[last]
        assert compared(changed) != compared(record), path
    for value in ("memory", "pids"):
        changed = json.loads(json.dumps(record))
        changed[value]["peak"] = None
        assert compared(changed) != compared(record)
