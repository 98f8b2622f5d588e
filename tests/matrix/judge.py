"""What a record says against what its case demands: a list of faults, empty for a right one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from tests.matrix.cases import Case

Record = dict[str, Any]

BATCH = 64 * 4096
"""What a peak may be short of a limit that was reached: one charge (MEMCG_CHARGE_BATCH)."""


def faults(case: Case, record: Record) -> list[str]:
    """All of a record that the case determines, the reason first."""
    if record["reason"] != case.reason:
        return [f"reason {record['reason']}, not {case.reason}"]
    found = [what for right, what in _general(case, record) if not right]
    if case.reason == "skipped":
        return found
    if case.reason == "start_failed":
        return found + [what for right, what in _never_ran(record) if not right]
    return found + [what for right, what in _ran(case, record) if not right]


Checks = Iterator[tuple[bool, str]]


DECIDED = {"timeout": "configuration", "cpu_timeout": "configuration", "policy": "on_",
           "stopped": "SIG"}  # fmt: skip
"""How `decided_by` begins; for any other reason it is empty."""
EXPLAINED = ("policy", "start_failed", "skipped")
"""Reasons whose detail always says something."""


def _general(case: Case, record: Record) -> Checks:
    if case.exit_code is not None or case.signal is not None or case.reason == "start_failed":
        ends = record["exit_code"], record["signal"]
        yield ends == (case.exit_code, case.signal), f"exit code and signal {ends}"
    yield record["expected"], "not as expected"
    by, begins = record["decided_by"], DECIDED.get(case.reason, "")
    yield by.startswith(begins) and bool(by) == bool(begins), f"decided by {by!r}"
    detail = record["detail"]
    silent = not case.detail and case.reason not in EXPLAINED
    yield case.detail in detail and not (silent and detail), f"detail {detail!r}"
    yield record["command"] == list(case.command), f"command {record['command']}"
    refused = record["pids"]["refused"]
    yield bool(refused) == case.refused, f"{refused} forks refused"
    kills = record["memory"]["oom_kills"]
    exact = not case.oom_kills or case.settings.get("oom") == "continue"
    right = kills == case.oom_kills if exact else kills >= case.oom_kills
    yield right, f"{kills} OOM kills"


def _never_ran(record: Record) -> Checks:
    error = record["start_error"]
    yield error is not None and error["stage"] in record["detail"], f"start error {error}"
    yield not record["evidence"], "evidence of a command that never ran"


def _ran(case: Case, record: Record) -> Checks:
    """The evidence agrees with the counts, and the numbers with each other."""
    told = {item["source"].rpartition("/")[2]: item["what"] for item in record["evidence"]}
    counted = told.get("memory.events.local") or told.get("memory.events")
    kills, refused = record["memory"]["oom_kills"], record["pids"]["refused"]
    found = re.search(r"\boom_kill (\d+)", counted or told.get("memory.oom_control", ""))
    # with the whole group v2 counts the first victim twice
    right = found is not None and int(found[1]) >= kills and bool(int(found[1])) == bool(kills)
    yield right, "the evidence has another count of OOM kills"
    agrees = f"max {refused}" in told.get("pids.events", "")
    yield agrees, "the evidence has another count of refused forks"
    yield (
        any(case.evidence in item["what"] for item in record["evidence"]),
        (f"no evidence says {case.evidence!r}"),
    )
    yield record["started_at"] <= record["finished_at"], "ended before it began"
    yield 0 <= record["wall_seconds"] < 120, f"took {record['wall_seconds']} s"
    memory = record["memory"]
    if memory["limit"] is not None:
        first = memory["limit_history"][0]["value"]
        yield first == memory["limit"], "the limit is not the one it began with"
        if memory["peak"] is not None:
            yield memory["peak"] <= memory["limit"], "used more than its limit"
            near = memory["peak"] > memory["limit"] - BATCH
            yield near or not case.full, "never came to its limit"
