"""Ranges of user numbers: who gets which, and when one is free again."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from supervisor.errors import KernelError, SpawnError
from supervisor.linux import proc
from supervisor.supervise import idranges
from supervisor.supervise.idranges import SIZE, IdRanges, Pool

FOUR = Pool(2**20, 2**20 + 4 * SIZE)
FIRSTS = [2**20 + number * SIZE for number in range(4)]


def ranges(where: Path, pool: Pool = FOUR, name: str = "one") -> IdRanges:
    return IdRanges(name, where / "ids", pool)


def test_each_gets_another_one(tmp_path: Path) -> None:
    one, two = ranges(tmp_path), ranges(tmp_path, name="two")
    assert [one.take("a"), two.take("b"), one.take("c"), two.take("d")] == FIRSTS


def test_what_was_given_back_is_used_again_last(tmp_path: Path) -> None:
    own = ranges(tmp_path)
    own.give_back(own.take("a"))
    assert [own.take(name) for name in "bcd"] == FIRSTS[1:]
    assert own.take("e") == FIRSTS[0]


def test_when_all_are_taken_it_says_so_and_what_helps(tmp_path: Path) -> None:
    own = ranges(tmp_path)
    for name in "abcd":
        own.take(name)
    with pytest.raises(SpawnError, match=r"all 4 are taken.*/etc/subuid.*capacity.jobs") as told:
        own.take("e")
    assert told.value.stage == "user_namespace"
    own.give_back(FIRSTS[2])
    assert own.take("e") == FIRSTS[2]


def test_who_has_a_range_is_written_down(tmp_path: Path) -> None:
    first = ranges(tmp_path).take("run-1")
    told = json.loads((tmp_path / "ids" / str(first)).read_text())
    start = proc.stat(os.getpid()).start_ticks
    assert told == {"pid": os.getpid(), "start": start, "instance": "one", "run": "run-1"}
    assert (tmp_path / "ids").stat().st_mode & 0o777 == 0o700


def claim(where: Path, first: int, text: str) -> None:
    (where / "ids").mkdir(exist_ok=True)
    (where / "ids" / str(first)).write_text(text)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"pid": 1, "start": -1}',
                                  '{"pid": 4194305, "start": 1}'])  # fmt: skip
def test_of_a_supervisor_that_is_no_more(tmp_path: Path, text: str) -> None:
    """Its claim is void, by its start time also when the pid has been given to somebody else."""
    claim(tmp_path, FIRSTS[0], text)
    assert ranges(tmp_path).take("a") == FIRSTS[0]


def test_not_while_a_job_of_a_supervisor_that_is_no_more_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim(tmp_path, FIRSTS[0], "{}")
    monkeypatch.setattr(idranges, "_users", lambda pid: [FIRSTS[0] + 99] if pid == 1 else [0])
    assert ranges(tmp_path).take("a") == FIRSTS[1]


def test_the_users_of_a_process() -> None:
    assert idranges._users(os.getpid()) == [os.getuid()] * 4
    assert idranges._users(2**22 + 1) == []


def test_two_instances_at_once_never_get_the_same(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from supervisor.supervise.idranges import IdRanges, Pool\n"
        f"own = IdRanges('x', Path({str(tmp_path)!r}, 'ids'), Pool(2**20, 2**20 + 200 * 65536))\n"
        "print(*[own.take('r') for _ in range(50)]); sys.stdout.flush(); sys.stdin.read()\n"
    )
    import sys

    argv = [sys.executable, "-c", program]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(argv, **pipes) as one, subprocess.Popen(argv, **pipes) as two:
        firsts = [int(word) for p in (one, two) for word in p.stdout.readline().split()]
    assert len(set(firsts)) == len(firsts) == 100


def etc(where: Path, **files: str) -> Path:
    for name, text in files.items():
        (where / name).write_text(text)
    return where


def test_the_numbers_that_the_administrator_gives(tmp_path: Path) -> None:
    text = "ann:100000:65536\nsupervise:1000000:131072\nsupervise:9000000:65536\n"
    found = idranges.pool(etc(tmp_path, subuid=text, subgid=text))
    assert found == Pool(1000000, 1131072)
    assert [found.at(slot) for slot in range(found.slots)] == [1000000, 1065536]


def test_only_numbers_that_are_given_for_users_and_for_groups(tmp_path: Path) -> None:
    where = etc(tmp_path, subuid="supervise:1000000:131072\n", subgid="supervise:7:131072\n")
    assert idranges.pool(where).first == idranges.FIRST


def test_by_default_nobody_elses(tmp_path: Path) -> None:
    where = etc(
        tmp_path, subuid="ann:524288:65536\nwrong line\n:x:y\n", subgid="ben:655361:1\n",
        passwd="root:x:0:0::/:/bin/sh\nfar:x:720900:0::/:/bin/sh\nodd:x:-1\n",
        group="far:x:786500:\n",
    )  # fmt: skip
    found = idranges.pool(where)
    assert [found.at(slot) for slot in range(6)] == [None, 589824, None, None, None, 851968]
    assert idranges.pool(tmp_path / "nowhere").at(0) == idranges.FIRST


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "subuid").mkdir()
    with pytest.raises(KernelError, match=r"read .*subuid"):
        idranges.pool(tmp_path)


def test_a_directory_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "ids").touch()
    with pytest.raises(KernelError, match=r"open .*ids/lock"):
        ranges(tmp_path).take("a")


def test_an_instance_forgets_what_one_of_its_name_had_before(tmp_path: Path) -> None:
    claim(tmp_path, FIRSTS[0], '{"instance": "one", "pid": 1, "start": -1, "run": "x"}')
    claim(tmp_path, FIRSTS[1], '{"instance": "two", "pid": 1, "start": -1, "run": "x"}')
    own = ranges(tmp_path)
    mine = own.take("mine")
    own.forget()
    assert {path.name for path in (tmp_path / "ids").iterdir() if path.name.isdecimal()} == {
        str(mine),
        str(FIRSTS[1]),
    }
    ranges(tmp_path / "nowhere").forget()
    assert not (tmp_path / "nowhere").exists()
