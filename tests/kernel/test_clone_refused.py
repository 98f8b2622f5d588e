"""Where a job cannot be cloned into its cgroup: what is told, and what is tried instead."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from supervisor.container.seccomp import compile_profile
from tests.support import host
from tests.support.command import ROOT, Done, State
from tests.support.containers import after

pytestmark = pytest.mark.kernel

SPOILED = """
import os, sys
from supervisor.cgroup import files, manager
from supervisor.front.cli import command

made, closed = manager.Manager.create, manager.Manager.close
threaded = []
where = sys.argv.pop(1)

def create(self, run, **options):
    job = made(self, run, **options)
    entry = job.entry
    spoil(entry.init_dir if where == "init" else entry.payload_dir)
    return job

def spoil(directory):
    if os.path.exists(f"{directory}/memory.max"):
        files.write(f"{directory}/cgroup.subtree_control", "+memory")
    else:
        threaded.append(os.path.dirname(directory) + "/threaded")
        files.make(threaded[0])
        files.write(f"{threaded[0]}/cgroup.type", "threaded")

def close(self):
    for directory in threaded:
        files.remove(directory)
    closed(self)

manager.Manager.create, manager.Manager.close = create, close
sys.exit(command(sys.argv[1:]))
"""
"""The command, with somebody who does it no good between the making of a cgroup and the clone:

he enables a controller in it (v2), or makes a threaded cgroup beside it (hybrid), which turns it
into one of the type "domain invalid" ("Threads" in cgroup-v2.rst).
"""


def spoiled(where: str, state: State, *arguments: str | Path) -> Done:
    argv = [sys.executable, "-c", SPOILED, where, *map(str, arguments)]
    done = subprocess.run(
        argv,
        env={**state.environment, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60 * host.SLOWNESS,
        check=False,
    )
    return Done(done.stdout, done.stderr, done.returncode)


@pytest.mark.parametrize(
    ("where", "stage", "leaf"), [("init", "cgroup", ""), ("payload", "payload_cgroup", "/payload")]
)
def test_a_cgroup_that_takes_nobody_is_named_with_the_way_out(
    tmp_state: State, tmp_path: Path, where: str, stage: str, leaf: str
) -> None:
    if not any(one.unified for one in host.hierarchies()):
        pytest.skip("needs a unified hierarchy to clone into")
    record = tmp_path / "record.json"
    done = spoiled(where, tmp_state, "run", "--record", record, "--", "true")
    assert done.status == 125, done.stderr
    found = json.loads(record.read_text())
    error = found["start_error"]
    v2 = host.memory_version() == "v2"
    assert (found["reason"], error["stage"]) == ("start_failed", stage)
    assert error["errno"] == (16 if v2 else 95), found  # EBUSY, EOPNOTSUPP
    leaf = leaf or ("/init" if v2 else "")
    assert error["path"].endswith(leaf) and "/supervise." in error["path"]
    fix = "cgroup.subtree_control" if v2 else "cgroup.type"
    assert error["path"] in done.stderr and fix in done.stderr


PROFILE = {
    "defaultAction": "SCMP_ACT_ALLOW",
    "syscalls": [{"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
}
"""What Docker's profile does, since a filter cannot look into clone3's arguments."""
WITHOUT_CLONE3 = """
import os, sys
from supervisor.errors import KernelError
from supervisor.linux import syscalls
syscalls.install_filter(bytes.fromhex(sys.argv[1]))
directory = os.open("/", os.O_RDONLY)
try:
    syscalls.clone(0, exit_signal=17, cgroup_fd=directory)
except KernelError as error:
    assert error.errno == 38
else:
    os._exit(99)
os.execv(sys.argv[2], sys.argv[2:])
"""


def without_clone3() -> list[str]:
    """A wrapper around the command, in which clone3(2) says ENOSYS."""
    (program,) = compile_profile(json.dumps(PROFILE).encode(), "clone3", frozenset())
    return [sys.executable, "-c", WITHOUT_CLONE3, program.hex()]


LOOK = (
    "import os\nb = []\nprint(open('/proc/self/cgroup').read(), flush=True)\n"
    "while True: b.append(bytes(1 << 20) + b'x')"
)


def test_without_clone3_a_job_joins_its_cgroup_and_its_limits_hold(
    tmp_state: State, tmp_path: Path
) -> None:
    record = tmp_path / "record.json"
    command = ["/usr/bin/python3", "-I", "-S", "-c", LOOK]
    done = after(tmp_state, without_clone3(), "run", "--memory", "24M", "--swap", "0",
                 "--record", record, "--", *command)  # fmt: skip
    found = json.loads(record.read_text())
    assert found["reason"] == "oom", f"{found}\n{done.stderr}"
    assert found["memory"]["oom_kills"] == 1
    # the namespace was made after the join, so it sees itself at the root
    (unified,) = (line for line in done.stdout.splitlines() if line.startswith("0::"))
    assert unified == "0::/"


@pytest.mark.parametrize(
    "user", [(), ("--user-namespace", "100000:65536")], ids=["host", "namespace"]
)
def test_without_clone3_whoever_the_job_is(tmp_state: State, user: tuple[str, ...]) -> None:
    done = after(tmp_state, without_clone3(), "run", *user, "--pids", "8", "--", "echo", "here")
    assert (done.status, done.stdout) == (0, "here\n"), done.stderr
