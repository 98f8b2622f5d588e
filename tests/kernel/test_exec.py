# ruff: noqa: PTH123 - what runs in a job imports little
"""`supervise exec` without a terminal: where the command is, as whom, and what comes back."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from supervisor.linux import proc
from tests.support import entering
from tests.support.batch import PATIENCE, Batch
from tests.support.containers import python
from tests.support.entering import Instance, jobs, until_runs

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    """`one` runs, and those with walls; `two` waits, `three` has ended, `four` is to be killed."""
    text = jobs(
        one={"limits": {"pids": 20}},
        two={"after": ["one"]},
        three={"command": ["true"]},
        four={},
        **{name: {"command": THEN_SLEEP, **walls} for name, walls in WALLS.items()},
    )
    with entering.instance(tmp_path_factory.mktemp("exec"), text, "one", "four", *WALLS) as found:
        yield found


def look():
    """Everything by which two processes of a job may differ."""
    import os
    import resource

    def read(name):
        with open(f"/proc/self/{name}") as file:
            return file.read()

    status = dict(line.split(":\t", 1) for line in read("status").splitlines())
    names = (
        "Uid",
        "Gid",
        "Groups",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "Seccomp_filters",
        "Umask",
        "SigBlk",
        "SigIgn",
    )
    return {
        **{name: status.get(name) for name in names},
        "namespaces": {kind: os.readlink(f"/proc/self/ns/{kind}")
                       for kind in ("mnt", "pid", "net", "uts", "ipc", "user", "time")
                       if os.path.exists(f"/proc/self/ns/{kind}")},
        "cgroup": read("cgroup"),
        "oom_score_adj": read("oom_score_adj"),
        "limits": [resource.getrlimit(n) for n in range(16)],
        "environment": dict(os.environ),
        "cwd": os.getcwd(),
        "root": os.listdir("/"),
        "host": os.uname().nodename,
        "descriptors": sorted(n for n in os.listdir("/proc/self/fd")
                              if os.path.lexists(f"/proc/self/fd/{n}")),
        "session": os.getsid(0) == os.getpid() == os.getpgid(0),
    }  # fmt: skip


LOOK = python(look)
THEN_SLEEP = [
    *LOOK[:4], LOOK[4] + "\nimport signal\nsignal.pause()\n", LOOK[5]
]  # fmt: skip
WALLS: dict[str, dict[str, Any]] = {
    "plain": {"limits": {"memory": "64M", "pids": 20, "cpus": 1.0}},
    "nobody": {"user": "nobody:daemon", "working_dir": "/tmp", "oom_score_adj": 500,
               "rlimits": {"core": 0, "fsize": "1M"}, "environment": {"A": "b c"}},
    "mapped": {"user_namespace": {"host_id": 100000, "size": 65536}, "hostname": "inside",
               "capabilities": {"add": ["NET_RAW"], "drop": ["CHOWN"]}},
    "open": {"network": "host", "seccomp": "unconfined", "landlock": "off",
             "capabilities": {"drop": ["ALL"]}, "write": "overlay"},
    "ambient": {"user": "daemon", "capabilities": {"add": ["NET_BIND_SERVICE"]}},
}  # fmt: skip


@pytest.mark.parametrize("name", WALLS)
def test_a_command_finds_exactly_the_walls_of_the_payload(instance: Instance, name: str) -> None:
    payload = json.loads(_first_line(instance.batch, name))
    done = instance.exec(name, "--", *LOOK)
    assert done.status == 0, done.stderr
    assert json.loads(done.stdout) == payload


def _first_line(batch: Batch, job: str) -> str:
    """Of what a job has written; it comes."""
    from tests.kernel.test_init import until

    (path,) = (batch.state / "logs").glob(f"{job}.*.out")
    until(lambda: "\n" in path.read_text())
    return path.read_text().splitlines()[0]


def test_streams_stay_apart_and_the_status_is_the_commands(instance: Instance) -> None:
    done = instance.exec("one", "--", "sh", "-c", "echo out; echo err >&2; cat; exit 7",
                         stdin="given\n")  # fmt: skip
    assert (done.stdout, done.stderr, done.status) == ("out\ngiven\n", "err\n", 7)
    assert instance.exec("one", "--", "sh", "-c", "kill -TERM $$").status == 128 + 15
    assert instance.exec("--no-stdin", "one", "--", "cat").status == 0
    assert instance.exec("one", "--", "no-such-command").status == 127
    assert instance.exec("one", "--", "/etc/passwd").status == 126
    # what stands after the job is the command's, flags and dashes too
    assert instance.exec("one", "printf", "%s.", "-t", "--", "-h").stdout == "-t.--.-h."
    assert instance.exec("one").status == instance.exec("one", "--").status == 2
    assert instance.exec("-u", "nobody", "-w", "/tmp", "-e", "A=b=c", "one", "--", "sh", "-c",
                         "id -un; pwd; echo $A $HOME").stdout == (
        "nobody\n/tmp\nb=c /nonexistent\n")  # fmt: skip


def test_every_byte_arrives_both_ways(instance: Instance, tmp_path: Path) -> None:
    data = os.urandom(3 << 20)
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(data)
    with source.open("rb") as stdin, target.open("wb") as stdout:
        assert instance.popen("one", "--", "cat", stdin=stdin, stdout=stdout).wait(60) == 0
    assert target.read_bytes() == data
    # who reads no more is told so, and so is the command
    with instance.popen("one", "--", "yes", stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        assert process.wait(60) == 128 + signal.SIGPIPE


def test_who_did_what_is_in_the_event_log(instance: Instance) -> None:
    before, ends = len(instance.batch.entries("steered")), instance.sessions()
    instance.exec("one", "--", "sh", "-c", "exit 3")
    end = instance.next_end(ends)
    instance.exec("-u", "nobody", "one", "--", "nothing-there")
    done, failed = instance.batch.entries("steered")[before:]
    assert (done["verb"], done["by"], done["job"]) == ("exec", "root (uid 0)", "one")
    assert (done["command"], done["failed"]) == (["sh", "-c", "exit 3"], None)
    assert (end["run"], end["session"]) == (done["run"], done["session"])
    assert (end["exit_code"], end["signal"]) == (3, None)
    assert (failed["user"], failed["session"]) == ("nobody", None)
    assert "nothing-there" in failed["failed"]


def test_a_job_that_does_not_run_is_refused_with_the_way_out(instance: Instance) -> None:
    waiting = instance.exec("two", "--", "true")
    assert (waiting.status, "two is waiting, not running" in waiting.stderr) == (125, True)
    instance.ask("wait", "three")
    ended = instance.exec("three", "--", "true")
    assert (ended.status, "three is ended" in ended.stderr) == (125, True)
    assert "supervise restart" in ended.stderr
    unknown = instance.exec("tow", "--", "true")
    assert (unknown.status, "did you mean two?" in unknown.stderr) == (2, True)
    assert instance.exec("one").status == 2


def test_the_job_and_its_command_end_together(instance: Instance) -> None:
    with instance.popen("four", "--", "sh", "-c", "echo up; exec sleep 1000",
                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                        stderr=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"up\n"
        instance.ask("kill", "four")
        assert process.wait(60) == 128 + 9
        assert b"the job has ended, and the command with it" in process.stderr.read()
    instance.running.wait_for(r" four ended: stopped")


def test_a_client_that_dies_takes_its_command_along(instance: Instance) -> None:
    """SIGHUP first, and SIGKILL for who does not heed it."""
    heed = "exec 2> /dev/null; trap 'exit 5' HUP; echo up; while :; do sleep 0.1; done"
    stubborn = "trap '' HUP; echo up; while :; do sleep 1; done"
    for script, ending in ((heed, (5, None)), (stubborn, (None, 9))):
        before = instance.sessions()
        with instance.popen("one", "--", "sh", "-c", script, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE) as process:  # fmt: skip
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            process.kill()
        end = instance.next_end(before)
        assert (end["exit_code"], end["signal"]) == ending


def test_signals_reach_the_command(instance: Instance) -> None:
    script = "trap 'echo int' INT; trap 'exit 9' USR1; echo up; while :; do sleep 0.05; done"
    with instance.popen("one", "--", "sh", "-c", script, stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"int\n"
        process.send_signal(signal.SIGUSR1)
        assert process.wait(60) == 9


def test_a_detached_command_goes_on_alone(instance: Instance) -> None:
    before = instance.sessions()
    started = instance.exec("--detach", "--json", "one", "--", "sleep", "1000")
    told = json.loads(started.stdout)
    assert proc.stat(told["pid"]).comm == "sleep"
    assert told["pid"] in proc.children(instance.running.process.pid)
    os.kill(told["pid"], signal.SIGTERM)
    assert instance.next_end(before)["signal"] == signal.SIGTERM


@pytest.fixture
def doomed(batch: Batch) -> Iterator[Instance]:
    """One job, whose supervisor may be killed: what is left then is ended by its next instance."""
    with batch.start(jobs(one={})) as running:
        running.wait_started("one")
        yield Instance(batch, running)
        running.signal(signal.SIGKILL)
        running.process.wait()
        batch.run('[jobs.two]\ncommand = "true"')


def test_it_dies_with_the_supervisor_unless_it_was_detached(doomed: Instance) -> None:
    told = doomed.exec("--detach", "--json", "one", "--", "sleep", "1001").stdout
    with doomed.popen("one", "--", "sleep", "1002", stdin=subprocess.DEVNULL) as client:
        beside = os.pidfd_open(until_runs("sleep 1002"))
        try:
            doomed.running.signal(signal.SIGKILL)
            assert select.select([beside], [], [], PATIENCE)[0], "it lives"
        finally:
            os.close(beside)
        assert client.wait(PATIENCE) == 125
    assert proc.stat(json.loads(told)["pid"]).comm == "sleep"


def test_it_counts_as_the_jobs(instance: Instance) -> None:
    """In its cgroup, and at its limit of processes it is refused, like a fork of its own."""
    crowd = "i=0; while [ $i -lt 18 ]; do sleep 1000 & i=$((i+1)); done; echo up; wait"
    with instance.popen("one", "--", "sh", "-c", crowd, stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        told = [json.loads(line) for line in instance.ask("ps", "--json").stdout.splitlines()]
        assert [job["pids"] for job in told if job["name"] == "one"] == [20]
        refused = instance.exec("one", "--", "true")
        assert refused.status == 125
        assert "limit of 20 processes" in refused.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + 15


def test_only_pipes_are_taken(instance: Instance, tmp_path: Path) -> None:
    """A file of the host's could be opened again for writing, a directory be walked off from."""
    from supervisor.errors import SupervisorError
    from supervisor.front.verbs.client import Client
    from supervisor.front.verbs.talk import Talk

    client = Client(Path(instance.socket))
    body = {"command": ["true"]}
    reader, writer = os.pipe()
    named = tmp_path / "named"
    os.mkfifo(named)
    wrong = [
        os.open("/", os.O_RDONLY),
        os.open(__file__, os.O_RDONLY),
        os.open("/dev/zero", os.O_RDONLY),
        os.open(named, os.O_RDWR),
        os.open("/", os.O_PATH),
    ]
    try:
        for fds in [*((fd, writer, writer) for fd in wrong), (reader, writer), ()]:
            with Talk.open(client, "supervise-exec", "jobs", "one", "exec", body=body,
                           descriptors=fds) as talk:  # fmt: skip
                assert "three pipes" in talk.next()["failed"]["error"]
        with Talk.open(client, "supervise-exec", "jobs", "one", "exec", body=body,
                       descriptors=(reader, writer, writer)) as talk:  # fmt: skip
            assert "started" in talk.next()
            assert talk.next()["ended"] == {"code": 0, "signal": None, "over": False}
        with pytest.raises(SupervisorError, match="is empty"):
            client.post("jobs", "one", "exec", "detached", body={"command": []})
    finally:
        for fd in (*wrong, reader, writer):
            os.close(fd)
