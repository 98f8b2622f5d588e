"""Long blocking work in a thread that a cancellation reaches; and errors without their groups.

May import: trio.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import outcome
import trio

T = TypeVar("T")


class Stopped(Exception):
    """Raised in the thread when the task that waits for it has been cancelled."""


async def stoppable(work: Callable[[Callable[[], None]], T]) -> T:
    """Run `work(check)` in a thread and wait for its end in any case.

    `check`, which any thread may call, raises Stopped once this task is cancelled: `work` lets
    that through.
    """
    stop = threading.Event()

    def check() -> None:
        if stop.is_set():
            raise Stopped

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_set_at_cancellation, stop)
            result = await trio.to_thread.run_sync(outcome.capture, work, check)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:  # Ctrl-C, which trio raises wherever it is
        raise first(group) from None
    if isinstance(result, outcome.Error) and isinstance(result.error, Stopped):
        await trio.lowlevel.checkpoint()  # raises Cancelled: nothing else stops it
    found: T = result.unwrap()
    return found


async def _set_at_cancellation(stop: threading.Event) -> None:
    try:
        await trio.sleep_forever()
    finally:
        stop.set()


def first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended a nursery; an interruption comes before all others."""
    leaves = list(_leaves(group))
    urgent = [one for one in leaves if not isinstance(one, Exception)]
    return (urgent or leaves)[0]


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for one in group.exceptions:
        found += _leaves(one) if isinstance(one, BaseExceptionGroup) else [one]
    return found
