"""Named volumes: kept from run to run, given to the job's user, never removed under a job."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.support.batch import PATIENCE, Batch
from tests.support.command import State, Supervise
from tests.support.containers import Ended, run_jobs

pytestmark = pytest.mark.kernel


def run_one(state: State, script: str, **more: object) -> Ended:
    return run_jobs(state, {"job": {"command": ["sh", "-euc", script], **more}})["job"]


@pytest.mark.parametrize("user", ["root", "nobody"])
@pytest.mark.parametrize("space", ["host", "auto"])
def test_what_one_run_writes_the_next_one_reads(tmp_state: State, user: str, space: str):
    more = {"volumes": ["data:/srv/data"], "user": user, "user_namespace": space}
    first = run_one(tmp_state, "echo text >/srv/data/file; stat -c %U /srv/data", **more)
    assert (first.reason, first.out) == ("succeeded", f"{user}\n"), first
    second = run_one(tmp_state, "cat /srv/data/file", **more)
    assert (second.reason, second.out) == ("succeeded", "text\n"), second


def test_a_volume_may_be_read_only(tmp_state: State):
    volume = {"name": "data", "target": "/srv/data", "read_only": True}
    ended = run_one(tmp_state, "touch /srv/data/x", volumes=[volume])
    assert (ended.reason, "Read-only" in ended.err) == ("failed", True), ended


def test_two_jobs_have_one_volume_at_once(tmp_state: State):
    wait = "until [ -e /v/{0} ]; do sleep 0.01; done"
    jobs = {
        name: {"command": ["sh", "-euc", f"touch /v/{name}; {wait.format(other)}"],
               "volumes": ["shared:/v"], "timeout": "30s"}
        for name, other in (("a", "b"), ("b", "a"))
    }  # fmt: skip
    assert {one.reason for one in run_jobs(tmp_state, jobs).values()} == {"succeeded"}


def test_a_volume_is_not_followed_out_of(tmp_state: State):
    """A link that one run leaves leads nowhere in the next."""
    run_one(tmp_state, "ln -s /etc /v/link; ln -s / /v/root", volumes=["data:/v"])
    target = str(tmp_state.state / ".volumes/data/data")
    ended = run_one(tmp_state, "rm -r /v/link /v/root; ls -A /v", volumes=["data:/v"])
    assert (ended.reason, ended.out, os.listdir(target)) == ("succeeded", "", []), ended
    assert Path("/etc/passwd").exists()


def test_they_are_listed_and_removed(supervise: Supervise, tmp_state: State):
    run_one(tmp_state, "head -c 100K /dev/zero >/v/file", volumes=["data:/v", "other:/o"])
    where = ("--state-dir", str(tmp_state.state))
    lines = supervise("volume", "list", "--json", *where).stdout.splitlines()
    found = {one["name"]: one for one in map(json.loads, lines)}
    assert (set(found), found["data"]["in_use"]) == ({"data", "other"}, False)
    assert found["data"]["bytes"] >= 100 << 10 > found["other"]["bytes"]
    assert "data" in supervise("volume", "list", *where).stdout
    done = supervise("volume", "remove", "none", "data", *where)
    assert (done.status, "none: no such volume in " in done.stderr) == (1, True), done
    assert not (tmp_state.state / ".volumes/data").exists()
    assert supervise("volume", "remove", "other", *where).status == 0
    assert supervise("volume", "list", *where).stdout == ""


def test_none_is_removed_while_a_job_has_it_even_when_its_supervisor_was_killed(batch: Batch):
    remove = ("volume", "remove", "data", "--state-dir", str(batch.where.state))
    jobs = "[jobs.job]\nscript = 'exec sleep 1000'\nvolumes = ['data:/v']\n"
    with batch.start(jobs) as running:
        running.wait_started("job")
        assert batch.supervise(*remove).status == 1
        running.process.kill()
        running.process.wait(PATIENCE)
        done = batch.supervise(*remove)
        assert (done.status, "a job that runs has this volume" in done.stderr) == (1, True), done
        batch.run("[jobs.other]\ncommand = ['true']")  # ends what was left
        assert batch.supervise(*remove).status == 0
