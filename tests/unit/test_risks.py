"""What `supervise check` warns of."""

from __future__ import annotations

from typing import Any

import pytest

from supervisor.front.risks import risks
from supervisor.model.job import Capabilities, Device, JobSpec, Mount, UserNamespace

MAPPED = UserNamespace("map", 200000, 65536)
AUTO = UserNamespace("auto")
DATA = (Mount("/srv/data/", "/data"),)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"seccomp": "unconfined"}, "every system call"),
        ({"seccomp": "log"}, "only logged"),
        ({"network": "host"}, "abstract sockets"),
        ({"network": "host", "user": "0"}, "abstract sockets"),
        ({"capabilities": Capabilities(add=("SYS_ADMIN",))}, "SYS_ADMIN: mounts"),
        ({"capabilities": Capabilities(add=("ALL",)), "user": "nobody"}, "everything"),
        ({"hide": ()}, "every home directory"),
        ({"devices": (Device("/dev/sda1", "/dev/sda1"),)}, "writes past every file system"),
        ({"devices": (Device("/dev/nvme0n1", "/d", "r"),)}, "reads every file of it"),
        ({"devices": (Device("/dev//mem", "/dev/mem", "r"),)}, "the host's memory"),
        ({"mounts": (Mount("/", "/host"),)}, "mounts / writable as root"),
        ({"mounts": (Mount("/etc/", "/e"),)}, "mounts /etc writable"),
        ({"mounts": DATA, "user_namespace": AUTO}, "makes there is one of the host's root"),
        ({"mounts": DATA, "user_namespace": MAPPED}, 'user_namespace = { files = "plain" }'),
        ({"mounts": DATA, "user_namespace": AUTO, "user": "nobody"}, "one of the host's nobody"),
        ({"mounts": DATA, "user_namespace": UserNamespace("self")}, "nosuid on the host"),
        ({"mounts": (Mount("/var/run/docker.sock", "/d", read_only=True),)}, "as good as root"),
    ],
)
def test_a_hole_is_told(settings: dict[str, Any], told: str) -> None:
    (line,) = risks([JobSpec("one", ("true",), **settings)])
    assert line.startswith("one: ")
    assert told in line


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"network": "host", "user": "nobody"},
        {"network": "host", "user_namespace": MAPPED},
        {"capabilities": Capabilities(add=("NET_RAW",))},
        {"capabilities": Capabilities(add=("SYS_ADMIN",)), "user_namespace": MAPPED},
        {"hide": (), "user": "nobody"},
        {"devices": (Device("/dev/fuse", "/dev/fuse"), Device("/dev/kvm", "/dev/kvm"))},
        {"hide": (), "root": "/srv/x"},
        {"mounts": (Mount("/etc", "/e", read_only=True), Mount("/srv/data", "/data"))},
        {"mounts": (Mount("/etc", "/e"),), "user": "nobody"},
        {"mounts": (Mount("/etc", "/e", read_only=True),), "user_namespace": AUTO},
        {"mounts": DATA, "user_namespace": UserNamespace("auto", files="plain")},
        {"mounts": DATA, "user_namespace": AUTO, "capabilities": Capabilities(add=("SYS_ADMIN",))},
    ],
)
def test_an_ordinary_setting_is_none(settings: dict[str, Any]) -> None:
    assert risks([JobSpec("one", ("true",), **settings)]) == []


def test_without_root_nothing_is_roots() -> None:
    job = JobSpec("one", ("true",), mounts=DATA, user_namespace=AUTO)
    assert risks([job], privileged=False) == []


def test_one_line_for_all_jobs_of_one_kind() -> None:
    jobs = [JobSpec(f"a@n={n}", ("true",), group="a", seccomp="unconfined") for n in range(3)]
    jobs.append(JobSpec("b", ("true",), seccomp="unconfined"))
    assert [line.partition(":")[0] for line in risks(jobs)] == ["a, b"]
