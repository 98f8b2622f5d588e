"""Signals to the supervisor: once means an orderly stop of all jobs, twice kills them at once.

SIGHUP has an instance read its configuration again, unless it comes from its terminal, which is
gone then.

May import: `errors`, `supervise.{instance,reloading}`, trio.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

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
    asked, wanted = trio.open_memory_channel[None](1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_reload, instance, wanted)
        with trio.open_signal_receiver(*STOPPING) as arriving:
            task_status.started()
            async for number in arriving:
                hung_up = had_terminal and not _has_terminal()
                if number == signal.SIGHUP and instance.reader is not None and not hung_up:
                    with suppress(trio.WouldBlock):  # one that has not begun is enough for both
                        asked.send_nowait(None)
                    continue
                again = bool(instance.interrupted)
                instance.stop(signal.Signals(number).name, now=again)


async def _reload(instance: Instance, wanted: trio.MemoryReceiveChannel[None]) -> None:
    async for _ in wanted:
        with suppress(SupervisorError):  # the event log has it: there is nobody else to tell
            await reloading.reload(instance, "SIGHUP")


def _has_terminal() -> bool:
    """Whether there is a controlling terminal, which has not hung up (tty(4): ENXIO)."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY))
    except OSError:
        return False
    return True
