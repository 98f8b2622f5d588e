"""What the doctor tries of user numbers, and of a network without root.

Ranges for jobs, helpers, idmapped mounts; pasta.

May import: `errors`, `model`, `linux`, `container.idmaps`, `supervise.idranges`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from supervisor.container import idmaps
from supervisor.errors import SupervisorError
from supervisor.front.doctor_trial import Check, attempt
from supervisor.linux import constants as c
from supervisor.linux import pasta, syscalls
from supervisor.model.job import UserNamespace
from supervisor.supervise import idranges

NUMBERS = "user numbers for jobs"
MAPPED = "idmapped mounts"
NETWORK = "network bridge"
PASTA_TIME = 5.0
"""Seconds for a trial of it."""


def checks() -> list[Callable[[], Check]]:
    """All of them, each to be called by itself."""
    if os.geteuid() == 0:
        return [numbers_of_root, mapped_files]
    return [numbers_of_user, mapped_files]


def networks() -> list[Callable[[], Check]]:
    """That of who is not root; `doctor_network` has root's."""
    return [] if os.geteuid() == 0 else [network_of_user]


def numbers_of_root() -> Check:
    """How many jobs with `user_namespace = "auto"` there can be at once, and where they begin."""
    try:
        pool = idranges.pool()
    except SupervisorError as error:
        return Check(NUMBERS, "unavailable", str(error), "make the file readable")
    free = [slot for slot in range(pool.slots) if pool.at(slot) is not None]
    if not free:
        return Check(NUMBERS, "unavailable", "no range of 65536 is free", idranges.FULL)
    detail = f"{len(free)} ranges of {idranges.SIZE}, from {pool.at(free[0])} on"
    return Check(NUMBERS, "enforced", detail)


def numbers_of_user() -> Check:
    """Whether jobs of somebody without root have more than one user: the maps are written."""
    alone = "a job has one user, root, who is you; "
    fix = (
        "as root: apt-get install uidmap; "
        f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {_me()}"
    )
    try:
        own = idmaps.subordinate()
    except SupervisorError as error:
        return Check(NUMBERS, "unavailable", alone + str(error), "make the file readable")
    if own is None:
        why = alone + "newuidmap, newgidmap and entries in /etc/subuid and /etc/subgid give more"
        return Check(NUMBERS, "unavailable", why, fix)
    outcome = attempt(lambda: _mapped_by_helpers(own))
    if outcome.failure:
        return Check(NUMBERS, "unavailable", alone + outcome.failure, fix)
    return Check(NUMBERS, "enforced", f"{outcome.value} of your own in a job, by newuidmap")


def _me() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _mapped_by_helpers(own: idmaps.Subordinate) -> int:
    """Have the helpers map a child's user namespace; how many users it has then."""
    space = idmaps.without_root(UserNamespace("auto"), own)
    ready, told = os.pipe()
    hold, go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go)
        syscalls.unshare(c.CLONE_NEWUSER)
        os.write(told, b"x")
        os.read(hold, 1)
        os._exit(0)
    os.close(told)
    os.read(ready, 1)
    wanted = idmaps.maps(space, own, privileged=False)
    for helper, extents in zip(own.helpers, wanted, strict=True):
        numbers = [str(number) for extent in extents for number in extent]
        done = subprocess.run(
            [helper, str(pid), *numbers], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SupervisorError(done.stderr.strip() or f"{helper} failed")
    return _users(Path(f"/proc/{pid}/uid_map").read_text())


def _users(uid_map: str) -> int:
    return sum(int(line.split()[2]) for line in uid_map.splitlines())


def mapped_files() -> Check:
    """Whether root's files can be root's in a job that has numbers of its own."""
    if os.geteuid() != 0:
        why = "root's files are shown to a job as those of 65534, and others' too"
        return Check(MAPPED, "unavailable", why, "run as root")
    outcome = attempt(_mapped)
    if outcome.failure:
        fix = 'a root and mounts on ext4, XFS or btrfs; or user_namespace = { files = "plain" }'
        return Check(MAPPED, "unavailable", outcome.failure, fix)
    return Check(MAPPED, "enforced", "files of root on / are root's in a job with its own numbers")


def _mapped() -> None:
    tried = idmaps.IdMounts()
    refusal = tried.refusal("/")
    tried.close()
    if refusal:
        raise SupervisorError(f"/: {refusal}")


def network_of_user() -> Check:
    """`network = "bridge"` without root: pasta makes an interface in a namespace of its own."""
    lacking = pasta.lacking()
    if lacking is not None:
        return Check(NETWORK, "unavailable", *lacking)
    outcome = attempt(_by_pasta, PASTA_TIME)
    if outcome.failure:
        fix = "a host with a default route, and /dev/net/tun for all; what pasta says tells more"
        return Check(NETWORK, "unavailable", outcome.failure, fix)
    told = "by pasta: no reach, no bandwidth (network.md)"
    return Check(NETWORK, "enforced", told)


def _by_pasta() -> None:
    """It runs a command in namespaces that it makes for it, and ends with that."""
    none = [word for key in ("-t", "-u", "-T", "-U") for word in (key, "none")]
    own = ["--foreground", "--quiet", "--config-net", "--ns-ifname", "eth0", *none]
    wait = "until grep -q eth0: /proc/net/dev; do sleep 0.01; done"
    words = [pasta.find("pasta") or "pasta", *own, "--", "/bin/sh", "-c", wait]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        said = pasta.complaint(done.stderr)
        raise SupervisorError(said or f"pasta ended with {done.returncode}")
