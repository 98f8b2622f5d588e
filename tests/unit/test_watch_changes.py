"""Which events follow from two readings."""

from __future__ import annotations

import pytest

from supervisor.cgroup.api import Counters
from supervisor.model.event import Event, OomKill, PidsLimit, Populated, Tick
from supervisor.model.limits import Limits
from supervisor.watch.changes import (
    Known,
    Reading,
    further_events,
    limit_reached,
    merge,
    wire_crossed,
)

V1 = Counters(limit_hits=5)
V2 = Counters(limit_hits=5, oom=1)


@pytest.mark.parametrize(
    ("old", "new", "alarmed", "held", "expected"),
    [
        # v1, the kernel kills: the alarm and a hit of the own limit
        (V1, Counters(limit_hits=6), True, False, True),
        (V1, Counters(limit_hits=5), True, False, False),  # an ancestor's OOM, or rmdir
        (V1, Counters(limit_hits=9), False, False, False),  # the page cache was reclaimed
        (V1, Counters(limit_hits=9, under_oom=True), False, False, False),
        # v1, tasks are held
        (V1, Counters(limit_hits=6, under_oom=True), True, True, True),
        (V1, Counters(limit_hits=6, under_oom=True), False, True, True),  # seen a little later
        (V1, Counters(limit_hits=6), True, True, False),  # not asleep (yet)
        (V1, Counters(limit_hits=5, under_oom=True), True, True, False),  # an ancestor's
        # v2, the kernel kills
        (V2, Counters(limit_hits=6, oom=2), False, False, True),
        (V2, Counters(limit_hits=16000, oom=1), False, False, False),  # reclaim succeeded
        (V2, Counters(limit_hits=6, oom=2), False, True, True),
        # v2, frozen at the wire
        (V2, Counters(limit_hits=5, oom=1, under_oom=True), False, True, True),
    ],
)
def test_the_memory_limit_is_reached_when_reclaim_has_failed(
    old: Counters, new: Counters, alarmed: bool, held: bool, expected: bool
) -> None:
    known = Known(old, hits=old.limit_hits)
    assert limit_reached(known, Reading(new, alarmed=alarmed), held=held) is expected


def test_a_hit_read_before_its_alarm_is_not_lost() -> None:
    known = Known().after(Reading(Counters(limit_hits=3)), told=False, held=False)
    alarm = Reading(Counters(limit_hits=3), alarmed=True)
    assert limit_reached(known, alarm, held=False)
    assert not limit_reached(known.after(alarm, told=True, held=False), alarm, held=False)


ASLEEP = Reading(Counters(limit_hits=3, under_oom=True), alarmed=True)


def test_a_held_job_is_told_of_once_until_it_strikes_again() -> None:
    known = Known().after(ASLEEP, told=True, held=True)
    more_threads = Reading(Counters(limit_hits=4, under_oom=True))
    assert not limit_reached(known, more_threads, held=True)
    raised = known.after(Reading(Counters(limit_hits=4)), told=False, held=True)
    assert limit_reached(raised, Reading(Counters(limit_hits=5, under_oom=True)), held=True)


@pytest.mark.parametrize(
    "between",
    [
        # it sleeps again before anybody saw it awake, and the alarm is still to come
        Reading(Counters(limit_hits=9, under_oom=True)),
        # charges fail before it sleeps, and an alarm comes late
        Reading(Counters(limit_hits=9), alarmed=True),
    ],
)
def test_a_held_job_that_strikes_again_at_once_is_told_of(between: Reading) -> None:
    known = Known().after(ASLEEP, told=True, held=True)
    assert not limit_reached(known, between, held=True)
    known = known.after(between, told=False, held=True)
    again = Reading(Counters(limit_hits=9, under_oom=True), alarmed=True)
    assert limit_reached(known, again, held=True)


def test_the_wire_is_crossed_only_by_a_job_that_is_to_be_held() -> None:
    known = Known(Counters(oom=0, high=1))
    assert wire_crossed(known, Reading(Counters(oom=0, high=2)), held=True)
    assert not wire_crossed(known, Reading(Counters(oom=0, high=2)), held=False)
    assert not wire_crossed(known, Reading(Counters(oom=0, high=1)), held=True)
    assert not wire_crossed(known, Reading(Counters(oom=0, high=2, under_oom=True)), held=True)


def test_counters_that_grew_become_events_with_totals() -> None:
    known = Known(Counters(oom_kills=1, refused=2), populated=True)
    now = Reading(Counters(oom_kills=4, refused=7), populated=False)
    assert further_events(known, now, Limits(pids=8), 1.5) == [
        OomKill(1.5, 3, 4),
        PidsLimit(1.5, 7, 8),
        Populated(1.5, False),
    ]
    assert further_events(known.after(now, told=False, held=False), now, Limits(pids=8), 2.0) == []


def test_a_refusal_without_an_own_limit_is_an_ancestors() -> None:
    assert further_events(Known(), Reading(Counters(refused=1)), Limits(), 0.0) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (None, Tick(1.0), Tick(1.0)),
        (OomKill(1.0, 2, 5), OomKill(2.0, 1, 6), OomKill(2.0, 3, 6)),
        (PidsLimit(1.0, 2, 8), PidsLimit(2.0, 9, 8), PidsLimit(2.0, 9, 8)),
        (Populated(1.0, True), Populated(2.0, False), Populated(2.0, False)),
    ],
)
def test_events_nobody_took_are_merged(old: Event | None, new: Event, expected: Event) -> None:
    assert merge(old, new) == expected
