"""A matrix: one job for each combination of its values.

Pure.  May import: `front.problems`.  A member is called JOB@KEY=VALUE (+KEY=VALUE…): safe as a
file's name, a cgroup's name and a word of a shell; JOB alone stays the name of them all.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from supervisor.front.problems import Wrong, found, unknown
from supervisor.front.toml_lines import Path

MOST_MEMBERS = 10000
LONGEST_NAME = 200
"""A file's name has at most 255 bytes (NAME_MAX), and a run's adds to the job's."""

KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
MEMBER = re.compile(r"@[A-Za-z0-9_]+=[A-Za-z0-9_.-]+(\+[A-Za-z0-9_]+=[A-Za-z0-9_.-]+)*", re.ASCII)
"""The suffix of a member's name; `check --show` writes such names, so they are read too."""

# ${NAME} is the shell's own, {{NAME}} is a brace to keep, {NAME} is ours.
_PLACEHOLDER = re.compile(r"\$\{|\{\{([A-Za-z_]\w*)\}\}|\{([A-Za-z_]\w*)\}", re.ASCII)


def values(value: Any) -> tuple[str, ...]:
    """The values of one key, as the text that takes the placeholder's place."""
    if not isinstance(value, list) or not value:
        raise Wrong(f"must be an array of strings or numbers, not {found(value)}")
    for index, item in enumerate(value):
        if not isinstance(item, str | int | float) or _is_endless(item):
            raise Wrong(f"must be a string or a number, not {found(item)}", (index,))
    return tuple(str(item).lower() if isinstance(item, bool) else str(item) for item in value)


def _is_endless(item: object) -> bool:
    return isinstance(item, float) and not math.isfinite(item)


def members(matrix: Mapping[str, tuple[str, ...]]) -> Iterator[dict[str, str]]:
    """Every combination, the last key changing fastest; one empty one for no matrix."""
    for combination in itertools.product(*matrix.values()):
        yield dict(zip(matrix, combination, strict=True))


def count(matrix: Mapping[str, tuple[str, ...]]) -> int:
    return math.prod(len(one) for one in matrix.values())


def member_name(job: str, member: Mapping[str, str]) -> str:
    """The job's name with its member's suffix; anything unsafe in a value becomes "_"."""
    if not member:
        return job
    parts = (
        f"{key}={re.sub(r'[^A-Za-z0-9_.-]', '_', value) or '_'}" for key, value in member.items()
    )
    return f"{job}@{'+'.join(parts)}"


def group_of(name: str) -> str:
    """The part of a name before a matrix's suffix."""
    return name.partition("@")[0]


def fill(value: Any, member: Mapping[str, str]) -> Any:
    """`value` with every placeholder of its strings filled in; Wrong for an unknown one."""
    if isinstance(value, str):
        return _fill_text(value, member)
    if isinstance(value, list):
        return [_at(index, item, member) for index, item in enumerate(value)]
    if isinstance(value, dict):
        return {key: _at(key, item, member) for key, item in value.items()}
    return value


def _at(key: str | int, item: Any, member: Mapping[str, str]) -> Any:
    try:
        return fill(item, member)
    except Wrong as wrong:
        deeper: list[tuple[Path, str]] = [((key, *at), text) for at, text in wrong.problems]
        raise Wrong.all(deeper) from None


def _fill_text(text: str, member: Mapping[str, str]) -> str:
    def replace(match: re.Match[str]) -> str:
        kept, name = match.groups()
        if kept is not None:
            return "{" + kept + "}"
        if name is None:
            return match[0]
        if name not in member:
            raise Wrong(
                f'the matrix has no "{name}"; {unknown(name, member)}; '
                f"write {{{{{name}}}}} for the braces themselves"
            )
        return member[name]

    return _PLACEHOLDER.sub(replace, text)
