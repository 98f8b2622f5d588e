"""The man page and docs/operations.md: current, complete, and pages that groff takes."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from supervisor.front import cli, manual
from supervisor.front.manual_roff import roff
from supervisor.front.schema import IMAGES, JOB, SUPERVISOR
from tests.support import host
from tests.support.command import ROOT

PAGE = ROOT / "docs/supervise.1"
OPERATIONS = ROOT / "docs/operations.md"


def test_they_are_current() -> None:
    """Whoever adds a verb, a flag or a setting last runs `make docs`."""
    assert PAGE.read_text() == manual.man_page(), "run: make docs"
    assert OPERATIONS.read_text() == manual.operations(), "run: make docs"


@pytest.mark.parametrize("verb", cli.VERBS)
def test_each_verb_has_its_section(verb: str) -> None:
    assert f'.SS "{verb}"\n' in PAGE.read_text()
    assert re.search(rf"^### {verb}$", OPERATIONS.read_text(), re.MULTILINE)


def test_each_flag_is_told_of() -> None:
    page = PAGE.read_text().replace("\\-", "-")
    below = {verb.name: verb for verb in manual.verbs()}
    flags = {flag.name for verb in below.values() for flag in verb.flags}
    assert {"--json", "--memory SIZE", "CONFIG"} <= flags
    for flag in flags:
        assert flag.replace("'", "\\(aq").replace("…", "...") in page, flag
    assert {one.name for one in below["image"].below} >= {"image pull", "image list"}


def test_each_setting_is_told_of() -> None:
    page = PAGE.read_text().replace("\\-", "-")
    for setting in (*SUPERVISOR.settings, *IMAGES.settings, *JOB.settings):
        assert f"\\fB{setting.key.replace('*', 'NAME')}\\fR" in page, setting.key


def test_groff_takes_the_page_without_a_warning() -> None:
    if shutil.which("groff") is None:
        host.miss("tools", "needs groff: apt-get install groff-base")
    done = subprocess.run(
        ["groff", "-man", "-ww", "-z", str(PAGE)], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""


def test_a_page_with_a_mistake_would_be_found() -> None:
    if shutil.which("groff") is None:
        host.miss("tools", "needs groff: apt-get install groff-base")
    wrong = PAGE.read_text() + ".NONSENSE\n"
    done = subprocess.run(
        ["groff", "-man", "-ww", "-z"], input=wrong, capture_output=True, text=True, check=True
    )
    assert "NONSENSE" in done.stderr


def test_init_prints_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.command(["init", "--man"]) == 0
    assert capsys.readouterr().out == PAGE.read_text()


def test_nothing_in_a_text_is_a_request() -> None:
    text = "## A\n\n.so /etc/passwd\n\n'quote\n\n    .in code -x \\\\n\n- `-f`: .dot\n"
    lines = roff(text).splitlines()
    assert [line for line in lines if line.startswith((".so", "'", ".dot", ".in code"))] == []
    assert "\\&.in code \\-x \\en" in lines[lines.index(".EX") + 1].replace("\\e\\e", "\\e")


def test_markdown_becomes_what_it_means() -> None:
    text = (
        "## Title\n\nSome `--code` and **bold**, *italic*, a [link](there.md).\n\n"
        "| a | b |\n|---|---|\n| `x` | what it is |\n\n- plain item\n  goes on\n\n"
        "<!-- transcript x -->\n```console\n# supervise ps\n```\n"
    )
    assert roff(text).splitlines() == [
        '.SH "TITLE"',
        r"Some \fB\-\-code\fR and \fBbold\fR, \fIitalic\fR, a link.",
        ".TP",
        r"\fBx\fR",
        "what it is",
        r".IP \(bu 2",
        "plain item goes on",
        ".PP",
        ".in +4n",
        ".EX",
        "# supervise ps",
        ".EE",
        ".in",
    ]
