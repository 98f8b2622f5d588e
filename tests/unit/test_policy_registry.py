"""Loading plugins: by path, bundled and installed; whatever is wrong with one is found at start."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from attrs import evolve

from supervisor.errors import ConfigError
from supervisor.model import PolicyName
from supervisor.policy.registry import bundled, load, name_of
from tests.support.command import ROOT
from tests.support.policies import SPEC, plugin
from tests.unit.test_packaging import in_installed, installed, wheel  # noqa: F401

TAKES_MAX = """
@attrs.frozen
class Arguments:
    max: Size

class Policy:
    def __init__(self, arguments):
        self.max = arguments.max

    @hookimpl
    def on_exit(self, job): ...
"""
ONE_HOOK = """
@hookimpl
def on_exit(): ...
"""


def place(*path: str | int) -> str:
    return "c.toml:" + ".".join(map(str, path))


def complaints(*args: object, **kwargs: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(*args, **kwargs)
    return list(caught.value.problems)


def test_a_path_is_a_policy_named_after_its_file(tmp_path: Path) -> None:
    path = plugin(tmp_path, "mine", "@hookimpl\ndef on_exit(job, event): ...")
    (policy,) = load([path])
    assert (policy.name, policy.source, list(policy.hooks)) == ("mine", path, ["on_exit"])
    assert policy.hooks["on_exit"].takes == ("job", "event")
    assert name_of(path) == "mine"
    assert name_of("grow-memory") == "grow-memory"


def test_the_policies_keep_the_order_of_the_configuration(tmp_path: Path) -> None:
    paths = [plugin(tmp_path, name, ONE_HOOK) for name in ("z", "a", "m")]
    assert [policy.name for policy in load([*paths, "grow-memory"])] == [
        "z",
        "a",
        "m",
        "grow-memory",
    ]


def test_everything_bundled_loads_without_arguments_from_the_checkout() -> None:
    assert {"grow-memory", "kill-fork-bomb"} <= set(bundled())
    policies = load(list(bundled()))
    assert all(Path(policy.source).parent == ROOT / "plugins" for policy in policies)


def test_bundled_policies_load_by_name_from_an_installed_wheel(installed: Path) -> None:  # noqa: F811
    code = (
        "from supervisor.policy.registry import load\n"
        "print(*[policy.source for policy in load(['grow-memory', 'kill-fork-bomb'])])"
    )
    sources = in_installed(installed, code).split()
    assert [Path(source).parent for source in sources] == [installed / "supervisor/bundled"] * 2


def entry_point(site: Path, name: str, value: str, body: str) -> None:
    (site / "corp_policies.py").write_text(body)
    info = site / "corp_policies-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: corp-policies\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[supervise.plugins]\n{name} = {value}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "corp_policies", raising=False)
    yield tmp_path
    sys.modules.pop("corp_policies", None)


def test_an_installed_entry_point_is_found_by_its_name(site: Path) -> None:
    body = "from supervisor.policy.hookspec import hookimpl\n" + ONE_HOOK
    entry_point(site, "corp-rule", "corp_policies", body)
    (policy,) = load(["corp-rule"])
    assert policy.source == str(site / "corp_policies.py")
    assert 'did you mean "corp-rule"?' in complaints(["corp-rul"])[0]


def test_an_entry_point_that_cannot_be_imported_is_told(site: Path) -> None:
    entry_point(site, "corp-rule", "corp_policies:Rule", "x = 1\n")
    assert (
        "policy corp-rule (corp_policies:Rule): raised AttributeError"
        in complaints(["corp-rule"])[0]
    )


def test_an_entry_point_must_name_a_module(site: Path) -> None:
    entry_point(site, "corp-rule", "corp_policies:x", "x = 1\n")
    assert complaints(["corp-rule"]) == [
        "corp-rule: the entry point corp_policies:x names no module"
    ]


def test_what_is_not_there_is_named_with_where_it_was_sought(tmp_path: Path) -> None:
    plugin(tmp_path, "mine", ONE_HOOK)
    (by_name,) = complaints(["grow-memroy"])
    assert by_name.startswith('no policy is called "grow-memroy"; did you mean "grow-memory"?')
    assert "bundled" in by_name
    assert "supervise.plugins" in by_name
    (by_path,) = complaints([f"{tmp_path}/mime.py"])
    assert by_path == (
        f'policy {tmp_path}/mime.py: no such file; did you mean "{tmp_path}/mine.py"?'
    )
    assert complaints([f"{tmp_path}/none/mine.py"]) == [
        f"policy {tmp_path}/none/mine.py: no such file"
    ]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("import sys\nsys.exit(3)", "raised SystemExit: 3 (bad.py:2 in <module>)"),
        ("1/0", "raised ZeroDivisionError: division by zero (bad.py:1 in <module>)"),
        ("import no_such_module", "raised ModuleNotFoundError: No module named 'no_such_module'"),
        ("def broken(:", "raised SyntaxError"),
        ("raise BaseException", "raised BaseException (bad.py:1 in <module>)"),
        ("", "has no hook"),
        ("x = '\0'", "raised "),
    ],
)
def test_a_module_that_does_not_import_is_told(tmp_path: Path, body: str, told: str) -> None:
    path = plugin(tmp_path, "bad", body, header="")
    (line,) = complaints([path])
    assert told in line
    assert line.startswith(("policy " + path, "policy bad"))


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("@hookimpl\ndef on_memory_limt(job): ...",
         'on_memory_limt: no such hook; did you mean "on_memory_limit"?'),
        ("@hookimpl\ndef on_exit(job, evnt): ...",
         'on_exit: no such argument as "evnt"; did you mean "event"?'),
        ("@hookimpl\ndef prepare(job): ...",
         'prepare: no such argument as "job"; allowed: spec'),
        ("@hookimpl\ndef on_exit(job, *, colour): ...", "on_exit: cannot be called: missing a req"),
        ("def on_exit(job): ...", "on_exit: not marked with @hookimpl"),
        ("async def on_exi(job): ...",
         'on_exi: not marked with @hookimpl, and no hook either; did you mean "on_exit"?'),
        ("@hookimpl(wrapper=True)\ndef on_exit(job): yield", "on_exit: a hook cannot wrap"),
        ("@hookimpl(tryfirst=True)\ndef on_exit(job): ...", "on_exit: the order is that of the"),
        ("class Policy:\n  @hookimpl\n  def on_exit(self, jobb): ...", 'as "jobb"'),
        ("class Policy:\n  def on_exit(self): ...", "on_exit: not marked with @hookimpl"),
        ("class Policy: ...\n@hookimpl\ndef on_exit(job): ...", "must be a method of it"),
        ("class Policy:\n  def __init__(self): raise KeyError('k')", "raised KeyError: 'k' (bad"),
        ("class Policy:\n  def __init__(self, arguments): ...", "raised TypeError"),
        ("@attrs.frozen\nclass Arguments:\n  max: int = 1", "no class Policy to take it"),
        ("class Arguments: ...\nclass Policy: ...", "Arguments must be an attrs class"),
    ],
)  # fmt: skip
def test_a_hook_that_could_never_be_called_is_told(tmp_path: Path, body: str, told: str) -> None:
    lines = complaints([plugin(tmp_path, "bad", body)])
    assert told in lines[0]
    assert lines[0].startswith("policy bad: ")


def test_every_wrong_hook_is_told_at_once(tmp_path: Path) -> None:
    body = "@hookimpl\ndef on_exit(a): ...\n@hookimpl\ndef on_start(b): ...\ndef on_tick(): ..."
    assert len(complaints([plugin(tmp_path, "bad", body)])) == 3


def test_a_hook_takes_as_many_arguments_as_it_names(tmp_path: Path) -> None:
    body = "@hookimpl\ndef on_exit(event): ...\n@hookimpl(specname='on_start')\ndef begin(): ..."
    (policy,) = load([plugin(tmp_path, "some", body)])
    assert {hook: each.takes for hook, each in policy.hooks.items()} == {
        "on_exit": ("event",), "on_start": (),
    }  # fmt: skip


def test_wrong_arguments_are_told_all_at_once_and_where_they_stand(tmp_path: Path) -> None:
    path = plugin(tmp_path, "sized", TAKES_MAX)
    tables = {"sized": {"max": "1X", "mx": 1}, "grow-memory": {"factor": 1}, "grw-memory": {}}
    lines = complaints(["grow-memory", path, "no-such"], tables, where=place)
    assert lines[0] == (
        "c.toml:policies.grow-memory.factor: [policies.grow-memory] factor: must be > 1: 1.0"
    )
    assert lines[1].startswith("c.toml:policies.sized.max: [policies.sized] max: must be a size")
    assert lines[2].startswith("c.toml:policies.sized.mx: [policies.sized] mx: no such argument")
    assert lines[3].startswith('c.toml:supervisor.plugins.2: no policy is called "no-such"')
    assert lines[4] == (
        "c.toml:policies.grw-memory: [policies.grw-memory] no such policy is loaded; "
        'did you mean "grow-memory"?'
    )


def test_a_required_argument_and_one_too_many(tmp_path: Path) -> None:
    assert complaints([plugin(tmp_path, "sized", TAKES_MAX)]) == [
        "[policies.sized] max: is required"
    ]
    assert complaints([plugin(tmp_path, "plain", ONE_HOOK)], {"plain": {"max": 1}}) == [
        "[policies.plain] max: this policy takes no arguments"
    ]


def test_two_policies_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    paths = [plugin(where, "mine", ONE_HOOK) for where in (tmp_path, tmp_path / "other")]
    assert complaints(paths) == ['two policies are called "mine": rename a file, or drop one']


def test_a_policy_that_only_a_job_names_is_loaded_for_it_alone() -> None:
    job = evolve(SPEC, hooks={"on_pids_limit": PolicyName("kill-fork-bomb")})
    first, second = load(["grow-memory"], {"kill-fork-bomb": {"refusals": 7}}, [job, job])
    assert (first.general, second.general, second.name) == (True, False, "kill-fork-bomb")
    wrong = evolve(
        SPEC, hooks={"on_timeout": PolicyName("grow-memory"), "on_exit": PolicyName("x")}
    )
    lines = complaints(["grow-memory"], {}, [wrong], where=place)
    assert lines[0] == (
        'c.toml:jobs.sort.on_timeout: jobs.sort.on_timeout: policy "grow-memory" has no on_timeout '
        "(it has on_exit, on_memory_limit)"
    )
    assert lines[1].startswith('c.toml:jobs.sort.on_exit: no policy is called "x"')


def test_a_job_may_name_a_policy_by_its_path(tmp_path: Path) -> None:
    mine = plugin(tmp_path, "mine", ONE_HOOK)
    job = evolve(SPEC, hooks={"on_exit": PolicyName(mine)})
    (alone,) = load([], {}, [job])
    assert (alone.name, alone.source, alone.general) == ("mine", mine, False)
    (listed,) = load([mine], {}, [job])
    assert listed.general
    (tmp_path / "other").mkdir()
    lines = complaints([plugin(tmp_path / "other", "mine", ONE_HOOK)], {}, [job], where=place)
    assert len(lines) == 1
    assert lines[0].startswith('c.toml:jobs.sort.on_exit: two policies are called "mine": ')


def test_two_files_of_one_stem_in_two_loads_do_not_share_their_module(tmp_path: Path) -> None:
    first = load([plugin(tmp_path, "mine", "@hookimpl\ndef on_exit(): ...")])
    second = load([plugin(tmp_path, "mine", "@hookimpl\ndef on_start(): ...")])
    assert ([*first[0].hooks], [*second[0].hooks]) == (["on_exit"], ["on_start"])
