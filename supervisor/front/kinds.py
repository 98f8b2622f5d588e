"""The kinds of single values a setting can have: how each is checked and how a flag writes it.

May import: `errors`, `model`, `image.{platforms,reference}`, `front.problems`.  A parser takes what
TOML gave and the `Context`, and returns the checked value or raises `Wrong`, which says what is
allowed and what was found.  Values made of several (mounts, hooks) are in `front.compounds` and
`front.actions`.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import evolve, field, frozen

from supervisor.front.problems import Wrong, found, unknown
from supervisor.image import platforms, reference
from supervisor.image.platforms import Platform
from supervisor.model import units

PAGE = 4096
SINKS = ("files", "journald")

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}", re.ASCII)
"""Names of instances and jobs: safe as a file's, a cgroup's and a shell word."""
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,62}[A-Za-z0-9])?", re.ASCII)
_ACCOUNT = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.@-]*\$?", re.ASCII)
_CPU_RANGE = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?", re.ASCII)


def host_memory() -> int:
    """The machine's memory in bytes (MemTotal of /proc/meminfo)."""
    text = Path("/proc/meminfo").read_text(encoding="ascii")
    return int(text.split("MemTotal:")[1].split()[0]) * 1024


@frozen
class Context:
    """What a value may depend on beside itself.

    `base` is the directory of the configuration file, `memory` tells the host's bytes, `uid` and
    `environment` decide where an instance keeps its state by default.  `defaults`: where relative
    paths in [defaults] start, if not at `base`.
    """

    base: Path
    memory: Callable[[], int] = host_memory
    uid: int = field(factory=os.geteuid)
    environment: Mapping[str, str] = field(factory=lambda: dict(os.environ))
    defaults: Path | None = None

    def of(self, origin: tuple[str | int, ...]) -> Context:
        """The context of what stands at `origin` in the document."""
        if self.defaults is None or origin[:1] != ("defaults",):
            return self
        return evolve(self, base=self.defaults)


Parser = Callable[[Any, Context], Any]


@frozen
class Kind:
    """One kind of value.

    `what` describes it for people; `metavar` names it in `--help`; `raw` turns a flag's text into
    what TOML would have given; `many`: the flag may be repeated, each adds to a list; `bare`: what
    the flag alone stands for, if it may stand alone.
    """

    what: str
    parse: Parser
    metavar: str
    raw: Callable[[str], Any] = str
    many: bool = False
    bare: str = ""


def must(what: str, value: object, why: str = "") -> Wrong:
    """The usual complaint: what is allowed, what was found and, if that helps, why not."""
    return Wrong(f"must be {what}, not {found(value)}" + (f": {why}" if why else ""))


def string(value: Any, _context: Context) -> str:
    if not isinstance(value, str):
        raise must("a string", value, f'write "{value}"' if isinstance(value, int) else "")
    return value


def boolean(value: Any, _context: Context) -> bool:
    if not isinstance(value, bool):
        raise must("true or false", value)
    return value


def keep(value: Any, context: Context) -> str:
    """ "never", "on-failure" or "always"; false and true stand for the first and the last."""
    if isinstance(value, bool):
        return "always" if value else "never"
    text: str = one_of("never", "on-failure", "always")(value, context)
    return text


def sinks(value: Any, context: Context) -> tuple[str, ...]:
    """Where a log goes: one place, or an array of them; each once, in one order."""
    one = one_of(*SINKS)
    found = each(value, one, context) if isinstance(value, list) else (one(value, context),)
    if not found:
        raise must("an array with a place in it", value)
    return tuple(word for word in SINKS if word in found)


def one_of(*words: str, later: tuple[str, ...] = ()) -> Parser:
    """One of `words`; those in `later` get their own message."""
    allowed = " or ".join(f'"{word}"' for word in words)

    def parse(value: Any, _context: Context) -> str:
        if isinstance(value, str) and value in words:
            return value
        if isinstance(value, str) and value in later:
            raise Wrong(f'"{value}" is not available in this version; allowed: {allowed}')
        raise must(allowed, value)

    return parse


def integer(low: int, high: int, *, unbounded: bool = False) -> Parser:
    """A whole number; "max" (None) too where `unbounded`."""
    what = f"an integer from {low} to {high}" + (' or "max"' if unbounded else "")

    def parse(value: Any, _context: Context) -> int | None:
        if unbounded and value == "max":
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise must(what, value)
        return value

    return parse


def number(low: float, high: float, *, unbounded: bool = False) -> Parser:
    """A number, whole or not; "max" (None) too where `unbounded`."""
    what = f"a number from {low:g} to {high:g}" + (' or "max"' if unbounded else "")

    def parse(value: Any, _context: Context) -> float | None:
        if unbounded and value == "max":
            return None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise must(what, value)
        if not low <= value <= high:  # false for nan
            raise must(what, value)
        return float(value)

    return parse


def size(
    low: int = 0, *, share: bool = False, unbounded: bool = False, high: int = units.LARGEST_SIZE
) -> Parser:
    """Bytes; a share of the host's memory as "50%" where `share`; "max" (None) if `unbounded`."""
    what = 'a size like "512M"' + (', "50%"' if share else "") + (', "max"' if unbounded else "")

    def parse(value: Any, context: Context) -> int | None:
        if unbounded and value == "max":
            return None
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise must(what, value)
        try:
            result = value if isinstance(value, int) else _size_or_share(value, share, context)
        except ValueError as err:
            raise must(what, value, str(err)) from None
        if not low <= result <= high:
            bound = f"at least {units.size_text(low)}" if result < low else f"at most {high}"
            raise must(what, value, bound)
        return result

    return parse


def _size_or_share(text: str, share: bool, context: Context) -> int:
    part = units.percent(text) if share else None
    if part is None:
        return units.size(text)
    return int(context.memory() * part) // PAGE * PAGE


def part(*, unbounded: bool = False) -> Parser:
    """A share of a whole, from "1%" to "100%", as 0.01 to 1; "max" (None) too if `unbounded`."""
    what = 'a share like "15%"' + (' or "max"' if unbounded else "")

    def parse(value: Any, _context: Context) -> float | None:
        if unbounded and value == "max":
            return None
        try:
            share = units.percent(value) if isinstance(value, str) else None
        except ValueError as err:
            raise must(what, value, str(err)) from None
        if share is None:
            raise must(what, value)
        if share < 0.01:
            raise must(what, value, "at least 1%")
        return share

    return parse


def duration(low: float = 0.0, *, unbounded: bool = False) -> Parser:
    """Seconds from "10s" or a plain number; "max" (None) too where `unbounded`."""
    what = 'a duration like "500ms", "10s", "1h30m"' + (' or "max"' if unbounded else "")

    def parse(value: Any, _context: Context) -> float | None:
        if unbounded and value == "max":
            return None
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise must(what, value)
        try:
            seconds = units.duration(value) if isinstance(value, str) else units.bounded(value)
        except (ValueError, OverflowError) as err:
            raise must(what, value, str(err)) from None
        if seconds < low:
            raise must(what, value, f"at least {units.duration_text(low)}")
        return seconds

    return parse


def command(value: Any, context: Context) -> tuple[str, ...]:
    """An argv: an array of strings, or one string split like a shell's words."""
    what = "an array of strings, or one string"
    if isinstance(value, str):
        try:
            argv = shlex.split(value)
        except ValueError as err:
            why = str(err)
            raise must(what, value, why[:1].lower() + why[1:]) from None
    elif isinstance(value, list):
        argv = list(each(value, string, context))
    else:
        raise must(what, value)
    if not argv or not argv[0]:
        raise must(what, value, "it names no program")
    return tuple(argv)


def entrypoint(value: Any, context: Context) -> tuple[str, ...]:
    """The beginning of an argv, as `command`; empty for none."""
    return () if value in ([], "") else command(value, context)


def script(value: Any, context: Context) -> tuple[str, ...]:
    """The argv that runs a shell script, stopping at the first error or unset variable."""
    text = string(value, context)
    if not text.strip():
        raise Wrong("is empty")
    return ("/bin/sh", "-eu", "-c", text)


def each(value: Any, one: Parser, context: Context, what: str = "an array") -> tuple[Any, ...]:
    """Every element of an array through the parser `one`; all their problems at once."""
    if not isinstance(value, list):
        raise must(what, value)
    problems: list[tuple[tuple[str | int, ...], str]] = []
    results = []
    for index, item in enumerate(value):
        try:
            results.append(one(item, context))
        except Wrong as wrong:
            problems += [((index, *at), message) for at, message in wrong.problems]
    if problems:
        raise Wrong.all(problems)
    return tuple(results)


def array(one: Parser, what: str) -> Parser:
    return lambda value, context: each(value, one, context, what)


def name(value: Any, _context: Context) -> str:
    """A name that is safe as a file's: of letters, digits, "_", "-" and "."."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise must('a name of at most 64 letters, digits, "_", "-", "."', value)
    return value


def host_path(value: Any, context: Context) -> str:
    """A path of the host; a relative one starts at the configuration's directory."""
    text = string(value, context)
    if not text:
        raise must("a path", value)
    return os.path.normpath(context.base / text)


def job_path(value: Any, context: Context) -> str:
    """A path inside the job: absolute, and without "..", which could lead out of a root."""
    text = string(value, context)
    if not text.startswith("/"):
        raise must("an absolute path", value)
    if ".." in text.split("/"):
        raise must('a path without ".."', value)
    return "/" + os.path.normpath(text).lstrip("/")


def root(value: Any, context: Context) -> str:
    """A reference (`image.reference`) in its one form, relative paths made absolute."""
    text = string(value, context)
    if text.startswith(("/", "./", "../")) or text in (".", ".."):
        return host_path(text, context)
    try:
        return str(reference.parse(text, context.base))
    except ValueError as error:
        raise Wrong(f"{found(value)}: {error}; a root is {reference.FORMS}") from None


def platform(value: Any, context: Context) -> Platform:
    """As indexes of images name them."""
    text = string(value, context)
    try:
        return platforms.parse(text)
    except ValueError as err:
        raise must('a platform like "linux/amd64"', value, str(err)) from None


def plugin(value: Any, context: Context) -> str:
    """A bundled or installed policy's name, or the path of a file (with a "/" or ".py")."""
    text = string(value, context)
    if "/" in text or text.endswith(".py"):
        if not text.endswith(".py"):
            raise must("a policy's name or the path of a .py file", value)
        return host_path(text, context)
    return str(name(text, context))


def cgroup_path(value: Any, context: Context) -> str:
    """The path of a cgroup as /proc/self/cgroup writes it: from the hierarchy's root."""
    return job_path(value, context)


def account(value: Any, context: Context) -> tuple[str, str | None]:
    """A user, or a user and a group: names or numbers."""
    if isinstance(value, int) and not isinstance(value, bool):
        return _identity(str(value)), None
    user, colon, group = string(value, context).partition(":")
    return _identity(user), _identity(group) if colon else None


def account_group(value: Any, context: Context) -> str:
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return _identity(str(value) if is_number else string(value, context))


def _identity(text: str) -> str:
    """A user's or group's name or number, as text."""
    if not _ACCOUNT.fullmatch(text):
        raise Wrong(f"{found(text)} is no name or number of a user or group")
    if text.isdigit() and int(text) > 2**32 - 2:  # (uid_t) -1 means "leave it" to setresuid(2)
        raise Wrong(f"{found(text)} is larger than any user or group number (2^32 - 2)")
    return text


def host_name(value: Any, _context: Context) -> str:
    if not isinstance(value, str) or not _HOST_NAME.fullmatch(value):
        raise must('a host name: at most 64 letters, digits, "-", "."', value)
    return value


def signal_name(value: Any, context: Context) -> str:
    """A signal's name as `kill -l` prints it, "SIG" in front or not; or its number."""
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return signal.Signals(value).name.removeprefix("SIG")
        except ValueError:
            raise must('a signal like "TERM"', value) from None
    text = string(value, context).upper().removeprefix("SIG")
    names = {one.name.removeprefix("SIG") for one in signal.Signals}
    if text not in names:
        raise must('a signal like "TERM"', value, unknown(text, sorted(names)))
    return text


def cpuset(value: Any, context: Context) -> str:
    """A list of CPUs as cpuset.cpus takes it: "0-2,4"."""
    text = string(value, context)
    for part in text.split(","):
        match = _CPU_RANGE.fullmatch(part.strip())
        if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
            raise must('a list of CPUs like "0-2,4"', value)
    return text.replace(" ", "")


def word(value: Any, words: tuple[str, ...]) -> str:
    """One of many words, with the nearest one named when it is none of them."""
    if not isinstance(value, str) or value not in words:
        raise Wrong(f"{found(value)} is not known; {unknown(str(value), words)}")
    return value


def scalar(text: str) -> Any:
    """A flag's text as TOML would give a number or boolean; itself if it is neither."""
    if text in ("true", "false"):
        return text == "true"
    for convert in (int, float):
        try:
            return convert(text) if len(text) <= 40 else text
        except ValueError:
            continue
    return text
