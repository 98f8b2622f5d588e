"""From the tables of a document to checked values, each with the place it came from.

May import: `errors`, `model`, the tables and parsers of `front`.  Nothing here knows a setting by
name: `front.schema` does.  Merging is a union of flat maps, so a job's `limits.memory` replaces
that of the defaults and leaves its `limits.pids` alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attrs import frozen

from supervisor.front.kinds import Context
from supervisor.front.problems import Problems, Wrong, dotted, found, unknown
from supervisor.front.schema import Key, Table
from supervisor.front.toml_lines import DEEPEST, Path


@frozen
class Found:
    """A value as written, and the path in the document at which it stands."""

    value: Any
    origin: Path


Raw = Mapping[Key, Found]
Values = dict[Key, Any]


def sane(document: Mapping[str, Any], problems: Problems) -> bool:
    """No NUL in any string (the kernel ends strings there) and no absurd nesting.

    No setting nests deeper than a few levels: that bounds only what a policy's arguments may.
    """
    fine = True
    stack: list[tuple[Path, Any]] = [((), document)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, str) and "\0" in value:
            problems.add(path, "contains a NUL character")
            fine = False
        if isinstance(value, dict | list) and len(path) >= DEEPEST:
            problems.add(path[:DEEPEST], f"is nested more than {DEEPEST} levels deep")
            fine = False
        elif isinstance(value, dict):
            stack += [((*path, key), item) for key, item in value.items()]
            if any("\0" in key for key in value):
                problems.add(path, "contains a key with a NUL character")
                fine = False
        elif isinstance(value, list):
            stack += [((*path, index), item) for index, item in enumerate(value)]
    return fine


def flatten(table: Table, value: Any, origin: Path, problems: Problems) -> dict[Key, Found]:
    """Every known key of a table with its raw value; the others become problems."""
    if not isinstance(value, dict):
        problems.add(origin, f"must be a table, not {found(value)}")
        return {}
    result: dict[Key, Found] = {}
    _flatten(table, value, origin, (), problems, result)
    return result


def _flatten(
    table: Table,
    value: Mapping[str, Any],
    origin: Path,
    section: Key,
    problems: Problems,
    result: dict[Key, Found],
) -> None:
    for name, item in value.items():
        key = (*section, name)
        if key in table.sections and isinstance(item, dict):
            _flatten(table, item, (*origin, name), key, problems, result)
        elif key in table.sections:
            problems.add((*origin, name), f"must be a table, not {found(item)}")
        elif table.find(key):
            result[key] = Found(item, (*origin, name))
        else:
            problems.add((*origin, name), _unknown_key(table, key))


def _unknown_key(table: Table, key: Key) -> str:
    if dotted(key) in table.later:
        return f"{dotted(key)} is not available in this version"
    homes = [path for path in table.leaves if path[-1] == key[-1] and path != key]
    if homes:
        return f'unknown key here; did you mean "{dotted(homes[0])}"?'
    return f"unknown key; {unknown(key[-1], table.names(key[:-1]))}"


def parse_values(table: Table, raw: Raw, context: Context, problems: Problems) -> Values:
    """Each raw value through its setting's parser; those that are wrong become problems."""
    values: Values = {}
    for key, item in raw.items():
        setting = table.find(key)
        if setting is None:
            raise KeyError(key)
        try:
            values[key] = setting.kind.parse(item.value, context.of(item.origin))
        except Wrong as wrong:
            problems.add_all(item.origin, wrong)
    return values


def section(values: Mapping[Key, Any], name: str) -> dict[str, Any]:
    """The values of one section, by their last key: the arguments of the class that holds it."""
    return {key[1]: value for key, value in values.items() if len(key) == 2 and key[0] == name}


def plain(values: Mapping[Key, Any]) -> dict[str, Any]:
    """The values outside any section."""
    return {key[0]: value for key, value in values.items() if len(key) == 1}
