"""`supervise explain` of real jobs, asked of an instance and read when there is none."""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from supervisor.front.verbs.client import Client, Refused
from supervisor.model.units import duration
from tests.support.batch import Batch
from tests.support.command import Done
from tests.support.policies import plugin

pytestmark = pytest.mark.kernel

Ask = Callable[..., Done]

POLICIES = """
@hookimpl
def on_memory_limit(job, event): return None
@hookimpl
def on_timeout(job, event): raise KeyError("nobody")
@hookimpl
def on_exit(job, event):
    if job.reason == "oom" and job.attempt == 1:
        return Retry({"memory": 256 * 1024**2}, 0.0)
"""
JOBS = """
[jobs.grows]
command = ["perl", "-e", "$x = 'a' x (48 << 20)"]
limits = { memory = "24M", swap = 0 }

[jobs.hangs]
command = "sleep 1000"
timeout = "200ms"
expect = "timeout"

[jobs.never]
command = "true"
after = ["hangs", "fails"]

[jobs.fails]
command = ["sh", "-c", "exit 3"]
"""
WAIT = """
[jobs.first]
command = "sleep 1000"
limits.memory = "64M"

[jobs.large]
command = "true"
limits.memory = "512M"

[jobs.second]
command = "true"
after = ["first"]
limits.memory = "8M"

[jobs.again]
command = "false"
limits.memory = "8M"
restart = { when = "on-failure", backoff = "1h", max_backoff = "1h" }
"""


@pytest.fixture
def live(batch: Batch) -> Ask:
    path = batch.where.runtime / batch.name / "socket"

    def call(*words: str) -> Done:
        return batch.supervise("explain", *words, environment={"SUPERVISE_SOCKET": str(path)})

    return call


@pytest.fixture
def past(batch: Batch) -> Ask:
    def call(*words: str) -> Done:
        return batch.supervise("explain", *words, "--state-dir", str(batch.where.state))

    return call


def in_order(text: str, *words: str) -> None:
    """Each of these patterns is there, after the one before."""
    at = 0
    for word in words:
        match = re.compile(word).search(text, at)
        assert match, f"no {word!r} in:\n{text[at:]}\n--- of\n{text}"
        at = match.end()


def test_what_happened_is_told_from_its_limit_to_the_way_out(
    batch: Batch, past: Ask, tmp_path: Path
) -> None:
    top = f'plugins = ["{plugin(tmp_path, "asked", POLICIES)}"]'
    result = batch.run(JOBS, top=top)
    first, second = (run["run"] for run in result.runs if run["job"] == "grows")
    told = past("grows", "--run", first)
    assert told.status == 0
    in_order(
        told.stdout,
        rf"grows, run {first}, attempt 1", r"limits: memory 24\.0M, swap 0B",
        r"reached its memory limit of 24\.0M, held", r"read: \d+\.\dM in use",
        r"asked: asked: abstained \(\d+\.\d ms\)", r"nobody decided; so it was let go",
        r"lost 1 to the OOM killer", r"asked: nobody, .* so the whole job was ended",
        r"ended: oom: the kernel killed it at its memory limit of 24\.0M", r"  read .*: ",
        r'try limits\.memory = "48M", or on_memory_limit', r"asked: asked: Retry\(",
        r"decided by asked: retry with memory 256\.0M", r"is run again in .*attempt 2, by asked",
    )  # fmt: skip
    told = past("grows")
    in_order(told.stdout, rf"grows, run {second}, attempt 2", "ended, as expected: succeeded")
    in_order(
        past("hangs").stdout,
        r"timeout 0\.20s", r"used up its wall time", r"asked: asked: raised KeyError: 'nobody'",
        r"nobody decided; so it was stopped", r"ended, as expected: timeout",
        r"try a longer timeout",
    )  # fmt: skip
    printed = past("fails").stdout
    in_order(
        printed, "failed: the command ended by itself with exit code 3", "see what it printed: "
    )
    (paths,) = re.findall("see what it printed: (.*)", printed)
    assert all(Path(path).is_file() for path in paths.split())
    in_order(
        past("never").stdout,
        "never was never started",
        "waited for",
        "skipped",
        "fails ended as failed",
    )
    unknown = past("nevr")
    assert unknown.status == 2 and "did you mean never?" in unknown.stderr
    assert past("grows", "--run", "nope").status == 2


def test_a_running_instance_tells_what_its_jobs_wait_for(batch: Batch, live: Ask) -> None:
    began = time.monotonic()
    with batch.start(WAIT, top='capacity = { memory = "520M" }') as running:
        for _ in range(2):  # in either order
            running.wait_for(r" (first started|again is started again) ")
        in_order(
            live("large").stdout,
            "large is waiting", r"waits for room: 512M of 520M of memory is lacking",
            r"given out: 64\.0M of 520\.0M of memory", r"first has 64\.0M",
        )  # fmt: skip
        in_order(live("second").stdout, "second is waiting", "waits for first, which is running")
        told = live("again").stdout
        in_order(
            told,
            "again is backoff", r"waits until \S+ \(\w+ from now\)", "ended: failed",
            "is started again in 1h00m, attempt 2, by restart = on-failure",
        )  # fmt: skip
        (left,) = re.findall(r"(\w+) from now", told)
        assert 3600 - (time.monotonic() - began) - 0.5 <= duration(left) <= 3600, left
        so_far = live("first").stdout
        in_order(so_far, "first is running", "first, run", r"limits: memory 64\.0M", "started")
        assert "no end" not in so_far
        found = json.loads(live("again", "--json").stdout)
        assert found["waits"]["kind"] == "backoff" and found["story"]["record"]["exit_code"] == 1
        assert found["waits"]["until"] > time.time()
        unknown = live("agian")
        assert unknown.status == 2 and "did you mean again?" in unknown.stderr
        _ask_for_history(batch)
        running.signal(signal.SIGINT)
        running.finish()


def _ask_for_history(batch: Batch) -> None:
    """The same by the routes."""
    client = Client(batch.where.runtime / batch.name / "socket")
    while True:  # it is a tenth of a second behind
        try:
            (run,) = client.get("history", query={"job": "again", "reason": "failed"})["runs"]
            break
        except (Refused, ValueError):
            continue
    assert client.get("history", run["run"])["reason"] == "failed"
    for path, query, status in (
        (("history",), {"reason": "boom"}, 400),
        (("history",), {"limit": 0}, 400),
        (("history",), {"limit": "many"}, 400),
        (("history", "../../etc/passwd"), None, 404),
        (("jobs", "again", "explain"), {"run": "../x"}, 404),
        (("jobs", "nope", "explain"), None, 404),
    ):
        with pytest.raises(Refused) as refused:
            client.get(*path, query=query)
        assert refused.value.status == status, (path, query)
