"""A policy's own arguments: from `[policies.NAME]` to an instance of the plugin's attrs class.

May import: `errors`, `model`, attrs, cattrs (only where arguments are read).  Parsed once, at
start; everything wrong is told at once, in the words of the configuration.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal, get_args, get_origin

import attrs

from supervisor.errors import SupervisorError
from supervisor.model import units

Problem = tuple[tuple[str, ...], str]
"""The path of a key below the table, and what is wrong with its value."""


class Size(int):
    """A number of bytes, written as a number or as "64K", "512M", "8G" (base 1024)."""

    def __new__(cls, value: int | str) -> Size:
        return super().__new__(cls, units.size(value) if isinstance(value, str) else value)


class Duration(float):
    """A number of seconds, written as a number or as "500ms", "10s", "5m", "2h", "1d"."""

    def __new__(cls, value: float | str) -> Duration:
        return super().__new__(cls, units.duration(value) if isinstance(value, str) else value)


class ArgumentsError(SupervisorError):
    """Every wrong argument of one policy; the registry says which policy and where."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(text for _, text in self.problems))


def nearest(word: str, allowed: Iterable[str]) -> str:
    """`did you mean "x"?`, or what is allowed where nothing is near."""
    names = sorted(allowed)
    near = difflib.get_close_matches(word, names, n=1)
    if near:
        return f'did you mean "{near[0]}"?'
    return f"allowed: {', '.join(names)}" if names else "nothing is allowed here"


def structure(cls: type[attrs.AttrsInstance], table: Mapping[str, Any]) -> Any:
    """An instance of the attrs class `cls` made of a TOML table.

    Raises ArgumentsError with every problem, unknown keys included.  Validators of the class run
    when all types are right, and attrs stops at the first that complains.
    """
    names = [field.name for field in attrs.fields(cls)]
    problems = [_unknown((), key, names) for key in table if key not in names]
    try:
        known = {key: value for key, value in table.items() if key in names}
        read = _converter().structure(known, cls)
    except Exception as err:  # a validator or converter of the plugin's may raise anything
        problems += _problems(err, ())
    if problems:
        place = {key: at for at, key in enumerate(table)}  # as written; then what is missing
        problems.sort(key=lambda one: place.get("".join(one[0][:1]), len(place)))
        raise ArgumentsError(problems)
    return read


def _converter() -> Any:
    from cattrs import Converter

    converter = Converter(detailed_validation=True, forbid_extra_keys=True)
    for kind, parse in _SCALARS.items():
        converter.register_structure_hook(kind, parse)
    converter.register_structure_hook_func(_is_literal, _literal)
    converter.register_structure_hook_func(_is_array, partial(_array, converter))
    return converter


def _is_literal(kind: Any) -> bool:
    return get_origin(kind) is Literal


def _is_array(kind: Any) -> bool:
    return get_origin(kind) is list or (get_origin(kind) is tuple and get_args(kind)[-1] is ...)


def _array(converter: Any, value: Any, kind: Any) -> Any:
    """cattrs would take a string for an array of its letters."""
    if not isinstance(value, list):
        raise ValueError(f"must be an array, not {_shown(value)}")
    read, problems = [], []
    for at, each in enumerate(value):
        try:
            read.append(converter.structure(each, get_args(kind)[0]))
        except Exception as err:  # a validator or converter of the plugin's may raise anything
            problems += _problems(err, (str(at),))
    if problems:
        raise ArgumentsError(problems)
    return get_origin(kind)(read)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, int | float):
        return str(value)
    return "an array" if isinstance(value, list) else "a table"


def _strict(what: str, kinds: tuple[type, ...]) -> Callable[[Any, Any], Any]:
    """TOML has types: "false" is no boolean and 1.5 no integer, whatever Python makes of them."""

    def parse(value: Any, kind: Any) -> Any:
        if type(value) not in kinds:
            raise ValueError(f"must be {what}, not {_shown(value)}")
        return kind(value)

    return parse


def _measure(what: str, parse: Callable[[str], float]) -> Callable[[Any, Any], Any]:
    def read(value: Any, kind: Any) -> Any:
        try:
            number = parse(value) if isinstance(value, str) else value
            if type(number) not in ((int,) if kind is Size else (int, float)):
                raise ValueError("neither a number nor a string with a unit")
            if not 0 <= number <= units.LARGEST_SIZE:  # NaN is refused too
                raise ValueError("out of range")
        except ValueError as err:
            raise ValueError(f"must be {what}, not {_shown(value)} ({err})") from err
        return kind(number)

    return read


_SCALARS: dict[Any, Callable[[Any, Any], Any]] = {
    bool: _strict("true or false", (bool,)),
    int: _strict("an integer", (int,)),
    float: _strict("a number", (int, float)),
    str: _strict("a string", (str,)),
    Size: _measure('a size like "512M"', units.size),
    Duration: _measure('a duration like "10s"', units.duration),
}


def _literal(value: Any, kind: Any) -> Any:
    allowed = get_args(kind)
    for item in allowed:
        if type(item) is type(value) and item == value:
            return item
    words = [str(item) for item in allowed]
    raise ValueError(f"{_shown(value)} is not allowed; {nearest(str(value), words)}")


def _problems(err: BaseException, path: tuple[str, ...]) -> list[Problem]:
    """What a (nested) error of cattrs says, flat."""
    from cattrs import (
        ClassValidationError,
        ForbiddenExtraKeysError,
        IterableValidationError,
        StructureHandlerNotFoundError,
    )

    if isinstance(err, ArgumentsError):
        return [((*path, *deeper), text) for deeper, text in err.problems]
    if isinstance(err, ForbiddenExtraKeysError):
        names = {field.name for field in attrs.fields(err.cl)}
        return [_unknown(path, key, names) for key in sorted(err.extra_fields)]
    if isinstance(err, StructureHandlerNotFoundError):
        return [(path, f"its class Arguments has a type that no value can be read as: {err}")]
    if isinstance(err, ClassValidationError | IterableValidationError):
        noted, plain = err.group_exceptions()
        inner = [(each, (*path, _key(note))) for each, note in noted]
        inner += [(each, path) for each in plain]
        return [problem for each, where in inner for problem in _problems(each, where)]
    return [_leaf(err, path)]


def _unknown(path: tuple[str, ...], key: str, names: Iterable[str]) -> Problem:
    return (*path, key), f"no such argument; {nearest(key, names)}"


def _key(note: Any) -> str:
    """The field (of a class) or the index (of an array or table) that cattrs noted."""
    return str(note.name if hasattr(note, "name") else note.index)


def _leaf(err: BaseException, path: tuple[str, ...]) -> Problem:
    if isinstance(err, KeyError):
        return path, "is required"
    if isinstance(err, AttributeError | TypeError):  # cattrs found something else than a table
        return path, "has the wrong type"
    text = str(err.args[0]) if isinstance(err, ValueError) and err.args else f"not valid: {err}"
    # attrs' validators run after all fields are there and begin with the quoted name.
    named = re.match(r"'(\w+)' (?=\S)", text)
    return ((*path, named[1]), text[named.end() :]) if named else (path, text)
