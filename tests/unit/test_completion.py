"""What the shells offer, asked of the shells themselves."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from supervisor.front.cli import VERBS
from supervisor.front.completion import SHELLS, script
from tests.support import host

FAKE = """#!/bin/sh
echo "$@" >> "$0.asked"
[ "$1" = ps ] && printf 'compress.level=1\\ncompress.level=9\\nweb\\n$(touch oops)\\n'
"""

BASH = """
source ./script
COMP_LINE=$1 COMP_POINT=${#1}
_supervise
printf '%s\\n' "${COMPREPLY[@]}"
"""
ZSH = """
autoload -U compinit && compinit -D -u
source ./script
compadd() { shift; print -rl -- $@ }
_files() { print -rl -- *(N) }
words=(${(z)1})
[[ $1 == *' ' ]] && words+=('')
CURRENT=$#words
_supervise | while read -r word; do [[ $word == ${words[CURRENT]}* ]] && print -r -- $word; done
true
"""
FISH = """
source ./script
complete -C "$argv[1]" | string replace -r '\\t.*' ''
true
"""
TRY = {
    "bash": ["bash", "--norc", "-c", BASH, "bash"],
    "zsh": ["zsh", "-f", "-c", ZSH, "zsh"],
    "fish": ["fish", "--no-config", "-c", FISH],
}


class Shell:
    """A shell that has read the script, and a `supervise` that knows three jobs."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        self.directory = directory
        (directory / "script").write_text(script(name))
        self.fake = directory / "bin" / "supervise"
        self.fake.parent.mkdir()
        self.fake.write_text(FAKE)
        self.fake.chmod(0o755)
        (directory / "jobs.toml").touch()

    def offers(self, line: str) -> set[str]:
        """For the last word of `line`, where the cursor is."""
        done = subprocess.run(
            [*TRY[self.name], line],
            cwd=self.directory, capture_output=True, text=True, timeout=60, check=False,
            env={"PATH": f"{self.fake.parent}:{os.environ['PATH']}", "HOME": str(self.directory)},
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "")
        return set(done.stdout.split("\n")) - {""}

    def asked(self) -> list[str]:
        """How the command was called meanwhile."""
        log = self.fake.with_name("supervise.asked")
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, tmp_path: Path) -> Shell:
    if shutil.which(request.param) is None:
        if request.param == "bash":
            host.miss("tools", "needs bash: apt-get install bash")
        pytest.skip(f"there is no {request.param} here")
    return Shell(request.param, tmp_path)


def test_verbs_and_what_is_below_them(shell: Shell):
    assert set(VERBS) <= shell.offers("supervise ")
    assert "jobs.toml" in shell.offers("supervise ")
    assert shell.offers("supervise stat") == {"stats", "status"} & set(VERBS)
    assert {"pull", "list"} <= shell.offers("supervise image ")
    assert shell.offers("supervise completion ") == set(SHELLS)
    assert shell.asked() == []


def test_flags_and_their_values(shell: Shell):
    assert {"--json", "--state", "--instance"} <= shell.offers("supervise ps --")
    assert shell.offers("supervise wait --for ") == {"ended", "running"}
    assert shell.offers("supervise wait web --for r") == {"running"}
    assert "--for" not in shell.offers("supervise ps --")
    assert "jobs.toml" in shell.offers("supervise check ")


def test_jobs_of_the_instance_that_the_line_names(shell: Shell):
    assert {"compress.level=1", "compress.level=9", "web"} < shell.offers("supervise stop ")
    assert shell.offers("supervise stop w") == {"web"}
    assert shell.offers("supervise kill -n nightly web w") == {"web"}
    assert shell.asked()[-1] == "ps -q -n nightly"
    assert not (shell.directory / "oops").exists()


def test_bash_is_given_what_follows_the_sign_that_divides_words(tmp_path: Path):
    shell = Shell("bash", tmp_path)
    assert shell.offers("supervise stop compress.level=") == {"1", "9"}
    assert shell.offers("supervise stop compress.l") == {"compress.level=1", "compress.level=9"}
