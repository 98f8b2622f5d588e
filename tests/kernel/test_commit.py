"""`supervise commit`: from what a run wrote to an image that the next one runs in."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from supervisor.container.host import has_user_attributes
from supervisor.image.store import Store
from tests.support.command import Done, State, Supervise
from tests.support.containers import Ended, run_jobs
from tests.support.images import Built, file, folder, layer, symlink

pytestmark = pytest.mark.kernel

TOOLS = ("cat", "chown", "ln", "ls", "mkdir", "mkfifo", "rm", "stat", "touch", "true")


@pytest.fixture
def state(tmp_path: Path, tmp_state: State) -> State:
    """Not on a guest's overlay, where nothing can be kept."""
    found = State(tmp_path / "kept", tmp_state.runtime)
    found.state.mkdir()
    return found


@pytest.fixture
def root(tmp_path: Path, busybox: Path) -> str:
    """An image with a shell, a user, and files to change and to delete."""
    passwd = b"root:x:0:0::/:/bin/sh\nme:x:1000:1000::/:/bin/sh\n"
    bottom = layer(
        folder("bin"), file("bin/sh", busybox.read_bytes(), 0o755),
        *(symlink(f"bin/{name}", "sh") for name in TOOLS),
        folder("etc"), file("etc/passwd", passwd), folder("data"), file("data/gone"),
        file("data/old", b"old\n"), folder("all"), file("all/below"),
    )  # fmt: skip
    config = {"Env": ["FROM=base"], "Cmd": ["/bin/sh", "-c", "cat /data/old; echo $FROM"]}
    return f"oci:{Built([bottom], config).layout(tmp_path / 'layout', 'base')}"


def run_one(state: State, root: str, script: str, **more: Any) -> Ended:
    job = {"command": ["/bin/sh", "-euc", script], "root": root, "keep": "always", **more}
    ended = run_jobs(state, {"job": job})["job"]
    assert ended.reason == "succeeded", f"{ended.record['detail']}\n{ended.err}"
    return ended


def commit(supervise: Supervise, state: State, run: Ended, name: str = "made:1") -> Done:
    return supervise("commit", "--state-dir", str(state.state), run.record["run"], name)


@pytest.mark.parametrize("space", ["host", "auto"])
def test_the_next_job_finds_what_was_written(
    supervise: Supervise, state: State, root: str, space: str
):
    if space == "auto" and not has_user_attributes(str(state.state)):
        pytest.skip("in a user namespace a layer is kept where files have attributes of users")
    script = (
        "echo new >/data/old; rm /data/gone; rm -r /all; mkdir /all; touch /all/mine; "
        "echo x >/home; chown 1000 /home; ln /home /same"
    )
    first = run_one(state, root, script, user_namespace=space)
    done = commit(supervise, state, first)
    assert done.status == 0, done
    assert done.stdout.startswith("sha256:")
    look = "cat /data/old; ls /data /all; stat -c %u:%h /home"
    second = run_one(state, "made:1", look, user_namespace=space, keep="never")
    assert second.out == "new\n/all:\nmine\n\n/data:\nold\n1000:2\n"
    assert second.record["image"] == {"name": "made:1", "digest": done.stdout.strip()}
    # What the first image says of how to run it holds for the second.
    bare = run_jobs(state, {"job": {"root": "made:1"}})["job"]
    assert bare.out == "new\nbase\n"


def test_layers_pile_up_and_the_history_tells(supervise: Supervise, state: State, root: str):
    for number in (1, 2, 3):
        ended = run_one(state, root, f"echo {number} >/data/{number}")
        assert commit(supervise, state, ended, f"made:{number}").status == 0
        root = f"made:{number}"
    assert run_one(state, root, "ls /data", keep="never").out == "1\n2\n3\ngone\nold\n"
    store = Store(state.state / ".images")
    record = store.record(store.resolve("made:3") or "")
    assert record is not None and len(record.layers) == 4
    history = json.loads(store.blobs.read(record.config, 1 << 20))["history"]
    assert [line["created_by"].rpartition("/")[2] for line in history] == ["1'", "2'", "3'"]


def test_what_no_image_can_hold_is_told_and_nothing_is_made(
    supervise: Supervise, state: State, root: str
):
    ended = run_one(state, root, "touch /data/.wh.old")
    done = commit(supervise, state, ended)
    assert (done.status, "data/.wh.old: a name that begins with .wh." in done.stderr) == (125, True)
    store = Store(state.state / ".images")
    assert store.resolve("made:1") is None and os.listdir(store.root / "tmp") == []


def test_a_run_on_the_host_cannot_be_committed(supervise: Supervise, state: State):
    job = {"command": ["true"], "write": "overlay", "keep": "always"}
    done = commit(supervise, state, run_jobs(state, {"job": job})["job"])
    assert (done.status, "its root is host" in done.stderr) == (125, True), done


@pytest.mark.parametrize("name", ["sha256:abcdef", "a b", "oci:/x", "docker://x", "host"])
def test_a_name_that_is_none_is_refused(supervise: Supervise, state: State, root: str, name: str):
    done = commit(supervise, state, run_one(state, root, "true"), name)
    assert (done.status, "Traceback" not in done.stderr) == (125, True), done
    assert not Store(state.state / ".images").resolve("made:1")


def test_an_image_that_is_gone_is_named(supervise: Supervise, state: State, root: str):
    ended = run_one(state, root, "echo x >/x")
    removed = supervise("image", "remove", "--state-dir", str(state.state), root)
    assert removed.status == 0, removed
    assert supervise("image", "prune", "--state-dir", str(state.state)).status == 0
    done = commit(supervise, state, ended)
    assert (done.status, "no longer in the store" in done.stderr) == (125, True), done
