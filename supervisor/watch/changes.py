"""From two readings of a cgroup to the events between them.  Pure.

May import: `model`, `cgroup.api`, attrs.
"""

from __future__ import annotations

from attrs import evolve, field, frozen

from supervisor.cgroup.api import Counters
from supervisor.model.event import Event, OomKill, PidsLimit, Populated
from supervisor.model.limits import Limits


@frozen
class Reading:
    """What was read at one wake-up; `alarmed`: v1's memory alarm went off before it.

    `populated` is None where the kernel does not tell of it.
    """

    counters: Counters = field(factory=Counters)
    populated: bool | None = None
    alarmed: bool = False


@frozen
class Known:
    """What the events sent so far amount to.  `hits`: those of the limit already told of."""

    counters: Counters = field(factory=Counters)
    populated: bool | None = None
    hits: int = 0

    def after(self, now: Reading, *, told: bool, held: bool) -> Known:
        """`told`: a MemoryLimit follows from `now`.

        A job that is held fails to be charged several times before it sleeps: hits seen then are
        new until it does.
        """
        hits = now.counters.limit_hits if told or (now.alarmed and not held) else self.hits
        return Known(now.counters, now.populated, hits)

    def rearmed(self) -> Known:
        """After a change of the limit: whoever sleeps there, sleeps there anew."""
        return evolve(self, counters=evolve(self.counters, under_oom=False), hits=0)


def limit_reached(known: Known, now: Reading, *, held: bool) -> bool:
    """Whether the own memory limit was struck since: reclaim has failed, or tasks sleep there.

    Not so for `max` of memory.events alone, or a failcnt that grew: a job that reads more than
    its limit through the page cache drives them up by thousands and lacks nothing.  On v1 the
    alarm says that there is an OOM, and the hits that it is not only an ancestor's.
    """
    old, new = known.counters, now.counters
    if new.oom is not None:
        return new.oom > (old.oom or 0) or (new.under_oom and not old.under_oom)
    if new.limit_hits <= known.hits:
        return False
    if held:
        return new.under_oom and (now.alarmed or not old.under_oom)
    return now.alarmed


def wire_crossed(known: Known, now: Reading, *, held: bool) -> bool:
    """Whether a job that is to be held has passed memory.high and is not frozen yet (v2)."""
    return held and now.counters.high > known.counters.high and not now.counters.under_oom


def further_events(known: Known, now: Reading, limits: Limits, at: float) -> list[Event]:
    """The events that follow from the counters alone."""
    old, new = known.counters, now.counters
    found: list[Event] = []
    if new.oom_kills > old.oom_kills:
        found.append(OomKill(at, new.oom_kills - old.oom_kills, new.oom_kills))
    if new.refused > old.refused and limits.pids is not None:
        found.append(PidsLimit(at, new.refused, limits.pids))
    if now.populated is not None and now.populated != known.populated:
        found.append(Populated(at, now.populated))
    return found


def merge(old: Event | None, new: Event) -> Event:
    """One event in place of two of its kind, the first of which nobody has taken yet."""
    if isinstance(old, OomKill) and isinstance(new, OomKill):
        return OomKill(new.at, old.new + new.new, new.total)
    return new
