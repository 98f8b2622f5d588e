"""What the doctor tries of the kernel but for limits: namespaces, mounts, clone, kernel log.

Each check is a function that returns `Check`s; every mount is made inside the mount namespace
of a trial's own process.  May import: `errors`, `linux`, `container.network`, `container.firewall`.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from errno import EACCES, EROFS
from pathlib import Path

from supervisor.errors import SupervisorError
from supervisor.front.doctor_trial import Check, attempt
from supervisor.linux import constants as c
from supervisor.linux import landlock, nft, syscalls

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

AS_ROOT = "run as root, or allow user namespaces (the row `user namespace`)"
NOBODY = 65534


def checks() -> list[Callable[[], Check]]:
    """All of them, each to be called by itself."""
    spaces = [_namespace(name, flag, needed) for name, flag, needed in NAMESPACES]
    networks = [bridge] if os.geteuid() == 0 else []  # else `doctor_users` has it
    return [
        *spaces,
        unprivileged_user_namespace,
        clone_pidfd,
        pivot_root,
        recursive_read_only,
        overlay,
        seccomp,
        *networks,
        second_wall,
        kernel_log,
        pressure,
    ]


def _namespace(name: str, flag: int, needed: bool) -> Callable[[], Check]:
    def check() -> Check:
        outcome = attempt(lambda: _unshared(name, flag))
        if outcome.failure:
            fix = USER_FIX if name == "user" else AS_ROOT
            if not os.path.exists(f"/proc/self/ns/{LINKS.get(name, name)}"):
                fix = f"a kernel with CONFIG_{name.upper()}_NS"
            return Check(f"{name} namespace", "unavailable", outcome.failure, fix, needed)
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


USER_FIX = (
    "sysctl -w user.max_user_namespaces=15000; on Debian and Ubuntu also "
    "sysctl -w kernel.unprivileged_userns_clone=1 "
    "kernel.apparmor_restrict_unprivileged_userns=0, whichever exists"
)


def unprivileged_user_namespace() -> Check:
    """Whether somebody without root could run jobs: tried as nobody when root asks."""
    name = "user namespace, unprivileged"
    outcome = attempt(_nobody_unshares)
    if outcome.failure:
        return Check(name, "unavailable", outcome.failure, USER_FIX)
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


def _private_mounts() -> Path:
    """Enter a mount namespace whose mounts nobody else sees; an empty tmpfs in it.

    It lies over /tmp, which exists everywhere and which the trial has no other use for.
    """
    if os.geteuid() != 0:
        uid, gid = os.geteuid(), os.getegid()
        syscalls.unshare(c.CLONE_NEWUSER | c.CLONE_NEWNS)
        # user_namespaces(7): without setgroups denied, gid_map may not be written
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"0 {uid} 1"),
            ("gid_map", f"0 {gid} 1"),
        ):
            Path(f"/proc/self/{name}").write_text(text)
    else:
        syscalls.unshare(c.CLONE_NEWNS)
    syscalls.mount(None, "/", None, c.MS_REC | c.MS_PRIVATE)
    syscalls.mount("doctor", "/tmp", "tmpfs", 0, "size=1m,mode=700")
    return Path("/tmp")


def pivot_root() -> Check:
    """Another root directory, the old one out of reach."""
    outcome = attempt(_pivoted)
    if outcome.failure:
        return Check("pivot_root", "unavailable", outcome.failure, AS_ROOT, True)
    return Check("pivot_root", "enforced", "the old root was out of reach", "", True)


def _pivoted() -> None:
    root = _private_mounts()
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
        fix = f"Linux 5.12 or newer; {AS_ROOT}"
        return Check("mount_setattr", "unavailable", outcome.failure, fix, True)
    return Check("mount_setattr", "enforced", "a mount below was read-only too", "", True)


def _read_only() -> None:
    top = _private_mounts()
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
    outcome = attempt(_overlaid)
    if outcome.failure:
        return Check("overlayfs", "unavailable", outcome.failure, f"modprobe overlay; {AS_ROOT}")
    return Check("overlayfs", "enforced", "what was written stayed in the upper layer")


def _overlaid() -> None:
    top = _private_mounts()
    for name in ("lower", "upper", "work", "merged"):
        (top / name).mkdir()
    (top / "lower" / "file").write_text("old")
    data = f"lowerdir={top}/lower,upperdir={top}/upper,workdir={top}/work"
    # In a user namespace the layer's marks live in user.* (overlayfs.rst, "userxattr").
    data += "" if os.geteuid() == 0 and _initial_user_namespace() else ",userxattr"
    syscalls.mount("overlay", str(top / "merged"), "overlay", 0, data)
    (top / "merged" / "file").write_text("new")
    if (top / "lower" / "file").read_text() != "old":
        raise SupervisorError("a write went through to the lower layer")


def _initial_user_namespace() -> bool:
    """All ids mapped one to one: user_namespaces(7), /proc/self/uid_map."""
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def bridge() -> Check:
    """`network = "bridge"`: its interfaces and rules, in a network namespace of their own."""
    name = "network bridge"
    if nft.program() is None:
        return Check(name, "unavailable", "nft is not installed", nft.HINT)
    outcome = attempt(_bridged, BRIDGE_TIME)
    if outcome.failure or outcome.timed_out:
        why = outcome.failure or f"no answer within {BRIDGE_TIME:g} s"
        return Check(
            name, "unavailable", why, "as root, with bridge, veth and nf_tables (modprobe)"
        )
    return Check(name, "enforced", "a bridge, and the rules of jobs on it")


BRIDGE_TIME = 10.0
"""Seconds: it imports pyroute2."""


def _bridged() -> None:
    from ipaddress import IPv4Network

    from supervisor.container import firewall, network
    from supervisor.linux import netlink

    syscalls.unshare(c.CLONE_NEWNET)
    plan = network.Plan("d0c70000", IPv4Network("10.0.0.0/24"))
    netlink.make_bridge(plan.bridge, plan.mac, "", plan.addresses)
    nft.apply(firewall.table_text(plan))
    nft.apply(firewall.Opening(plan, plan.seat(2), egress=(), rate=1 << 20).added())


def seccomp() -> Check:
    """System call filters: whether the kernel has them (seccomp(2))."""
    path = Path("/proc/sys/kernel/seccomp/actions_avail")
    try:
        return Check("seccomp", "enforced", f"actions: {path.read_text().strip()}")
    except OSError as error:
        fix = "a kernel with CONFIG_SECCOMP_FILTER"
        return Check("seccomp", "unavailable", f"{path}: {error.strerror}", fix)


def second_wall() -> Check:
    """Landlock: a process that has given up writing writes no more."""
    version = landlock.version()
    fix = "not needed; a kernel from 5.19 on with CONFIG_SECURITY_LANDLOCK, and landlock in lsm="
    if version < landlock.REFER_SINCE:
        what = f"version {version}, of no use before {landlock.REFER_SINCE}"
        return Check("Landlock", "unavailable", what if version else "the kernel has none", fix)
    outcome = attempt(_give_up_writing)
    if outcome.failure:
        return Check("Landlock", "unavailable", outcome.failure, fix)
    if outcome.value != EACCES:
        return Check("Landlock", "unavailable", "a write that was given up was not refused", fix)
    told = f"version {version}: a write that was given up was refused"
    if version < landlock.SCOPES_SINCE:
        return Check("Landlock", "accounted only", f"{told}; no scopes before Linux 6.12", fix)
    return Check("Landlock", "enforced", told)


def _give_up_writing() -> int:
    """The errno of opening a file for writing then, 0 if it goes."""
    syscalls.prctl(c.PR_SET_NO_NEW_PRIVS, 1)
    ruleset = landlock.create_ruleset(landlock.WRITE_FILE, 0)
    landlock.restrict_self(ruleset)
    try:
        os.close(os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno or 0
    return 0


def kernel_log() -> Check:
    """/dev/kmsg: the victim of an OOM kill, and on v1 the first refused fork, stand there."""
    try:
        os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        fix = "run as root, or sysctl -w kernel.dmesg_restrict=0 and a readable /dev/kmsg"
        return Check("kernel log", "unavailable", f"/dev/kmsg: {error.strerror}", fix)
    return Check("kernel log", "enforced", "/dev/kmsg is readable")


def pressure() -> Check:
    """PSI: how much the host suffers for want of memory (accounting/psi.rst)."""
    path = Path("/proc/pressure/memory")
    try:
        path.read_text()
    except OSError as error:
        fix = "boot with psi=1, on a kernel with CONFIG_PSI"
        return Check("pressure (PSI)", "unavailable", f"{path}: {error.strerror}", fix)
    return Check("pressure (PSI)", "accounted only", f"{path} is readable")
