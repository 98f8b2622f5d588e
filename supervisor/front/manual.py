"""The man page and docs/operations.md, both from the same: `make docs` writes them.

Verbs and flags are those of the parser, settings those of `schema`; what a machine cannot know is
written once, in `manual_text`.  Parts are put together here as Markdown of a small kind, which is
what docs/operations.md has; `manual_roff` turns it into man(7).  A test holds the files against
`operations()` and `man_page()`.

May import: `front.cli`, the tables of `front`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from attrs import frozen

from supervisor import __version__
from supervisor.front import manual_text as text
from supervisor.front.cli import VERBS, parser
from supervisor.front.manual_roff import header, roff
from supervisor.front.schema import IMAGES, JOB, SUPERVISOR, Setting


@frozen
class Flag:
    """An option or argument as the manual tells of it."""

    name: str
    help: str


@frozen
class Verb:
    """A verb, or one below another (`image pull`)."""

    name: str
    summary: str
    usage: str
    flags: tuple[Flag, ...]
    epilog: str
    below: tuple[Verb, ...]


def verbs() -> list[Verb]:
    """All of them, in the order of the table of verbs."""
    return _below(parser(), "")


def _below(of: argparse.ArgumentParser, prefix: str) -> list[Verb]:
    found = []
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            told = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, one in action.choices.items():
                summary = told.get(name) or VERBS.get(name, ("",))[0]
                found.append(_verb(f"{prefix}{name}", summary, one))
    return found


def _verb(name: str, summary: str, of: argparse.ArgumentParser) -> Verb:
    flags = tuple(
        Flag(_flag(action), _help(of, action))
        for action in of._actions
        if action.help is not argparse.SUPPRESS
        and not isinstance(action, (argparse._HelpAction, argparse._SubParsersAction))
    )
    below = tuple(_below(of, f"{name} "))
    usage = of.usage or " ".join(["supervise", name, *map(_in_usage, _shown(of))])
    if below and not of.usage:
        usage = f"supervise {name} {' | '.join(one.name.rpartition(' ')[2] for one in below)} ..."
    return Verb(name, summary, usage, flags, (of.epilog or "").strip("\n"), below)


def _shown(of: argparse.ArgumentParser) -> list[argparse.Action]:
    """Options first; not those that only help."""
    own = [
        one
        for one in of._actions
        if not isinstance(one, (argparse._HelpAction, argparse._SubParsersAction))
        and one.help is not argparse.SUPPRESS
    ]
    return sorted(own, key=lambda one: not one.option_strings)


def _in_usage(action: argparse.Action) -> str:
    if action.option_strings:
        word = " ".join(filter(None, [action.option_strings[-1], _value(action)]))
        return word if action.required else f"[{word}]"
    word = _value(action)
    many = {"*": f"[{word} ...]", "+": f"{word} [{word} ...]", "?": f"[{word}]"}
    return many.get(str(action.nargs), word)


def _flag(action: argparse.Action) -> str:
    value = _value(action)
    if not action.option_strings:
        return value
    return ", ".join(" ".join(filter(None, [word, value])) for word in action.option_strings)


def _value(action: argparse.Action) -> str:
    """What stands for the value; "" for a switch."""
    if action.option_strings and action.nargs == 0:
        return ""
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices:
        return "|".join(map(str, action.choices))
    return action.dest.upper()


def _help(of: argparse.ArgumentParser, action: argparse.Action) -> str:
    shown: Any = of._get_formatter()._expand_help(action) if action.help else ""
    return " ".join(str(shown).split())


# Parts in Markdown.


def _section(title: str, body: str, level: int = 2) -> str:
    return f"{'#' * level} {title}\n\n{body.rstrip().lstrip(chr(10))}\n"


def _terms(pairs: Iterable[tuple[str, str]]) -> str:
    """A list of terms: "- `TERM`: what it is"."""
    return "\n".join(f"- `{term}`: {what}" for term, what in pairs)


def _told(verb: Verb, level: int) -> Iterator[str]:
    parts = [f"{verb.summary[:1].upper()}{verb.summary[1:]}.", f"    {verb.usage}"]
    if verb.flags:
        parts.append(_terms((flag.name, flag.help or "see above") for flag in verb.flags))
    if verb.epilog:
        parts.append("\n".join(f"    {line}".rstrip() for line in verb.epilog.splitlines()))
    yield _section(verb.name, "\n\n".join(parts), level)
    for one in verb.below:
        yield from _told(one, level + 1)


def _every_verb(level: int) -> str:
    return "\n".join(part for verb in verbs() for part in _told(verb, level))


def _settings(settings: Iterable[Setting]) -> str:
    return _terms(
        (one.key.replace("*", "NAME"), f"{one.help} Default: {one.default or 'none'}.")
        for one in settings
    )


def _endings() -> str:
    return "\n\n".join(f"{whose}:\n\n{_terms(rows)}" for whose, rows in text.EXIT)


def operations() -> str:
    """docs/operations.md, whole."""
    night = [_section(title, body) for title, body, _ in text.OPERATIONS]
    return "\n".join(
        [
            text.HEAD,
            *night,
            _section("The verbs", f"{text.VERBS}\n\n{_verb_table()}\n\n{_every_verb(3)}"),
            _section("Exit statuses", _endings()),
            _section("Signals", _terms(text.SIGNALS)),
            _section("Files", _terms(text.FILES)),
            _section("Environment", _terms(text.ENVIRONMENT)),
        ]
    )


def _verb_table() -> str:
    rows = "\n".join(f"| [`{verb.name}`](#{verb.name}) | {verb.summary} |" for verb in verbs())
    return f"| verb | |\n|---|---|\n{rows}"


def man_page() -> str:
    """supervise.1, whole."""
    parts = [
        _section("Synopsis", text.SYNOPSIS),
        _section("Description", text.DESCRIPTION),
        _section("Verbs", f"{text.VERBS}\n\n{_every_verb(3)}"),
        *(_section(title, body) for title, body, in_man in text.OPERATIONS if in_man),
        _section("Configuration", text.CONFIGURATION),
        _section("[supervisor]", _settings(SUPERVISOR.settings), 3),
        _section("[images]", _settings(IMAGES.settings), 3),
        _section("[jobs.NAME] and [defaults]", _settings(JOB.settings), 3),
        _section("Exit status", _endings()),
        _section("Signals", _terms(text.SIGNALS)),
        _section("Files", _terms(text.FILES)),
        _section("Environment", _terms(text.ENVIRONMENT)),
        _section("See also", text.SEE_ALSO),
    ]
    return header(__version__, text.NAME) + roff("\n".join(parts))


if __name__ == "__main__":
    for path, whole in (("docs/supervise.1", man_page), ("docs/operations.md", operations)):
        Path(path).write_text(whole(), encoding="utf-8")
