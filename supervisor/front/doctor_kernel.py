"""What the doctor tries of the kernel but for limits: namespaces, mounts, clone, layers.

Each check is a function that returns `Check`s; every mount is made inside the mount namespace
of a trial's own process.  May import: `errors`, `linux`.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from errno import EROFS
from pathlib import Path

from supervisor.errors import SupervisorError
from supervisor.front.doctor_trial import Check, as_root, attempt, enter_namespaces, way_out
from supervisor.linux import constants as c
from supervisor.linux import syscalls

NAMESPACES: tuple[tuple[str, int, bool], ...] = (
    ("pid", c.CLONE_NEWPID, True),
    ("mount", c.CLONE_NEWNS, True),
    ("uts", c.CLONE_NEWUTS, True),
    ("ipc", c.CLONE_NEWIPC, True),
    ("net", c.CLONE_NEWNET, True),
    ("cgroup", c.CLONE_NEWCGROUP, True),
    ("user", c.CLONE_NEWUSER, False),
    ("time", c.CLONE_NEWTIME, False),
)
"""Name, flag, and whether every job has one by default."""

LINKS = {"mount": "mnt", "pid": "pid_for_children", "time": "time_for_children"}
"""Names in /proc/self/ns; unshare(2) gives PID and time namespaces to the children only."""

NOBODY = 65534


def checks() -> list[Callable[[], Check]]:
    """All of them, each to be called by itself."""
    spaces = [_namespace(name, flag, needed) for name, flag, needed in NAMESPACES]
    return [
        *spaces,
        unprivileged_user_namespace,
        clone_pidfd,
        pivot_root,
        recursive_read_only,
        overlay,
        overlay_in_user_namespace,
    ]


def _namespace(name: str, flag: int, needed: bool) -> Callable[[], Check]:
    def check() -> Check:
        outcome = attempt(lambda: _unshared(name, flag))
        if outcome.failure:
            fix = user_fix() if name == "user" else as_root()
            if not os.path.exists(f"/proc/self/ns/{LINKS.get(name, name)}"):
                fix = f"a kernel with CONFIG_{name.upper()}_NS"
            why = re.sub(
                r" CLONE_\w+", "", outcome.failure
            )  # all that are refused alike are one row
            return Check(f"{name} namespace", "unavailable", why, fix, needed)
        return Check(f"{name} namespace", "enforced", str(outcome.value), "", needed)

    return check


def _unshared(name: str, flag: int) -> str:
    """Unshare it and see that it is another one (/proc/self/ns)."""
    link = LINKS.get(name, name)
    before = os.readlink(f"/proc/self/ns/{link}")
    how = "made a new one"
    if flag != c.CLONE_NEWUSER and os.geteuid() != 0:
        syscalls.unshare(c.CLONE_NEWUSER)
        how = "made a new one inside a user namespace"
    syscalls.unshare(flag)
    if flag == c.CLONE_NEWPID and os.fork() == 0:
        os._exit(0)  # the link appears with the first child
    if os.readlink(f"/proc/self/ns/{link}") == before:
        raise SupervisorError(f"/proc/self/ns/{link} stayed the same")
    return how


SYSCTL = Path("/proc/sys")
SWITCHES = (
    ("user.max_user_namespaces", "0", "15000"),
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
)
"""Settings that forbid user namespaces, by which value, and what to set instead: the kernel's, that
of Debian's kernels, that of Ubuntu's."""


def user_fix() -> str:
    """What is in the way of user namespaces here, turned."""
    wrong = []
    for name, forbids, instead in SWITCHES:
        path = SYSCTL / name.replace(".", "/")
        if path.exists() and path.read_text().strip() == forbids:
            wrong.append(f"{name}={instead}")
    if wrong:
        return f"as root: sysctl -w {' '.join(wrong)}"
    return (
        "no setting forbids it, so a filter around us does: "
        "docker run --security-opt seccomp=unconfined, supervise run --seccomp unconfined"
    )


def unprivileged_user_namespace() -> Check:
    """Whether somebody without root could run jobs: tried as nobody when root asks."""
    name = "unprivileged users"
    outcome = attempt(_nobody_unshares)
    if outcome.failure:
        return Check(name, "unavailable", outcome.failure, user_fix())
    return Check(name, "enforced", "a user without privilege can make containers")


def _nobody_unshares() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    syscalls.unshare(c.CLONE_NEWUSER)
    syscalls.unshare(c.CLONE_NEWNS | c.CLONE_NEWPID | c.CLONE_NEWUTS | c.CLONE_NEWIPC)


def clone_pidfd() -> Check:
    """A raw clone with CLONE_PIDFD: how every job is made and waited for."""
    outcome = attempt(_cloned)
    if outcome.failure:
        return Check(
            "clone with a pidfd", "unavailable", outcome.failure, "Linux 5.4 or newer", True
        )
    return Check("clone with a pidfd", "enforced", "a child was waited for by it", "", True)


def _cloned() -> None:
    pid, pidfd = syscalls.clone(c.CLONE_PIDFD, exit_signal=signal.SIGCHLD)
    if pid == 0:
        os._exit(7)
    ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    if ended is None or ended.si_status != 7:
        raise SupervisorError("waiting by the pidfd told another exit")


def private_mounts(unprivileged: bool = False) -> Path:
    """Own mounts, and an empty tmpfs among them.

    It lies over /tmp, which exists everywhere and which the trial has no other use for.
    """
    own_mounts(unprivileged)
    syscalls.mount("doctor", "/tmp", "tmpfs", 0, "size=1m,mode=700")
    return Path("/tmp")


def own_mounts(unprivileged: bool = False) -> None:
    """Enter a mount namespace whose mounts nobody else sees."""
    if os.geteuid() != 0 or unprivileged:
        enter_namespaces()
    else:
        syscalls.unshare(c.CLONE_NEWNS)
    syscalls.mount(None, "/", None, c.MS_REC | c.MS_PRIVATE)


def pivot_root() -> Check:
    """Another root directory, the old one out of reach."""
    outcome = attempt(_pivoted)
    if outcome.failure:
        return Check("pivot_root", "unavailable", outcome.failure, as_root(), True)
    return Check("pivot_root", "enforced", "the old root was out of reach", "", True)


def _pivoted() -> None:
    root = private_mounts()
    (root / "only").mkdir()
    os.chdir(root)
    # pivot_root(2): "." over "." stacks the old root upon the new, from where it is taken off
    syscalls.pivot_root(".", ".")
    syscalls.umount(".", c.MNT_DETACH)
    os.chdir("/")
    if os.listdir("/") != ["only"]:
        raise SupervisorError("the old root is still there")


def recursive_read_only() -> Check:
    """mount_setattr(2) with AT_RECURSIVE: read-only holds for mounts below a mount too."""
    outcome = attempt(_read_only)
    if outcome.failure:
        fix = way_out(outcome.failure, "Linux 5.12 or newer")
        return Check("mount_setattr", "unavailable", outcome.failure, fix, True)
    return Check("mount_setattr", "enforced", "a mount below was read-only too", "", True)


def _read_only() -> None:
    top = private_mounts()
    below = top / "below"
    below.mkdir()
    syscalls.mount("doctor", str(below), "tmpfs", 0, "size=64k")
    syscalls.mount_setattr(c.AT_FDCWD, str(top), c.MOUNT_ATTR_RDONLY, recursive=True)
    try:
        (below / "file").touch()
    except OSError as error:
        if error.errno == EROFS:
            return
        raise
    raise SupervisorError("a mount below stayed writable")


def overlay() -> Check:
    """A throw-away layer over a directory (`write = "overlay"`)."""
    outcome = attempt(lambda: overlaid(private_mounts()))
    if outcome.failure:
        fix = way_out(outcome.failure, "modprobe overlay")
        return Check("overlayfs", "unavailable", outcome.failure, fix)
    return Check("overlayfs", "enforced", "what was written stayed in the upper layer")


def overlay_in_user_namespace() -> Check:
    """The same for jobs with user numbers of their own and for who is not root (Linux 5.11)."""
    name = "unprivileged overlayfs"
    outcome = attempt(lambda: overlaid(private_mounts(unprivileged=True)))
    if outcome.failure:
        fix = f"not needed by root's jobs; Linux 5.11 or later, and {user_fix()}"
        return Check(name, "unavailable", outcome.failure, fix)
    return Check(name, "enforced", "a user namespace has layers too")


def overlaid(top: Path) -> None:
    for name in ("lower", "upper", "work", "merged"):
        (top / name).mkdir()
    (top / "lower" / "file").write_text("old")
    data = f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work"
    # In a user namespace the layer's marks live in user.* (overlayfs.rst, "userxattr").
    data += "" if os.geteuid() == 0 and initial_user_namespace() else ",userxattr"
    syscalls.mount("overlay", str(top / "merged"), "overlay", 0, data)
    (top / "merged" / "file").write_text("new")
    if (top / "lower" / "file").read_text() != "old":
        raise SupervisorError("a write went through to the lower layer")


def initial_user_namespace() -> bool:
    """All ids mapped one to one: user_namespaces(7), /proc/self/uid_map."""
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]
