"""The transcript of docs/images.md, from an empty machine to a job in Debian, done again."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import host
from tests.support.command import ROOT

pytestmark = pytest.mark.kernel

STATE = Path("/var/lib/supervise")
PROMPT = "    # "


@dataclass
class Step:
    """A command, and the lines that the document shows after it."""

    command: str
    shown: list[str]


def steps() -> list[Step]:
    text = (ROOT / "docs/images.md").read_text()
    transcript = text.split("<!-- transcript -->\n")[1].split("<!-- end -->")[0]
    found: list[Step] = []
    for line in transcript.splitlines():
        if line.startswith(PROMPT):
            found.append(Step(line.removeprefix(PROMPT), []))
        elif line.startswith("    "):
            found[-1].shown.append(line.removeprefix("    "))
    return found


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Path]:
    """A directory to work in, where `supervise` is a command."""
    if host.in_guest():
        pytest.skip("it takes the archive of Debian, and an hour in a guest")
    for name in ("mmdebstrap", "umoci"):
        if shutil.which(name) is None:
            host.miss("tools", f"needs {name}: apt-get install {name}")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin/supervise"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m supervisor "$@"\n')
    command.chmod(0o755)
    made = not STATE.exists()
    STATE.mkdir(exist_ok=True)
    yield tmp_path
    if made:
        STATE.rmdir()


def run(command: str, machine: Path) -> subprocess.CompletedProcess[str]:
    """In a mount namespace in which the state of supervise is this test's own."""
    (machine / "state").mkdir(exist_ok=True)
    (machine / "root").mkdir(exist_ok=True)
    shell = f'mount --bind "{machine}/state" {STATE}; PATH="{machine}/bin:$PATH"; {command}'
    return subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "bash", "-c", shell],
        cwd=machine / "root", capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


def alike(line: str) -> str:
    """A line without what differs from one machine or day to another."""
    line = re.sub(r"sha256:[0-9a-f]+", "DIGEST", line)
    line = re.sub(r"\b[0-9a-f]{12}\b", "BLOB", line)
    line = re.sub(r"\d[\d.]*[BKMG]\b", "SIZE", line)
    line = re.sub(r"[\d.]+s ago|after [\d.]+s", "AGO", line)
    return re.sub(r" +", " ", re.sub(r"oci:/\S*/debian", "oci:debian", line)).strip()


@pytest.mark.timeout(900)
def test_the_transcript_is_what_happens(machine: Path) -> None:
    done = 0
    for step in steps():
        if step.command.startswith("apt-get"):
            continue
        found = run(step.command, machine)
        said = [alike(line) for line in (found.stderr + found.stdout).splitlines()]
        if step.shown:
            assert said == [alike(line) for line in step.shown], step.command
        else:
            assert found.returncode == 0, f"{step.command}: {found.stderr}"
        done += 1
    assert done >= 8
