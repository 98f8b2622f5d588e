"""Signals to the supervisor: once means an orderly stop of all jobs, twice kills them at once.

SIGHUP has an instance read its configuration again, unless it comes from its terminal, which is
gone then.

May import: `errors`, `supervise.{instance,reloading}`, trio.
"""

from __future__ import annotations

import os
import signal

import trio

from supervisor.errors import SupervisorError
from supervisor.supervise import reloading
from supervisor.supervise.instance import Instance

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


async def obey_signals(
    instance: Instance, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Until cancelled; in the main thread."""
    had_terminal = _has_terminal()
    async with trio.open_nursery() as nursery:
        with trio.open_signal_receiver(*STOPPING) as arriving:
            task_status.started()
            async for number in arriving:
                hung_up = had_terminal and not _has_terminal()
                if number == signal.SIGHUP and instance.reader is not None and not hung_up:
                    nursery.start_soon(_reload, instance)
                    continue
                again = bool(instance.interrupted)
                instance.stop(signal.Signals(number).name, now=again)


async def _reload(instance: Instance) -> None:
    try:
        await reloading.reload(instance, "SIGHUP")
    except SupervisorError:
        return  # the event log has it: there is nobody else to tell


def _has_terminal() -> bool:
    """Whether there is a controlling terminal, which has not hung up (tty(4): ENXIO)."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY))
    except OSError:
        return False
    return True
