"""The summary of a batch and the explanation of a bad end: pure text from records."""

from __future__ import annotations

import re

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from supervisor.front.explain_end import EXPLAIN, explain
from supervisor.front.summary import summary
from supervisor.model import Reason, RunRecord
from supervisor.model.record import CpuUse, Evidence, LimitChange, MemoryUse, PidsUse

M = 1 << 20


def record(job="a", reason=Reason.SUCCEEDED, **more):
    expected = more.pop("expected", reason is Reason.SUCCEEDED)
    more.setdefault("command", ("x",))
    more.setdefault("attempt", 1)
    more.setdefault("run", f"r-{job}")
    return RunRecord(job, reason=reason, expected=expected, **more)


OOM = record(
    "grow", Reason.OOM, signal=9, wall_seconds=3.2, cpu=CpuUse(1.0, 0.5),
    memory=MemoryUse(64 * M, 64 * M, 1),
    evidence=(Evidence("/cg/memory.oom_control", "oom_kill 1"),),
)  # fmt: skip
GROWN = record(
    "grow", attempt=2, wall_seconds=61.0, cpu=CpuUse(2.0, 0.5),
    memory=MemoryUse(
        128 * M, 100 * M, 0,
        (LimitChange("t", 96 * M, "configuration"), LimitChange("t", 128 * M, "grow-memory")),
    ),
)  # fmt: skip


def test_the_last_run_of_a_job_decides_and_all_are_counted():
    text = summary([OOM, record("b", exit_code=0, wall_seconds=1.0), GROWN], 70.0)
    header, grow, b, totals = text.splitlines()
    assert header.split("  ")[0] == "JOB"
    assert re.split(r"\s{2,}", grow) == [
        "grow", "2", "succeeded", "yes", "1m01s", "2.5s", "100.0M",
        "memory limit 96.0M -> 128.0M by grow-memory",
    ]  # fmt: skip
    assert re.split(r"\s{2,}", b) == ["b", "1", "succeeded", "yes", "1.0s", "-", "-"]
    assert totals == "2 jobs in 3 runs: 2 as expected; wall 1m10s, CPU 4.0s"


def test_what_was_not_expected_is_named():
    told = summary(
        [
            record("f", Reason.FAILED, exit_code=137, expected=False),
            record("t", Reason.TIMEOUT, expected=True, decided_by=""),
            record("p", Reason.PIDS, signal=11, pids=PidsUse(8, 8, 3)),
            record("s", Reason.SKIPPED, detail="f did not end as expected"),
            record("k", memory=MemoryUse(M, M, 2)),
        ],
        5,
    )  # fmt: skip
    rows = {line.split()[0]: line for line in told.splitlines()}
    assert "exit code 137" in rows["f"] and " NO " in rows["f"]
    assert "timeout" in rows["t"] and " yes " in rows["t"]
    assert "signal 11; 3 forks refused" in rows["p"]
    assert rows["s"].split()[1] == "0" and rows["s"].endswith("f did not end as expected")
    assert "2 killed by OOM" in rows["k"]
    assert told.splitlines()[-1].startswith(
        "5 jobs in 4 runs: 2 as expected, 3 not (1 failed, 1 pids, 1 skipped);"
    )


def test_columns_are_aligned_whatever_is_in_them():
    told = summary([record("x" * 40), record("y", wall_seconds=3600 * 30.0)], 1).splitlines()
    places = {line.index(" succeeded") for line in told[1:3]}
    assert len(places) == 1 and told[0].index(" REASON") in places


def test_colours_are_only_paint():
    plain = summary([OOM, record("b")], 1)
    painted = summary([OOM, record("b")], 1, colour=True)
    assert "\033[31moom" in painted and "\033[32msucceeded" in painted
    assert re.sub(r"\033\[\d*m", "", painted) == plain
    assert "\033" not in plain


@given(st.integers(1, 300), st.text())
def test_a_terminal_is_not_overrun(width, detail):
    told = summary([record("job", Reason.LOST, detail=detail)], 1, width=width).splitlines()
    assert all(len(line) <= width for line in told[:-1])
    assert all(line.isprintable() for line in told)
    painted = summary([record("job", Reason.LOST, detail=detail)], 1, width=width, colour=True)
    assert re.sub(r"\033\[\d*m", "", painted).splitlines() == told


def test_an_empty_batch():
    assert summary([], 0) == "0 jobs in 0 runs: 0 as expected; wall 0.00s, CPU 0.00s\n"


def test_a_good_end_needs_no_words():
    assert explain(record()) == []


def test_an_oom_is_explained_with_its_evidence_and_a_way_out():
    assert explain(OOM) == [
        "oom: the kernel killed it at its memory limit of 64.0M (peak 64.0M, 1 kill) after 3.2s",
        "  read /cg/memory.oom_control: oom_kill 1",
        "  try --memory 128M, or --on-memory-limit raise:512M to raise it while it runs",
    ]


def test_what_is_proposed_is_short_to_type():
    odd = evolve(OOM, memory=MemoryUse(33 * M + 4096, 33 * M, 1))
    assert explain(odd)[-1].startswith("  try --memory 67M,")
    tiny = evolve(OOM, memory=MemoryUse(96 * 1024, 96 * 1024, 1))
    assert explain(tiny)[-1].startswith("  try --memory 192K,")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reason": Reason.FAILED, "exit_code": 3}, "ended by itself with exit code 3 after"),
        ({"reason": Reason.FAILED, "exit_code": 137}, "SIGKILL ended its child; no limit was"),
        ({"reason": Reason.FAILED, "exit_code": 255}, "exit code 255 after 3.2s"),
        ({"reason": Reason.SIGNAL, "signal": 9}, "supervise did not send it and no limit was"),
        ({"reason": Reason.SIGNAL, "signal": 11}, "SIGSEGV ended the command"),
        ({"reason": Reason.SIGNAL, "signal": 77}, "signal 77 ended the command"),
        ({"reason": Reason.OOM_HOST}, "its own limit 64.0M was not reached"),
        ({"reason": Reason.PIDS, "exit_code": 1}, "refused it 5 forks at its limit of 8 tasks"),
        ({"reason": Reason.PIDS, "exit_code": 1}, "try --pids 16"),
        ({"reason": Reason.TIMEOUT, "wall_seconds": 10.0}, "after 10s, when its time was over"),
        ({"reason": Reason.CPU_TIMEOUT}, "used up its CPU time (1.5s of it"),
        ({"reason": Reason.STOPPED, "decided_by": "operator"}, "decided by operator"),
        ({"reason": Reason.POLICY, "decided_by": "kill-fork-bomb"}, "decided by kill-fork-bomb"),
        ({"reason": Reason.START_FAILED, "detail": "exec: /x: No such"}, "  exec: /x: No such"),
        ({"reason": Reason.LOST, "detail": "the init was killed"}, "  the init was killed"),
    ],
)
def test_each_bad_end_in_words(changes, words):
    changed = evolve(OOM, **{"signal": None, "pids": PidsUse(8, 8, 5), **changes})
    changed = evolve(changed, memory=MemoryUse(64 * M, 10 * M, 1))
    assert words in "\n".join(explain(changed))


@pytest.mark.parametrize("reason", [reason for reason in Reason if reason != Reason.SUCCEEDED])
def test_every_reason_is_explained_even_when_nothing_else_is_known(reason):
    told = explain(record(reason=reason))
    assert told[0].startswith(f"{reason}: ") and "None" not in "\n".join(told[1:])
    assert reason in EXPLAIN


def test_much_evidence_is_cut_and_hostile_text_is_made_harmless():
    many = tuple(Evidence("/dev/kmsg", f"Killed process {n} (\x1b[2J\n)") for n in range(9))
    told = explain(evolve(OOM, evidence=many, detail="\x07"))
    assert sum("/dev/kmsg" in line for line in told) == 4
    assert "  (5 more in the record: --record -)" in told
    assert all(line.isprintable() for line in told)


def test_every_reason_is_documented(request):
    text = (request.config.rootpath / "docs" / "verdicts.md").read_text()
    headings = " ".join(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert [reason for reason in Reason if f"`{reason}`" not in headings] == []


def test_every_field_of_the_record_is_documented(request):
    text = (request.config.rootpath / "docs" / "verdicts.md").read_text()
    fields = []
    for name, value in OOM.to_json().items():
        fields += [f"{name}.{inner}" for inner in value] if isinstance(value, dict) else [name]
    assert [field for field in fields if f"`{field}`" not in text] == []
