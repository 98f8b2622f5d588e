"""What `supervise exec` and `attach` are made of, without a job: states, keys, streams."""

from __future__ import annotations

import pytest

from supervisor.errors import ConfigError
from supervisor.front.verbs import terminal
from supervisor.front.verbs.terminal import Keys
from supervisor.model.state import State
from supervisor.supervise.sessions import NotNow, check_running


def test_every_state_has_a_way_out() -> None:
    check_running("one", State.RUNNING)
    for state in set(State) - {State.RUNNING}:
        with pytest.raises(NotNow, match=f"one is {state}, not running") as caught:
            check_running("one", state)
        assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "sent"),
    [("ctrl-p,ctrl-q", b"\x10\x11"), ("ctrl-A,d", b"\x01d"), ("", b""), ("ctrl-[", b"\x1b"),
     ("~,.", b"~.")],
)  # fmt: skip
def test_keys_by_their_names(text: str, sent: bytes) -> None:
    assert terminal.keys(text) == sent


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-pq", "alt-x", "é", "ctrl-1", "p q"])
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        terminal.keys(text)


@pytest.mark.parametrize(
    ("sequence", "typed", "passed", "left"),
    [
        (b"\x10\x11", [b"ab", b"\x10", b"\x11"], b"ab", True),
        (b"\x10\x11", [b"\x10", b"x"], b"\x10x", False),
        (b"\x10\x11", [b"\x10\x10\x11"], b"\x10", True),
        (b"aab", [b"aaab"], b"a", True),
        (b"aab", [b"a", b"a", b"c"], b"aac", False),
        (b"", [b"\x10\x11"], b"\x10\x11", False),
    ],
)
def test_keys_are_found_however_they_come(
    sequence: bytes, typed: list[bytes], passed: bytes, left: bool
) -> None:
    keys = Keys(sequence)
    fed = [keys.feed(data) for data in typed]
    assert b"".join(data for data, _ in fed) == passed
    assert fed[-1][1] is left
