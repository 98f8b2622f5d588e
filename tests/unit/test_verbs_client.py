"""The client's side: which instance is meant, how fast a verb starts, tables of text."""

from __future__ import annotations

import argparse
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from supervisor.front.cli import VERBS
from supervisor.front.columns import Column, laid_out
from supervisor.front.verbs import place
from supervisor.front.verbs.place import NoInstance
from tests.support.command import ROOT


class Listening:
    """A run-time directory with sockets that listen, or do not any more."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        self.stack = stack

    def add(self, name: str, alive: bool = True) -> Path:
        path = self.directory / name / "socket"
        path.parent.mkdir(parents=True)
        one = self.stack.enter_context(socket.socket(socket.AF_UNIX))
        one.bind(str(path))
        if alive:
            one.listen()
        return path


@pytest.fixture
def there(tmp_state) -> Iterator[Listening]:
    with ExitStack() as stack:
        yield Listening(tmp_state.runtime, stack)


def test_the_only_instance_that_runs_is_meant(there: Listening):
    there.add("stale", alive=False)
    path = there.add("night")
    assert place.chosen(None, (there.directory,)) == path
    assert place.chosen("night", (there.directory / "none", there.directory)) == path


def test_several_are_listed_and_one_is_chosen_by_its_name(there: Listening):
    path = there.add("night")
    there.add("day")
    with pytest.raises(NoInstance, match=r"several instances run: day, night .choose one by"):
        place.chosen(None, (there.directory,))
    assert place.chosen("night", (there.directory,)) == path
    with pytest.raises(NoInstance, match=r"no instance named dusk runs here \(there are day, nig"):
        place.chosen("dusk", (there.directory,))


def test_it_is_said_where_was_looked(there: Listening):
    with pytest.raises(NoInstance, match=f"{there.directory}: no instance runs here") as raised:
        place.chosen(None, (there.directory,))
    assert raised.value.exit_status == 125


@pytest.mark.parametrize(
    ("flags", "environ", "path"),
    [
        ({"socket": "/a"}, {place.VARIABLE: "/b"}, "/a"),
        ({}, {place.VARIABLE: "/b"}, "/b"),
    ],
)
def test_a_socket_may_be_named(flags: dict, environ: dict, path: str):
    args = argparse.Namespace(**{"socket": None, "instance": None, **flags})
    assert place.find(args, environ) == Path(path)


def test_without_root_ones_own_come_before_the_systems(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    system = Path("/run/supervise")
    assert place.directories({"XDG_RUNTIME_DIR": "/r"}) == (Path("/r/supervise"), system)
    assert place.directories({"HOME": "/h", "XDG_RUNTIME_DIR": "r"}) == (
        Path("/h/.local/state/supervise/run"),
        system,
    )


HEAVY = ("trio", "cattrs", "pyroute2", "structlog", "h11", "rich", "supervisor.supervise")


@pytest.mark.parametrize("verb", ["ps", "status", "events", "wait", "stop", "kill"])
def test_a_verb_starts_without_what_the_supervisor_needs(verb: str):
    assert verb in VERBS
    code = (
        "import sys; from supervisor.front.cli import parser; "
        f"parser({verb!r}).parse_args([{verb!r}, 'x', 'y'][:2 if {verb!r} != 'ps' else 1]); "
        "import supervisor.front.lines, supervisor.front.columns; print(*sys.modules)"
    )
    assert set(loaded(code)) & set(HEAVY) == set()


def test_what_only_clients_need_is_not_there_before_the_first():
    code = "import sys, supervisor.front.up; print(*sys.modules)"
    modules = loaded(code)
    assert "supervisor.control.server" in modules
    late = ("h11", "supervisor.control.http", "supervisor.control.table")
    assert set(modules) & set(late) == set()


def loaded(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout.split()


def test_a_table_is_as_wide_as_it_must_be_and_no_wider_than_it_may():
    columns = (Column("NAME", shrinks=True), Column("N", right=True))
    rows = [(("a" * 30, "1"), ""), (("b", "22"), "31")]
    assert laid_out(columns, rows, width=None, colour=False).splitlines() == [
        "NAME" + " " * 29 + "N",
        "a" * 30 + "   1",
        "b" + " " * 31 + "22",
    ]
    narrow = laid_out(columns, rows, width=14, colour=True)
    assert narrow.splitlines() == [
        "\033[1mNAME         N\033[0m",
        "a" * 9 + "…   1",
        "\033[31mb           22\033[0m",
    ]
