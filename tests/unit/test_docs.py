"""The documents are true as far as a machine can tell: names, links, commands, configurations."""

from __future__ import annotations

import argparse
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from supervisor.front import cli, config
from supervisor.model import HOOKS, Action, Reason
from supervisor.record.entries import ACTION_NAMES, KINDS
from tests.support.command import ROOT

DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]
FOR_USERS = [path for path in DOCUMENTS if path.name != "CONTRIBUTING.md"]
VERDICTS = ROOT / "docs/verdicts.md"
POLICIES = ROOT / "docs/policies.md"
CONFIG = ROOT / "docs/config.md"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


every = pytest.mark.parametrize("path", DOCUMENTS, ids=name)


def prose(path: Path) -> str:
    """A document without its fenced blocks."""
    return FENCE.sub("", path.read_text())


def section(path: Path, heading: str) -> str:
    """What stands under a second-level heading."""
    return path.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]


def first_column(text: str) -> list[str]:
    """The code in the first cell of each row of the tables in `text`."""
    cells = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    return [word for cell in cells for word in re.findall(r"`(\w[\w.-]*)", cell)]


def anchors(path: Path) -> set[str]:
    """The headings of a document as GitHub links to them."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every
def test_links_lead_somewhere(path: Path) -> None:
    for target in LINK.findall(prose(path)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        assert there.is_file(), target
        assert not anchor or anchor in anchors(there), target


@every
def test_files_that_are_named_exist(path: Path) -> None:
    """Those of this project in `code`, with a directory of it in front."""
    for file in re.findall(
        r"`((?:supervisor|plugins|docs|tests|benchmarks)/[\w./]+)`", prose(path)
    ):
        assert (ROOT / file).exists(), file


def test_modules_that_the_architecture_names_exist() -> None:
    named = re.findall(r"`((?:\w+/)?\w+\.py)`", (ROOT / "ARCHITECTURE.md").read_text())
    assert len(named) > 20
    for file in named:
        assert list((ROOT / "supervisor").rglob(file)), file


# Commands.


def commands(path: Path) -> Iterator[list[str]]:
    """Each `supervise ...` of a document: in indented or fenced blocks, and in `code`."""
    text = path.read_text()
    shell = "".join(body for kind, body in FENCE.findall(text) if kind in ("", "console"))
    lines = re.findall(r"^(?:    |[$#] )(supervise .*)$", text + shell, re.MULTILINE)
    lines += re.findall(r"`(supervise [^`]+)`", FENCE.sub("", text))
    for line in dict.fromkeys(lines):
        yield shlex.split(line.split(" > ")[0], comments=True)[1:]


def flags_of(verb: str) -> set[str]:
    """Its own, and those of the verbs below it."""
    parser = subparsers()[verb]
    below = [one._option_string_actions for one in subparsers(parser).values()]
    return set(parser._option_string_actions).union(*below)


def subparsers(of: argparse.ArgumentParser | None = None) -> dict[str, argparse.ArgumentParser]:
    for action in (of or cli.parser())._actions:
        if isinstance(action, argparse._SubParsersAction):
            choices: dict[str, argparse.ArgumentParser] = action.choices
            return choices
    return {}


def mistake(words: list[str]) -> str:
    """What is wrong with a command as far as verbs and flags go, or ""."""
    own = words[: words.index("--")] if "--" in words else words
    verb, verbs = own[0], subparsers()
    if verb not in verbs:
        looks_like_file = "." in verb or "/" in verb or verb.isupper() or verb.startswith("-")
        if not looks_like_file:
            return f"no such verb: {verb}"
        verb = "up"
    known = flags_of(verb) | set(cli.parser()._option_string_actions)
    wrong = [word for word in own if word.startswith("--") and word.split("=")[0] not in known]
    return f"no such flag of {verb}: {wrong}" if wrong else ""


@pytest.mark.parametrize("path", FOR_USERS, ids=name)
def test_commands_have_verbs_and_flags_that_exist(path: Path) -> None:
    assert [found for words in commands(path) if (found := mistake(words))] == []


def test_the_readme_shows_every_way_to_begin() -> None:
    shown = [words[0] for words in commands(ROOT / "README.md")]
    assert {"run", "check", "plan", "doctor", "night.toml", "config.toml"} <= set(shown)


def test_whole_command_lines_of_the_readme_are_understood() -> None:
    whole = [words for words in commands(ROOT / "README.md") if words[0] == "run" and "--" in words]
    assert len(whole) >= 5
    for words in whole:
        args = cli.parser().parse_args(words)
        assert config.config_from_flags(args).jobs[0].command


@pytest.mark.parametrize("line", ["logs --lines 5", "run --memroy 1M -- x", "check --sho x.toml"])
def test_a_wrong_command_would_be_found(line: str) -> None:
    assert mistake(line.split())


def test_the_targets_of_make_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in DOCUMENTS:
        named = re.findall(r"(?:^    |`)make ([a-z][\w-]*)", path.read_text(), re.MULTILINE)
        assert set(named) <= targets, path


# Configurations.


def blocks() -> Iterator[tuple[str, str]]:
    """Every TOML block that is a configuration of ours, whole or in part."""
    for path in DOCUMENTS:
        for number, (kind, body) in enumerate(FENCE.findall(path.read_text())):
            if kind == "toml" and "project" not in tomllib.loads(body):
                yield f"{name(path)}:{number}", body
        indented = re.findall(r"(?:^    \[\w.*\n)(?:^    .*\n)+", path.read_text(), re.MULTILINE)
        for number, body in enumerate(indented):
            text = re.sub(r"^    ", "", body, flags=re.MULTILINE)
            if "jobs" in parsed(text):
                yield f"{name(path)}:indented{number}", text


def parsed(text: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return {}


BLOCKS = dict(blocks())


def test_there_are_configurations_to_check() -> None:
    assert any(key.startswith("README.md") for key in BLOCKS) and len(BLOCKS) >= 3


@pytest.mark.parametrize("body", BLOCKS.values(), ids=BLOCKS.keys())
def test_a_configuration_is_accepted(body: str, tmp_path: Path) -> None:
    """One without jobs is given one."""
    if "jobs" not in tomllib.loads(body):
        body += '\n[jobs.one]\ncommand = "true"\n'
    (tmp_path / "night.toml").write_text(body)
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies/mine.py").touch()
    assert config.load(tmp_path / "night.toml").jobs


def test_the_ten_lines_are_ten() -> None:
    text = (ROOT / "README.md").read_text()
    (body,) = (body for kind, body in FENCE.findall(text) if kind == "toml")
    assert len(body.splitlines()) <= 12
    assert len(tomllib.loads(body)["jobs"]) == 2


# Vocabularies.


def test_every_reason_is_documented_and_no_other() -> None:
    headings = re.findall(r"^### (.*)$", section(VERDICTS, "The reasons"), re.MULTILINE)
    assert re.findall(r"`(\w+)`", " ".join(headings)) == [str(reason) for reason in Reason]


def test_every_entry_of_the_log_is_documented_and_no_other() -> None:
    assert first_column(section(VERDICTS, "The event log"))[1:] == list(KINDS)


def test_every_hook_is_documented_and_no_other() -> None:
    assert set(first_column(section(POLICIES, "Hooks"))) == {*HOOKS, "prepare"}
    assert set(first_column(section(CONFIG, "Hooks"))) == set(HOOKS)


def test_every_action_is_documented_and_no_other() -> None:
    classes = {kind.__name__ for kind in get_args(Action)}
    table = section(POLICIES, "Actions").split("\n\n")
    assert {
        row for text in table if "what it does" in text for row in first_column(text)
    } == classes
    # a job cannot thaw itself
    assert set(first_column(section(CONFIG, "Actions"))) == {*ACTION_NAMES.values()} - {"thaw"}


def test_no_document_tells_of_where_it_was_written() -> None:
    # put together, so that this file may be searched as well
    words = [
        "/" + "work/main",
        "/" + "work/shared",
        "/" + "tmp/v",
        "process" + "_api",
        "DE" + "SIGN",
        "ST" + "YLE.md",
    ]
    searched = [
        *DOCUMENTS,
        ROOT / "config.toml.example",
        ROOT / "Makefile",
        ROOT / "pyproject.toml",
    ]
    for part in ("supervisor", "plugins", "tests", "benchmarks"):
        searched += (ROOT / part).rglob("*.py")
    found = [
        f"{name(path)}: {word}" for path in searched for word in words if word in path.read_text()
    ]
    assert found == []
