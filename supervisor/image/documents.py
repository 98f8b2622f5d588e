"""JSON from strangers: bounded, without double keys, each value of the type it must have.

Pure; may import: `errors`.  Every complaint is an ImageError that names the document and the key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from attrs import frozen

from supervisor.errors import ImageError

_REQUIRED: Any = object()


@frozen
class Document:
    """A JSON object; `where` names it in complaints, down to the key it was found under."""

    value: Mapping[str, Any]
    where: str

    @classmethod
    def parse(cls, raw: bytes, where: str, *, limit: int) -> Document:
        """The object in `raw`, of at most `limit` bytes."""
        if len(raw) > limit:
            raise ImageError(f"is larger than {limit} bytes", where)
        return cls._object(_load(raw, where), where)

    @classmethod
    def array(cls, raw: bytes, where: str, *, limit: int, most: int) -> tuple[Document, ...]:
        """The objects of the array in `raw`."""
        if len(raw) > limit:
            raise ImageError(f"is larger than {limit} bytes", where)
        found = _load(raw, where)
        if not isinstance(found, list) or len(found) > most:
            raise ImageError(f"is no array of at most {most}", where)
        return tuple(cls._object(one, f"{where}: {at}") for at, one in enumerate(found))

    @classmethod
    def _object(cls, value: Any, where: str) -> Document:
        if not isinstance(value, dict):
            raise ImageError("is no object", where)
        return cls(value, where)

    def wrong(self, what: str, *, hint: str = "") -> ImageError:
        """A complaint about it, to be raised."""
        return ImageError(what, self.where, hint=hint)

    def child(self, key: str) -> Document:
        """The object under a key."""
        value = self.value.get(key)
        if value is None:
            raise self.wrong(f'has no "{key}"')
        return self._object(value, f"{self.where}: {key}")

    def items(self, key: str, *, most: int) -> tuple[Document, ...]:
        """The objects of the array under a key."""
        values = self._list(key, optional=False)
        if len(values) > most:
            raise self.wrong(f'its "{key}" has {len(values)} entries, more than {most}')
        where = f"{self.where}: {key}"
        return tuple(self._object(one, f"{where}[{at}]") for at, one in enumerate(values))

    def text(self, key: str, default: str = _REQUIRED) -> str:
        """A string without NUL; `default` where it is absent or null."""
        value = self.value.get(key)
        if value is None and default is not _REQUIRED:
            return default
        return self._text(value, key)

    def _text(self, value: Any, key: str) -> str:
        if not isinstance(value, str):
            raise self.wrong(f'its "{key}" is no string')
        # a lone surrogate is neither to be printed nor to be given to the kernel
        if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
            raise self.wrong(f'its "{key}" has a character that no text has')
        return value

    def number(self, key: str, low: int, high: int, *, default: int = _REQUIRED) -> int:
        """A whole number from `low` to `high`."""
        value = self.value.get(key)
        if value is None and default is not _REQUIRED:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(f'its "{key}" is no whole number from {low} to {high}')
        return value

    def strings(self, key: str, *, optional: bool = False) -> tuple[str, ...]:
        """An array of strings."""
        return tuple(self._text(one, key) for one in self._list(key, optional=optional))

    def words(self, key: str) -> tuple[str, ...]:
        """An argv: absent, an array, or (old images have it) one string that is one word."""
        if isinstance(self.value.get(key), str):
            return (self.text(key),)
        return self.strings(key, optional=True)

    def keys(self, key: str) -> tuple[str, ...]:
        """The keys of an object that stands for a set, in order; none where it is absent."""
        return tuple(sorted(self._mapping(key)))

    def texts(self, key: str) -> dict[str, str]:
        """An object of strings; empty where it is absent."""
        found = self._mapping(key)
        return {self._text(name, key): self._text(one, key) for name, one in found.items()}

    def _mapping(self, key: str) -> dict[str, Any]:
        value = self.value.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.wrong(f'its "{key}" is no object')
        return {self._text(name, key): one for name, one in value.items()}

    def _list(self, key: str, *, optional: bool) -> list[Any]:
        value = self.value.get(key)
        if value is None and optional:
            return []
        if not isinstance(value, list):
            raise self.wrong(f'its "{key}" is no array')
        return value


def _load(raw: bytes, where: str) -> Any:
    try:
        return json.loads(raw, object_pairs_hook=_once, parse_constant=_no_constant)
    except RecursionError:
        raise ImageError("is nested too deeply", where) from None
    except ValueError as err:  # JSONDecodeError, UnicodeDecodeError, a number of 4300 digits
        raise ImageError(f"is no JSON: {str(err)[:200]}", where) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):  # which of the two holds is up to the reader: so neither does
        raise ValueError("a key stands there twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")
