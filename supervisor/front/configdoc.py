"""docs/config.md, written from the table of settings: `python -m supervisor.front.configdoc`.

May import: the tables of `front`.  A test holds the file against `reference()`.
"""

# ruff: noqa: E501  (a row of a Markdown table is one line)
from __future__ import annotations

from collections.abc import Iterable, Iterator

from supervisor.front.matrix import MOST_MEMBERS
from supervisor.front.schema import IMAGES, JOB, SUPERVISOR, Setting

_HEAD = """\
# Configuration reference

<!-- Made by `python -m supervisor.front.configdoc > docs/config.md`; edit supervisor/front/schema.py. -->

`supervise FILE` reads one TOML file with these tables:

| table | holds |
|---|---|
| `[supervisor]` | the instance: where it keeps its state, its policies, how much may run at once |
| `[images]` | where images come from (images.md) |
| `[policies.NAME]` | the arguments of one policy; each policy says which (policies.md) |
| `[defaults]` | settings merged under every job, key by key: a job's `limits.memory` replaces that of the defaults and leaves its `limits.pids` |
| `[jobs.NAME]` | one job; NAME has at most 64 letters, digits, `_`, `-`, `.` |

Everything wrong with a file is told at once, each with its line, and nothing is started.
`supervise check FILE` only checks, `supervise check --show FILE` prints the file as it is
understood: defaults merged, paths resolved, every matrix expanded. Relative paths start at the
file's directory.

*Sizes* are strings with a unit (`K M G T`, base 1024) or plain bytes. *Durations* are strings of
numbers with units (`ms s m h d`) or plain seconds. `"max"` takes a limit of the defaults away.
The last column names the flag of `supervise run`.
"""

_HOOKS = """\
## Hooks

Also keys of a job or of the defaults. A policy is given as in `plugins`; it need not stand there,
and if it does not, no other job meets it. Its arguments are in `[policies.NAME]` all the same.

"""

_ACTIONS = """\
## Actions

A hook (`on_memory_limit` and the others) is a policy's name, which then decides alone, or one of
these tables. Without either, every plugin is asked in the order of `plugins`.

| action | arguments | does |
|---|---|---|
| `raise` | `to`; `limit`: `"memory"` (default), `"memory_high"`, `"swap"`, `"pids"` (default of `on_pids_limit`), `"cpus"`, `"cpu_weight"`, `"disk"` (default of `on_disk_limit`) | raises a limit of the running job |
| `retry` | `limits`: new values of those; `after`: a duration | runs the job again once it has ended |
| `kill` | `why`; `now`: without the grace | stops the job; its reason is `policy` |
| `signal` | `signal` | sends it to every process of the job |
| `freeze` | | freezes every process of the job |
| `notify` | `message` | tells the operator |
| `stop-all` | `why` | stops every job of the instance |
| `ignore` | | nothing, and nobody else is asked |

When a run has ended (`on_exit`) only `retry`, `notify`, `stop-all` and `ignore` make sense, and
the others are refused. On the command line: `--on-memory-limit raise:1G`,
`--on-oom-kill retry:memory=1G,after=10s`, `--on-timeout signal:HUP`, `--on-exit ignore`.
"""

_MATRIX = f"""\
## Matrix

    [jobs.compress]
    command = ["gzip", "-{{level}}", "/data/in.log"]
    matrix = {{ level = [1, 6, 9] }}

makes the jobs `compress@level=1`, `compress@level=6` and `compress@level=9`. With several keys
there is one job for each combination (`build@os=debian+arch=x86`); a character that is not safe
in a file's name becomes `_`. `after = ["compress"]` waits for all of them,
`after = ["compress@level=6"]` for one. There are at most {MOST_MEMBERS} jobs.

In a job with a matrix, `{{level}}` is filled in and an unknown `{{name}}` is an error;
`{{{{name}}}}` stands for `{{name}}`, and `${{name}}` is left to the shell. In a job without one
braces mean nothing.

## Reserved

`schedule` is not available in this version. It is refused, never ignored.
"""


def reference() -> str:
    """The whole page."""
    top = [one for one in JOB.settings if not _is_hook(one)]
    hooks = [one for one in JOB.settings if _is_hook(one)]
    parts = [
        _HEAD,
        "## `[supervisor]`\n\n" + _table(SUPERVISOR.settings, flags=False),
        "## `[images]`\n\n" + _table(IMAGES.settings, flags=False),
        "## `[jobs.NAME]` and `[defaults]`\n\n" + _table(top),
        _HOOKS + _table(hooks),
        _ACTIONS,
        _MATRIX,
    ]
    return "\n".join(parts)


def _is_hook(setting: Setting) -> bool:
    return setting.key.startswith("on_")


def _table(settings: Iterable[Setting], *, flags: bool = True) -> str:
    return "".join(f"{line}\n" for line in _rows(settings, flags))


def _rows(settings: Iterable[Setting], flags: bool) -> Iterator[str]:
    flag_column = (" flag |", "---|") if flags else ("", "")
    yield "| key | what | value | default | example |" + flag_column[0]
    yield "|---|---|---|---|---|" + flag_column[1]
    for one in settings:
        key = one.key.replace("*", "NAME")
        cells = [f"`{key}`", one.help, one.kind.what, _default(one.default), _code(one.example)]
        if flags:
            cells.append(f"`--{one.flag}`" if one.flag else "")
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(text: str) -> str:
    """A default that is TOML as code, one that is prose as it is."""
    return _code(text) if text[:1] in tuple('"[0123456789') or text in _BOOLEANS else text


_BOOLEANS = ("true", "false")


def _code(text: str) -> str:
    shown = text.replace("\n", "⏎")
    return f"`{shown}`" if text else ""


if __name__ == "__main__":
    print(reference(), end="")
