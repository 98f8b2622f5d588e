"""Fixtures of the tests that make containers by the command, and cgroups without it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import cgroups
from tests.support.batch import Batch
from tests.support.cgroup_scope import Scope, scope
from tests.support.command import Supervise


@pytest.fixture
def batch(supervise: Supervise, tmp_path: Path) -> Batch:
    """A configuration to write and run: `batch.run('[jobs.x]\\ncommand = "true"').status == 0`."""
    return Batch(supervise, tmp_path)


@pytest.fixture(scope="module")
def parent() -> Iterator[str]:
    """A cgroup of the module's own in every hierarchy, as `detect.find` takes it."""
    with cgroups.session_parent() as name:
        yield name


@pytest.fixture
def here(parent: str) -> Iterator[Scope]:
    """As a unit with Delegate=yes."""
    with scope(parent, delegated=True) as one:
        yield one
