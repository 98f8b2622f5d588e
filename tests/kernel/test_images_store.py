"""Jobs in images from the store: acquired before they are queued, once, and held while they run."""

from __future__ import annotations

import json
import os
import select
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from supervisor.container.host import has_user_attributes
from supervisor.image.collect import Wish, collect
from supervisor.image.store import Store
from tests.support.command import State, Supervise
from tests.support.containers import (
    after,
    init_of,
    instance_name,
    next_line,
    private_mounts,
    run_jobs,
    within,
    write_config,
)
from tests.support.images import Built, file, folder, layer, opaque, symlink, whiteout

pytestmark = pytest.mark.kernel

TOOLS = ("cat", "echo", "id", "ls", "sleep", "touch", "true")
OWN_STORE = private_mounts("mkdir -p /var/lib/supervise; mount -t tmpfs none /var/lib/supervise")
"""`supervise run` as root has no state directory of the test's own."""


@pytest.fixture
def built(busybox: Path) -> Built:
    base = layer(
        *(folder(name) for name in ("bin", "etc", "dev", "proc", "sys", "tmp", "run", "srv")),
        file("bin/sh", busybox.read_bytes(), 0o755),
        *(symlink(f"bin/{name}", "sh") for name in TOOLS),
        file("etc/passwd", b"root:x:0:0::/root:/bin/sh\nme:x:1000:1001::/:/bin/sh\n"),
        file("srv/old", b"old"),
    )
    top = layer(opaque("srv"), file("srv/new", b"new\n"), whiteout("etc/gone"))
    config = {"Env": ["PATH=/bin", "COLOUR=blue"], "Cmd": ["sh", "-c", "echo $COLOUR; id -u"],
              "User": "me", "WorkingDir": "/srv/work"}  # fmt: skip
    return Built([base, top], config)


@pytest.fixture
def reference(built: Built, tmp_path: Path) -> str:
    return f"oci:{built.layout(tmp_path / 'layout', '1')}:1"


def store_of(where: State) -> Store:
    return Store(where.state / ".images")


def events(where: State) -> list[dict[str, Any]]:
    text = (where.state / instance_name(where) / "events.ndjson").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_jobs_of_one_image_get_it_once(tmp_state: State, reference: str, built: Built):
    plain: dict[str, Any] = {"root": reference}
    # a guest's tmpfs has no attributes of users, which the layers of a user namespace take
    spaces = ("host", "auto") if has_user_attributes(str(tmp_state.state)) else ("host",)
    jobs: dict[str, Any] = {
        f"{space}-{write}-{number}": plain | {"user_namespace": space, "write": write}
        for space in spaces for write in ("overlay", "read-only") for number in range(3)
    }  # fmt: skip
    jobs["files"] = plain | {"command": ["ls", "/srv"]}
    jobs["begun"] = plain | {"entrypoint": ["echo"], "command": ["x"]}
    head = "capacity = { jobs = 4 }"
    found = run_jobs(tmp_state, jobs, head=head)
    for name, ended in found.items():
        assert ended.reason == "succeeded", (name, ended.record, ended.err)
        assert ended.record["image"] == {"name": reference, "digest": built.digest}
    assert found["files"].out.split() == ["new", "work"]
    assert found["begun"].out == "x\n"
    plain_jobs = [ended for name, ended in found.items() if name[-1].isdigit()]
    assert {ended.out for ended in plain_jobs} == {"blue\n1000\n"}
    log = events(tmp_state)
    (ready,) = (one for one in log if one["event"] == "image_ready")
    assert (ready["image"], ready["digest"], ready["layers"]) == (reference, built.digest, 2)
    starts = [one for one in log if one["event"] == "job_starting"]
    assert len(starts) == len(jobs)
    assert all(one["image"]["digest"] == built.digest for one in starts)
    assert log.index(ready) < log.index(starts[0])
    again = run_jobs(tmp_state, {"job": {"root": built.digest, "user": "root"}})
    assert again["job"].out == "blue\n0\n"  # by its digest, from the store


def test_an_image_that_cannot_be_had_is_a_failed_start(
    tmp_state: State, built: Built, tmp_path: Path
):
    broken = built.layout(tmp_path / "broken", "1")
    blob = broken / "blobs/sha256" / built.manifest["layers"][0]["digest"][7:]
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    jobs = {
        "unknown": {"root": "no-such-image"},
        "no-file": {"root": f"oci:{tmp_path}/none"},
        "no-tag": {"root": f"oci:{broken}:2"},
        "broken": {"root": f"oci:{broken}:1"},
    }
    restarting: dict[str, Any] = {"restart": {"when": "on-failure", "attempts": 1, "backoff": 0}}
    found = run_jobs(tmp_state, {name: job | restarting for name, job in jobs.items()})
    for name, ended in found.items():
        assert (ended.reason, ended.failure[:2]) == ("start_failed", ("image", 0)), name
        assert ended.record["attempt"] == 2
        assert ended.record["image"] is None
    assert "no image of this name" in found["unknown"].record["detail"]
    assert str(tmp_state.state / ".images") in found["unknown"].record["detail"]
    assert "docker://no-such-image:latest" in found["unknown"].record["detail"]
    assert f"{tmp_path}/none" in found["no-file"].record["detail"]
    assert built.manifest["layers"][0]["digest"][7:19] in found["broken"].record["detail"]
    broken_layer = built.diff_ids[0][7:]
    assert not (tmp_state.state / ".images/layers" / broken_layer).exists()


def test_one_command_in_an_image(tmp_state: State, reference: str):
    done = after(tmp_state, OWN_STORE, "run", "--root", reference, "--record", "-")
    assert done.status == 0, done.stderr
    out, _, record = done.stdout.rpartition("\n{")
    assert out == "blue\n1000"
    assert json.loads("{" + record)["image"]["name"] == reference
    assert "unpacking" in done.stderr
    done = after(
        tmp_state, OWN_STORE, "run", "--root", reference, "--user", "0", "--", "cat", "/srv/new"
    )
    assert (done.stdout, done.status) == ("new\n", 0), done.stderr
    done = after(tmp_state, OWN_STORE, "run", "--root", "nothing", "--", "true")
    assert done.status == 125
    assert "image" in done.stderr and "no image of this name" in done.stderr


def test_an_interrupted_acquisition_ends_at_once(tmp_state: State, tmp_path: Path):
    """In the middle of a layer that takes seconds."""
    big = layer(*(file(f"f{number}", os.urandom(1 << 20)) for number in range(192)))
    slow = Built([big], {"Cmd": ["/bin/true"]}, compression="gzip")
    reference = f"oci:{slow.layout(tmp_path / 'slow', '1')}:1"
    with within(tmp_state, OWN_STORE, "run", "--root", reference) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert "supervise: " in line, line
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert time.monotonic() - began < 5


def test_no_prune_takes_the_layers_of_a_job_whose_supervisor_was_killed(
    supervise: Supervise, tmp_state: State, reference: str, built: Built
):
    script = "echo runs; while :; do sleep 0.1; cat /srv/new >/dev/null || exit 9; done"
    jobs = {"job": {"root": reference, "command": ["sh", "-c", script]}}
    config = write_config(tmp_state, jobs)
    store = store_of(tmp_state)
    with supervise.start(config, "--plain") as process:
        assert process.stderr is not None
        while "started (pid" not in (line := process.stderr.readline()):
            assert line, "ended instead of starting"
        init = os.pidfd_open(init_of(process.pid))
        process.kill()
        process.wait()
    try:
        assert collect(store, Wish(all=True)).kept == [built.digest]
        assert len(list(store.root.glob("layers/*/tree"))) == 2
        assert not select.select([init], [], [], 0)[0]  # it still runs
        signal.pidfd_send_signal(init, signal.SIGKILL)
        assert select.select([init], [], [], 30)[0]
    finally:
        os.close(init)
    assert collect(store, Wish(all=True)).kept == []
    assert not list(store.root.glob("layers/*/tree"))
    run_jobs(tmp_state, {"job": {"command": ["true"]}})  # clears the cgroup away


def test_a_retry_has_the_digest_of_the_first_attempt(
    supervise: Supervise, tmp_state: State, built: Built, tmp_path: Path
):
    """Though the tag has moved on, and the name in the store with it."""
    layout = tmp_path / "layout"
    built.layout(layout, "1")
    (tmp_path / "shared").mkdir(mode=0o777)
    script = "echo mine >>/shared/runs; test -e /shared/go && exit 0; touch /shared/first; exit 1"
    job = {"root": f"oci:{layout}:1", "command": ["sh", "-c", script], "user": "0",
           "mounts": [f"{tmp_path}/shared:/shared"],
           "restart": {"when": "on-failure", "attempts": 20, "backoff": "200ms",
                       "max_backoff": "200ms"}}  # fmt: skip
    config = write_config(tmp_state, {"job": job})
    other = Built([*built.layers, layer(file("bin/sh", b"no program"))], built.config)
    with supervise.start(config, "--plain", "--json") as process:
        first = json.loads(next_line(process))
        other.layout(layout, "1")
        (tmp_path / "shared/go").touch()
        records = [first]
        while records[-1]["reason"] != "succeeded":
            records.append(json.loads(next_line(process)))
        process.communicate(timeout=60)
    assert len(records) > 1
    assert {record["image"]["digest"] for record in records} == {built.digest}


def test_many_jobs_cost_one_copy(tmp_state: State, built: Built, tmp_path: Path):
    """What the store takes on the disk does not grow with the jobs; the runs' files are small."""
    content = os.urandom(8 << 20)
    image = Built([*built.layers, layer(file("srv/large", content))], built.config)
    reference = f"oci:{image.layout(tmp_path / 'layout', '1')}:1"
    job = {"root": reference, "command": ["cat", "/srv/large"], "limits": {"output": "16M"}}
    run_jobs(tmp_state, {"warm": job | {"command": ["true"]}})
    store = store_of(tmp_state).root
    before = usage(store)
    quick = {"root": reference, "command": ["true"]}
    run_jobs(tmp_state, {f"job{number}": quick for number in range(40)})
    assert usage(store) - before < 1 << 20
    runs = usage(tmp_state.state / instance_name(tmp_state))
    assert runs < 41 * 64 * 1024, runs


def usage(top: Path) -> int:
    """Bytes on the disk."""
    return sum(path.lstat().st_blocks * 512 for path in top.rglob("*"))


def test_check_and_plan_tell_what_the_image_gives(
    supervise: Supervise, tmp_state: State, reference: str, tmp_path: Path
):
    config = write_config(tmp_state, {
        "here": {"root": reference},
        "local": {"root": "debian:12"},
        "remote": {"root": "docker://localhost:1/a"},
        "file": {"root": f"oci-archive:{tmp_path}/none.tar"},
    })  # fmt: skip
    told = supervise("check", config)
    assert told.status == 0, told.stderr
    assert "it is taken from there before the job starts" in told.stdout
    assert "supervise image pull docker://debian:12" in told.stdout
    assert "it is pulled before the job starts" in told.stdout
    assert f"{tmp_path}/none.tar does not exist" in told.stdout
    planned = supervise("plan", config, "here")
    assert "# lacking: " in planned.stdout and "pivot_root" not in planned.stdout
    run_jobs(tmp_state, {"job": {"root": reference}})
    config = write_config(tmp_state, {"here": {"root": reference, "user": "root"}})
    told = supervise("check", config)
    assert 'command = ["sh", "-c", "echo $COLOUR; id -u"], working_dir = "/srv/work", user = ' in (
        told.stdout
    )
    shown = supervise("check", "--show", config)
    assert "# here: image " in shown.stdout
    (tmp_state.state / "again.toml").write_text(shown.stdout)
    assert supervise("check", tmp_state.state / "again.toml").status == 0
    planned = supervise("plan", config, "here")
    assert planned.status == 0
    assert "lowerdir=" in planned.stdout and "payload: execve sh -c" in planned.stdout
    assert "redirect_dir=nofollow" in planned.stdout
