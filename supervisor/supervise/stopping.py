"""How a job is made to end: a polite signal to the whole tree, patience, SIGKILL, the init's end.

May import: `errors`, `model`, `linux`, `supervise.run` (for its type only).
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import trio

from supervisor.errors import KernelError
from supervisor.linux import proc

if TYPE_CHECKING:
    from supervisor.supervise.run import Run

KILL_PATIENCE = 5.0
"""Seconds for the tree to vanish after SIGKILL, before the init itself is killed."""

RELAY = 1.0
"""Seconds at most for the init to pass a signal on."""
LOOK_AGAIN = 0.002
"""Seconds; nobody tells that a signal waits for a process."""


def signal_number(name: str) -> int:
    """ "TERM" or "SIGTERM" as a number (the configuration has checked it)."""
    return int(signal.Signals[name if name.startswith("SIG") else f"SIG{name}"])


async def end(run: Run, hurry: trio.Event) -> None:
    """Cancelled by the end of the job.  `hurry`: the grace is over now."""
    _thaw(run)
    _continue_init(run)
    if not hurry.is_set():
        stop = run.spec.stop
        run.send_signal(stop.signal)
        await _let_go(run)
        with trio.move_on_after(stop.grace):
            await hurry.wait()
    kill(run)
    _continue_init(run)
    await trio.sleep(KILL_PATIENCE)
    # The init writes the exit record when the payload is gone; one that cannot is no use.
    run.container.send_signal(signal.SIGKILL)
    await trio.sleep_forever()


def kill(run: Run) -> None:
    """SIGKILL to the payload and all below it; the init outlives them and writes the record.

    Where the cgroup cannot do it (there is none, or it is gone), the init's end does.
    """
    try:
        run.cgroup.kill()
    except KernelError as error:
        run.warn(f"cannot kill by the cgroup, killing the init instead: {error}")
        run.container.send_signal(signal.SIGKILL)


def is_held(run: Run) -> bool:
    """Whether its processes sleep at the memory limit."""
    try:
        return run.held and run.cgroup.counters().under_oom
    except KernelError:
        return False  # the cgroup is gone, and nobody in it


async def _let_go(run: Run) -> None:
    """Who sleeps at the memory limit hears no signal either, but heeds it first when he wakes.

    On v2 what lies above the trip wire is his to end with; on v1 there is nothing, and the OOM
    killer may come before the job has ended by itself.
    """
    if not is_held(run):
        return
    number = signal_number(run.spec.stop.signal)
    with trio.move_on_after(RELAY):
        while not _was_told(run.payload, number):
            await trio.sleep(LOOK_AGAIN)
    run.held = False
    try:
        run.subscription.update(run.limits, held=False)
        run.cgroup.hold_at_limit(False)
    except KernelError as error:
        run.warn(f"cannot let the held job go on: {error}")


def _was_told(pid: int, number: int) -> bool:
    """Whether a signal waits for a process that cannot run, or nothing is to be waited for."""
    try:
        text = proc.read_file(f"/proc/{pid}/status")
    except KernelError:
        return True  # it has ended
    fields = dict(line.partition(":\t")[::2] for line in text.split("\n"))
    masks = [int(fields[name], 16) for name in ("SigPnd", "ShdPnd", "SigIgn")]
    return fields["State"].startswith("Z") or any(mask >> number - 1 & 1 for mask in masks)


def _thaw(run: Run) -> None:
    """A frozen process hears no signal; one frozen on v1 does not even die of SIGKILL."""
    if not run.frozen:
        return
    try:
        run.cgroup.thaw()
    except KernelError as error:
        run.warn(f"cannot thaw: {error}")


def _continue_init(run: Run) -> None:
    """An init that somebody has stopped hears no signal, and does not see the command end."""
    try:
        stopped = proc.stat(run.container.pid).state == "T"
    except KernelError:
        return  # it has just ended
    if stopped:
        run.warn("the job's init had been stopped by a signal from outside: it was continued")
        run.container.send_signal(signal.SIGCONT)
