"""What the doctor tries of the walls around a job: system call filters and Landlock.

May import: `errors`, `linux`, `container.seccomp`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import EACCES, EPERM
from pathlib import Path

from supervisor.container import seccomp as filters
from supervisor.errors import SpawnError
from supervisor.front.doctor_trial import Check, attempt
from supervisor.linux import constants as c
from supervisor.linux import landlock, syscalls

ACTIONS = Path("/proc/sys/kernel/seccomp/actions_avail")
FILTER_TIME = 10.0
"""Seconds: a filter that is not in the cache is compiled."""


def checks() -> list[Callable[[], Check]]:
    """All of them, each to be called by itself."""
    return [seccomp, seccomp_log, second_wall]


def seccomp() -> Check:
    """The default filter, installed as a job has it: what it refuses is refused."""
    name = "seccomp"
    try:
        version = filters.library_version()
        programs = filters.programs("default", frozenset())
    except SpawnError as error:
        return Check(name, "unavailable", str(error), error.hint, True)
    outcome = attempt(lambda: _filtered(programs), FILTER_TIME)
    if outcome.failure or outcome.value != EPERM:
        why = outcome.failure or "what the default filter refuses went through"
        return Check(name, "unavailable", why, FILTER_FIX, True)
    told = f"the default filter refused what it is to refuse; libseccomp {version}"
    if _filtered_before():
        told = (
            f"the default filter was taken, below one that is there already; libseccomp {version}"
        )
    return Check(name, "enforced", told, "", True)


FILTER_FIX = 'a kernel with CONFIG_SECCOMP_FILTER; or seccomp = "unconfined"'


def seccomp_log() -> Check:
    """`seccomp = "log"`: the kernel has the action, and it lets the call through."""
    name = "seccomp log"
    fix = "not needed; Linux 4.14 or later"
    try:
        programs = filters.programs("log", frozenset())
    except SpawnError as error:
        return Check(name, "unavailable", str(error), error.hint)
    if _filtered_before():
        told = "a filter that is there already refuses what would be let through"
        return Check(name, "accounted only", told, "not needed; run it outside of that container")
    outcome = attempt(lambda: _filtered(programs), FILTER_TIME)
    if outcome.failure or outcome.value:
        why = outcome.failure or f"the call was refused: {os.strerror(outcome.value)}"
        return Check(name, "unavailable", why, fix)
    logged = ACTIONS.with_name("actions_logged")
    if "log" not in logged.read_text().split():
        fix = 'sysctl -w kernel.seccomp.actions_logged="kill_process kill_thread log"'
        return Check(name, "accounted only", f"{logged} lacks log: nothing is told", fix)
    return Check(name, "enforced", "a call that default refuses went through")


def _filtered_before() -> bool:
    """Whether a call that the default filter refuses is refused without it, too."""
    return bool(attempt(lambda: _filtered(())).value == EPERM)


def _filtered(programs: tuple[bytes, ...]) -> int:
    """The errno of unshare(2) below these filters, 0 if it goes."""
    syscalls.prctl(c.PR_SET_NO_NEW_PRIVS, 1)
    for program in programs:
        syscalls.install_filter(program)
    try:
        syscalls.unshare(c.CLONE_NEWUSER)
    except OSError as error:
        return error.errno or 0
    return 0


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
