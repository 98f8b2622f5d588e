"""Every verb tells what it is for, by an example that could be typed."""

from __future__ import annotations

import re
import shlex

import pytest

from supervisor.front.cli import VERBS, parser


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_has_an_example_that_parses(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        parser(verb).parse_args([verb, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert VERBS[verb][0] in " ".join(text.split())
    _, _, examples = text.partition("example")
    lines = [line.strip() for line in examples.splitlines() if f"supervise {verb}" in line]
    assert lines, text
    for line in lines:
        words = shlex.split(re.split(r" [|>&#;]|\)", line[line.index(f"supervise {verb}") :])[0])
        parser(verb).parse_args(words[1:])  # its own exit would fail the test
