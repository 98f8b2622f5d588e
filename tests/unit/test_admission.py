"""Room is given by priority, never overdrawn, and always comes back."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing

from supervisor.model.limits import Limits
from supervisor.supervise.admission import Admission, Demand, Room

GIB = 2**30
NOTHING = Demand()


@pytest.fixture
async def queue(nursery):
    """Jobs that ask for room, and the order in which they got it."""

    class Queue:
        def __init__(self) -> None:
            self.order: list[str] = []

        def ask(self, admission, name, demand=NOTHING, priority=0, number=0):
            async def job() -> None:
                await admission.acquire(name, priority, number, demand)
                self.order.append(name)

            nursery.start_soon(job)

    return Queue()


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_all_that_fit_are_let_in(queue) -> None:
    admission = Admission(Room(memory=4 * GIB, cpus=2, jobs=3))
    for name in "abc":
        queue.ask(admission, name, Demand(GIB, 0.5))
    await settle()
    assert sorted(queue.order) == ["a", "b", "c"]
    use = admission.use()
    assert (use.jobs, use.memory, use.cpus) == (3, 3 * GIB, 1.5)


@pytest.mark.parametrize("seed", range(20))
async def test_those_that_begin_together_come_by_priority_then_by_their_place(queue, seed) -> None:
    """trio starts tasks in any order; that of the file and the priorities counts."""
    admission = Admission(Room(jobs=1))
    wanted = [("urgent", 9, 4), ("first", 0, 0), ("second", 0, 1), ("third", 0, 3), ("idle", -5, 2)]
    for name, priority, number in random.Random(seed).sample(wanted, len(wanted)):
        queue.ask(admission, name, priority=priority, number=number)
    for _ in wanted:
        await settle()
        admission.release(queue.order[-1])
    assert queue.order == [name for name, _, _ in wanted]


async def test_one_that_does_not_fit_does_not_hold_up_a_smaller_one(queue) -> None:
    admission = Admission(Room(memory=4 * GIB))
    queue.ask(admission, "running", Demand(3 * GIB), number=0)
    await settle()
    queue.ask(admission, "large", Demand(2 * GIB), priority=5, number=1)
    queue.ask(admission, "small", Demand(GIB), number=2)
    await settle()
    assert queue.order == ["running", "small"]
    assert "2G of 4G" in admission.waits_for("large")
    assert admission.waits_for("small") == admission.waits_for("unknown") == ""
    admission.release("running")
    await settle()
    assert queue.order == ["running", "small", "large"]


@pytest.mark.parametrize(
    ("room", "first", "second"),
    [
        (Room(memory=100), Demand(memory=60), Demand(memory=41)),
        (Room(cpus=2), Demand(cpus=1.5), Demand(cpus=0.6)),
        (Room(jobs=1), Demand(), Demand()),
    ],
)
async def test_no_bound_is_overdrawn(queue, room, first, second) -> None:
    admission = Admission(room)
    queue.ask(admission, "first", first)
    await settle()
    queue.ask(admission, "second", second)
    await settle()
    assert queue.order == ["first"] and admission.waits_for("second")
    admission.release("first")
    admission.release("first")
    await settle()
    assert queue.order == ["first", "second"]


async def test_fractions_of_a_cpu_add_up(queue) -> None:
    admission = Admission(Room(cpus=1))
    for number in range(10):
        queue.ask(admission, str(number), Demand(cpus=0.1))
    await settle()
    assert len(queue.order) == 10


async def test_who_is_cancelled_while_waiting_takes_nothing(queue) -> None:
    admission = Admission(Room(jobs=1))
    queue.ask(admission, "running")
    await settle()
    with trio.move_on_after(0):
        await admission.acquire("impatient", 9, 0, Demand())
    queue.ask(admission, "next")
    admission.release("running")
    await settle()
    assert queue.order == ["running", "next"]
    assert admission.use().jobs == 1


async def test_a_running_job_may_grow_into_free_room_only(queue) -> None:
    admission = Admission(Room(memory=100))
    queue.ask(admission, "a", Demand(40))
    queue.ask(admission, "b", Demand(40))
    await settle()
    assert admission.resize("a", Demand(60)) == ""
    assert "61 of 100" in admission.resize("a", Demand(61))
    assert admission.use().memory == 100


async def test_a_job_that_shrinks_lets_others_in(queue) -> None:
    admission = Admission(Room(memory=100))
    queue.ask(admission, "a", Demand(80))
    await settle()
    queue.ask(admission, "b", Demand(40))
    await settle()
    assert admission.resize("a", Demand(60)) == ""
    await settle()
    assert queue.order == ["a", "b"]


def test_what_never_fits_is_told() -> None:
    admission = Admission(Room(memory=100, cpus=1))
    assert admission.refusal(Demand(101)) and admission.refusal(Demand(0, 1.5))
    assert admission.refusal(Demand(100, 1)) == ""


def test_the_demand_of_limits() -> None:
    assert Demand.of(Limits(memory=5, cpus=0.5)) == Demand(5, 0.5)
    assert Demand.of(Limits()) == Demand(0, 0.0)
