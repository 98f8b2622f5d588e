"""The reference is current, and every example and default in the table of settings is true."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from attrs import fields

from supervisor.front import example
from supervisor.front.configdoc import reference
from supervisor.front.schema import IMAGES, JOB, SUPERVISOR
from supervisor.model import JobSpec, Limits, Restart, Stop
from tests.unit.test_config_parse import CONTEXT, read

TOP = Path(__file__).parents[2]
SETTINGS = [*SUPERVISOR.settings, *IMAGES.settings, *JOB.settings]


def test_the_reference_is_current():
    current = (TOP / "docs/config.md").read_text(encoding="utf-8")
    assert current == reference(), "run: python -m supervisor.front.configdoc > docs/config.md"


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda one: one.key)
def test_each_example_is_allowed(setting):
    value = tomllib.loads(f"x = {setting.example}")["x"]
    assert setting.kind.parse(value, CONTEXT) is not None


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda one: one.key)
def test_each_setting_is_explained(setting):
    assert setting.help.endswith(".")
    assert f"`{setting.key.replace('*', 'NAME')}`" in reference()


def test_the_defaults_in_the_table_are_those_of_the_model():
    plain = read("[jobs.one]\ncommand = 'x'").jobs[0]
    checked = 0
    for setting in JOB.settings:
        try:
            value = tomllib.loads(f"x = {setting.default}")["x"]
        except tomllib.TOMLDecodeError:
            continue  # told in words
        if setting.path[0] == "limits":
            continue  # not set: the default is the kernel's
        stands = plain
        for part in setting.path:
            stands = getattr(stands, part)
        parsed = setting.kind.parse(value, CONTEXT)
        assert stands == parsed, setting.key
        checked += 1
    assert checked >= 12


def test_the_table_and_the_model_hold_the_same():
    held = {one.name for one in fields(JobSpec)} - {"name", "group", "user_group", "hooks"}
    held -= {"layers", "places"}  # an image's, once it is there
    top = {one.path[0] for one in JOB.settings if not one.key.startswith("on_")}
    assert top == held | {"script", "matrix", "group"}
    for section, holder in (("limits", Limits), ("stop", Stop), ("restart", Restart)):
        assert set(JOB.names((section,))) == {one.name for one in fields(holder)}


def test_a_missing_example_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(example, "__file__", str(tmp_path / "a/b/example.py"))
    with pytest.raises(Exception, match=r"config\.toml\.example: missing in this installation"):
        example.text()
