# ruff: noqa: PTH123 - what runs in a job imports little
"""A job that lies in wait for a command that an operator puts into it (`supervise exec`)."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from supervisor.errors import SupervisorError
from supervisor.front.verbs.client import Client
from tests.support import entering, host
from tests.support.containers import python
from tests.support.entering import jobs

pytestmark = pytest.mark.kernel

OPEN: dict[str, Any] = {"landlock": "off", "seccomp": "unconfined"}
"""Only what stands between a command and its job is left: whose eyes may look into it."""


def ambush():
    """Look into every process as soon as it is there; tell what it came to, when told to end.

    Counted apart: those that are not yet what they are to be (they still have the launcher's
    name), before and after a look; and those that have been executed, which is no secret.
    """
    import ctypes
    import os
    import signal

    libc = ctypes.CDLL(None, use_errno=True)
    waiting = {"supervise:exec", "supervise:laun", "supervise:launc"}
    found = {"seen": 0, "caught": {}, "control": {}}
    ended = []
    signal.signal(signal.SIGUSR1, lambda *_: ended.append(1))
    mine = {"1", str(os.getpid())}

    def comm(pid):
        try:
            with open(f"/proc/{pid}/comm") as file:
                return file.read().strip()
        except OSError:
            return ""

    def opened(path, flags=os.O_RDONLY):
        try:
            os.close(os.open(path, flags))
        except OSError:
            return False
        return True

    def descriptors(pid):
        """The numbers are no secret; what they lead to is."""
        try:
            return any(os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd"))
        except OSError:
            return False

    def traced(pid):
        if libc.ptrace(0x4206, int(pid), None, None):  # PTRACE_SEIZE
            return False
        libc.ptrace(17, int(pid), None, None)  # PTRACE_DETACH, of who has stopped only
        return True

    looks = {
        "exe": lambda pid: opened(f"/proc/{pid}/exe"),
        "root": lambda pid: opened(f"/proc/{pid}/root"),
        "cwd": lambda pid: opened(f"/proc/{pid}/cwd"),
        "mem": lambda pid: opened(f"/proc/{pid}/mem", os.O_RDWR),
        "maps": lambda pid: opened(f"/proc/{pid}/maps"),
        "environ": lambda pid: opened(f"/proc/{pid}/environ"),
        "namespace": lambda pid: opened(f"/proc/{pid}/ns/mnt"),
        "fd": descriptors,
        "ptrace": traced,
    }
    yield "waiting"
    while not ended:
        for pid in os.listdir("/proc"):
            if not pid.isdigit() or pid in mine:
                continue
            found["seen"] += comm(pid) in waiting
            for name, look in looks.items():
                before = comm(pid)
                if before and look(pid):
                    kind = "caught" if before in waiting and comm(pid) in waiting else "control"
                    found[kind][name] = found[kind].get(name, 0) + 1
    yield found


@pytest.mark.parametrize(
    "user", ["host", {"host_id": 200000, "size": 65536}], ids=["root", "namespace"]
)
def test_a_command_on_its_way_in_is_not_looked_into(tmp_path: Path, user: object) -> None:
    job = {"command": python(ambush), "user_namespace": user, **OPEN}
    with entering.instance(tmp_path, jobs(one=job), "one") as instance:
        (log,) = (instance.batch.state / "logs").glob("one.*.out")
        _until(lambda: "waiting" in log.read_text())
        client = Client(Path(instance.socket))
        for _ in range(25):
            body = {"command": ["sleep", "0.05"]}
            client.post("jobs", "one", "exec", "detached", body=body)
        instance.ask("kill", "-s", "USR1", "one")
        instance.running.wait_for(" one ended: succeeded")
        found = json.loads(log.read_text().splitlines()[-1])
    assert found["seen"] > 0, "the job has never been quick enough"
    assert found["caught"] == {}
    assert {"exe", "root", "fd", "ptrace"} <= set(found["control"])


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 60 * host.SLOWNESS
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def test_commands_for_a_job_that_is_about_to_end(tmp_path: Path) -> None:
    """Whatever the moment: a command runs, or is refused, and nothing is left."""
    brief = {f"j{n}": {"command": ["sleep", "0.5"]} for n in range(4)}
    with entering.instance(tmp_path, jobs(last={}, **brief), "last") as instance:
        client = Client(Path(instance.socket))
        refused = set()
        deadline = time.monotonic() + 60 * host.SLOWNESS
        while refused != set(brief):
            assert time.monotonic() < deadline
            for name in set(brief) - refused:
                try:
                    client.post("jobs", name, "exec", "detached", body={"command": ["sleep", "9"]})
                except SupervisorError as error:
                    if "ended" in str(error):
                        refused.add(name)
        assert instance.exec("last", "--", "echo", "well").stdout == "well\n"


def test_a_frozen_job_takes_no_command_and_one_that_is_there_ends_with_it(tmp_path: Path) -> None:
    with entering.instance(tmp_path, jobs(one={}), "one") as instance:
        script = ["sh", "-c", "echo up; exec sleep 1000"]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE}
        with instance.popen("one", "--", *script, **streams) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            assert instance.ask("pause", "one").status == 0
            refused = instance.exec("one", "--", "true")
            assert (refused.status, "one is frozen" in refused.stderr) == (125, True)
            before = instance.sessions()
            process.kill()  # SIGKILL reaches it at once on v2, when it is thawed on v1
        assert instance.ask("resume", "one").status == 0
        assert instance.next_end(before)["signal"] in (signal.SIGHUP, signal.SIGKILL)
        assert instance.exec("one", "--", "true").status == 0


def test_a_shell_of_the_jobs_own_making(tmp_path: Path) -> None:
    """It may replace /bin/sh: what runs is its own, behind the same walls, and nothing else."""
    job = {"command": ["sh", "-c", "printf '#!/proc/self/exe\\n' > /usr/bin/trap; "
                       "chmod 755 /usr/bin/trap; echo up; exec sleep 1000"],
           "write": "overlay", "hide": "nothing"}  # fmt: skip
    interpreter = Path("/proc/self/exe").resolve()
    before = interpreter.stat().st_mode, interpreter.stat().st_mtime_ns
    with entering.instance(tmp_path, jobs(one=job), "one") as instance:
        (log,) = (instance.batch.state / "logs").glob("one.*.out")
        _until(lambda: "up" in log.read_text())
        done = instance.exec("one", "--", "/usr/bin/trap", "-c", "x")
        assert done.status != 125, done.stderr
        assert instance.exec("one", "--", "id", "-u").stdout == "0\n"
    assert (interpreter.stat().st_mode, interpreter.stat().st_mtime_ns) == before
