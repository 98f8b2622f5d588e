"""`supervise plan` is what strace sees: every step of a start, in its order, process by process."""

from __future__ import annotations

import re
import shutil
import subprocess
from difflib import unified_diff
from pathlib import Path

import pytest

from tests.support import host
from tests.support.command import State, Supervise
from tests.support.straced import Seen, seen, strace

pytestmark = [pytest.mark.kernel, host.outside("what a plan is compared with")]

SHARED = Path("/var/cache/supervise")
JOBS = {
    "plain": """
        command = "true"
        limits = { memory = "64M", pids = 16, cpus = 0.5 }
    """,
    "layered": """
        command = ["/bin/true", "yes"]
        write = "overlay"
        mounts = [{ source = "DIRECTORY/data", target = "/data", read_only = true }]
        tmpfs = ["/scratch:size=1M"]
        user = "nobody"
        working_dir = "/data"
        limits = { memory = "64M", open_files = 64 }
        capabilities = { drop = ["CHOWN", "KILL"] }
        rlimits = { core = 0 }
        hostname = "elsewhere"
    """,
    "spaced": """
        command = "/bin/true"
        root = "DIRECTORY/root"
        write = "overlay"
        user_namespace = "auto"
        limits.pids = 16
    """,
    "shared": """
        command = "/bin/true"
        root = "DIRECTORY/root"
        write = "read-only"
        network = "host"
        seccomp = "unconfined"
        capabilities = { add = ["NET_RAW"] }
        user = "1000"
    """,
}


@pytest.fixture
def directory(tmp_path: Path, busybox: Path) -> Path:
    """A root of its own for those jobs that want one, and something to mount."""
    for name in ("root/bin", "root/tmp", "data"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(busybox, tmp_path / "root/bin/true")
    tmp_path.chmod(0o755)
    return tmp_path


@pytest.mark.parametrize("name", JOBS)
def test_a_plan_is_what_strace_sees(
    supervise: Supervise, tmp_state: State, directory: Path, name: str
) -> None:
    _needs_strace()
    config = directory / "x.toml"
    job = JOBS[name].replace("DIRECTORY", str(directory))
    config.write_text(f'{tmp_state.table}name = "plan{name}"\n[jobs.{name}]\n{job}\n')
    if not SHARED.exists():  # a start makes it, and jobs do not see it: so it is there beforehand
        assert supervise(config, "--plain").status == 0
    plan = supervise("plan", config, name)
    assert plan.status == 0, plan.stderr
    calls = directory / "calls"
    calls.mkdir()
    argv = re.findall(r"payload: execve (.*)", plan.stdout)[0].split()
    found = seen(strace(config, calls), f"RUN-{name}", argv)
    expected = planned(plan.stdout)
    for who in ("launcher", "init", "payload", "supervisor"):
        told, done = getattr(expected, who), getattr(found, who)
        if who == "supervisor":  # of what it does only the cgroup is planned, up to the start
            done = [step for step in done if step.startswith("write ")][: len(told)]
        lines = unified_diff(_compared(told), _compared(done), "plan", "strace", lineterm="")
        assert not (differs := list(lines)), f"{who} of {name}:\n" + "\n".join(differs)


def _needs_strace() -> None:
    if shutil.which("strace") is None:
        host.miss("tools", "needs strace: apt-get install strace")
    tried = subprocess.run(["strace", "-f", "true"], capture_output=True, text=True, check=False)
    if tried.returncode:
        host.miss("privilege", f"nobody may be traced here: {tried.stderr.splitlines()[-1]}")


def _compared(steps: list[str]) -> list[str]:
    """Without what differs from run to run, or is told by a word less exact than the kernel's."""
    found = []
    for step in steps:
        step = re.sub(r"(_map: 0 )\d+( \d+)", r"\1HOST\2", step)  # which range is free
        step = re.sub(r"runs/[^/ ,:]+-", "runs/RUN-", step)
        step = re.sub(r"> .*(/supervise\.)", r"> \1", step)  # beyond the root it sees no more
        if step != "idmap":  # `if it can`: see `idmap` below
            found.append(step)
    return found


def planned(text: str) -> Seen:
    """The lines of a plan, one step for each system call, in the words of `straced`."""
    steps: dict[str, list[str]] = {who: [] for who in ("supervisor", "launcher", "init", "payload")}
    sources: dict[str, str] = {}
    for line in text.splitlines():
        who, colon, what = line.strip().partition(": ")
        if not colon or who not in steps:
            who, what = "supervisor", line.strip()
        if what.startswith(("clone3 CLONE", "write /proc/PID")):
            who = "launcher"
        if what.startswith("CLONE_INTO_CGROUP "):
            steps["launcher"][-1] += " | CLONE_INTO_CGROUP"
            continue
        steps[who] += _steps(who, what, sources)
    return Seen(**steps)


SKIPPED = ("mkdir ", "touch ", "ln ", "mknod ", "drop ", "(found along", "#", "open ", "lock ")


def _steps(who: str, what: str, sources: dict[str, str]) -> list[str]:
    """What one line of a plan comes to."""
    if what.startswith(SKIPPED) or (who == "supervisor" and not what.startswith("write ")):
        return []
    if who == "supervisor" and "/sys/fs/cgroup" not in what:
        return []
    if match := re.fullmatch(r"open_tree (.*) as (#\d+), ([\w,]+)(?:,idmap.*)?", what):
        source, number, options = match.groups()
        plain = source.removesuffix(" with all below it")
        sources[number] = plain if who == "init" else "*"
        return [f"open_tree {source}", "  " + options.removesuffix(",idmap")]
    if match := re.fullmatch(r"move_mount (#\d+) (\S+)(?:, unless .*)?", what):
        return [f"move_mount {sources[match[1]]} {match[2]}"]
    if what.startswith("landlock"):
        return ["landlock"]
    if what.startswith("write EVENTFD"):
        return [what.partition(",")[0]]
    if what.startswith(("bounding set", "mount -", "write ", "PR_SET_SECCOMP")):
        return [what]
    parts = re.split(r" && |, ", what)
    parts = [re.sub(r"^chdir ", "cd ", part) for part in parts]
    if parts[-1].startswith("CLONE_INTO_CGROUP "):
        *parts, into = parts
        parts[-1] += ", " + into.partition(" ")[0]
    return parts
