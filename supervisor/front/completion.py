"""`supervise completion SHELL`: a script for the shell, made of the parser of the command line.

What can be typed is in the script; jobs and instances are asked for when they are to be offered,
by `supervise ps -q`, of the instance that the line names.

May import: `front` (the shells' scripts are in `completion_*.sh` beside it, as templates).
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

SHELLS = ("bash", "zsh", "fish")

EPILOG = """\
It offers verbs, flags, and the jobs of the instance that runs.

examples:
  supervise completion bash > /etc/bash_completion.d/supervise
  supervise completion zsh > ~/.zfunc/_supervise      # a directory of $fpath
  supervise completion fish > ~/.config/fish/completions/supervise.fish
"""


@frozen
class Flag:
    """`takes`: what its value is ("" for none), as a word of usage; `choices`: if it is of few."""

    names: tuple[str, ...]
    takes: str
    choices: tuple[str, ...]
    help: str


@frozen
class Place:
    """Where a line is after some verbs: what may follow."""

    verbs: tuple[str, ...]
    subverbs: tuple[tuple[str, str], ...]
    flags: tuple[Flag, ...]
    takes: str
    """What its arguments are: "JOB", or something else, which is a file then."""

    @property
    def path(self) -> str:
        return " ".join(self.verbs)


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    verb.epilog = EPILOG
    verb.add_argument("shell", choices=SHELLS, help="whose completion it is")
    verb.set_defaults(verb=run)


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    print(script(args.shell), end="")
    return 0


def script(shell: str) -> str:
    """The whole script."""
    from supervisor.front.cli import parser

    found = list(places(parser()))
    template = Path(__file__).with_name(f"completion_{shell}.sh").read_text()
    lines = {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](found)
    return template.replace("#TABLES#\n", "".join(f"{line}\n" for line in lines))


def places(parser: argparse.ArgumentParser, verbs: tuple[str, ...] = ()) -> Iterator[Place]:
    """This one and all below it."""
    below: dict[str, argparse.ArgumentParser] = {}
    helps: dict[str, str] = {}
    flags, takes = [], ""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            below = action.choices
            helps = {one.dest: one.help or "" for one in action._choices_actions}
        elif action.option_strings and action.help is not argparse.SUPPRESS:
            flags.append(_flag(action))
        elif not action.option_strings:
            takes = takes or _takes(action)
    named = tuple((name, helps.get(name, "")) for name in below)
    yield Place(verbs, named, tuple(flags), takes)
    for name, one in below.items():
        yield from places(one, (*verbs, name))


def _flag(action: argparse.Action) -> Flag:
    return Flag(
        tuple(action.option_strings),
        "" if action.nargs == 0 else _takes(action),
        tuple(map(str, action.choices or ())),
        (action.help or "").partition(";")[0],
    )


def _takes(action: argparse.Action) -> str:
    if action.choices:
        return "=" + " ".join(map(str, action.choices))
    return action.metavar if isinstance(action.metavar, str) else action.dest.upper()


def _bash(found: list[Place]) -> Iterator[str]:
    for table, key, text in _tables(found):
        yield f"_supervise_{table}[{_quoted(key)}]={_quoted(text)}"


def _zsh(found: list[Place]) -> Iterator[str]:
    for table, key, text in _tables(found):
        yield f"_supervise_{table}+=({_quoted(key)} {_quoted(text)})"


def _tables(found: list[Place]) -> Iterator[tuple[str, str, str]]:
    """Associative arrays: in which, under which key, is what."""
    for place in found:
        key = f"/{place.path}"
        yield "verbs", key, _words(place)
        yield "flags", key, " ".join(name for flag in place.flags for name in flag.names)
        yield "takes", key, place.takes
        for flag in place.flags:
            for name in flag.names if flag.takes else ():
                yield "takes", f"{key} {name}", flag.takes


def _words(place: Place) -> str:
    return " ".join(name for name, _ in place.subverbs)


def _quoted(text: str) -> str:
    """For a shell, between single quotes (fish needs the backslash doubled as well)."""
    return "'" + text.replace("\\", "\\\\").replace("'", "'\\''") + "'"


def _fish(found: list[Place]) -> Iterator[str]:
    for place in found:
        name = re.sub("[^a-z]", "_", f"/{place.path}")
        yield f"set -g __supervise_below{name} {_words(place)}".rstrip()
        at = f"complete -c supervise -n {_quoted('__supervise_at /' + place.path)}"
        for name, help_text in place.subverbs:
            yield f"{at} -a {name} -d {_quoted(help_text)}"
        if place.takes.startswith("="):
            yield f"{at} -a {_quoted(place.takes[1:])}"
        elif not place.verbs or place.takes not in ("", "JOB"):
            yield f"{at} -F"
        elif place.takes == "JOB":
            yield f"{at} -a '(__supervise_jobs)'"
        for flag in place.flags:
            yield f"{at} {_fish_flag(flag)} -d {_quoted(flag.help)}"


def _fish_flag(flag: Flag) -> str:
    names = [f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in flag.names]
    offered = {
        "": "",
        "JOB": "-x -a '(__supervise_jobs)'",
        "INSTANCE": "-x -a '(__supervise_instances)'",
    }
    if flag.choices:
        return f"{' '.join(names)} -x -a {_quoted(' '.join(flag.choices))}"
    return f"{' '.join(names)} {offered.get(flag.takes, '-r -F')}".strip()
