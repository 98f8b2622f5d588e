"""The OpenAPI document, which is made of the routes; and the routes themselves."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Any, Literal

import pytest
from attrs import field, frozen

from supervisor.control.openapi import Schemas, document
from supervisor.control.routes import PREFIX
from supervisor.control.table import ROUTES
from supervisor.policy.arguments import Duration, Size
from tests.support.command import ROOT


class Colour(StrEnum):
    RED = "red"


@frozen
class Inner:
    """What is
    inside."""

    colour: Colour = Colour.RED


@frozen
class Outer:
    must: int
    may: str | None = None
    inner: tuple[Inner, ...] = ()
    table: Mapping[str, float] = field(factory=dict)
    word: Literal["a", "b"] = "a"
    size: Size | None = None
    time: Duration = Duration(3)  # noqa: RUF009 - frozen
    bounded: int = field(default=1, metadata={"schema": {"minimum": 1}})


def refs(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from ([value["$ref"]] if "$ref" in value else [])
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from refs(item)


def test_a_class_becomes_a_schema():
    schemas = Schemas()
    assert schemas.of(Outer, sent=True) == {"$ref": "#/components/schemas/Outer"}
    outer, inner = schemas.components["Outer"], schemas.components["Inner"]
    assert inner["description"] == "What is inside."
    assert inner["properties"]["colour"] == {"type": "string", "enum": ["red"], "default": "red"}
    assert (outer["required"], outer["additionalProperties"]) == (["must"], False)
    properties = outer["properties"]
    assert properties["may"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}
    items = {"$ref": "#/components/schemas/Inner"}
    assert properties["inner"] == {"type": "array", "items": items}
    table = {"type": "object", "additionalProperties": {"type": "number"}}
    assert properties["table"] == table
    assert properties["word"] == {"enum": ["a", "b"], "default": "a"}
    assert properties["bounded"] == {"type": "integer", "minimum": 1, "default": 1}
    answer = Schemas()
    answer.of(Outer, sent=False)
    assert set(answer.components["Outer"]["required"]) == set(properties)


def test_a_type_without_a_schema_is_a_bug():
    with pytest.raises(TypeError, match="has no schema"):
        Schemas().of(complex, sent=True)


def test_the_document_is_whole():
    made = document(ROUTES, "1")
    json.dumps(made, allow_nan=False)
    known = {f"#/components/schemas/{name}" for name in made["components"]["schemas"]}
    assert set(refs(made)) <= known
    operations = [one for item in made["paths"].values() for one in item.values()]
    assert len(operations) == len(ROUTES)
    assert max(Counter(one["operationId"] for one in operations).values()) == 1


def test_who_may_only_read_can_only_get():
    for route in ROUTES:
        assert route.access == ("read" if route.method == "GET" else "steer"), route
        assert route.summary and route.path.startswith("/")


def test_every_route_is_in_its_document():
    told = set(re.findall(r"`([A-Z]+ /v1[^`?]*)", (ROOT / "docs/socket.md").read_text()))
    assert {f"{one.method} {PREFIX}{one.path}" for one in ROUTES} == told
