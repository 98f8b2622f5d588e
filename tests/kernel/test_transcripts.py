"""Every transcript of the documents, done again (tests/support/transcripts.py says how)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import host
from tests.support.machine import Machine, machine
from tests.support.transcripts import DOCUMENTS, Comparison, Session, Step, sessions

pytestmark = [pytest.mark.kernel, host.outside("what the documents show of a host")]

ALL = [
    pytest.param(one, id=str(one), marks=pytest.mark.timeout(one.timeout))
    for document in DOCUMENTS
    for one in sessions(document)
]


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path) as one:
        yield one


@pytest.mark.parametrize("session", ALL)
def test_a_transcript_is_what_happens(session: Session, here: Machine) -> None:
    if session.only and (why := host.lacks_version(session.only)):  # type: ignore[arg-type]
        pytest.skip(why)
    for name in session.needs:
        if shutil.which(name) is None:
            host.miss("tools", f"needs {name}: apt-get install {name}")
    for name, text in session.files.items():
        (here.home / name).write_text(text)
    comparison = Comparison(session.alike)
    for step in session.steps:
        _do(step, session, comparison, here)


def _do(step: Step, session: Session, comparison: Comparison, here: Machine) -> None:
    if step.command.startswith("apt-get install "):
        return  # `needs` has it
    status, said = here.run(comparison.command(step.command), session.timeout)
    if step.shown is None:
        assert status == 0, f"{step.command}: {said}"
        return
    compare = comparison.same_in_any_order if session.order == "any" else comparison.same
    if not compare(step.shown, said):
        parts = [f"{step.command}: not as the document has it", *step.shown, "--- but", *said]
        pytest.fail("\n".join(parts), pytrace=False)
