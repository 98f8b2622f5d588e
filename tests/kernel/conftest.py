"""Fixtures of the tests that make containers by the command, as a user does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.batch import Batch
from tests.support.command import Supervise


@pytest.fixture
def batch(supervise: Supervise, tmp_path: Path) -> Batch:
    """A configuration to write and run: `batch.run('[jobs.x]\\ncommand = "true"').status == 0`."""
    return Batch(supervise, tmp_path)
