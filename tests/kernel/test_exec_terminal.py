"""`supervise exec` with a terminal: one of the job's own, and ours as its window."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.support import entering
from tests.support.entering import Instance, jobs
from tests.support.ptys import Terminal

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    text = jobs(
        one={"environment": {"PS1": "$ "}},
        mapped={"user_namespace": {"host_id": 100000, "size": 65536}, "user": "nobody"},
    )
    with entering.instance(tmp_path_factory.mktemp("tty"), text, "one", "mapped") as found:
        yield found


def window(instance: Instance, *words: str, rows: int = 30, columns: int = 90) -> Terminal:
    environment = instance.batch.where.environment | instance.environment
    return Terminal(["exec", *words], environment, rows, columns)


@pytest.mark.parametrize(("job", "owner"), [("one", "root"), ("mapped", "nobody")])
def test_it_is_a_terminal_of_the_jobs_own(instance: Instance, job: str, owner: str) -> None:
    script = "tty; stty size; stat -c '%U %a' $(tty); echo $TERM; [ -t 0 -a -t 1 -a -t 2 ]; exit $?"
    with window(instance, job, "--", "sh", "-c", script) as shown:
        assert shown.wait() == 0
        told = shown.screen.split("\r\n")
        assert told == ["/dev/pts/0", "30 90", f"{owner} 620", "vt100", ""]
        assert shown.modes() == shown.before


def test_keys_and_job_control(instance: Instance) -> None:
    with window(instance, "one", "--", "sh", "-i") as shown:
        shown.wait_for("$ ")
        shown.type("sleep 31001\r")
        entering.until_runs("sleep 31001")
        shown.type("\x03")  # Ctrl-C ends the sleep, not the shell, and not us
        shown.wait_for("$ ")
        shown.type("echo $?\r")
        shown.wait_for("130\r\n")
        shown.wait_for("$ ")
        shown.type("sleep 31002\r")
        entering.until_runs("sleep 31002")
        shown.type("\x1a")  # Ctrl-Z
        shown.wait_for("Stopped")
        shown.wait_for("$ ")
        shown.type("exit 7\r")
        shown.wait_for("stopped jobs")
        shown.wait_for("$ ")
        shown.type("exit 7\r")
        assert shown.wait() == 7
        assert shown.modes() == shown.before


def test_it_has_the_size_of_our_window(instance: Instance) -> None:
    script = "trap 'stty size' WINCH; echo up; while :; do sleep 0.05; done"
    with window(instance, "one", "--", "sh", "-c", script) as shown:
        shown.wait_for("up\r\n")
        shown.resize(50, 132)
        shown.wait_for("50 132\r\n")
        shown.type("\x03")
        assert shown.wait() == 128 + signal.SIGINT


def test_the_detach_keys_leave_it_running(instance: Instance) -> None:
    """And whoever writes to a terminal that nobody looks at is not kept waiting."""
    script = "while read line; do echo got $line; done; i=0; while [ $i -lt 20000 ]; do " \
             "echo 0123456789012345678901234567890123456789; i=$((i+1)); done; exit 3"  # fmt: skip
    before = instance.sessions()
    with window(instance, "--detach-keys", "ctrl-a,d", "one", "--", "sh", "-c", script) as shown:
        shown.type("\x01x\r")  # only the beginning of the keys: it is passed on
        shown.wait_for("got \x01x\r\n")
        shown.type("\x04")  # end of file: now it writes much
        shown.wait_for("0123456789")
        shown.type("\x01d")
        assert shown.wait() == 0
        assert "left it running in one" in shown.screen
        assert shown.modes() == shown.before
    assert instance.next_end(before)["exit_code"] == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_as_before_whatever_ends_us(instance: Instance, number: int) -> None:
    before = instance.sessions()
    with window(instance, "one", "--", "sh", "-c", "echo up; exec sleep 1000") as shown:
        shown.wait_for("up\r\n")
        assert shown.modes() != shown.before
        shown.signal(number)
        assert shown.wait() == 128 + number
        assert shown.modes() == shown.before
    assert instance.next_end(before)["signal"] == signal.SIGHUP


def test_a_client_that_is_killed_hangs_up(instance: Instance) -> None:
    before = instance.sessions()
    with window(instance, "one", "--", "sh", "-c", "trap '' HUP; echo up; sleep 1000") as shown:
        shown.wait_for("up\r\n")
        shown.signal(signal.SIGKILL)
        shown.wait()
    assert instance.next_end(before)["signal"] == signal.SIGKILL


def test_all_that_was_written_last_is_shown(instance: Instance) -> None:
    with window(instance, "one", "--", "seq", "1", "3000") as shown:
        assert shown.wait() == 0
        assert shown.screen == "".join(f"{n}\r\n" for n in range(1, 3001))


def test_without_a_terminal_there_is_none_to_be_had(instance: Instance) -> None:
    done = instance.exec("-t", "one", "--", "true")
    assert (done.status, "stdin is no terminal" in done.stderr) == (2, True)
    wrong = window(instance, "--detach-keys", "ctrl-", "one", "--", "true")
    with wrong as shown:
        assert shown.wait() == 2
        assert "neither a character nor ctrl-X" in shown.screen
    with window(instance, "-T", "one", "--", "sh", "-c", "[ -t 0 ] || echo none") as shown:
        assert shown.wait() == 0
        assert "none" in shown.screen
