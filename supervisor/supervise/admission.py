"""Who may run now: what the running jobs may use by their limits never exceeds `capacity`.

May import: `model`, trio.  Waiting jobs are looked at in the order of their priority, then of the
configuration; one that does not fit yet does not hold up a smaller one behind it.
"""

from __future__ import annotations

import trio
from attrs import frozen

from supervisor.model.limits import Limits
from supervisor.model.status import Capacity
from supervisor.model.units import size_text


@frozen
class Room:
    """What the instance may give out: bytes, CPUs, jobs; None for no bound."""

    memory: int | None = None
    cpus: float | None = None
    jobs: int | None = None


@frozen
class Demand:
    """What one job may use.  A job without a limit counts as nothing: configuration warns of it."""

    memory: int = 0
    cpus: float = 0.0

    @classmethod
    def of(cls, limits: Limits) -> Demand:
        return cls(limits.memory or 0, limits.cpus or 0.0)


@frozen
class _Waiter:
    name: str
    priority: int
    number: int
    demand: Demand
    admitted: trio.Event


class Admission:
    """Gives out room, and takes it back."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._running: dict[str, Demand] = {}
        self._waiting: dict[str, _Waiter] = {}

    def open(self, room: Room) -> None:
        """Give out so much from now on; who runs already keeps what he has."""
        self._room = room
        self._admit()

    def refusal(self, demand: Demand) -> str:
        """Why `demand` can never be met, or ""."""
        return self._lack(demand, {})

    def waits_for(self, name: str) -> str:
        """What a waiting job lacks, in words; "" when it does not wait for room."""
        waiter = self._waiting.get(name)
        return "" if waiter is None else self._lack(waiter.demand, self._running)

    def holders(self) -> dict[str, Demand]:
        """What the running jobs have been given."""
        return dict(self._running)

    def ahead(self, name: str) -> tuple[str, ...]:
        """The waiting jobs that are looked at before this one."""
        order = [waiter.name for waiter in self._in_order()]
        return tuple(order[: order.index(name)]) if name in order else ()

    def _in_order(self) -> list[_Waiter]:
        return sorted(self._waiting.values(), key=lambda w: (-w.priority, w.number))

    async def acquire(self, name: str, priority: int, number: int, demand: Demand) -> None:
        """Wait until `demand` fits; `release` gives it back.  `number` is the job's in its file."""
        waiter = _Waiter(name, priority, number, demand, trio.Event())
        self._waiting[name] = waiter
        try:
            # trio runs the jobs' tasks in no order: all that begin together are to be compared
            await trio.lowlevel.checkpoint()
            self._admit()
            await waiter.admitted.wait()
        except BaseException:
            self._waiting.pop(name, None)
            self.release(name)
            raise

    def release(self, name: str) -> None:
        """Idempotent."""
        if self._running.pop(name, None) is not None:
            self._admit()

    def resize(self, name: str, demand: Demand) -> str:
        """Let a running job have more, or less; "" when it may, else what is lacking."""
        others = {other: used for other, used in self._running.items() if other != name}
        lack = self._lack(demand, others)
        if not lack:
            self._running[name] = demand
            self._admit()
        return lack

    def use(self) -> Capacity:
        """For the views."""
        memory, cpus = _sum(self._running)
        room = self._room
        return Capacity(len(self._running), room.jobs, memory, room.memory, cpus, room.cpus)

    def _admit(self) -> None:
        for waiter in self._in_order():
            if not self._lack(waiter.demand, self._running):
                del self._waiting[waiter.name]
                self._running[waiter.name] = waiter.demand
                waiter.admitted.set()

    def _lack(self, demand: Demand, running: dict[str, Demand]) -> str:
        memory, cpus = _sum(running)
        room = self._room
        if room.jobs is not None and len(running) + 1 > room.jobs:
            return f"one of {room.jobs} places"
        if room.memory is not None and memory + demand.memory > room.memory:
            return f"{size_text(demand.memory)} of {size_text(room.memory)} of memory"
        # sums of fractions: a tenth of a percent of a CPU is no overcommitment
        if room.cpus is not None and cpus + demand.cpus > room.cpus + 0.001:
            return f"{demand.cpus:g} of {room.cpus:g} CPUs"
        return ""


def _sum(running: dict[str, Demand]) -> tuple[int, float]:
    return sum(d.memory for d in running.values()), sum(d.cpus for d in running.values())
