"""Hosts on which some controllers are on v1 and others on v2, and one without any v2.

One boot for each: a choice from the contract of cgroups, what I/O limits do, then the command as
a user calls it.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.command import ROOT

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]  # the first boot downloads a kernel

TESTS = "tests/kernel/test_cgroup_kernel.py tests/kernel/test_io_limits.py"
CHOSEN = "(written or legal_order or oom or refused or frozen or each_rate or cached)"
SUITE = f"{sys.executable} -m pytest -p no:cacheprovider -q -k '{CHOSEN} and not alone' {TESTS}"
COMMAND = f"{sys.executable} -m supervisor"
ALL = "--memory 64M --swap 0 --pids 20 --cpus 0.5 --cpu-weight 50 --io /dev/vda:write_bps=1M"
EAT = "/usr/bin/python3 -c 'b = bytearray(200 << 20)'"
FORK = "sh -c 'for i in 1 2 3 4; do sleep 1 & done; wait'"
CONFIG = """
[jobs.one]
command = "true"
limits = { memory = "64M", pids = 20, cpus = 0.5 }
"""


def script(config: Path) -> str:
    """What is done in the guest: four lines, and a plan."""
    return "\n".join(
        [
            f"{SUITE} >&2 || exit 9",
            f"{COMMAND} run {ALL} -- echo all",
            f"{COMMAND} run --memory 24M --swap 0 --record - -- {EAT} 2>/dev/null",
            f"{COMMAND} run --pids 3 --record - -- {FORK} 2>/dev/null",
            f"{COMMAND} doctor --json | tr -d '\\n'; echo",
            f"{COMMAND} plan {config}",
        ]
    )


def answers(kind: str, config: Path) -> tuple[list[str], str]:
    """The lines of the commands, and the plan."""
    argv = [sys.executable, "-m", "tests.vm", "--hierarchy", kind, "--disk", "64M", "--timeout",
            "500", "--", "sh", "-c", script(config)]  # fmt: skip
    done = subprocess.run(
        argv, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    lines = done.stdout.splitlines()
    return lines[:4], "\n".join(lines[4:])


def sources(record: dict[str, Any]) -> str:
    return "\n".join(one["source"] for one in record["evidence"])


HOSTS = {
    "mixed:memory,pids": ("memory.oom_control", "/sys/fs/cgroup/pids/", r"cpu\.max"),
    "mixed:cpu,cpuacct,blkio": ("memory.events", "/sys/fs/cgroup/unified/", r"cpu\.cfs_quota_us"),
    "v1": ("memory.oom_control", "/sys/fs/cgroup/pids/", r"cpu\.cfs_quota_us"),
}


@pytest.mark.parametrize("kind", HOSTS)
def test_a_host_with_other_hierarchies(kind: str, tmp_path: Path) -> None:
    memory, pids, cpu = HOSTS[kind]
    config = tmp_path / "jobs.toml"
    config.write_text(CONFIG)
    (all_limits, oom, forks, doctor), plan = answers(kind, config)
    assert all_limits == "all"
    record = json.loads(oom)
    assert record["reason"] == "oom"
    assert memory in sources(record)
    record = json.loads(forks)
    assert (record["reason"], record["pids"]["refused"] > 0) == ("pids", True)
    assert any(one.startswith(pids) and "pids.events" in one for one in sources(record).split("\n"))
    checks = {one["name"]: one["verdict"] for one in json.loads(doctor)}
    for name in ("memory limit", "pids limit", "cpus limit", "cpu_weight", "whole-tree kill"):
        # on a busy host the last checks may not be made: doctor takes ten seconds at most
        assert checks.get(name, "enforced") == "enforced", (name, checks)
    assert {"control groups", "memory limit"} <= set(checks)
    assert re.search(rf"write \S+.* > /sys/fs/cgroup/\S+/{cpu}", plan)
