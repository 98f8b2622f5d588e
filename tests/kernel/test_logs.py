"""`log` of a job: times, rotation while it writes, the journal, and disks without room."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.record import logs
from supervisor.record.logs import Reader
from tests.support.batch import Batch, Record
from tests.support.command import State, Supervise
from tests.support.containers import private_mounts, within, write_config
from tests.support.logged import SLOWER, file_system

pytestmark = pytest.mark.kernel

STAMPED = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z "
LAST = 300_000 // SLOWER
COUNT = f"seq 1 {LAST}"
COUNTED = "".join(f"{number}\n" for number in range(1, LAST + 1)).encode()


def path_of(batch: Batch, record: Record, stream: str = "out") -> Path:
    return batch.state / f"logs/{record['job']}.{record['run'].partition('-')[0]}.{stream}"


def whole(path: Path) -> tuple[int, bytes]:
    """What is there of a stream, and where it begins."""
    reader = Reader(path)
    first, end = reader.bounds()
    data = b""
    while first + len(data) < end:
        at, more = reader.read(first + len(data))
        assert at == first + len(data) and more
        data += more
    reader.close()
    return first, data


def parts(path: Path) -> list[Path]:
    return [one for one in logs.files(path) if one.suffix[1:].isdigit()]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Batch]:
    """With its state where no head of a file can be given back."""
    with file_system("ramfs") as place:
        yield Batch(Supervise(State(place, tmp_path / "run")), tmp_path)


def rotated(batch: Batch) -> None:
    result = batch.run(
        f"""
        [jobs.all]
        script = "{COUNT}; printf end; {COUNT} >&2"
        log = {{ max_size = "64K", keep = 1000 }}
        [jobs.some]
        script = "{COUNT}"
        log = {{ max_size = "64K", keep = 2 }}
        """
    )
    assert set(result.reasons.values()) == {"succeeded"}, result.done.stderr
    whole_run, some = result["all"], result["some"]
    out, err = path_of(batch, whole_run), path_of(batch, whole_run, "err")
    assert whole(out) == (0, COUNTED + b"end") and whole(err) == (0, COUNTED)
    assert len(parts(out)) >= len(COUNTED) // 65536 and out.stat().st_blocks * 512 <= 65536 + 8192
    assert whole_run["output"] == {"limit": None, "bytes": 2 * len(COUNTED) + 3, "lost": 0}
    first, data = whole(path_of(batch, some))
    assert first > 0 and data == COUNTED[first:] and len(data) <= 3 * 65536
    assert len(parts(path_of(batch, some))) == 2
    assert some["output"]["bytes"] == len(COUNTED)


def test_files_are_rotated_while_the_job_writes_them(batch: Batch) -> None:
    rotated(batch)
    assert "warning" not in {entry["event"] for entry in batch.entries()}


def test_where_no_head_can_be_given_back_they_are_too(elsewhere: Batch) -> None:
    rotated(elsewhere)


def test_lines_have_their_time(batch: Batch, supervise: Supervise) -> None:
    script = "echo one; printf tw; echo o; echo; printf last; echo error >&2"
    result = batch.run(
        f"""
        [jobs.a]
        script = "{script}"
        log = {{ timestamps = true }}
        limits = {{ output = 1000 }}
        """
    )
    out = path_of(batch, result["a"]).read_text()
    lines = [re.fullmatch(f"{STAMPED}(.*)", line) for line in out.splitlines()]
    assert [line and line[1] for line in lines] == ["one", "two", "", "last"]
    assert not out.endswith("\n")
    assert re.fullmatch(f"{STAMPED}error\n", path_of(batch, result["a"], "err").read_text())
    assert result["a"]["output"] == {"limit": 1000, "bytes": 19, "lost": 0}
    done = supervise("run", "--log-timestamps", "--", "sh", "-c", script)
    assert re.fullmatch(f"{STAMPED}one\n{STAMPED}two\n{STAMPED}\n{STAMPED}last", done.stdout)
    assert re.fullmatch(f"{STAMPED}error\n", done.stderr)


def small(state: State, size: str) -> list[str]:
    return private_mounts(f"mount -t tmpfs -o size={size} none {state.state}")


def run_on(
    where: State, wrapper: list[str], job: dict[str, object], look: str
) -> tuple[str, str, str]:
    """Run the job with its state on a small disk; what `look`, a shell command there, says last."""
    config = write_config(where, {"one": job})
    text = config.read_text()
    script = [*wrapper, "sh", "-ec", f"cat >{config} <<'END'\n{text}END\n\"$@\"; {look}", "sh"]
    with within(where, script, config, "--json") as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    record, *rest = out.splitlines()
    return record, "\n".join(rest), err


def test_on_a_full_disk_the_job_goes_on_and_the_loss_is_told(tmp_state: State) -> None:
    """It writes more than the disk takes, then less, and ends with a status of its own."""
    job = {
        "script": "head -c 3000000 /dev/zero; echo end >&2; exit 7",
        "log": {"on_full": "drop"},
        "expect": "failed",
    }
    look = f"grep output_lost {tmp_state.state}/*/events.ndjson || echo none"
    record, lost, err = run_on(tmp_state, small(tmp_state, "1M"), job, look)
    found = json.loads(record)
    assert (found["reason"], found["exit_code"]) == ("failed", 7)
    assert 0 < found["output"]["bytes"] < 1 << 20
    assert found["output"]["bytes"] + found["output"]["lost"] == 3000004
    assert "cannot write the job's output: No space left on device" in err
    assert re.search(r"lost \d+ bytes of its stdout: No space left on device", err)
    told = [json.loads(line) for line in lost.splitlines()]
    assert sum(entry["bytes"] for entry in told) == found["output"]["lost"]
    assert {entry["stream"]: entry["why"] for entry in told}["out"] == "No space left on device"


def test_lines_go_to_the_journal(
    batch: Batch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    monkeypatch.setenv("SUPERVISE_JOURNAL_SOCKET", str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(path))
        journal.settimeout(60)
        result = batch.run(
            """
            [jobs.a]
            script = "echo to both; printf '%s' bad >&2"
            log = { sink = ["files", "journald"] }
            """
        )
        found = [journal.recv(65536).split(b"\n") for _ in range(2)]
    messages = {entry[-2]: set(entry[:-2]) for entry in found}
    run = result["a"]["run"]
    both = {b"SYSLOG_IDENTIFIER=a", b"SUPERVISE_JOB=a", f"SUPERVISE_RUN={run}".encode()}
    both.add(f"SUPERVISE_INSTANCE={batch.name}".encode())
    assert messages == {
        b"MESSAGE=to both": both | {b"PRIORITY=6", b"SUPERVISE_STREAM=out"},
        b"MESSAGE=bad": both | {b"PRIORITY=4", b"SUPERVISE_STREAM=err"},
    }
    assert batch.output(result["a"]) == "to both\n"


def test_without_a_journal_the_job_goes_on(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERVISE_JOURNAL_SOCKET", "/nonexistent/journal")
    result = batch.run(
        """
        [jobs.a]
        script = "echo one; echo two"
        log = { sink = "journald" }
        """
    )
    assert result.reasons == {"a": "succeeded"}
    assert result["a"]["output"] == {"limit": None, "bytes": 0, "lost": 8}
    (lost,) = batch.entries("output_lost")
    assert (lost["stream"], lost["bytes"]) == ("out", 8)
    assert list((batch.state / "logs").iterdir()) == []
