"""Signals to the supervisor: once means an orderly stop of all jobs, twice kills them at once.

SIGHUP has an instance read its configuration again, unless it comes from its terminal, which is
gone then.

May import: `errors`, `supervise.{instance,reloading}`, trio.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import trio

from supervisor.errors import SupervisorError
from supervisor.supervise.instance import Instance

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


@contextmanager
def unhurried() -> Iterator[None]:
    """Around an instance: its clean-up, when nobody obeys signals any more, is not cut short.

    In the main thread.  Until `obey_signals` has begun they do what they did before.
    """
    before = {number: signal.getsignal(number) for number in STOPPING}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: it was not Python that set it
                signal.signal(number, handler)


async def obey_signals(
    instance: Instance, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Until cancelled; in the main thread, within `unhurried`.  After it signals do nothing."""
    early: list[int] = []

    def keep(number: int, _frame: Any) -> None:
        early.append(number)

    for one in STOPPING:
        signal.signal(one, keep)  # what trio puts back when it listens no longer
    had_terminal = _has_terminal()
    asked, wanted = trio.open_memory_channel[None](1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_reload, instance, wanted)
        with trio.open_signal_receiver(*STOPPING) as arriving:
            task_status.started()
            for missed in early:
                signal.raise_signal(missed)  # it came in between
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
        from supervisor.supervise import reloading

        with suppress(SupervisorError):  # the event log has it: there is nobody else to tell
            await reloading.reload(instance, "SIGHUP")


def _has_terminal() -> bool:
    """Whether there is a controlling terminal, which has not hung up (tty(4): ENXIO)."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY))
    except OSError:
        return False
    return True
