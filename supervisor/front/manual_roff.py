r"""Markdown of a small kind as man(7): headings, paragraphs, lists of terms, code, tables of two.

What is known: `#` headings of three levels, paragraphs, "- `term`: text" lists and plain lists,
code that is fenced or indented, tables, `code`, **bold**, *italic* and [links](...).  Comments are
left out.  May import: nothing of ours.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator
from itertools import takewhile

DATE = "2026-11-28"
"""Of the text, not of the day on which it was made: the same source is the same page."""

WIDTH = 78
TERM = re.compile(r"- `([^`]+)`: (.*)", re.DOTALL)
SPAN = re.compile(r"`([^`]+)`|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*|\[([^\]]*)\]\([^)]*\)")


def header(version: str, summary: str) -> str:
    """What a page begins with; `summary` is what whatis(1) shows."""
    made = '.\\" Made by `make docs` from the parser, the table of settings and manual_text.py.\n'
    title = f'.TH SUPERVISE 1 "{DATE}" "supervise {version}" "User Commands"\n'
    return f"{made}{title}.SH NAME\nsupervise \\- {_text(summary)}\n"


def roff(markdown: str) -> str:
    """The page's body.  Sections are `##`, and so on."""
    lines = re.sub(r"<!--.*?-->\n?", "", markdown, flags=re.DOTALL).splitlines()
    out: list[str] = []
    while lines:
        block = list(_block(lines))
        headed = out and out[-1].startswith((".SH", ".SS"))
        out += block[1:] if headed and block[:1] == [".PP"] else block
    return "\n".join(out) + "\n"


def _block(lines: list[str]) -> Iterator[str]:
    """Take what belongs together from the front of `lines`, and give its man(7)."""
    first = lines[0]
    if not first:
        del lines[0]
    elif first.startswith("#"):
        yield _heading(lines.pop(0))
    elif first.startswith("```"):
        del lines[0]
        yield from _code(_take(lines, lambda line: not line.startswith("```")))
        del lines[0]
    elif first.startswith("    "):
        yield from _code([line[4:] for line in _take(lines, lambda line: line[:4] == "    ")])
    elif first.startswith("|"):
        yield from _rows(_take(lines, lambda line: line[:1] == "|"))
    elif first.startswith("- "):
        items = "\n".join(_take(lines, lambda line: line.startswith(("- ", "  "))))
        yield from _items(re.split(r"\n(?=- )", items))
    else:
        yield from (".PP", _text(" ".join(_take(lines, lambda line: bool(line)))))


def _take(lines: list[str], fits: Callable[[str], bool]) -> list[str]:
    taken = list(takewhile(fits, lines))
    del lines[: len(taken)]
    return taken


def _heading(line: str) -> str:
    marks, _, title = line.partition(" ")
    told = _escaped(title.replace("`", "").replace('"', ""))
    return f'.SH "{told.upper()}"' if marks == "##" else f'.SS "{told}"'


def _rows(lines: list[str]) -> Iterator[str]:
    """A table: its first column is the term.  The two lines of its head say nothing here."""
    for row in lines[2:]:
        term, _, rest = row.strip("| ").partition(" | ")
        yield from _term(_spans(term), rest.replace(" | ", "; "))


def _items(items: list[str]) -> Iterator[str]:
    for item in items:
        term = TERM.fullmatch(item)
        if term:
            yield from _term(f"\\fB{_escaped(term[1], code=True)}\\fR", term[2])
        else:
            yield from (".IP \\(bu 2", _text(item.removeprefix("- ")))


def _term(term: str, told: str) -> Iterator[str]:
    yield from (".TP", _guarded(term), _text(told))


def _text(told: str) -> str:
    """A paragraph, in lines of such a length as readers of the source expect."""
    whole = _spans(" ".join(told.split()))
    lines = textwrap.wrap(whole, WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(map(_guarded, lines)) or "\\&"


def _guarded(line: str) -> str:
    """A line that begins with a dot or a quote would be a request."""
    return f"\\&{line}" if line.startswith((".", "'")) else line


def _code(lines: list[str]) -> Iterator[str]:
    shown = [_guarded(_escaped(line, code=True)) for line in lines]
    yield from (".PP", ".in +4n", ".EX", *shown, ".EE", ".in")


def _spans(told: str) -> str:
    done, at = "", 0
    for span in SPAN.finditer(told):
        done += _escaped(told[at : span.start()])
        code, bold, italic, link = span.groups()
        if code is not None:
            done += f"\\fB{_escaped(code, code=True)}\\fR"
        elif bold is not None:
            done += f"\\fB{_escaped(bold)}\\fR"
        elif italic is not None:
            done += f"\\fI{_escaped(italic)}\\fR"
        else:
            done += _escaped(link.replace("`", ""))
        at = span.end()
    return done + _escaped(told[at:])


GLYPHS = {"…": "...", "→": "->", "⏎": " "}


def _escaped(told: str, *, code: bool = False) -> str:
    """groff_char(7): in code a hyphen is the minus that can be copied, and so are ` ' ^ ~."""
    told = told.replace("\\", "\\e")
    for glyph, plain in GLYPHS.items():
        told = told.replace(glyph, plain)
    if not code:
        return told
    for char, glyph in {"-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti"}.items():
        told = told.replace(char, glyph)
    return told
