"""The way into a cgroup on v2: at birth, as an ordinary user too, and what forbids it."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable

import pytest

from supervisor.cgroup import detect, files
from supervisor.cgroup.api import JobCgroup
from supervisor.cgroup.manager import Manager
from supervisor.errors import KernelError
from supervisor.linux import proc, syscalls
from supervisor.model.limits import Limits
from tests.support.cgroup_scope import Scope
from tests.support.cgroups import line
from tests.support.command import Supervise
from tests.support.containers import background

pytestmark = [pytest.mark.kernel, pytest.mark.v2]

MIB = 1 << 20
NOBODY = 65534


def apart(act: Callable[[], None]) -> str:
    """Run `act` in a forked child; what went wrong there, as text."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            act()
        except BaseException:
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        text = told.read()
    os.waitpid(pid, 0)
    return text


def born_in(job: JobCgroup) -> int:
    """A process cloned into the payload's cgroup, which sleeps; its pid."""
    assert job.entry.payload_dir
    directory = os.open(job.entry.payload_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        pid, _ = syscalls.clone(0, exit_signal=signal.SIGCHLD, cgroup_fd=directory)
    finally:
        os.close(directory)
    if pid == 0:
        signal.pause()
        os._exit(0)
    return pid


def delegate_to(user: int, scope: Scope) -> None:
    """As "Delegation" in cgroup-v2.rst has it: the directory and three of its files."""
    for name in ("", "/cgroup.procs", "/cgroup.subtree_control", "/cgroup.threads"):
        os.chown(scope.directory + name, user, user)


def become(user: int, scope: Scope) -> None:
    """Enter the scope, then be nobody but `user`."""
    files.write(f"{scope.directory}/cgroup.procs", "0")
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def test_an_ordinary_user_in_a_delegated_cgroup(here: Scope) -> None:
    before = here.state
    delegate_to(NOBODY, here)

    def act() -> None:
        become(NOBODY, here)
        manager = Manager("mine", detect.find(None))
        assert manager.version == "v2"
        job = manager.create("run")
        readings = job.apply(Limits(memory=64 * MIB, swap=0, pids=4, cpus=0.5, cpu_weight=50))
        assert readings[0].text == str(64 * MIB)
        pid = born_in(job)
        assert job.pids() == (pid,)
        files.write(f"{job.entry.init_dir}/cgroup.procs", str(pid))  # it may move its own, too
        files.write(f"{job.entry.payload_dir}/cgroup.procs", str(pid))
        job.freeze()
        job.thaw()
        job.kill()
        os.waitpid(pid, 0)
        job.remove()
        manager.close()

    assert apart(act) == ""
    assert here.state == before


def test_outside_of_what_is_delegated_a_user_is_refused_before_the_start(here: Scope) -> None:
    """A move needs the common ancestor's cgroup.procs, and that is not the user's."""
    files.make(f"{here.directory}/theirs")
    theirs = Scope(here.directory, here.path, "own")
    for name in ("", "/cgroup.procs", "/cgroup.subtree_control", "/cgroup.threads"):
        os.chown(f"{here.directory}/theirs{name}", NOBODY, NOBODY)

    def act() -> None:
        become(NOBODY, theirs)
        manager = Manager("mine", detect.find(f"{here.path}/theirs"))
        (missing,) = manager.missing(Limits(memory=MIB))
        assert f"{here.directory}/cgroup.procs" in missing.why, missing
        assert "Delegate=yes" in missing.fix

    assert apart(act) == ""


def test_the_payload_is_born_in_its_cgroup(supervise: Supervise) -> None:
    """Its init's cgroup never held two: a fork there and a move would have."""
    limits = ("--memory", "64M", "--pids", "8")
    with background(
        supervise, "run", *limits, "--", "/bin/sh", "-c", "echo ready; exec sleep 1000"
    ) as process:
        assert line(process) == "ready"
        (init,) = (
            one for one in proc.children(process.pid) if proc.stat(one).comm == "supervise:init"
        )
        own = proc.memberships(f"/proc/{init}/cgroup")[-1].path
        mount = next(h.mount for h in detect.find(None).hierarchies if h.unified)
        assert own.endswith("/init")
        assert files.processes(mount + own) == (init,)
        assert files.read(f"{mount}{own}/pids.peak") == "1"
        payload = mount + os.path.dirname(own) + "/payload"
        assert len(files.processes(payload)) == 1


def test_a_cgroup_that_takes_no_process_is_told(here: Scope) -> None:
    """EBUSY: somebody has enabled a controller below it (pids alone, a threaded one, is none)."""
    manager = Manager("busy", detect.find(here.path))
    job = manager.create("run")
    assert job.entry.payload_dir
    files.write(f"{job.entry.payload_dir}/cgroup.subtree_control", "+memory")
    with pytest.raises(KernelError) as caught:
        born_in(job)
    assert caught.value.errno == 16
    job.remove()
    manager.close()
