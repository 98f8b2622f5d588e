"""Tables of text: columns as wide as they must be, cut where a terminal is narrower.

May import: `front.lines`.
"""

from __future__ import annotations

from collections.abc import Sequence

from attrs import frozen

from supervisor.front.lines import BOLD, paint

GAP = "  "
LEAST = 8
"""Columns that one which shrinks keeps."""


@frozen
class Column:
    """`right`: aligned so, as numbers are.  `shrinks`: its end may be cut off."""

    head: str
    right: bool = False
    shrinks: bool = False


Row = tuple[Sequence[str], str]
"""Its cells, clean already, and its colour (`front.lines`)."""


def laid_out(
    columns: Sequence[Column], rows: Sequence[Row], *, width: int | None, colour: bool
) -> str:
    """The table, with its head, ready to be printed; `width` None: as wide as it comes."""
    heads = [column.head for column in columns]
    lines = [heads, *(list(cells) for cells, _ in rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns))]
    if width is not None:
        _shrink(columns, widths, width)
    head = paint(_line(columns, heads, widths), BOLD, colour)
    body = [paint(_line(columns, cells, widths), tint, colour) for cells, tint in rows]
    return "".join(f"{line}\n" for line in (head, *body))


def _shrink(columns: Sequence[Column], widths: list[int], width: int) -> None:
    """Take from the widest that may shrink until the table fits, or nothing is left to take."""
    while sum(widths) + len(GAP) * (len(widths) - 1) > width:
        able = [at for at, one in enumerate(columns) if one.shrinks and widths[at] > LEAST]
        if not able:
            return
        widths[max(able, key=lambda at: widths[at])] -= 1


def _line(columns: Sequence[Column], cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [
        _cut(cell, width).rjust(width) if column.right else _cut(cell, width).ljust(width)
        for column, cell, width in zip(columns, cells, widths, strict=True)
    ]
    return GAP.join(padded).rstrip()


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else cell[: width - 1] + "…"
