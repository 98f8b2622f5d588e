"""`supervise check` on the files of system call filters."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from supervisor.errors import ConfigError
from supervisor.front.config import load
from supervisor.front.profiles import check_profiles

GOOD = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}
BAD_RULE = {"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}
FOR_ADMIN = {"names": ["mount"], "action": "SCMP_ACT_PANIC", "includes": {"caps": ["SYS_ADMIN"]}}


def problems(where: Path, text: str) -> list[str]:
    """What is said of a configuration beside its profiles, the directory taken out."""
    path = where / "c.toml"
    path.write_text(text)
    try:
        check_profiles(load(path))
    except ConfigError as error:
        return [line.replace(f"{where}/", "") for line in error.problems]
    return []


def job(name: str, profile: str, more: str = "") -> str:
    return f'[jobs.{name}]\ncommand = "true"\nseccomp = "{profile}"\n{more}'


def test_profiles_that_can_be_used_are_no_problem(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps([GOOD, GOOD]))
    text = job("a", "./p.json") + job("b", "default") + job("c", "log") + job("d", "unconfined")
    assert problems(tmp_path, text) == []


def test_each_that_cannot_is_told_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "cut.json").write_text('{"defaultAction": ')
    (tmp_path / "rule.json").write_text(json.dumps(GOOD | {"syscalls": [BAD_RULE]}))
    (tmp_path / "bare.json").write_text("{}")
    names = ("missing", "dir", "cut.json", "rule.json", "bare.json")
    found = problems(tmp_path, "".join(job(f"j{n}", f"./{name}") for n, name in enumerate(names)))
    assert [line.split(" Expecting")[0] for line in found[:3]] == [
        "c.toml:3: jobs.j0.seccomp: missing: No such file or directory",
        "c.toml:6: jobs.j1.seccomp: dir: Is a directory",
        "c.toml:9: jobs.j2.seccomp: cut.json:",
    ]
    assert found[3].startswith("c.toml:12: jobs.j3.seccomp: rule.json: action 'SCMP_ACT_NOTIFY' is")
    assert found[4:] == ["c.toml:15: jobs.j4.seccomp: bare.json: lacks 'defaultAction'"]


def test_of_the_defaults_it_is_told_once_and_there(tmp_path: Path) -> None:
    text = '[defaults]\nseccomp = "./missing"\n[jobs.a]\ncommand = "true"\n[jobs.b]\nscript = "x"\n'
    said = "c.toml:2: defaults.seccomp: missing: No such file or directory"
    assert problems(tmp_path, text) == [said]


def test_it_is_looked_at_with_the_capabilities_of_the_job(tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(json.dumps(GOOD | {"syscalls": [FOR_ADMIN]}))
    admin = 'capabilities = { add = ["SYS_ADMIN"] }\n'
    (found,) = problems(tmp_path, job("a", "./p.json") + job("b", "./p.json", admin))
    assert found.startswith("c.toml:6: jobs.b.seccomp: p.json: action 'SCMP_ACT_PANIC'")


@pytest.mark.parametrize("text", ["[]", "7", '"x"', "[[]]", '{"defaultAction": {}}'])
def test_json_that_is_no_filter_is_a_problem(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.json").write_text(text)
    assert len(problems(tmp_path, job("a", "./p.json"))) == 1
