"""The linters and the type checker are tests, so that `make test` says all that CI says."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.command import ROOT

pytestmark = pytest.mark.timeout(600)  # mypy without its cache


def tracked_python_files() -> list[str]:
    """Every Python file of the repository: what is not committed is nobody's yet."""
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z", "*.py"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).exists()]


def run(*arguments: str) -> None:
    """Run a tool of this Python's; its output is the failure's message."""
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_files_are_found() -> None:
    assert "supervisor/errors.py" in tracked_python_files()


def test_ruff_check() -> None:
    run("ruff", "check", *tracked_python_files())


def test_ruff_format() -> None:
    run("ruff", "format", "--check", *tracked_python_files())


def test_mypy_strict() -> None:
    """The files that pyproject.toml names: everything but the tests themselves."""
    run("mypy")
