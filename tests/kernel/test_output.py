"""`limits.output`: exactly so many bytes arrive, and the job that writes more is ended."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from supervisor.linux import proc
from tests.support.batch import Batch
from tests.support.command import State, Supervise
from tests.support.containers import (
    PYTHON,
    background,
    next_line,
    private_mounts,
    within,
    write_config,
)

pytestmark = pytest.mark.kernel


def test_a_flood_ends_at_the_limit_and_nothing_else_is_touched(batch: Batch) -> None:
    result = batch.run(
        """
        [jobs.flood]
        command = "yes"
        limits = { output = 100000 }
        [jobs.both]
        script = "while :; do echo out; echo err >&2; done"
        limits = { output = 50000 }
        [jobs.deaf]
        script = "trap '' TERM INT PIPE; (setsid yes &); while :; do echo x || :; done"
        limits = { output = "64K" }
        [jobs.exact]
        script = "head -c 4096 /dev/zero; exit 3"
        limits = { output = "4K" }
        [jobs.child]
        script = "(head -c 5000 /dev/zero &); sleep 1000"
        limits = { output = 4999 }
        [jobs.free]
        script = "head -c 300000 /dev/zero"
        """
    )
    assert result.reasons == {
        "flood": "output", "both": "output", "deaf": "output", "exact": "failed",
        "child": "output", "free": "succeeded",
    }, result.done.stderr  # fmt: skip
    for job, size in {"flood": 100000, "deaf": 65536, "exact": 4096, "child": 4999}.items():
        assert len(batch.output(result[job])) == size
        assert result[job]["output"] == {"limit": size, "bytes": size, "lost": 0}
    both = result["both"]
    assert len(batch.output(both)) + len(batch.output(both, "err")) == 50000
    assert batch.output(both).startswith("out\n") and batch.output(both, "err").startswith("err\n")
    assert result["free"]["output"] == {"limit": None, "bytes": 300000, "lost": 0}
    assert result["flood"]["detail"] == "wrote more than 100000 to stdout and stderr"
    assert result["flood"]["decided_by"] == "configuration"


def test_of_a_run_the_caller_gets_the_limit_and_the_reason(
    supervise: Supervise, tmp_path: Path
) -> None:
    record = tmp_path / "r.json"
    done = supervise("run", "--output", "1000", "--record", record, "--", "yes", "abc")
    assert (len(done.stdout), done.status) == (1000, 137)
    assert "wrote more output than its limit" in done.stderr
    assert json.loads(record.read_text())["output"] == {"limit": 1000, "bytes": 1000, "lost": 0}


def test_below_the_limit_all_of_it_arrives_in_order(supervise: Supervise) -> None:
    done = supervise("run", "--output", "10M", "--", "seq", "200000")
    assert done.status == 0
    assert done.stdout == "".join(f"{n}\n" for n in range(1, 200001))


def test_a_reader_who_goes_away_is_told_to_the_job(supervise: Supervise) -> None:
    with background(supervise, "run", "--output", "1G", "--", "yes") as process:
        assert next_line(process) == "y"
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        assert process.wait(timeout=60) == 128 + signal.SIGPIPE


def test_a_full_disk_is_told_and_the_job_goes_on(tmp_state: State) -> None:
    job = {
        "script": "head -c 1000000 /dev/zero; echo end >&2",
        "limits": {"output": "10M"},
    }
    config = write_config(tmp_state, {"one": job})
    text = config.read_text()
    state = tmp_state.state
    small = private_mounts(
        f"mount -t tmpfs -o size=256k none {state}; cat >{config} <<'END'\n{text}END\n"
    )
    with within(tmp_state, small, config, "--json") as process:
        out, err = process.communicate(timeout=60)
    record = json.loads(out)
    assert (record["reason"], process.returncode) == ("succeeded", 0)
    assert 0 < record["output"]["bytes"] <= 256 * 1024 - 4096
    assert record["output"]["bytes"] + record["output"]["lost"] == 1000004
    assert "cannot write the job's output: No space left on device" in err


def test_a_stream_that_somebody_else_holds_is_not_waited_for(
    supervise: Supervise, tmp_path: Path
) -> None:
    """The job hands its stdout to a process outside; the end of the job is the end."""
    address = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen()
        give = (
            "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/tmp/s');"
            "socket.send_fds(s, [b'x'], [1]); s.recv(1); print('end')"
        )
        flags = ("--mount", f"{address}:/tmp/s", "--output", "1M")
        with background(supervise, "run", *flags, "--", PYTHON, "-c", give) as process:
            connection, _ = listener.accept()
            with connection:
                _, (held,), _, _ = socket.recv_fds(connection, 1, 1)
                connection.send(b"x")
                assert process.stdout is not None
                assert process.stdout.read() == "end\n"
                assert process.wait(timeout=60) == 0
                os.close(held)


@contextmanager
def unread(where: State, stderr: int | None) -> Iterator[subprocess.Popen[str]]:
    """A flood whose reader has stopped reading; `stderr` None: it is the same pipe."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    streams = {"stdout": writer, "stderr": stderr or writer}
    try:
        with within(where, (), "run", "--output", "1G", "--", "yes", **streams) as process:
            os.close(writer)
            full = fcntl.fcntl(reader, fcntl.F_GETPIPE_SZ)
            while int.from_bytes(fcntl.ioctl(reader, termios.FIONREAD, bytes(4)), "little") < full:
                assert process.poll() is None, "it ended instead of writing"
            try:
                yield process
            except BaseException:
                process.kill()
                raise
    finally:
        os.close(reader)


def test_ctrl_c_waits_for_nobody_who_does_not_read(tmp_state: State) -> None:
    with unread(tmp_state, subprocess.PIPE) as process:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the job's last output is lost: nobody has read it for 5 s" in err


def test_not_even_where_there_is_no_room_to_tell_of_it(tmp_state: State) -> None:
    """`2>&1`: what is left of the job is cleared away; its explanation waits for a reader."""
    with unread(tmp_state, None) as process:
        assert proc.children(process.pid)
        process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + 60
        while proc.children(process.pid):
            assert time.monotonic() < deadline, "held up by a pipe that nobody reads"
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == -signal.SIGTERM
