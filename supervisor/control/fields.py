"""What a client sends, from text to an attrs object, strictly; and back.

May import: `errors`, `model`, `policy.arguments` (whose strict reading of attrs classes is
used), `control.routes`.  Everything wrong is told at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from enum import Enum
from types import UnionType
from typing import Any, NoReturn, Union, get_args, get_origin, get_type_hints
from urllib.parse import parse_qsl, unquote

import attrs

from supervisor.control.routes import Refusal
from supervisor.policy.arguments import ArgumentsError, structure

MOST_FIELDS = 1000
"""In one query: more are an attempt to keep us busy."""

MANY = ", "


def body_of(cls: type[Any], raw: bytes) -> Any:
    """An instance of `cls` from a body; an empty one has no fields.  Raises Refusal (400)."""
    return _structured(cls, _document(raw), "body")


def _document(raw: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(raw, parse_constant=_refuse) if raw.strip() else {}
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate is no text
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise Refusal(400, "the body must be a JSON object")
    return value


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def query_of(cls: type[Any] | None, raw: str) -> Any:
    """An instance of `cls` from what stands after the "?".  Raises Refusal (400)."""
    try:
        pairs = parse_qsl(
            raw, keep_blank_values=True, strict_parsing=bool(raw),
            errors="strict", max_num_fields=MOST_FIELDS,
        )  # fmt: skip
    except ValueError as error:
        raise Refusal(400, f"the query cannot be read: {error}") from error
    if cls is None:
        if pairs:
            raise Refusal(400, f"this takes no query, but was given {pairs[0][0]}")
        return None
    return _structured(cls, _typed(cls, pairs), "query")


def _typed(cls: type[Any], pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Each text as what its field is, if it can be read so; what is given twice is an array."""
    hints = get_type_hints(cls)
    values: dict[str, Any] = {}
    problems = []
    for name, text in pairs:
        kind = _kind(hints.get(name, str))
        if get_origin(kind) is tuple:
            values.setdefault(name, []).append(_scalar(get_args(kind)[0], text))
        elif name in values:
            problems.append({"field": name, "error": "is given twice"})
        else:
            values[name] = _scalar(kind, text)
    if problems:
        raise Refusal(400, f"{problems[0]['field']} is given twice", problems=problems)
    return values


def _kind(hint: Any) -> Any:
    """`int` of `int | None`."""
    if get_origin(hint) in (Union, UnionType):
        return next(kind for kind in get_args(hint) if kind is not type(None))
    return hint


def _scalar(kind: Any, text: str) -> Any:
    if kind is bool:
        return {"true": True, "1": True, "": True, "false": False, "0": False}.get(text, text)
    if isinstance(kind, type) and issubclass(kind, int | float):
        try:
            return json.loads(text) if text[:1] in "-0123456789" and text else text
        except ValueError:
            return text
    return text


def _structured(cls: type[Any], table: Mapping[str, Any], where: str) -> Any:
    try:
        return structure(cls, table)
    except ArgumentsError as error:
        problems = [
            {"field": ".".join(path) or where, "error": text} for path, text in error.problems
        ]
        told = MANY.join(f"{each['field']} {each['error']}" for each in problems)
        raise Refusal(400, f"the {where} is wrong: {told}", problems=problems) from error


def segments(path: str) -> tuple[str, ...]:
    """The parts of a path between slashes, each decoded.  Raises Refusal (400)."""
    try:
        return tuple(unquote(part, errors="strict") for part in path.split("/")[1:])
    except UnicodeDecodeError as error:
        raise Refusal(400, f"the path is not UTF-8: {error.reason}") from error


_PLAIN = frozenset({str, int, float, bool, type(None)})


def plain(value: Any) -> Any:
    """`value` as JSON's types: attrs objects as objects, enumerations as their values."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is dict:  # what a Mapping is takes long to find out
        return {str(key): plain(item) for key, item in value.items()}
    names = _names(kind)
    if names is not None:
        return {name: plain(getattr(value, name)) for name in names}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


_FIELDS: dict[type[Any], tuple[str, ...] | None] = {}


def _names(kind: type[Any]) -> tuple[str, ...] | None:
    """The fields of an attrs class; None for any other."""
    if kind not in _FIELDS:
        names = tuple(field.name for field in attrs.fields(kind)) if attrs.has(kind) else None
        _FIELDS[kind] = names
    return _FIELDS[kind]


def encoded(value: Any) -> bytes:
    """JSON on one line, ended by a newline; what is no JSON (a policy's NaN) as its text."""
    try:
        text = json.dumps(plain(value), allow_nan=False)
    except (TypeError, ValueError):
        text = json.dumps(json.loads(json.dumps(plain(value), default=repr), parse_constant=str))
    return text.encode() + b"\n"
