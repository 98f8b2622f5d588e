"""A matrix: which jobs it makes, and where its placeholders are filled in."""

from __future__ import annotations

import re

import pytest

from supervisor.front.matrix import MEMBER, member_name
from supervisor.model import Mount
from tests.unit.test_config_parse import job, only, read, wrong


def test_the_product_of_several_keys_in_their_order():
    config = read("[jobs.j]\ncommand = 'x'\nmatrix = { a = [1, 2], b = ['x', true] }")
    assert [one.name for one in config.jobs] == [
        "j@a=1+b=x", "j@a=1+b=true", "j@a=2+b=x", "j@a=2+b=true",
    ]  # fmt: skip
    assert {one.group for one in config.jobs} == {"j"}


def test_placeholders_are_filled_in_where_they_may_stand():
    spec = job(
        """
[jobs.j]
matrix = { m = ["a b"] }
command = "run {m} x{m}y"
environment = { V = "{m}" }
working_dir = "/{m}"
root = "/{m}"
mounts = ["/{m}:/1", { source = "/{m}", target = "/2" }]
timeout = 1
""",
        "j@m=a_b",
    )
    assert spec.command == ("run", "a b", "xa by")
    assert spec.environment == {"V": "a b"}
    assert (spec.working_dir, spec.root) == ("/a b", "/a b")
    assert spec.mounts == (Mount("/a b", "/1", False), Mount("/a b", "/2"))


def test_a_script_keeps_the_shells_braces_and_doubled_ones():
    spec = job(
        "[jobs.j]\nmatrix.m = [1]\nscript = 'echo {m} ${m} {{m}} {print $1} {a,b} {}'", "j@m=1"
    )
    assert spec.command[-1] == "echo 1 ${m} {m} {print $1} {a,b} {}"


def test_without_a_matrix_braces_mean_nothing():
    text = "{m} {{m}} ${m} {"
    assert job(f"[jobs.j]\ncommand = ['x', '{text}']", "j").command[1] == text


def test_an_unknown_placeholder_is_an_error_where_it_stands():
    problem = only("[jobs.j]\nmatrix.level = [1, 2]\ncommand = ['x',\n'{levl}']")
    assert problem.startswith("x.toml:4: jobs.j.command[1]: ")
    assert 'did you mean "level"?' in problem
    assert "{{levl}}" in problem


def test_a_value_cannot_lead_out_of_the_checks():
    problems = wrong("[jobs.j]\nmatrix.m = ['/..', '/a']\ncommand = 'x'\nworking_dir = '{m}'")
    assert len(problems) == 1
    assert 'without ".."' in problems[0]


def test_members_whose_names_would_be_the_same():
    assert 'two jobs would be called "j@m=a_b"' in only(
        "[jobs.j]\nmatrix.m = ['a b', 'a/b']\ncommand = 'x'"
    )


def test_after_a_group_and_after_a_member():
    text = "[jobs.j]\ncommand = 'x'\nmatrix.m = [1, 2]\n[jobs.k]\ncommand = 'x'\nafter = "
    assert job(text + "['j']", "k").after == ("j",)
    assert job(text + "['j@m=2']", "k").after == ("j@m=2",)
    assert "is no job" in only(text + "['j@m=3']")


def test_too_many_members_are_refused_at_once():
    axis = list(range(1000))
    assert "more than 10000 jobs" in only(
        f"[jobs.j]\ncommand = 'x'\nmatrix = {{ a = {axis}, b = {axis}, c = {axis} }}"
    )


def test_a_name_too_long_for_a_file():
    assert "is longer than 200" in only(f"[jobs.j]\ncommand='x'\nmatrix.m = ['{'v' * 300}']")


@pytest.mark.parametrize("value", ["", "a/b", "..", "é", "a b", "*", "-", "\n"])
def test_a_members_name_is_safe(value):
    name = member_name("j", {"m": value})
    assert MEMBER.fullmatch(name.removeprefix("j"))
    assert re.fullmatch(r"[\w@=+.-]+", name, re.ASCII)
