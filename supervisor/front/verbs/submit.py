"""`supervise submit`: give a running instance a job that its configuration does not have.

May import: `errors`, `front`.  The flags are those of `supervise run`, made from the same table.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from supervisor.errors import ConfigError
from supervisor.front.verbs.client import Client, Refused
from supervisor.front.verbs.place import instance_flags
from supervisor.front.verbs.steer import raise_problems

EPILOG = """\
Its name is printed on stdout, nothing else is.  FILE ends in .toml or .json, or is - for stdin; it
has one job, as a table [jobs.NAME] of the configuration has it, and flags go before what it says.
The [defaults] of the instance's configuration are under it.  Paths are relative to the file, or to
the working directory.

examples:
  supervise submit --memory 256M --name sort-log -- sort -o /tmp/sorted /var/log/syslog
  supervise submit --wait job.toml
  echo '{"command": ["make", "check"], "limits": {"pids": 64}}' | supervise submit --name check -
"""

LARGEST = 1024 * 1024
ENDINGS = (".toml", ".json")
"""Of a file's name; what else stands alone is a command."""


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's flags."""
    from supervisor.front.flags import add_job_flags

    verb.usage = "supervise submit [FLAG ...] FILE | supervise submit [FLAG ...] -- COMMAND ..."
    verb.epilog = EPILOG
    add_job_flags(verb, plugins=False)
    verb.add_argument("--name", metavar="NAME", help="what it is called (default: its program's)")
    verb.add_argument(
        "--after", metavar="JOB", action="append", default=[],
        help="start when this job has ended as it should; may be repeated",
    )  # fmt: skip
    verb.add_argument("--priority", metavar="N", type=int, help="the higher one starts first")
    verb.add_argument("--wait", action="store_true", help="wait for its end, and exit as run would")
    verb.add_argument("--json", action="store_true", help="the answer, or the records, as JSON")
    verb.add_argument("command", metavar="COMMAND", nargs="*", help=argparse.SUPPRESS)
    instance_flags(verb)
    verb.set_defaults(verb=run)


def run(args: argparse.Namespace) -> int:
    """Hand it in; with --wait, the status that `run` would have ended with."""
    body = described(args)
    client = Client.of(args)
    try:
        found = client.post("jobs", body=body)
    except Refused as refused:
        raise_problems(refused)
    for line in found["records"] if args.json and args.wait else ():
        print(json.dumps(line))
    if not args.json:
        print(*found["jobs"], sep="\n")
    elif not args.wait:
        print(json.dumps(found))
    return _status(found["records"]) if args.wait else 0


def described(args: argparse.Namespace) -> dict[str, Any]:
    """What is sent.  Raises ConfigError."""
    from supervisor.front.flags import job_name, table_from_flags

    name, base = args.name, Path.cwd()
    table: dict[str, Any] = {}
    command = args.command
    if len(command) == 1 and (command[0] == "-" or command[0].endswith(ENDINGS)):
        table, name, base = _of_file(command[0], args.name)
        command = []
    table = _merged(table, table_from_flags(args))
    if args.after:
        table["after"] = args.after
    if args.priority is not None:
        table["priority"] = args.priority
    if command:
        table["command"] = command
    unique = name is None
    given = table.get("command") or table.get("root") or ""
    words = given if isinstance(given, list) else str(given).split()
    return {
        "name": name or job_name([str(word) for word in words]),
        "job": table,
        "base": str(base),
        "unique": unique,
        "wait": args.wait,
    }


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Flags over a file, table by table."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _of_file(file: str, name: str | None) -> tuple[dict[str, Any], str | None, Path]:
    """The job's table, its name if it has one, and where its paths start."""
    path = Path(file)
    try:
        with sys.stdin.buffer if file == "-" else path.open("rb") as stream:
            raw = stream.read(LARGEST + 1)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise ConfigError([f"{file}: cannot read the job: {why}"]) from error
    if len(raw) > LARGEST:
        raise ConfigError([f"{file}: is larger than {LARGEST // 1024} KiB"])
    table = _table(file, raw)
    stem = None if file == "-" else path.name.partition(".")[0] or None
    base = Path.cwd() if file == "-" else Path(os.path.abspath(path)).parent
    if set(table) == {"jobs"} and isinstance(table["jobs"], dict) and len(table["jobs"]) == 1:
        ((stem, table),) = table["jobs"].items()
        if not isinstance(table, dict):
            raise ConfigError([f"{file}: jobs.{stem} must be a table"])
    own = table.pop("name", None)
    if own is not None and not isinstance(own, str):
        raise ConfigError([f"{file}: name must be a string"])
    return table, name or own or stem, base


def _table(file: str, raw: bytes) -> dict[str, Any]:
    import tomllib

    try:
        text = raw.decode("utf-8-sig")
        if file.endswith(".json") or text.lstrip().startswith("{"):
            table = json.loads(text)
        else:
            table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{file}: {error}"]) from error
    if not isinstance(table, dict):
        raise ConfigError([f"{file}: must be a table, one job"])
    return table


def _status(records: list[Mapping[str, Any]]) -> int:
    """Of one job, the status that `run` would have had; of several, whether all ended well."""
    from supervisor.front.exits import status_of

    if len(records) == 1:
        return status_of(records[0])
    return int(not all(record["expected"] for record in records))
