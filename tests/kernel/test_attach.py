"""`supervise attach`: a job's own output, stdin and terminal."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import entering
from tests.support.entering import Instance, jobs
from tests.support.ptys import Terminal

pytestmark = pytest.mark.kernel

ECHO = "while read line; do echo got $line; echo err $line >&2; done; echo the end; exit 4"
SHELL = {"command": ["sh", "-i"], "terminal": True, "environment": {"PS1": "$ "}}


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    text = jobs(
        reader={"command": ["sh", "-c", ECHO], "stdin": "open", "expect": "failed"},
        closed={"command": ["sh", "-c", "cat; echo nothing came; exec sleep 1000"]},
        shell=SHELL,
        last=SHELL | {"log": {"timestamps": True}},
        idle={},
        limited=SHELL | {"limits": {"output": 20000}, "expect": "output"},
    )
    names = ("reader", "closed", "shell", "last", "limited")
    with entering.instance(tmp_path_factory.mktemp("attach"), text, *names) as found:
        yield found


def window(instance: Instance, *words: str) -> Terminal:
    return Terminal(["attach", *words], instance.batch.where.environment | instance.environment)


def pipes(instance: Instance, *words: str) -> subprocess.Popen[bytes]:
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return instance.popen(*words, verb="attach", **streams)


def test_several_speak_to_a_job_and_it_ends_with_the_end_of_its_input(instance: Instance) -> None:
    with pipes(instance, "reader") as one, pipes(instance, "--eof", "reader") as two:
        for process in (one, two):
            assert process.stdin is not None
            assert process.stdout is not None
        entering.until(lambda: len(_attached(instance, "reader")) == 2)
        one.stdin.write(b"a\n")
        one.stdin.flush()
        assert one.stdout.readline() == two.stdout.readline() == b"got a\n"
        two.stdin.write(b"b\n")
        two.stdin.flush()
        assert one.stdout.readline() == two.stdout.readline() == b"got b\n"
        one.stdin.close()  # his end is not the job's
        two.stdin.write(b"c\n")
        two.stdin.close()
        for process in (one, two):
            assert process.stderr is not None
            assert process.stdout.read() == b"got c\nthe end\n"
            assert process.stderr.read() == b"err a\nerr b\nerr c\nsupervise: ended: failed\n"
            assert process.wait(60) == 4


def _attached(instance: Instance, job: str) -> list[object]:
    steered = instance.batch.entries("steered")
    return [e for e in steered if (e["verb"], e["job"]) == ("attach", job)]


def test_a_job_without_an_open_stdin_is_only_looked_at(instance: Instance) -> None:
    with pipes(instance, "closed") as process:
        entering.until(lambda: _attached(instance, "closed"))
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    assert _attached(instance, "closed")[0]["input"] is False
    assert "closed" in instance.ask("ps", "-q", "--state", "running").stdout.split()


def test_a_jobs_terminal_is_ours_while_we_look(instance: Instance) -> None:
    with window(instance, "shell") as shown:
        shown.type("\r")
        shown.wait_for("$ ")
        shown.type("tty; stty size\r")
        shown.wait_for("/dev/pts/0\r\n30 90\r\n")
        shown.type("sleep 32001\r")
        entering.until_runs("sleep 32001")
        shown.type("\x03")
        shown.wait_for("$ ")
        shown.type("echo $?\r")
        shown.wait_for("130\r\n")
        shown.type("\x10\x11")
        assert shown.wait() == 0
        assert shown.modes() == shown.before
        assert "shell goes on" in shown.screen
    with window(instance, "--no-stdin", "shell") as watching, window(instance, "shell") as typing:
        entering.until(lambda: len(_attached(instance, "shell")) == 3)
        typing.type("echo $((6*7)); exit 5\r")
        watching.wait_for("42\r")
        typing.wait_for("42\r\n")
        assert typing.wait() == watching.wait() == 5
        assert typing.modes() == typing.before


def test_what_a_terminal_shows_is_in_the_log_to_its_last_byte(instance: Instance) -> None:
    with window(instance, "last") as shown:
        shown.type("seq 1 2000; exit 0\r")
        assert shown.wait() == 0
    (log,) = (instance.batch.state / "logs").glob("last.*.out")
    lines = log.read_text().replace("\r", "").splitlines()
    numbers = [line.rpartition(" ")[2] for line in lines]
    assert numbers[-2000:] == [str(n) for n in range(1, 2001)]
    assert all(line.startswith("20") for line in lines)


def test_a_terminal_has_a_limit_of_output_like_others(instance: Instance) -> None:
    with window(instance, "limited") as shown:
        shown.type("yes\r")
        shown.wait()
    instance.running.wait_for(" limited ended: output")
    (log,) = (instance.batch.state / "logs").glob("limited.*.out")
    assert log.stat().st_size == 20000


def test_a_job_that_has_ended_is_refused(instance: Instance, tmp_path: Path) -> None:
    instance.ask("kill", "closed")
    instance.ask("wait", "closed")
    done = instance.ask("attach", "closed")
    assert (done.status, "closed is ended, not running" in done.stderr) == (125, True)
