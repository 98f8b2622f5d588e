"""What Landlock is to keep a job from, by its settings and by what the kernel can."""

from __future__ import annotations

import os
from typing import Any

import pytest

from supervisor.container.landlock import describe, restriction
from supervisor.errors import SpawnError
from supervisor.linux import landlock
from supervisor.model import JobSpec, Mount, Tmpfs
from supervisor.model.job import Capabilities, Device

NEWEST = 7
FILES = landlock.OF_FILES
OWN = ("/dev", "/proc", "/run", "/tmp")


def told(version: int = NEWEST, **settings: Any) -> Any:
    return restriction(JobSpec("one", ("true",), **settings), version)


def test_a_read_only_root_is_not_written_to() -> None:
    assert told() == (landlock.WRITE, 0, tuple((path, landlock.WRITE) for path in OWN))


def test_what_is_writable_stays_so() -> None:
    _, _, places = told(
        mounts=(
            Mount("/usr", "/data"), Mount("/usr", "/seen", read_only=True),
            Mount("/etc/passwd", "/file"), Mount("/usr", "/tmp/below"),
        ),
        tmpfs=(Tmpfs("/scratch"), Tmpfs("/tmp", 5)),
        devices=(Device("/dev/null", "/node"), Device("/dev/null", "/dev/x")),
    )  # fmt: skip
    assert dict(places[len(OWN) :]) == {
        "/data": landlock.WRITE, "/file": FILES, "/scratch": landlock.WRITE, "/node": FILES,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "files", "scoped"),
    [
        ({"write": "overlay"}, 0, 0),
        ({"network": "host"}, landlock.WRITE, 1),
        ({"write": "overlay", "network": "host"}, 0, 1),
        ({"seccomp": "unconfined"}, 0, 0),
        ({"capabilities": Capabilities(add=("SYS_ADMIN",))}, 0, 0),
        ({"capabilities": Capabilities(add=("ALL",))}, 0, 0),
        ({"capabilities": Capabilities(add=("ALL",)), "landlock": "require"}, landlock.WRITE, 1),
        ({"landlock": "require", "write": "overlay"}, 0, 1),
        ({"landlock": "off", "network": "host"}, 0, 0),
    ],
)
def test_as_far_as_it_makes_sense(settings: dict[str, Any], files: int, scoped: int) -> None:
    found = told(**settings)
    assert (found or (0, 0))[:2] == (files, scoped)


@pytest.mark.parametrize(
    ("version", "files", "scoped"),
    [(0, 0, 0), (1, 0, 0), (2, landlock.WRITE & ~landlock.TRUNCATE, 0), (3, landlock.WRITE, 0),
     (5, landlock.WRITE, 0), (6, landlock.WRITE, 1)],
)  # fmt: skip
def test_as_far_as_the_kernel_can(version: int, files: int, scoped: int) -> None:
    found = told(version, network="host")
    assert (found or (0, 0))[:2] == (files, scoped)
    assert found is None or all(not rights & ~files for _, rights in found[2])


@pytest.mark.parametrize(
    ("version", "network", "write"),
    [(5, "host", "overlay"), (1, "none", "read-only"), (0, "none", "overlay")],
)
def test_what_is_required_and_lacks_is_refused(version: int, network: Any, write: Any) -> None:
    with pytest.raises(SpawnError, match=f"landlock: the kernel has version {version} of Landlock"):
        told(version, landlock="require", network=network, write=write)


def test_the_plan_tells_of_it() -> None:
    assert describe(told(network="host")) == (
        "landlock: write beneath /dev /proc /run /tmp alone; reach no abstract socket of others"
    )
    assert "write" not in describe(told(network="host", write="overlay"))


def test_a_call_that_fails_is_named() -> None:
    with pytest.raises(OSError, match="landlock_create_ruleset"):
        landlock.create_ruleset(1 << 62, 0)
    for call in (lambda: landlock.allow(-1, 0, 1), lambda: landlock.restrict_self(-1)):
        with pytest.raises(OSError, match="landlock_"):
            call()
    with pytest.raises(OSError, match="/no/such"):
        landlock.allow_path(-1, "/no/such", 1)
    assert landlock.version() >= 0 and not os.path.exists("/no/such")
