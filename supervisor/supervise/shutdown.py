"""Signals to the supervisor: once means an orderly stop of all jobs, twice kills them at once.

May import: `supervise.instance`, trio.
"""

from __future__ import annotations

import signal

import trio

from supervisor.supervise.instance import Instance

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


async def obey_signals(
    instance: Instance, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Until cancelled; in the main thread."""
    with trio.open_signal_receiver(*STOPPING) as arriving:
        task_status.started()
        async for number in arriving:
            again = bool(instance.interrupted)
            instance.stop(signal.Signals(number).name, now=again)
