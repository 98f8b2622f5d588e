"""GET /v1/openapi.json: what can be asked, as OpenAPI 3.1, made of the routes themselves.

Bodies, queries and answers are attrs classes: their fields become JSON Schema (2020-12), their
docstrings descriptions.  A field's metadata may add to its schema: `{"schema": {...}}`.

May import: `model`, `policy.arguments`, `control.routes`, attrs.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from enum import Enum
from functools import cache
from http import HTTPStatus
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from supervisor.control.routes import PREFIX, Answer, Ask, Json, Route
from supervisor.policy.arguments import Duration, Size

Schema = dict[str, Any]

_PLAIN: dict[Any, Schema] = {
    Any: {},
    NoneType: {"type": "null"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    object: {},
    Size: {
        "anyOf": [
            {"type": "integer", "minimum": 0, "maximum": 2**60},
            {"type": "string", "pattern": r"^[1-9][0-9]{0,5}[KMG]$"},
        ],
        "description": 'bytes, or as "512M" (base 1024)',
    },
    Duration: {
        "anyOf": [
            {"type": "number", "minimum": 0, "maximum": 2**60},
            {"type": "string", "pattern": r"^[1-9][0-9]{0,5}(ms|s|m|h)$"},
        ],
        "description": 'seconds, or as "500ms", "10s", "1h"',
    },
}


class Schemas:
    """The schemas of classes, each once: `components.schemas` of the document."""

    def __init__(self) -> None:
        self.components: dict[str, Schema] = {}

    def of(self, kind: Any, *, sent: bool) -> Schema:
        """Of any type that a field may have; `sent`: by a client, who may leave out defaults."""
        if kind in _PLAIN:
            return dict(_PLAIN[kind])
        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Literal:
            return {"enum": list(arguments)}
        if origin in (Union, UnionType):
            return {"anyOf": [self.of(each, sent=sent) for each in arguments]}
        if origin in (tuple, list):
            return {"type": "array", "items": self.of(arguments[0], sent=sent)}
        if origin is not None and issubclass(origin, Mapping):
            return {"type": "object", "additionalProperties": self.of(arguments[1], sent=sent)}
        if isinstance(kind, type) and issubclass(kind, Enum):
            return {"type": "string", "enum": [one.value for one in kind]}
        if attrs.has(kind):
            return self._reference(kind, sent=sent)
        raise TypeError(f"{kind!r} has no schema")

    def _reference(self, cls: type[Any], *, sent: bool) -> Schema:
        name = cls.__name__
        if name not in self.components:
            self.components[name] = {}  # one that contains itself finds it
            self.components[name] = self._object(cls, sent=sent)
        return {"$ref": f"#/components/schemas/{name}"}

    def _object(self, cls: type[Any], *, sent: bool) -> Schema:
        fields = attrs.fields(cls)
        required = [one.name for one in fields if not sent or one.default is attrs.NOTHING]
        more: Schema = {"additionalProperties": False} if sent else {}
        return {
            "type": "object",
            "description": prose(cls),
            "properties": {one.name: schema for one, schema in self.fields(cls, sent=sent)},
            **({"required": required} if required else {}),
            **more,
        }

    def fields(self, cls: type[Any], *, sent: bool) -> list[tuple[Any, Schema]]:
        """Each field with its schema."""
        hints = get_type_hints(cls)
        found = []
        for one in attrs.fields(cls):
            schema = {**self.of(hints[one.name], sent=sent), **one.metadata.get("schema", {})}
            if sent and _shown(one.default):
                schema["default"] = one.default
            found.append((one, schema))
        return found


def _shown(default: Any) -> bool:
    return isinstance(default, str | bool | int | float)


def prose(thing: Any) -> str:
    """A docstring as one text."""
    return re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.getdoc(thing) or "")


def document(routes: Sequence[Route], version: str) -> Schema:
    """The whole document."""
    schemas = Schemas()
    paths: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(PREFIX + route.path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "supervise",
            "version": version,
            "description": "One running instance, by its unix socket (docs/socket.md).",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": {**schemas.components, "Error": _ERROR}},
    }


_ERROR: Schema = {
    "type": "object",
    "description": "What is wrong, and mostly a way out of it.",
    "properties": {
        "error": {"type": "string"},
        "hint": {"type": "string"},
        "problems": {"type": "array", "description": "Everything that is wrong, one by one."},
    },
    "required": ["error"],
}


def _operation(route: Route, schemas: Schemas) -> Schema:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"\{(\w+)\}", route.path)
    ]
    if route.query is not None:
        parameters += [
            {"name": one.name, "in": "query", "required": one.default is attrs.NOTHING,
             "schema": _in_query(schema)}
            for one, schema in schemas.fields(route.query, sent=True)
        ]  # fmt: skip
    found: Schema = {
        "summary": route.summary,
        "operationId": _name(route),
        "x-access": route.access,
        **({"x-checks-more": True} if route.checks_more else {}),
        "parameters": parameters,
        "responses": _responses(route, schemas),
    }
    if route.query is not None:
        found["description"] = prose(route.query)
    if route.body is not None:
        schema = schemas.of(route.body, sent=True)
        found["requestBody"] = {
            "required": any(one.default is attrs.NOTHING for one in attrs.fields(route.body)),
            "content": {"application/json": {"schema": schema}},
        }
    return found


def _in_query(schema: Schema) -> Schema:
    """What is left out is null there, so that null itself cannot be sent."""
    kinds = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    if not kinds:
        return schema
    rest = {key: value for key, value in schema.items() if key != "anyOf"}
    return {**kinds[0], **rest} if len(kinds) == 1 else {**rest, "anyOf": kinds}


def _name(route: Route) -> str:
    """get_jobs_job_wait"""
    words = [word.strip("{}") for word in route.path.split("/") if word]
    return "_".join([route.method.lower(), *words]).replace(".", "_") or "root"


def _responses(route: Route, schemas: Schemas) -> Schema:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    if route.upgrade:
        told = f"the connection is taken over, by the protocol {route.upgrade}"
        good: Schema = {"101": {"description": told}}
    else:
        schema = {} if route.answer is None else schemas.of(route.answer, sent=False)
        kind = "application/x-ndjson" if route.streams else "application/json"
        # a stream's schema is that of one line, which OpenAPI 3.1 has no word for
        content = {kind: {} if route.streams else {"schema": schema}}
        more = {"x-line": schema} if route.streams else {}
        good = {str(route.status): {"description": route.summary, "content": content, **more}}
    bad = {str(status): {"description": HTTPStatus(status).phrase, "content": error}
           for status in _errors(route)}  # fmt: skip
    return {**good, **bad}


def _errors(route: Route) -> list[int]:
    found = {400, 403, 408, 413, 431, 500, 503}
    if "{" in route.path or route.query is not None:
        found.add(404)
    if route.access != "read":
        found |= {404, 409}
    if route.upgrade:
        found.add(426)
    return sorted(found)


@cache
def _document(version: str) -> Schema:
    from supervisor.control.table import ROUTES as ALL

    return document(ALL, version)


async def _openapi(ask: Ask) -> Answer:
    return Json(200, _document(ask.about.version))


ROUTES = (
    Route(
        "GET",
        "/openapi.json",
        _openapi,
        "read",
        "this description of all that can be asked",
        answer=dict[str, Any],
    ),
)
