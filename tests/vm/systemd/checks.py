"""What runs inside the guest, as root, under systemd: the installed command as a unit and a scope.

Collected only when it is named, which `tests/vm/test_systemd.py` does.  SUPERVISE_SITE names the
directory with the installation (install.py).
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

PREFIX = Path("/opt/supervise")
COMMAND = PREFIX / "bin/supervise"
SLICE = Path("/sys/fs/cgroup/system.slice/system-supervise.slice")
PATIENCE = 60.0

pytestmark = pytest.mark.timeout(240)


def call(*argv: str | Path, status: int | None = 0) -> str:
    """Run a command; its stdout and stderr."""
    done = subprocess.run(
        [str(word) for word in argv],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        check=False,
    )  # fmt: skip
    assert status is None or done.returncode == status, f"{argv}: {done.returncode}\n{done.stdout}"
    return done.stdout


def eventually(what: Callable[[], Any]) -> Any:
    """`what()` once it is true."""
    deadline = time.monotonic() + PATIENCE
    while not (found := what()):
        assert time.monotonic() < deadline, f"not so after {PATIENCE:g} s"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="session", autouse=True)
def installed() -> None:
    """A virtual environment of Debian's Python, the unit that the command prints, no instance."""
    call("python3", "-m", "venv", "--without-pip", PREFIX)
    (packages,) = PREFIX.glob("lib/python3*/site-packages")
    shutil.copytree(os.environ["SUPERVISE_SITE"], packages, dirs_exist_ok=True)
    COMMAND.write_text(f"#!{PREFIX}/bin/python\nfrom supervisor.__main__ import main\nmain()\n")
    COMMAND.chmod(0o755)
    unit = call(COMMAND, "init", "--systemd")
    Path("/etc/systemd/system/supervise@.service").write_text(unit)
    Path("/etc/supervise").mkdir()
    call("systemctl", "daemon-reload")


class Unit:
    """supervise@NAME.service."""

    def __init__(self, name: str, config: str, settings: str = "") -> None:
        self.name = name
        self.unit = f"supervise@{name}.service"
        self.state = Path("/var/lib/supervise", name)
        self.cgroup = SLICE / self.unit
        Path(f"/etc/supervise/{name}.toml").write_text(config)
        if settings:
            drop_in = Path(f"/etc/systemd/system/{self.unit}.d/test.conf")
            drop_in.parent.mkdir()
            drop_in.write_text(f"[Service]\n{settings}\n")
            call("systemctl", "daemon-reload")

    def start(self, status: int | None = 0) -> None:
        call("systemctl", "start", self.unit, status=status)

    def stop(self) -> None:
        call("systemctl", "stop", self.unit)

    def show(self, name: str) -> str:
        return call("systemctl", "show", "--value", "--property", name, self.unit).strip()

    @property
    def _log(self) -> Path:
        return self.state / "events.ndjson"

    @property
    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def ended(self, job: str) -> list[dict[str, Any]]:
        """The records of the job's runs so far."""
        return [
            entry["record"]
            for entry in self.events
            if entry["event"] == "job_ended" and entry["job"] == job
        ]

    def journal(self, *matches: str) -> list[dict[str, Any]]:
        call("journalctl", "--sync")
        text = call("journalctl", "-o", "json", f"_SYSTEMD_UNIT={self.unit}", *matches)
        return [json.loads(line) for line in text.splitlines()]

    def processes(self) -> set[int]:
        """All in the unit's cgroup and below it, where cgroups come and go."""
        found: set[int] = set()
        for directory, _, _ in os.walk(self.cgroup):
            with suppress(OSError):
                found |= {int(pid) for pid in Path(directory, "cgroup.procs").read_text().split()}
        return found

    def gone(self) -> bool:
        return not self.cgroup.exists()


@pytest.fixture
def make() -> Iterator[Callable[..., Unit]]:
    """Units that are stopped and forgotten at the end."""
    made: list[Unit] = []

    def new(*arguments: str) -> Unit:
        made.append(Unit(*arguments))
        return made[-1]

    yield new
    for unit in made:
        call("systemctl", "stop", unit.unit)
        call("systemctl", "reset-failed", unit.unit, status=None)


def test_systemd_finds_no_fault_with_the_unit() -> None:
    assert call("systemd-analyze", "verify", "supervise@any.service") == ""


SERVICE = """
[jobs.service]
script = '''
    trap 'echo told; exit 0' TERM
    env
    echo adj=$(cat /proc/self/oom_score_adj)
    sleep 1000 & wait
'''
limits = { memory = "48M", pids = 16 }
expect = "stopped"

[jobs.hog]
command = ["python3", "-c", "bytearray(200 << 20)"]
limits = { memory = "24M", swap = 0 }
expect = "oom"
"""


def test_a_unit_from_its_start_to_its_stop(make: Callable[..., Unit]) -> None:
    # Another delegated unit beside it: what systemd enables for such a one is there before.
    call("systemd-run", "--unit=beside", f"--slice={SLICE.name}", "-p", "Delegate=yes",
         "sleep", "1000")  # fmt: skip
    controls = [SLICE / "cgroup.subtree_control", SLICE.parent / "cgroup.subtree_control"]
    before = [control.read_text() for control in controls]
    unit = make("whole", SERVICE)
    unit.start()
    assert unit.show("ActiveState") == "active"
    assert Path(f"/proc/{unit.show('MainPID')}/oom_score_adj").read_text() == "-500\n"

    # The job that hits its limit ends as oom; the unit and the other job do not mind.
    (hog,) = eventually(lambda: unit.ended("hog"))
    assert (hog["reason"], hog["memory"]["oom_kills"], hog["expected"]) == ("oom", 1, True)
    assert (unit.show("ActiveState"), unit.show("SubState")) == ("active", "running")
    eventually(lambda: unit.show("StatusText") == "1 running, 1 ended")

    # The journal has what people are told, with fields.
    (told,) = unit.journal("SUPERVISE_JOB=hog", "SUPERVISE_REASON=oom", "SUPERVISE_EVENT=job_ended")
    assert told["MESSAGE"].startswith("hog ended: oom after ")
    assert (told["PRIORITY"], told["SYSLOG_IDENTIFIER"]) == ("6", "supervise")
    assert (told["SUPERVISE_INSTANCE"], told["SUPERVISE_RUN"]) == ("whole", hog["run"])
    assert json.loads(told["SUPERVISE_RECORD"]) == hog
    (began,) = unit.journal("SUPERVISE_JOB=service", "SUPERVISE_EVENT=job_started")
    assert began["MESSAGE"].startswith("service started (pid ")

    # Limits stand below the unit's own cgroup, and nothing was enabled above it.
    limits = [p for p in unit.cgroup.rglob("memory.max") if p.read_text() == f"{48 << 20}\n"]
    assert limits and "memory" in (unit.cgroup / "cgroup.subtree_control").read_text()
    assert [control.read_text() for control in controls] == before

    unit.stop()
    assert (unit.show("ActiveState"), unit.show("Result")) == ("inactive", "success")
    (service,) = unit.ended("service")
    assert (service["reason"], service["expected"]) == ("stopped", True)
    eventually(unit.gone)
    assert [control.read_text() for control in controls] == before
    call("systemctl", "stop", "beside")

    # What the job saw: none of the variables that are the supervisor's.
    (output,) = unit.state.glob("logs/service.*.out")
    text = output.read_text()
    assert "told\n" in text and "adj=200\n" in text
    assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "JOURNAL_STREAM", "INVOCATION_ID"} & {
        line.partition("=")[0] for line in text.splitlines()
    }


SLOW = """
[jobs.slow]
command = ["sh", "-c", "trap 'sleep 3; echo saved; exit 0' TERM; echo ready; sleep 1000 & wait"]
stop = { grace = "60s" }
"""


def test_jobs_have_their_grace_although_the_unit_has_less(make: Callable[..., Unit]) -> None:
    unit = make("slow", SLOW, "TimeoutStopSec=1s")
    unit.start()
    (output,) = eventually(lambda: list(unit.state.glob("logs/slow.*.out")))
    eventually(lambda: "ready" in output.read_text())
    unit.stop()
    assert (unit.show("ActiveState"), unit.show("Result")) == ("inactive", "success")
    assert "saved" in output.read_text()
    (record,) = unit.ended("slow")
    assert record["reason"] == "stopped"


def test_a_hung_supervisor_is_replaced_and_nothing_of_it_is_left(
    make: Callable[..., Unit],
) -> None:
    unit = make("hung", SLOW, "WatchdogSec=6s")
    unit.start()
    first = int(unit.show("MainPID"))
    fed = unit.show("WatchdogTimestampMonotonic")
    eventually(lambda: unit.show("WatchdogTimestampMonotonic") != fed)
    eventually(lambda: list(unit.state.glob("logs/slow.*.out")))
    eventually(lambda: len(unit.processes()) > 3)
    before = unit.processes()

    os.kill(first, signal.SIGSTOP)
    eventually(lambda: unit.show("NRestarts") == "1" and unit.show("ActiveState") == "active")
    assert int(unit.show("MainPID")) != first
    assert not before & unit.processes()
    eventually(lambda: len(list(unit.state.glob("logs/slow.*.out"))) == 2)
    eventually(lambda: unit.show("StatusText") == "1 running")
    # It said where it hung, in Python's words.
    said = [one["MESSAGE"] for one in unit.journal("SYSLOG_IDENTIFIER=supervise")]
    assert "Fatal Python error: Aborted" in said, said

    os.kill(int(unit.show("MainPID")), signal.SIGKILL)
    eventually(lambda: unit.show("NRestarts") == "2" and unit.show("ActiveState") == "active")
    unit.stop()
    eventually(unit.gone)


@pytest.mark.parametrize(
    ("name", "config", "state", "status"),
    [
        ("good", '[jobs.a]\ncommand = ["true"]', "inactive", "0"),
        ("bad", '[jobs.a]\ncommand = ["false"]', "failed", "1"),
        ("wrong", "[jobs.a]\nno = 1", "failed", "2"),
    ],
    ids=["good", "bad", "wrong"],
)
def test_a_batch_is_run_once_and_its_end_is_told(
    make: Callable[..., Unit], name: str, config: str, state: str, status: str
) -> None:
    unit = make(name, config)
    unit.start(status=None)  # whether it has ended already when this returns is not known
    eventually(lambda: unit.show("ActiveState") == state)
    assert (unit.show("ExecMainStatus"), unit.show("NRestarts")) == (status, "0")
    eventually(unit.gone)


PRINTS = """
[jobs.prints]
script = "echo to out; printf 'bad \\\\377\\\\n' >&2; head -c 100000 /dev/zero | tr '\\\\0' x"
log = { sink = "journald" }
"""


def test_what_a_job_prints_is_in_the_journal(make: Callable[..., Unit]) -> None:
    unit = make("prints", PRINTS)
    unit.start(status=None)
    eventually(lambda: unit.show("ActiveState") == "inactive")
    first, *pieces = unit.journal("--all", "SUPERVISE_JOB=prints", "SUPERVISE_STREAM=out")
    assert (first["MESSAGE"], first["PRIORITY"]) == ("to out", "6")
    assert (first["SYSLOG_IDENTIFIER"], first["SUPERVISE_INSTANCE"]) == ("prints", "prints")
    assert "".join(piece["MESSAGE"] for piece in pieces) == "x" * 100_000
    (bad,) = unit.journal("--all", "SUPERVISE_JOB=prints", "SUPERVISE_STREAM=err")
    assert (bytes(bad["MESSAGE"]), bad["PRIORITY"]) == (b"bad \xff", "4")
    (record,) = unit.ended("prints")
    assert (record["output"]["bytes"], record["output"]["lost"]) == (100_013, 0)
    eventually(unit.gone)


USER = """
[defaults]
user_namespace = "self"

[jobs.where]
command = ["cat", "/proc/self/uid_map"]
limits = { memory = "32M", pids = 8 }

[jobs.hog]
command = ["python3", "-c", "bytearray(200 << 20)"]
limits = { memory = "24M", swap = 0 }
expect = "oom"
"""


def test_a_user_without_root_runs_jobs_in_a_scope_of_their_own() -> None:
    call("useradd", "--create-home", "--uid", "1000", "tester")
    call("loginctl", "enable-linger", "tester")
    bus = Path("/run/user/1000/bus")
    eventually(bus.exists)
    config = Path("/home/tester/mine.toml")
    config.write_text(USER)
    done = call(
        *("setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--"),
        *("env", "-i", "PATH=/usr/bin:/bin", "HOME=/home/tester"),
        *("XDG_RUNTIME_DIR=/run/user/1000", f"DBUS_SESSION_BUS_ADDRESS=unix:path={bus}"),
        *("systemd-run", "--user", "--scope", "--unit=mine", "-p", "Delegate=yes"),
        *(COMMAND, config, "--json"),
    )
    lines = [line for line in done.splitlines() if line.startswith("{")]
    records = {record["job"]: record for record in map(json.loads, lines)}
    assert {name: record["reason"] for name, record in records.items()} == {
        "where": "succeeded",
        "hog": "oom",
    }
    state = Path("/home/tester/.local/state/supervise/mine")
    (output,) = state.glob("logs/where.*.out")
    assert output.read_text().split() == ["0", "1000", "1"]
    # The limit stood in the scope, and the kernel's count is what the verdict rests on.
    read = [one["source"] for one in records["hog"]["evidence"]]
    scope = "/sys/fs/cgroup/user.slice/user-1000.slice/user@1000.service/app.slice/mine.scope"
    assert any(file.startswith(f"{scope}/supervise.mine/") for file in read), read
    eventually(lambda: not Path(scope).exists())


def test_a_reload_takes_the_file_or_fails(make: Callable[..., Unit]) -> None:
    one = '[jobs.one]\ncommand = "sleep 1000"\n'
    unit = make("reread", one)
    unit.start()
    path = Path("/etc/supervise/reread.toml")
    path.write_text(f'{one}limits.memory = "48M"\n[jobs.two]\ncommand = "sleep 1000"\n')
    call("systemctl", "reload", unit.unit)
    eventually(lambda: unit.show("StatusText") == "2 running")
    (change,) = [e for e in unit.events if e["event"] == "limit_changed"]
    assert (change["job"], change["to"], change["by"]) == ("one", 48 << 20, "root (uid 0)")
    path.write_text(one + 'comand = "x"\n')
    call("systemctl", "reload", unit.unit, status=None)
    assert [e["event"] for e in unit.events if "reload" in e["event"]] == [
        "reloading", "reloaded", "reloading", "reload_failed",
    ]  # fmt: skip
    assert (unit.show("ActiveState"), unit.show("StatusText")) == ("active", "2 running")
