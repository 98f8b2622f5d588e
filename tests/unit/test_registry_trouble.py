"""What is made of refusals and waits; and whatever a stranger writes, it is only text to us."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.errors import ImageError
from supervisor.image.auth import challenges
from supervisor.image.credentials import helper_for, written
from supervisor.image.hosts import RegistrySettings, mirror, refusal
from supervisor.image.trouble import Patience, Trouble, message, pause, refused, retry_after

NOW = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=12,
)
header = st.text(st.characters(max_codepoint=255), max_size=60)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None), ("", None), ("0", 0), ("120", 120), (" 7 ", 7), ("-1", None), ("1.5", None),
        ("9" * 50, 999999999), ("Tue, 01 Jan 2030 12:00:30 GMT", 30),
        ("Tue, 01 Jan 2030 11:00:00 GMT", 0), ("Tue, 01 Jan 2030 12:00:30", 30),
        ("tomorrow", None), ("Tue, 99 Jan 2030 12:00:30 GMT", None), ("\u0661", None),
    ],
)  # fmt: skip
def test_retry_after_is_a_number_or_a_date(text, seconds):
    assert retry_after(text, NOW) == seconds


def test_waits_double_up_to_the_longest_and_are_never_the_same():
    patience = Patience(first=1, longest=8)
    trouble = Trouble("x", again=True)
    for failures, most in ((1, 1), (2, 2), (3, 4), (4, 8), (5, 8), (60, 8)):
        waits = {pause(trouble, failures, patience) for _ in range(20)}
        assert all(most / 2 <= wait <= most for wait in waits) and len(waits) > 1


def test_a_server_is_waited_for_within_bounds():
    patience = Patience(first=1, bound=120)
    assert 120.5 <= pause(Trouble("x", wait=120), 1, patience) <= 121
    with pytest.raises(Trouble, match="x"):
        pause(Trouble("x", wait=121), 1, patience)


@given(st.integers(100, 999), st.dictionaries(
    st.sampled_from(["retry-after", "ratelimit-limit", "ratelimit-remaining",
                     "docker-ratelimit-source"]), header),
    st.binary(max_size=80) | anything.map(lambda value: json.dumps(value).encode()))  # fmt: skip
def test_every_refusal_is_a_line_of_text(status, headers, body):
    trouble = refused(status, headers, body, "the registry")
    assert trouble.text.isprintable() and len(trouble.text) < 2000


@given(anything)
def test_what_errors_say_is_text(value):
    assert message(json.dumps({"errors": value}).encode()).isprintable()
    assert message(json.dumps({"errors": [{"message": value}]}).encode()).isprintable()


@given(header)
def test_any_challenge_is_read_to_some_end(text):
    for one in challenges(text):
        assert one.scheme == one.scheme.lower()


@given(st.text(max_size=40))
def test_any_address_is_judged(text):
    settings = RegistrySettings()
    assert isinstance(refusal(text, "https://registry.example/", settings), str)
    for address in (f"http://{text}", f"https://{text}/x"):
        if refusal(address, "https://registry.example/", settings) == "":
            assert address.startswith("https://")
    try:
        assert mirror(text, settings).host
    except ValueError:
        pass


@given(anything)
def test_any_file_of_credentials_gives_some_or_is_refused(value):
    for config in (
        {"auths": value},
        {"auths": {"r.example": value}},
        {"auths": {"r.example": {"auth": value}}},
        {"credHelpers": value},
        {"credHelpers": {"r.example": value}},
        {"credsStore": value},
    ):
        try:
            written(config, "r.example", "a/b", Path("/x"))
            helper_for(config, "r.example", Path("/x"))
        except ImageError:
            pass
