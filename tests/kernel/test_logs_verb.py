"""`supervise logs`: what there is, and what comes, without a byte missing or doubled."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.batch import PATIENCE, Batch
from tests.support.command import Done, State, Supervise
from tests.support.logged import SLOWER, file_system

pytestmark = pytest.mark.kernel

LAST = 200_000 // SLOWER
COUNTED = "".join(f"{number}\n" for number in range(1, LAST + 1))
WAIT = "read line < /tmp/ready"
"""In a script: until the test has opened the pipe (`Batch.sees`) and written to it."""


def logs(batch: Batch, *arguments: str) -> Done:
    return batch.supervise("logs", "--state-dir", batch.where.state, *arguments)


@contextmanager
def following(batch: Batch, *arguments: str, first: int = 1) -> Iterator[list[str]]:
    """`logs -f`, from its `first` lines on; when the block has ended: what it printed, its status.

    The block must see to it that it ends.
    """
    environment = {"SUPERVISE_SOCKET": f"{batch.where.runtime}/{batch.name}/socket"}
    found: list[str] = []
    with batch.supervise.start("logs", "-f", *arguments, environment=environment) as process:
        assert process.stdout is not None
        stream = process.stdout
        head = "".join(stream.readline() for _ in range(first))
        reader = threading.Thread(target=lambda: found.append(head + stream.read()))
        reader.start()
        try:
            yield found
            reader.join(PATIENCE)
            assert not reader.is_alive(), "it does not end"
        finally:
            process.kill()
            reader.join()
        found.append(str(process.wait()))


def test_what_there_is_is_shown(batch: Batch, tmp_path: Path) -> None:
    result = batch.run(
        """
        [jobs.plain]
        script = "seq 1 5; printf 'no end'; echo error >&2"
        [jobs.timed]
        script = "echo 1; echo 2 >&2; echo 3"
        log = { timestamps = true }
        [jobs.many]
        command = ["echo", "n{n}"]
        matrix = { n = [1, 2] }
        [jobs.bytes]
        script = "printf 'a\\\\377\\\\000\\\\033[31m\\\\n'"
        """
    )
    assert set(result.reasons.values()) == {"succeeded"}, result.done.stderr
    assert logs(batch, "plain", "--stdout").stdout == "1\n2\n3\n4\n5\nno end"
    assert logs(batch, "plain").stdout == "1\n2\n3\n4\n5\nno end\nerror\n"
    assert logs(batch, "plain", "--stderr").stdout == "error\n"
    assert logs(batch, "plain", "--tail", "2", "--stdout").stdout == "5\nno end"
    assert logs(batch, result["plain"]["run"], "--stderr").stdout == "error\n"
    assert sorted(logs(batch, "timed").stdout.split()) == ["1", "2", "3"]
    timed = logs(batch, "timed", "--timestamps").stdout.splitlines()
    assert timed == sorted(timed) and all(re.match(r"\d{4}-.*Z \d$", line) for line in timed)
    assert logs(batch, "timed", "--since", "1h", "--stderr").stdout == "2\n"
    assert logs(batch, "timed", "--since", "2999-01-01").stdout == ""
    assert set(logs(batch, "many").stdout.splitlines()) == {"many@n=1 | n1", "many@n=2 | n2"}
    every = [json.loads(line) for line in logs(batch, "--json").stdout.splitlines()]
    assert {one["job"] for one in every} == {"plain", "timed", "many@n=1", "many@n=2", "bytes"}
    (odd,) = [one for one in every if one["job"] == "bytes"]
    assert odd["base64"] == "Yf8AG1szMW0=" and "text" not in odd
    last = next(one for one in every if one.get("text") == "no end")
    assert last == {"job": "plain", "run": result["plain"]["run"], "stream": "out",
                    "text": "no end", "end": False}  # fmt: skip


def test_what_cannot_be_shown_is_said(batch: Batch) -> None:
    batch.run('[jobs.a]\ncommand = ["echo", "x"]\n[jobs.j]\nscript = "true"\nlog.sink = "journald"')
    none = logs(batch, "b")
    assert (none.status, none.stderr) == (
        2, f"b: no run of such a job in {batch.state}\n",
    )  # fmt: skip
    assert logs(batch, "a", "b").status == 2
    timed = logs(batch, "a", "--timestamps")
    assert timed.status == 2 and "log.timestamps = true" in timed.stderr
    assert "its lines are in the journal: journalctl SUPERVISE_RUN=" in logs(batch, "j").stderr
    assert "is shown whole, or not at all" in logs(batch, "a", "--since", "1h").stderr
    assert logs(batch, "a", "--since", "never").status == 2
    assert logs(batch, "../a").status == 2


def test_a_terminal_gets_no_control_characters(batch: Batch) -> None:
    batch.run("""[jobs.a]\nscript = "printf 'a\\\\tb\\\\033]0;x\\\\007c\\\\377\\\\r\\\\nend'" """)
    master, slave = pty.openpty()
    try:
        argv = ["logs", "--state-dir", str(batch.where.state), "--color", "never", "a"]
        process = batch.supervise.start(*argv, stdout=slave)
        os.close(slave)
        data = b""
        while not data.endswith(b"end"):
            data += os.read(master, 4096)
        process.communicate()
    finally:
        os.close(master)
    assert data.replace(b"\r\n", b"\n") == b"a\tb\\x1b]0;x\\x07c\\xff\nend"


@pytest.mark.parametrize("kind", ["in place", "by renaming", "nowhere else"])
def test_a_follower_gets_every_byte_once(
    supervise: Supervise, tmp_path: Path, tmp_state: State, kind: str
) -> None:
    """At full speed, while the file is rotated dozens of times; over a second run, to the end."""
    drop = ', on_full = "drop"' if kind == "by renaming" else ""
    with file_system("ramfs" if kind == "nowhere else" else "tmpfs") as place:
        state = place if kind != "in place" else tmp_state.state
        batch = Batch(Supervise(State(state, tmp_state.runtime)), tmp_path)
        fifo = batch.fifo("ready")
        job = f"""
        [jobs.a]
        script = "echo 0; {WAIT}; seq 1 {LAST}; printf end; exit 1"
        log = {{ max_size = "64K", keep = 1000{drop} }}
        restart = {{ when = "on-failure", attempts = 1, backoff = 0 }}
        """
        with batch.start(job, defaults=batch.sees(fifo)) as running:
            running.wait_started("a")
            with following(batch, "a", "--stdout") as found:
                fifo.write_text("go\n")
                running.wait_started("a")
                fifo.write_text("go\n")
                running.finish()
        once = "0\n" + COUNTED + "end"
        assert found == [once + "\n" + once, "0"]


def test_jobs_are_followed_from_before_they_run(batch: Batch) -> None:
    """`b` waits for `a`; lines have names in front, and are never cut by others."""
    fifo = batch.fifo("ready")
    jobs = f"""
    [jobs.a]
    script = "echo zero; {WAIT}; echo one; printf two"
    [jobs.b]
    script = "echo three; printf four >&2"
    after = ["a"]
    [jobs.c]
    script = "{WAIT}; echo not shown"
    """
    with batch.start(jobs, defaults=batch.sees(fifo)) as running:
        running.wait_started("a", "c")
        with following(batch, "a", "b") as found:
            fifo.write_text("go\ngo\n")
            running.finish()
    assert sorted(found[0].splitlines()) == [
        "a | one", "a | two", "a | zero", "b | four", "b | three",
    ]  # fmt: skip
    assert found[1] == "0"


def test_an_open_line_is_shown_at_once(batch: Batch) -> None:
    fifo = batch.fifo("ready")
    job = f'[jobs.a]\nscript = "printf prompt; {WAIT}; echo answer"'
    with batch.start(job, defaults=batch.sees(fifo)) as running:
        running.wait_started("a")
        environment = {"SUPERVISE_SOCKET": f"{batch.where.runtime}/{batch.name}/socket"}
        with supervise_logs(batch, "a", "--stdout", environment=environment) as process:
            assert process.stdout is not None
            assert process.stdout.read(6) == "prompt"
            fifo.write_text("go\n")
            assert process.stdout.read() == "answer\n"
            assert process.wait() == 0
        running.finish()


@contextmanager
def supervise_logs(
    batch: Batch, *arguments: str, environment: dict[str, str]
) -> Iterator[subprocess.Popen[str]]:
    with batch.supervise.start("logs", "-f", *arguments, environment=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def test_a_killed_supervisor_is_told_of(batch: Batch) -> None:
    fifo = batch.fifo("ready")
    jobs = f'[jobs.a]\nscript = "echo said; {WAIT}"'
    with batch.start(jobs, defaults=batch.sees(fifo)) as running:
        running.wait_started("a")
        with following(batch, "a") as found:
            running.signal(signal.SIGKILL)
        assert found == ["said\n", "125"]
        running.process.wait()
        fifo.write_text("go\n")
        batch.run('[jobs.b]\ncommand = "true"')  # it clears away what is left
