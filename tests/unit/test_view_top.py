"""The screen of `top`, and what keys do to it; the lines of `stats`."""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

import pytest
from attrs import asdict
from hypothesis import given
from hypothesis import strategies as st

from supervisor.control.stats import until_next
from supervisor.errors import ConfigError
from supervisor.front.lines import RED, YELLOW
from supervisor.front.verbs import stats, top
from supervisor.front.verbs.frame import (
    COLUMNS,
    LEAST_NAME,
    REVERSE,
    SORTS,
    Reading,
    View,
    cells,
    columns_for,
    cut,
    fit,
    job_frame,
    near,
    ordered,
    process_frame,
)
from supervisor.front.verbs.screen import decode
from supervisor.supervise.usage import (
    CpuUsage,
    DiskUsage,
    IoUsage,
    JobUsage,
    MemoryUsage,
    PressureUsage,
    ProcessUsage,
    TasksUsage,
)

MIB = 1 << 20
ANSI = re.compile(r"\033\[[0-9;]*m")


def usage(name: str = "compress", **values: Any) -> dict[str, Any]:
    """As it comes from the socket."""
    return dict(json.loads(json.dumps(asdict(JobUsage(name, "running", "7-x", **values)))))


FULL = usage(
    seconds=1.0,
    attempt=2,
    cpu=CpuUsage(12.0, 10.0, 2.0, 49.9, 24.95, 99.8, "quota", 0.5, 0.5, 97.5, 200, 190, 3.2),
    memory=MemoryUsage(
        60 * MIB, 64 * MIB, 93.75, 46 * MIB, 71.9, 40 * MIB, 14 * MIB, 0, 6 * MIB, MIB, 0, 2
    ),
    pids=TasksUsage(12, 64, 18.75, 3),
    io=IoUsage(8 * MIB, 0, 100, 0, 2.0 * MIB, 0.0, 25.0, 0.0),
    pressure={"cpu": PressureUsage(40.0, 9.0, 30.0, 8.0), "memory": PressureUsage(6.0, 1, 0, 0)},
    disk=DiskUsage(95, 100, 1, 10),
)
BARE = usage("bare")


def reading(*jobs: dict[str, Any], problems: tuple[str, ...] = ()) -> Reading:
    return Reading("2026-01-02T03:04:05.000Z", 2, 2, list(jobs), list(problems))


def view(width: int = 80, height: int | None = 24, **values: Any) -> View:
    return View(width, height, **{"colour": False, **values})


@pytest.mark.parametrize("width", [1, 20, 40, 80, 81, 100, 140, 300])
@pytest.mark.parametrize("height", [1, 3, 5, 24, 60])
def test_nothing_is_wider_or_higher_than_the_terminal(width: int, height: int) -> None:
    jobs = [usage(f"job-{n}-" + "x" * n, cpu=CpuUsage(percent=float(n))) for n in range(50)]
    for frame in (
        job_frame(
            reading(FULL, BARE, *jobs, problems=("lost: " + "y" * 300,)), view(width, height)
        ),
        process_frame(reading(with_processes(100)), view(width, height)),
    ):
        assert len(frame) <= height
        if width >= 20:
            assert max(map(cells, frame)) <= max(width, LEAST_NAME + 16)
        if width >= 40:
            assert max(map(cells, frame)) <= width


def with_processes(count: int, left_out: int = 0) -> dict[str, Any]:
    many = [
        ProcessUsage(n, 1, f"worker-{n}", "R", 1, n / 10, None if n == 3 else n / 2, n * MIB)
        for n in range(count)
    ]
    return usage(cpu=CpuUsage(percent=50.0), processes=many, processes_left_out=left_out)


def test_eighty_columns_have_the_cpu_the_memory_and_the_counters() -> None:
    titles = job_frame(reading(FULL), view(80))[2].split()
    assert titles == ["JOB", "CPU%", "QUOTA%", "THR%", "MEMORY", "LIMIT", "MEM%", "CACHE",
                      "PIDS", "OOM", "REF"]  # fmt: skip
    row = job_frame(reading(FULL), view(80))[3].split()
    assert row == ["compress", "49.9", "99.8", "97.5", "46.0M", "64.0M", "71.9", "14.0M",
                   "12/64", "2", "3"]  # fmt: skip


def test_wide_terminals_have_it_all() -> None:
    assert columns_for(150) == list(COLUMNS)
    row = job_frame(reading(FULL), view(150))[3].split()
    assert row[8:14] == ["1.0M", "12/64", "2.0M", "0B", "25", "40/6/-"]


def test_what_is_not_known_is_a_dash() -> None:
    row = job_frame(reading(BARE), view(150))[3].split()
    assert set(row[1:]) == {"-"}


def test_without_a_quota_the_share_says_of_what() -> None:
    for of, mark in (("host", "h"), ("cpuset", "c"), ("quota", "")):
        job = usage(cpu=CpuUsage(percent=50.0, share=25.0, share_of=of))  # type: ignore[arg-type]
        assert job_frame(reading(job), view())[3].split()[2] == f"25.0{mark}"


def test_colours_tell_of_limits_that_are_near() -> None:
    assert (near(None), near(69.9), near(70), near(90)) == ("", "", YELLOW, RED)
    row = job_frame(reading(FULL), view(150, colour=True))[3]
    assert f"\033[{RED}m   99.8\033[0m" in row  # of its quota
    assert f"\033[{YELLOW}m 71.9\033[0m" in row  # of its memory, without the cache
    assert f"\033[{RED}m  2\033[0m" in row  # OOM kills
    free = usage(cpu=CpuUsage(percent=100.0, share=100.0, share_of="host"))
    assert "\033[3" not in job_frame(reading(free), view(150, colour=True))[3]


@pytest.mark.parametrize("sort", SORTS)
def test_every_order_has_the_most_first(sort: str) -> None:
    least = usage("b", cpu=CpuUsage(percent=1.0), memory=MemoryUsage(oom_kills=0))
    names = [job["job"] for job in ordered([BARE, least, FULL], sort)]
    assert names[0] == ("b" if sort == "name" else "compress") or sort == "name"
    assert ordered([BARE, least, FULL], sort, backwards=True)[-1]["job"] == (
        "b" if names[0] == "b" else names[0]
    )


def test_equal_jobs_stand_by_their_names() -> None:
    jobs = [usage(name) for name in ("c", "a", "b")]
    for backwards in (False, True):
        found = ordered(jobs, "cpu", backwards=backwards)
        assert [job["job"] for job in found] == ["a", "b", "c"]


def test_hostile_names_do_nothing_to_the_terminal() -> None:
    name = "a\n\033[2J\r\x07漢字漢字漢字e\u0301"
    process = ProcessUsage(7, 1, name, "R", 1, 1.0, 1.0, MIB)
    job = usage(name, processes=[process])
    for frame in (
        job_frame(reading(job, problems=(name,)), view(80)),
        process_frame(reading(job), view(80)),
    ):
        text = "\n".join(frame)
        assert "\033" not in text and "\r" not in text and "\x07" not in text
        assert max(map(cells, frame)) <= 80


@given(st.text(max_size=60), st.integers(1, 40))
def test_a_fitted_text_is_exactly_as_wide(text: str, width: int) -> None:
    wide = cells(text) > width
    assert cells(fit(text, width)) == width or not wide
    assert cells(cut(text, width)) <= max(width, 1)


def test_more_processes_than_are_looked_at_are_told_of() -> None:
    frame = process_frame(reading(with_processes(3, left_out=9000)), view())
    assert "and 9000 more, not looked at" in "\n".join(frame)


def test_processes_have_the_busiest_first() -> None:
    lines = process_frame(reading(with_processes(5)), view())
    rows = [line.split() for line in lines if "worker" in line]
    assert [row[0] for row in rows] == ["4", "2", "1", "0", "3"]
    assert rows[0] == ["4", "1", "R", "1", "2.0", "4.0M", "0.40s", "worker-4"]


def test_keys_are_read_as_terminals_send_them() -> None:
    data = b"q\033[A\033OB\033[5~\r\033[1;5Cz\x7f\033"
    assert decode(data) == ["q", "up", "down", "page up", "enter", "z", "back", "escape"]


@given(st.binary(max_size=64))
def test_whatever_a_keyboard_sends_is_keys_or_nothing(data: bytes) -> None:
    for key in decode(data):
        assert key.isprintable()


class Shown:
    """A `top` without a terminal and without an instance."""

    def __init__(self, job: str | None = None) -> None:
        args = argparse.Namespace(job=job, sort="cpu", count=0, color="never")
        self.top = top.Top(None, args, 2.0)  # type: ignore[arg-type]
        self.top.view.width, self.top.view.height = 80, 24

    def read(self, *jobs: dict[str, Any]) -> str:
        self.top._take(reading(*jobs))
        return self.text

    @property
    def text(self) -> str:
        return "\n".join(self.top.lines())

    def press(self, *keys: str) -> str:
        for key in keys:
            self.top.press(key)
        return self.text


def many(count: int) -> list[dict[str, Any]]:
    return [usage(f"job{n:03}", cpu=CpuUsage(percent=1.0)) for n in range(count)]


def test_arrows_choose_and_the_choice_stays_in_sight() -> None:
    shown = Shown()
    assert "looking" in shown.text
    shown.read(*many(100))
    shown.press("down")
    assert shown.top.view.chosen == "job000"
    shown.press("page down", "page down")
    assert shown.top.view.chosen == "job040" and "job040" in shown.text
    assert "job099" in shown.press("end") and "job000" not in shown.text
    assert "job000" in shown.press("home", "up")
    assert shown.top.view.chosen == "job000"


def test_a_job_that_was_chosen_and_has_gone_is_not_missed() -> None:
    shown = Shown()
    shown.read(*many(3))
    shown.press("down", "down", "down")
    assert shown.top.view.chosen == "job002"
    shown.read(*many(1))
    assert shown.top.view.chosen == "job000"
    shown.read()
    assert shown.top.view.chosen is None
    shown.press("down", "enter")
    assert shown.top._job is None


def test_enter_shows_processes_and_left_goes_back() -> None:
    shown = Shown()
    shown.read(FULL)
    shown.press("down", "enter")
    assert shown.top._job == "compress" and "looking" in shown.text
    text = shown.read(with_processes(60))
    assert "worker-59" in text and "PPID" in text
    assert "worker-0\n" not in text and "worker-0" in shown.press("end")
    shown.press("escape")
    assert shown.top._job is None and not shown.top._over


def test_a_job_of_its_own_is_left_by_escape() -> None:
    shown = Shown("compress")
    assert "not there" in shown.read()
    shown.press("escape")
    assert shown.top._over


def test_sorting_pace_help_and_the_end() -> None:
    shown = Shown()
    shown.read(FULL, BARE)
    for key, name in top.SORT_KEYS.items():
        assert f"sorted by {name}" in shown.press(key)
    shown.press("r")
    assert shown.top.view.backwards
    assert "every 4s" in shown.press("+")
    assert "every 0.25s" in shown.press(*"-" * 9)
    assert "Home, End" in shown.press("h")
    assert "Home, End" not in shown.press("escape")
    assert not shown.top._over
    shown.press("x", "q")
    assert shown.top._over


def test_processes_are_sorted_by_what_they_have() -> None:
    shown = Shown("compress")
    shown.read(with_processes(3))
    assert "cannot be sorted by quota" in shown.press("u")
    assert "sorted by memory" in shown.press("m")


def test_the_help_fits_a_small_terminal() -> None:
    assert len(top.HELP) <= 24 and max(map(len, top.HELP)) <= 80
    assert set(top.SORT_KEYS.values()) <= set(SORTS)


def test_whole_looks_are_made_of_lines() -> None:
    head = {"at": "x", "cpus": 2, "own_cpus": 2, "problems": []}
    lines = [json.dumps({**head, "job": job}).encode() for job in (FULL, BARE, None, None)]
    assert [len(one.jobs) for one in top.readings(iter(lines))] == [2, 0]


@pytest.mark.parametrize("text", ["0.1s", "2h", "soon", "-1s", "nan", "1e3"])
def test_a_wrong_interval_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="--interval"):
        top.seconds(text, 1.0)


def test_an_interval_is_a_time_or_a_number_of_seconds() -> None:
    assert [top.seconds(text, 9.0) for text in ("2s", "500ms", "0.5", None)] == [2, 0.5, 0.5, 9]


@pytest.mark.parametrize("text", ["61s", "soon", "-1s"])
def test_a_wrong_window_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match="--over"):
        stats.over(text)


def test_stats_tell_everything() -> None:
    text = "\n".join(stats.described(FULL, 4))
    for part in (
        "compress: running, run 7-x, attempt 2, over 1.0s",
        "49.9% of a CPU, 99.8% of its quota of 0.5, 24.9% of the host's 4",
        "12s: 10s user, 2.0s system",
        "in 97.5% of its periods; in all in 190 of 200, 3.2s long",
        "46.0M of 64.0M (71.9%): 40.0M of processes, 0B shared, 6.0M of the kernel",
        "beside 14.0M of page cache; 93.8% with it",
        "1.0M of 0B",
        "12/64; forks refused: 3",
        "OOM kills    2",
        "8.0M in 100 operations; now 2.0M/s, 25 operations/s",
        "some 40.0% of 10 s, 9.0s in all; all 30.0%, 8.0s",
        "95B of 100B, 1 of 10 inodes",
    ):
        assert part in text, part


def test_stats_of_a_job_that_waits_are_its_state() -> None:
    waiting = dict(asdict(JobUsage("later", "waiting")))
    assert list(stats.described(waiting, 4)) == ["later: waiting"]
    assert not ANSI.search("".join(stats.described(with_processes(2), 4)))
    assert REVERSE


def test_clients_of_one_interval_wake_together() -> None:
    assert until_next(2.0, 100.2) == pytest.approx(1.8)
    assert until_next(2.0, 101.5) == pytest.approx(2.5)  # too soon after the last
    assert until_next(2.0, 102.0) == pytest.approx(2.0)
