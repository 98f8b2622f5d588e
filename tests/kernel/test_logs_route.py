"""GET /v1/jobs/{job}/logs: lines as they come, for whoever may not read the files."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from supervisor.front.verbs.client import Client, Refused
from tests.support import host
from tests.support.batch import Batch
from tests.support.logged import SLOWER

pytestmark = pytest.mark.kernel

COUNTED = [str(number) for number in range(1, 20001)]
LAST = 1_000_000 // SLOWER
WAIT = "read line < /tmp/ready"


def client(batch: Batch) -> Client:
    return Client(Path(batch.where.runtime) / batch.name / "socket")


def logs(batch: Batch, job: str, **query: Any) -> list[dict[str, Any]]:
    return list(client(batch).lines("jobs", job, "logs", query=query))


def test_what_there_is_and_what_comes(batch: Batch) -> None:
    """While the file is rotated, over a second run, and to the end of the job."""
    fifo = batch.fifo("ready")
    job = f"""
    [jobs.a]
    script = "echo 0; {WAIT}; seq 1 20000; echo bad >&2; printf '\\\\377end'; exit 1"
    log = {{ max_size = "64K", keep = 1000 }}
    restart = {{ when = "on-failure", attempts = 1, backoff = 0 }}
    [jobs.stays]
    command = ["sleep", "1000"]
    """
    with batch.start(job, defaults=batch.sees(fifo)) as running:
        running.wait_started("a", "stays")
        lines = client(batch).lines("jobs", "a", "logs", query={"follow": "true"})
        first = next(lines)
        assert first["text"] == "0" and first["stream"] == "out"
        assert [one["text"] for one in logs(batch, "a", tail=1)] == ["0"]
        fifo.write_text("go\n")
        running.wait_started("a")
        fifo.write_text("go\n")
        found = [first, *lines]  # `stays` runs on: it is the job whose end is waited for
        once = ["0", *COUNTED]
        assert [
            one["text"] for one in found if one["stream"] == "out" and "text" in one
        ] == once * 2
        ends = [one for one in found if "base64" in one]
        assert [(one["base64"], one["end"]) for one in ends] == [("/2VuZA==", False)] * 2
        assert len({one["run"] for one in found}) == 2
        assert [one["text"] for one in logs(batch, "a", stream="err", tail=3)] == ["bad"]
        before = found[0]["run"]
        assert {one["run"] for one in logs(batch, "a", run=before)} == {before}
        for query, status in (({"run": "x"}, 404), ({"tail": -1}, 400), ({"since": "x"}, 400)):
            with pytest.raises(Refused) as caught:
                logs(batch, "a", **query)
            assert caught.value.status == status
        with pytest.raises(Refused, match="no job is named b"):
            logs(batch, "b")


def test_a_slow_reader_is_told_what_he_missed(batch: Batch) -> None:
    """And neither the job nor its rotation waits for him."""
    fifo = batch.fifo("ready")
    job = f"""
    [jobs.a]
    script = "seq 1 50000; {WAIT}; seq 50001 {LAST}"
    log = {{ max_size = "64K", keep = 1 }}
    [jobs.stays]
    command = ["sleep", "1000"]
    """
    with batch.start(job, defaults=batch.sees(fifo)) as running:
        running.wait_started("a", "stays")
        lines = client(batch).lines("jobs", "a", "logs", query={"follow": "true"})
        found = [next(lines)]
        fifo.write_text("go\n")
        running.wait_for(" a ended: succeeded")
        found += lines
        (ended,) = batch.entries("job_ended")
    text = sum(len(one["text"]) + one.get("end", True) for one in found if "text" in one)
    gaps = [one["gap"] for one in found if "gap" in one]
    assert gaps and found[-1]["text"] == str(LAST)
    first = int(found[0]["text"]) if "text" in found[0] else 0
    before = len("".join(f"{number}\n" for number in range(1, first)))
    assert before + text + sum(gaps) == ended["record"]["output"]["bytes"]


def test_by_curl(batch: Batch) -> None:
    if shutil.which("curl") is None:
        host.miss("tools", "needs curl: apt-get install curl")
    fifo = batch.fifo("ready")
    job = f"""
    [jobs.a]
    script = "echo one; {WAIT}"
    log = {{ timestamps = true }}
    """
    with batch.start(job, defaults=batch.sees(fifo)) as running:
        running.wait_started("a")
        url = "http://localhost/v1/jobs/a/logs?follow=true"
        argv = ["curl", "-sN", "--unix-socket", str(client(batch).path), url]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as curl:
            assert curl.stdout is not None
            line = json.loads(curl.stdout.readline())
            assert line["text"] == "one" and line["time"].endswith("Z")
            fifo.write_text("go\n")
            assert curl.stdout.read() == ""
        running.finish()
