"""How a policy's hook is called under trio: in a thread, and never for longer than its deadline.

May import: `policy.asking`, trio.  An `async def` hook gets an event loop of its own in that
thread (about 0.4 ms more than the 0.1 ms of a thread): in the supervisor's loop a hook that
blocks, or shields itself from cancellation, would stop every job's supervision.
"""

from __future__ import annotations

from collections.abc import Coroutine
from functools import partial
from typing import Any

import trio

from supervisor.policy.asking import Ask, Hung, Reply

_AT_ONCE = 16
"""Calls of one policy at the same time; a hung one keeps its place until it comes back."""


class HookCaller:
    """The `policy.asking.Caller` of the supervisor."""

    def __init__(self) -> None:
        self._limiters: dict[str, trio.CapacityLimiter] = {}

    async def __call__(self, who: str, ask: Ask, deadline: float) -> Reply:
        """`ask`'s reply.  Raises Hung after `deadline` seconds; a thread that hangs is left behind.

        Threads of trio are daemonic: such a one does not keep the process from exiting.
        """
        limiter = self._limiters.setdefault(who, trio.CapacityLimiter(_AT_ONCE))
        with trio.move_on_after(deadline):
            return await trio.to_thread.run_sync(
                ask,
                partial(_finish, deadline=deadline),
                abandon_on_cancel=True,
                limiter=limiter,
                thread_name=f"policy {who}",
            )
        raise Hung


def _finish(hook: Coroutine[Any, Any, object], deadline: float) -> object:
    """Run `hook` to its end here; it is cancelled in time, so that it can clean up after itself."""
    return trio.run(_within, hook, deadline)


async def _within(hook: Coroutine[Any, Any, object], deadline: float) -> object:
    with trio.move_on_after(deadline):
        return await hook
    raise Hung
