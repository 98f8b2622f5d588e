"""Where a supervisor puts its cgroups on v2, and that it leaves the hierarchy as it found it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from supervisor.cgroup import delegate, files
from tests.support.cgroup_scope import Scope, gone, scope, supervisor
from tests.support.cgroups import end, line
from tests.support.command import State
from tests.support.containers import within

pytestmark = [pytest.mark.kernel, pytest.mark.v2]

MIB = 1 << 20


@pytest.fixture
def shared(parent: str) -> Iterator[Scope]:
    """As the session of a user: somebody else is there, and the slice above is to be used."""
    with scope(parent, delegated=False) as one:
        other = one.other()
        try:
            yield one
            assert files.processes(one.directory) == (other.pid,)
        finally:
            gone_anyhow(other)


def told(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Where a supervisor is and where its run is, once it has both."""
    assert line(process) == "v2"
    return line(process), os.path.dirname(os.path.dirname(line(process)))


def refused(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Why a supervisor has no controllers, and the way out."""
    assert line(process) == "none"
    return line(process), line(process)


def test_alone_in_its_cgroup_a_supervisor_steps_down_and_back(here: Scope) -> None:
    before = here.state
    process = here.supervisor()
    leaf = f"{here.path}/supervise.inner.self"
    assert told(process) == (leaf, f"{here.directory}/supervise.inner")
    assert delegate.enabled(here.directory) == {"cpu", "io", "memory", "pids"}
    gone_back_to(process, here.path)
    assert here.state == before


def gone_back_to(process: subprocess.Popen[str], path: str) -> None:
    assert process.stdin is not None
    process.stdin.close()
    assert line(process) == path
    gone(process)


def test_beside_others_it_goes_above_and_moves_nobody(shared: Scope) -> None:
    before = shared.state
    process = shared.supervisor()
    assert told(process) == (shared.path, f"{shared.above}/supervise.inner")
    assert "cpu" in delegate.enabled(shared.above)
    gone_back_to(process, shared.path)
    assert shared.state == before


def gone_anyhow(process: subprocess.Popen[str]) -> None:
    process.kill()
    end(process)


@pytest.mark.parametrize(("name", "value"), [("memory.max", "512M"), ("pids.max", "900")])
def test_a_limit_on_its_cgroup_is_not_escaped(here: Scope, name: str, value: str) -> None:
    files.write(f"{here.directory}/{name}", value)
    other = here.other()
    process = here.supervisor()
    why, fix = refused(process)
    assert "not ours" in why and name in why
    assert "Delegate=yes" in fix
    gone(process)
    gone_anyhow(other)


def test_alone_below_a_limit_of_its_own_it_stays(here: Scope) -> None:
    files.write(f"{here.directory}/memory.max", "512M")
    process = here.supervisor()
    assert told(process)[1] == f"{here.directory}/supervise.inner"
    gone_back_to(process, here.path)


WAITING = ("/bin/sh", "-c", '"$@"; exit $?', "sh")


def test_who_waits_for_it_comes_along_where_there_is_no_place_above(here: Scope) -> None:
    """As `docker run --init` does, or a wrapper in a unit with limits."""
    files.write(f"{here.directory}/memory.max", "512M")
    before = here.state
    process = here.supervisor(wrapper=WAITING)
    own, place = told(process)
    assert (own, place) == (
        f"{here.path}/supervise.inner.self",
        f"{here.directory}/supervise.inner",
    )
    assert process.pid in files.processes(f"{here.directory}/supervise.inner.self")
    gone_back_to(process, here.path)
    assert here.state == before


def test_two_side_by_side_and_the_first_ends_first(shared: Scope) -> None:
    before = shared.state
    first = shared.supervisor("first")
    told(first)
    second = shared.supervisor("second")
    told(second)
    gone_back_to(first, shared.path)
    assert second.stdin is not None
    second.stdin.write("again\n")
    second.stdin.flush()
    assert line(second) == "again"
    assert "cpu" in delegate.enabled(shared.above)
    gone_back_to(second, shared.path)
    assert shared.state == before


def test_a_second_started_from_within_the_leaf_of_the_first(here: Scope) -> None:
    first = here.supervisor("first")
    told(first)
    second = here.supervisor("second", below="/supervise.first.self")
    leaf = f"{here.path}/supervise.first.self"
    assert told(second) == (leaf, f"{here.directory}/supervise.second")
    gone_back_to(first, leaf)  # it cannot go back while the second needs the controllers
    gone_back_to(second, leaf)
    assert delegate.enabled(here.directory) == set()
    assert os.listxattr(here.directory) == []


def test_after_a_kill_the_next_of_that_name_cleans_up(shared: Scope) -> None:
    before = shared.state
    killed = shared.supervisor("same")
    told(killed)
    killed.kill()
    end(killed)
    assert "cpu" in delegate.enabled(shared.above)
    another = shared.supervisor("another")
    told(another)
    gone_back_to(another, shared.path)
    heir = shared.supervisor("same")
    told(heir)
    gone_back_to(heir, shared.path)
    assert shared.state == before


def test_after_a_kill_its_leaf_is_removed_by_the_next(here: Scope) -> None:
    killed = here.supervisor("same")
    told(killed)
    killed.kill()
    end(killed)
    leaf = "/supervise.same.self"
    assert files.exists(here.directory + leaf)
    files.make(f"{here.directory}/session")
    other = here.other(below="/session")
    heir = here.supervisor("same", below="/session")
    assert told(heir)[1] == f"{here.directory}/supervise.same"
    gone_back_to(heir, f"{here.path}/session")
    gone_anyhow(other)
    assert files.names(here.directory) == ("session",)
    assert delegate.enabled(here.directory) == set()


def test_many_at_once_come_and_go(shared: Scope) -> None:
    before = shared.state
    for _ in range(2):
        crowd = [shared.supervisor(f"n{number}") for number in range(3)]
        for one in crowd:
            assert one.stdin is not None
            one.stdin.close()  # each ends as soon as it has begun
        for one in crowd:
            told(one)
            assert line(one) == shared.path
            gone(one)
    assert shared.state == before


def test_a_lock_that_is_never_given_back_stops_nobody(shared: Scope) -> None:
    with delegate.locked(delegate.Place(shared.above, "", frozenset(), root=False, moves=False)):
        process = shared.supervisor()
        told(process)
        gone_back_to(process, shared.path)


CONTAINER = ("unshare", "--cgroup", "--mount", "/bin/sh", "-ec",
             'umount /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup\n'
             '{before} "$@"{after}', "sh")  # fmt: skip


def in_container(here: Scope, before: str = "", after: str = "") -> subprocess.Popen[str]:
    """In a cgroup namespace whose root is the scope."""
    shell = [part.replace("{before}", before).replace("{after}", after) for part in CONTAINER]
    return here.run(*shell, *supervisor("inner"))


@pytest.mark.parametrize("after", ["", "; exit $?"])
def test_in_a_container_alone_or_with_its_init(here: Scope, after: str) -> None:
    before = here.state
    process = in_container(here, "exec" if not after else "", after)
    own, place = told(process)
    assert (own, place) == ("/supervise.inner.self", "/sys/fs/cgroup/supervise.inner")
    gone_back_to(process, "/")
    assert here.state == before


def test_in_a_container_with_others_the_way_out_is_told_and_works(here: Scope) -> None:
    background = "sleep 1000 <&- >&- & kill=$!; "
    process = in_container(here, background, "; kill $kill")
    why, fix = refused(process)
    assert "/sys/fs/cgroup holds processes that are not ours" in why
    gone(process)
    way = fix.partition("in a container: ")[2]
    process = in_container(here, f"{background} {way};", "; kill $kill")
    assert told(process) == ("/init", "/sys/fs/cgroup/supervise.inner")
    gone_back_to(process, "/init")


def test_a_read_only_mount_is_told_as_such(here: Scope) -> None:
    process = in_container(here, "mount -o remount,bind,ro /sys/fs/cgroup; exec")
    why, fix = refused(process)
    assert "/sys/fs/cgroup is mounted read-only" in why
    assert "remount,rw" in fix
    gone(process)


LIMITED = ("--memory", "64M", "--pids", "20", "--cpus", "0.5")
READY = ("/bin/sh", "-c", "echo ready; exec sleep 1000")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("kind", ["here", "shared"])
def test_the_command_leaves_all_as_found(
    request: pytest.FixtureRequest, kind: str, tmp_state: State, number: signal.Signals
) -> None:
    where: Scope = request.getfixturevalue(kind)
    before = where.state
    process = within(tmp_state, where.joining(), "run", *LIMITED, "--", *READY)
    assert line(process) == "ready"
    assert where.state != before
    process.send_signal(number)
    process.communicate(timeout=60)
    assert where.state == before


def test_a_failed_start_leaves_all_as_found(here: Scope, tmp_state: State) -> None:
    before = here.state
    process = within(tmp_state, here.joining(), "run", *LIMITED, "--", "/no/such/command")
    process.communicate(timeout=60)
    assert process.returncode == 127
    assert here.state == before
    files.write(f"{here.directory}/cgroup.max.descendants", "9")
    process = within(tmp_state, here.joining(), "run", *LIMITED, "--", "true")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 125
    assert "mkdir" in err
    assert here.state == before


def test_killed_and_started_again_the_command_leaves_all_as_found(
    shared: Scope, tmp_state: State
) -> None:
    before = shared.state
    config = tmp_state.state / "jobs.toml"
    config.write_text(
        f'{tmp_state.table}name = "again"\n[jobs.one]\nlimits = {{ memory = "64M", cpus = 0.5 }}\n'
        'command = ["/bin/sh", "-c", "echo ready; exec sleep 1000"]\n'
    )
    killed = within(tmp_state, shared.joining(), config, "--plain")
    run = f"{shared.above}/supervise.again"
    assert files.until(lambda: files.exists(run) and any_payload(run), 30)
    killed.kill()
    killed.communicate(timeout=60)
    assert shared.state != before
    config.write_text(config.read_text().replace("; exec sleep 1000", ""))
    done = within(tmp_state, shared.joining(), config, "--plain")
    _, err = done.communicate(timeout=60)
    assert done.returncode == 0, err
    assert shared.state == before


def any_payload(instance: str) -> bool:
    """Whether any run of the instance has a process of its job."""
    return any(
        files.exists(f"{instance}/{run}/payload") and files.processes(f"{instance}/{run}/payload")
        for run in files.names(instance)
    )
