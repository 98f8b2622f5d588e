"""Who waits for whom, with real children; each scene plays in a process of its own.

A scene is PID 1 of a pid namespace or a child subreaper: only there do orphans come to it, and
nobody else's do.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from typing import Any

import pytest

pytestmark = pytest.mark.kernel

HEAD = """
import json, os, signal, subprocess
import trio, trio.testing
from supervisor.linux import constants, proc, syscalls
from supervisor.supervise import reaper as module
from supervisor.supervise.reaper import WALL, ExitStatus, Lost, Reaper

told = {}

def zombies():
    return sorted(one.pid for one in proc.processes() if one.state == "Z")

def start_init(status, hold):
    # as the launcher does it: it clones a child of its parent's, that no signal tells of
    told, tell = os.pipe()
    launcher = os.fork()
    if launcher == 0:
        pid, _ = syscalls.clone(constants.CLONE_PARENT, exit_signal=0)
        if pid == 0:
            os.close(hold[1])
            os.read(hold[0], 1)
            if status < 0:
                os.kill(os.getpid(), -status)
            os._exit(status)
        os.write(tell, str(pid).encode())
        os._exit(0)
    os.waitpid(launcher, 0)
    pid = int(os.read(told, 20))
    os.close(told)
    os.close(tell)
    return pid, os.pidfd_open(pid)

def orphan(seconds="0"):
    # a child that leaves one behind and ends
    subprocess.run(["/bin/sh", "-c", f"sleep {seconds} & :"], check=True)

async def until(condition):
    with trio.fail_after(30):
        while not condition():
            await trio.sleep(0.01)

async def scene(reaper):
"""

TAIL = """
async def main():
    reaper = Reaper()
    async with trio.open_nursery() as nursery:
        await nursery.start(reaper.run)
        await scene(reaper)
        nursery.cancel_scope.cancel()

trio.run(main)
print(json.dumps(told))
"""


def play(scene: str, *, pid1: bool = True) -> dict[str, Any]:
    """Run the body of `scene` beside a reaper; what it put into `told`."""
    code = HEAD + textwrap.indent(textwrap.dedent(scene), "    ") + TAIL
    command = [sys.executable, "-c", code]
    if pid1:
        command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *command]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("status", "expected"), [(0, [0, None]), (137, [137, None]), (-9, [None, 9]), (-15, [None, 15])]
)
def test_an_init_is_awaited_by_its_pidfd(status: int, expected: list[int | None]) -> None:
    told = play(
        f"""
        hold = os.pipe()
        pid, pidfd = start_init({status}, hold)
        os.close(hold[1])
        found = await reaper.wait_init(pidfd)
        told["found"] = [found.code, found.signal]
        told["left"] = zombies()
        """
    )
    assert told == {"found": expected, "left": []}


def test_a_child_by_clone_parent_has_the_cloners_exit_signal() -> None:
    """Asked to have none, it sends SIGCHLD and is taken by any wait: what the reaper relies on."""
    told = play(
        """
        hold = os.pipe()
        pid, pidfd = start_init(7, hold)
        silent, silent_fd = syscalls.clone(constants.CLONE_PIDFD, exit_signal=0)
        if silent == 0:
            os._exit(8)
        os.close(hold[1])
        for fd in (pidfd, silent_fd):
            await trio.lowlevel.wait_readable(fd)
        told["signal"] = proc.read_file(f"/proc/{pid}/stat").split()[37]
        told["any"] = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT).si_status
        try:
            os.waitid(os.P_PID, silent, os.WEXITED | os.WNOWAIT)
        except ChildProcessError:
            told["silent"] = os.waitid(os.P_PID, silent, os.WEXITED | os.WNOWAIT | WALL).si_status
        told["codes"] = [(await reaper.wait_init(fd)).code for fd in (pidfd, silent_fd)]
        """
    )
    assert told == {"signal": "17", "any": 7, "silent": 8, "codes": [7, 8]}


def test_an_init_that_is_awaited_is_never_taken_for_an_orphan() -> None:
    told = play(
        """
        module.GRACE, module.CALM = -1.0, 0.0  # whoever is unknown is reaped at first sight
        hold = os.pipe()
        inits = [start_init(7, hold) for _ in range(50)]
        os.close(hold[0])
        codes, before = [], reaper.orphans

        async def wait(pidfd):
            codes.append((await reaper.wait_init(pidfd)).code)

        async with trio.open_nursery() as nursery:
            for _, pidfd in inits:
                nursery.start_soon(wait, pidfd)
            await trio.testing.wait_all_tasks_blocked()
            os.close(hold[1])
        told["right"] = codes.count(7)
        told["orphans"] = reaper.orphans - before
        told["known"] = len(reaper._known)
        """
    )
    assert told == {"right": 50, "orphans": 0, "known": 0}


def test_a_status_that_somebody_else_took_is_lost() -> None:
    told = play(
        """
        hold = os.pipe()
        pid, pidfd = start_init(7, hold)
        os.close(hold[1])
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | WALL)
        told["taken"] = (await reaper.wait_init(pidfd)).why
        told["kind"] = type(await reaper.wait_init(pidfd)).__name__
        """
    )
    assert told["kind"] == "Lost"
    assert "somebody else" in told["taken"]


@pytest.mark.parametrize("pid1", [True, False])
def test_orphans_are_adopted_and_reaped(pid1: bool) -> None:
    told = play(
        """
        if os.getpid() != 1:
            syscalls.set_child_subreaper()
        module.GRACE = 0.1
        orphan()
        orphan("0.05")
        # twice removed, in a session of its own
        subprocess.run(["setsid", "-f", "/bin/sh", "-c", "sleep 0.05 & :"], check=True)
        await until(lambda: reaper.orphans == 4)
        told["children"] = proc.children(os.getpid())
        """,
        pid1=pid1,
    )
    assert told == {"children": []}


def test_five_hundred_orphans_that_end_together() -> None:
    told = play(
        """
        module.GRACE = 0.2
        read, write = os.pipe()
        # a shell is quicker to fork, where forking is slow (User-Mode Linux)
        script = f"i=0; while [ $i -lt 500 ]; do read x <&{read} & i=$((i+1)); done"
        subprocess.run(["/bin/sh", "-c", script], pass_fds=(read,), check=True)
        os.close(write)
        await until(lambda: reaper.orphans == 500)
        told["left"] = proc.children(os.getpid())
        """
    )
    assert told == {"left": []}


def test_what_others_wait_for_is_not_taken_from_them() -> None:
    """A flood of orphans beside trio.run_process and a plugin's subprocess.run in a thread."""
    told = play(
        """
        statuses = []

        async def run(n):
            done = await trio.run_process(["/bin/sh", "-c", f"exit {n}"], check=False)
            statuses.append(done.returncode == n)

        def blocking(n):
            statuses.append(subprocess.run(["/bin/sh", "-c", f"exit {n}"]).returncode == n)

        async with trio.open_nursery() as nursery:
            for n in range(1, 41):
                nursery.start_soon(run, n)
                nursery.start_soon(trio.to_thread.run_sync, blocking, n)
                if n % 4 == 0:
                    orphan()
        told["right"] = statuses.count(True)
        await until(lambda: reaper.orphans == 10)
        told["left"] = zombies()
        """
    )
    assert told == {"right": 80, "left": []}


def test_a_zombie_is_left_alone_for_the_grace() -> None:
    told = play(
        """
        module.GRACE = 0.3
        process = subprocess.Popen(["true"])
        await until(zombies)
        await trio.sleep(0.1)  # looked at already, and within the grace
        told["own"] = process.wait()
        late = subprocess.Popen(["false"])
        await until(lambda: reaper.orphans == 1)
        told["number"] = late.pid == 0
        late.returncode = 0  # its owner never came back
        """
    )
    assert told == {"own": 0, "number": False}


def test_helpers_get_what_they_are_given_and_nothing_else() -> None:
    told = play(
        """
        read, write = os.pipe()
        kept, other = os.pipe()
        os.set_inheritable(other, False)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        child = reaper.spawn(
            ["sh", "-c", f'echo "$A"; ls /proc/self/fd; grep -E "Sig(Blk|Ign)" /proc/self/status'],
            env={"A": "b", "PATH": os.environ["PATH"]}, stdout=write, pass_fds=(kept,),
        )
        os.close(write)
        told["status"] = [(await child.wait()).code, (await child.wait()).code]
        with os.fdopen(read) as file:
            lines = file.read().split("\\n")
        told["env"] = lines[0]
        numbers = {int(n) for n in lines if n.isdigit()}
        told["kept"] = kept in numbers
        told["leaked"] = sorted(numbers & {read, other, write})
        masks = [int(line.split()[1], 16) for line in lines if line.startswith("Sig")]
        ours = int(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)  # by nohup(1): that stays
        told["masks"] = [mask & 0x7FFFFFFF & ~ours for mask in masks]  # above: glibc's own
        told["helpers"] = len(reaper._known)
        """
    )
    assert told == {
        "status": [0, 0],
        "env": "b",
        "kept": True,
        "leaked": [],
        "masks": [0, 0],
        "helpers": 0,
    }


def test_a_helper_is_signalled_waited_for_and_never_an_orphan() -> None:
    told = play(
        """
        module.GRACE = 0.05
        child = reaper.spawn(["sleep", "1000"])
        with trio.move_on_after(0.05):
            await child.wait()
        child.send_signal(signal.SIGTERM)
        await until(zombies)
        orphan()
        await until(lambda: reaper.orphans == 1)
        await trio.sleep(0.2)
        found = await child.wait()
        child.send_signal(signal.SIGKILL)
        told["found"] = [found.code, found.signal]
        told["orphans"] = reaper.orphans
        told["fds"] = len(os.listdir("/proc/self/fd"))
        """
    )
    assert told.pop("fds") < 20
    assert told == {"found": [None, 15], "orphans": 1}


def test_a_helper_that_is_not_there_is_named() -> None:
    told = play(
        """
        try:
            reaper.spawn(["no-such-program"])
        except OSError as error:
            told["error"] = str(error)
        told["left"] = zombies()
        """
    )
    assert told == {"error": "posix_spawn no-such-program: No such file or directory", "left": []}


def test_without_orphans_nothing_wakes() -> None:
    told = play(
        """
        class Wakes(trio.abc.Instrument):
            steps = 0

            def before_task_step(self, task):
                self.steps += 1

        hold = os.pipe()
        inits = [start_init(0, hold) for _ in range(20)]
        helper = reaper.spawn(["sleep", "1000"])
        await trio.testing.wait_all_tasks_blocked(4 * module.CALM)
        wakes = Wakes()
        trio.lowlevel.add_instrument(wakes)
        await trio.sleep(1.5)
        trio.lowlevel.remove_instrument(wakes)
        told["steps"] = wakes.steps
        os.close(hold[1])
        for pid, pidfd in inits:
            await reaper.wait_init(pidfd)
        helper.send_signal(signal.SIGKILL)
        await helper.wait()
        """
    )
    assert told == {"steps": 1}
