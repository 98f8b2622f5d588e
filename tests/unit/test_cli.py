"""The command line before anything is started: which verb, which status, one message."""

from __future__ import annotations

import pytest

from supervisor.errors import ConfigError, SupervisorError
from supervisor.front import clash, cli, up


def test_a_file_is_run_without_a_verb(monkeypatch) -> None:
    seen = []
    monkeypatch.setattr(up, "up", lambda path, **more: seen.append((str(path), more)) or 0)
    assert cli.command(["jobs.toml", "--json"]) == 0
    assert cli.command(["up", "jobs.toml", "--json"]) == 0
    assert seen[0] == seen[1] and seen[0][0] == "jobs.toml" and seen[0][1]["as_json"]


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (ConfigError(["a.toml:1: x", "a.toml:2: y"]), 2, "a.toml:1: x\na.toml:2: y\n"),
        (SupervisorError("it broke", hint="mend it"), 125, "supervise: it broke (mend it)\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_an_error_becomes_one_message_and_a_status(monkeypatch, capsys, error, status, told):
    def fail(*_arguments, **_more):
        raise error

    monkeypatch.setattr(up, "up", fail)
    assert cli.command(["up", "a.toml"]) == status
    assert capsys.readouterr() == ("", told)


def test_every_verb_has_a_help(capsys) -> None:
    for verb in cli.VERBS:
        with pytest.raises(SystemExit) as ended:
            cli.command([verb, "--help"])
        assert ended.value.code == 0
        assert f"usage: supervise {verb}" in capsys.readouterr().out


def test_the_clash_is_seen_before_the_verb(monkeypatch, capsys) -> None:
    monkeypatch.setattr(clash, "name_clash", lambda: "somebody else's")
    assert cli.command(["up", "/no/such/file.toml"]) == 125
    assert capsys.readouterr().err == "supervise: somebody else's\n"


def test_what_follows_the_dashes_is_the_command_s_own() -> None:
    args = cli.parser().parse_args(["run", "--memory", "64M", "--", "ls", "--memory", "--", "-x"])
    assert args.command[:2] == ["ls", "--memory"] and args.command[-1] == "-x"
