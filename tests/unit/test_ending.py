"""Whose limit an OOM kill is put down to, where the sources say different things."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from supervisor.cgroup.api import Notification
from supervisor.supervise import ending

OWN = "/s/run-1/payload"


def run(foreign: bool | None, announced: bool | None, limiting: str | None) -> Any:
    """A run of which the counters, the alarm and the log say these."""
    return SimpleNamespace(
        cgroup=SimpleNamespace(
            foreign_oom=lambda: foreign, notifications=(Notification("kmsg", OWN),)
        ),
        subscription=SimpleNamespace(announced=announced),
        shared=SimpleNamespace(kernel_log=SimpleNamespace(limiting=lambda _path: limiting)),
    )


@pytest.mark.parametrize(
    ("foreign", "announced", "limiting", "expected"),
    [
        (True, None, None, True),
        (False, None, None, False),
        (False, True, None, False),
        (True, True, None, True),
        (False, False, None, True),  # it had been at its limit, then the host ran out of memory
        (None, False, None, True),
        (None, True, None, False),
        (None, True, OWN, False),
        (None, True, "/s", True),
        (None, None, "/", True),
    ],
)
def test_a_kill_that_no_limit_announced_is_the_hosts(
    foreign: bool | None, announced: bool | None, limiting: str | None, expected: bool
) -> None:
    assert ending._foreign(run(foreign, announced, limiting)) is expected
