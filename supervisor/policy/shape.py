"""Does a value that a plugin handed over fit the annotations of the model?

Pure.  May import: attrs.  Types are compared exactly: a subclass may bring methods of its own,
and nothing of a plugin's is to run once its call is over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs


def misfit(value: Any, kind: Any, where: str = "") -> str | None:
    """What about `value` does not fit `kind` ("limits.memory is a str"), or None."""
    if kind is Any:
        return None
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return _misfit_union(value, kind, where)
    if origin is Literal:
        return None if type(value) is str and value in get_args(kind) else _is(value, where)
    if origin is tuple:
        return _misfit_tuple(value, kind, where)
    if origin is Mapping:
        return _misfit_mapping(value, kind, where)
    if attrs.has(kind):
        return _misfit_class(value, kind, where)
    return _misfit_scalar(value, kind, where)


def _is(value: Any, where: str) -> str:
    """Names the type only: the value's own repr is the plugin's code."""
    kind = type(value)
    shown = f'"{value[:40]}"' if kind is str else kind.__name__
    return f"{where or 'it'} is {shown}"


def _misfit_scalar(value: Any, kind: type, where: str) -> str | None:
    if kind is float and type(value) in (int, float):
        return None if math.isfinite(value) else f"{where or 'it'} is {value}"
    return None if type(value) is kind else _is(value, where)


def _misfit_union(value: Any, kind: Any, where: str) -> str | None:
    found = [misfit(value, each, where) for each in get_args(kind)]
    if None in found:
        return None
    exact = [text for each, text in zip(get_args(kind), found, strict=True) if type(value) is each]
    return exact[0] if exact else next((text for text in found if text), None)


def _misfit_tuple(value: Any, kind: Any, where: str) -> str | None:
    if type(value) is not tuple:
        return _is(value, where)
    inner, *_ = get_args(kind)
    return _first(misfit(each, inner, f"{where}[{at}]") for at, each in enumerate(value))


def _misfit_mapping(value: Any, kind: Any, where: str) -> str | None:
    if type(value) is not dict:
        return _is(value, where)
    of_key, of_value = get_args(kind)
    return _first(
        misfit(key, of_key, f"a key of {where}") or misfit(each, of_value, f"{where}[{key!r}]")
        for key, each in value.items()
    )


def _misfit_class(value: Any, kind: type, where: str) -> str | None:
    if type(value) is not kind:
        return _is(value, where)
    before = f"{where}." if where else ""
    return _first(
        misfit(getattr(value, name), hint, before + name) for name, hint in _hints(kind).items()
    )


def _first(found: Any) -> str | None:
    return next((text for text in found if text), None)


def _hints(kind: type[Any]) -> dict[str, Any]:
    if kind not in _HINTS:
        hints = get_type_hints(kind)
        _HINTS[kind] = {field.name: hints[field.name] for field in attrs.fields(kind)}
    return _HINTS[kind]


_HINTS: dict[type[Any], dict[str, Any]] = {}
"""The annotations of each class of the model; they take a while to resolve."""
