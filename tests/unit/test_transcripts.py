"""Transcripts: each in the documents is marked, and one that is not true would be noticed."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.support import transcripts
from tests.support.transcripts import DOCUMENTS, Comparison, Step, Wrong, sessions

HEAD = "<!-- transcript one -->\n"


@pytest.fixture
def document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(transcripts, "ROOT", tmp_path)
    return tmp_path / "page.md"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_transcript_is_run_or_says_why_not(path: Path) -> None:
    sessions(path)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_no_transcript_is_indented_only(path: Path) -> None:
    """A command there is one to be given; what it says belongs into a block that is run."""
    lines = transcripts.BLOCK.sub("", path.read_text()).splitlines()
    for command, output in pairwise(lines):
        shown = command.startswith(("    # supervise ", "    $ supervise "))
        after = output.startswith("    ") and not output.startswith(("    # ", "    $ "))
        assert not (shown and after and not command.endswith("\\")), f"{path.name}: {command}"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("```console\n# supervise ps\n```\n", "page.md:1: neither"),
        ("```\n$ supervise ps\n```\n", "neither"),
        ("<!-- not run: no -->\n```console\n# x\n```\n", "page.md:2: say why"),
        ("<!-- transcript one\nneed: x\n-->\n```console\n# x\n```\n", "not one of needs"),
        (f"{HEAD}```console\nx\n```\n", "no prompt"),
    ],
)
def test_a_block_that_does_not_say_is_refused(document: Path, text: str, why: str) -> None:
    document.write_text(text)
    with pytest.raises(Wrong, match=why):
        sessions(document)


def test_a_session_is_put_together_from_its_blocks(document: Path) -> None:
    document.write_text(
        "<!-- file: a.toml -->\n```toml\nx = 1\n```\n"
        f"{HEAD}```console\n# one\n1\n# two \\\n      more\n$ x\n```\n"
        "<!-- not run: it takes a disk -->\n```console\n# format\n```\n"
        "<!-- transcript one\nbefore: three\nneeds: tar, sed\n-->\n```console\n$ four\n# 4\n```\n"
        "<!-- transcript two\ncommand: five\n-->\n```console\n5\n```\n"
    )
    one, two = sessions(document)
    assert one.files == {"a.toml": "x = 1\n"} and one.needs == ["tar", "sed"]
    assert one.steps == [
        Step("one", ("1",)),
        Step("two more", ("$ x",)),
        Step("three", None),
        Step("four", ("# 4",)),
    ]
    assert two.steps == [Step("five", ("5",))] and str(two) == "page.md:two"


@pytest.mark.parametrize(
    ("shown", "found"),
    [
        ("after 0.12s", "after 1.5s"),
        ("killed process 24796 ('sh')", "killed process 3 ('sh')"),
        ("peak 32.0M, 1 kill", "peak 17.5M, 1 kill"),
        ("05:42:54 now", "23:00:01 now"),
        ("for …/run-5/x", "for /sys/fs/run-77/x"),
        ("NAME    SIZE", "NAME  SIZE"),
        ('{"pid": 5, "at": "2026-01-01T00:00:00Z"}', '{"pid": 77, "at": "2027-02-03T04:05:06.7Z"}'),
    ],
)
def test_what_only_differs_by_machine_and_hour_is_the_same(shown: str, found: str) -> None:
    assert Comparison().same([shown], [found])


@pytest.mark.parametrize(
    ("shown", "found"),
    [
        ("peak 32.0M, 1 kill", "peak 32.0M, 2 kills"),
        ("limit of 32.0M", "limit of 65.0M"),
        ("killed process 24796 ('sh')", "killed process 3 ('ash')"),
        ("after 0.12s", "after 12"),
        ("a\nb", "a"),
        ("a", "a\nb"),
        ("", "supervise: warning"),
    ],
)
def test_everything_else_is_another_text(shown: str, found: str) -> None:
    assert not Comparison().same(shown.splitlines(), found.splitlines())


def test_lines_are_left_out_where_it_says_so() -> None:
    assert Comparison().same(["…", "b", "…"], ["a", "b", "c", "d"])
    assert not Comparison().same(["…", "b", "…"], ["a", "c"])
    assert Comparison().same(["a", "…"], ["a"])


def test_a_name_stands_for_one_thing_and_is_put_into_commands() -> None:
    comparison = Comparison()
    assert comparison.same(["run mx0rim83-sh, mx0rim83-sh"], ["run mx1aaaaa-sh, mx1aaaaa-sh"])
    assert comparison.command("diff mx0rim83-sh") == "diff mx1aaaaa-sh"
    assert not comparison.same(["run mx0rim83-sh"], ["run mx1bbbbb-sh"])


def test_what_a_mark_says_is_alike_is() -> None:
    assert not Comparison().same(["5 forks"], ["6 forks"])
    assert Comparison([r"\d+ forks"]).same(["5 forks"], ["6 forks"])


def test_lines_of_any_order_are_each_there_once() -> None:
    assert Comparison().same_in_any_order(["a", "b"], ["b", "a"])
    assert not Comparison().same_in_any_order(["a", "b"], ["b", "a", "a"])
    assert not Comparison().same_in_any_order(["a", "a"], ["a", "b"])
