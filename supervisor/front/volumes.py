"""`supervise volume`: the named volumes of a state directory, listed and removed.

May import: `errors`, `model`, `supervise.volumes`, `front.{layers,lines}`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from supervisor.errors import SupervisorError

if TYPE_CHECKING:
    from supervisor.supervise.volumes import Volumes

EPILOG = """\
examples:
  supervise volume list
  supervise volume remove cache
"""


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's own verbs."""
    from supervisor.front.layers import place_flags

    verb.epilog = EPILOG
    verbs = verb.add_subparsers(metavar="VERB", required=True)
    listing = verbs.add_parser("list", help="each volume: its name, size, whether it is in use")
    listing.add_argument("--json", action="store_true", help="one volume a line as JSON")
    listing.set_defaults(verb=_list)
    removal = verbs.add_parser("remove", help="remove volumes and all that is in them")
    removal.add_argument("names", metavar="NAME", nargs="+", help="a volume that no job has now")
    removal.set_defaults(verb=_remove)
    for one in (listing, removal):
        place_flags(one)


def _volumes(args: argparse.Namespace) -> Volumes:
    from supervisor.front.layers import state_dir
    from supervisor.supervise.volumes import Volumes

    return Volumes(state_dir(args))


def _list(args: argparse.Namespace) -> int:
    from supervisor.front.lines import size

    found = list(_described(_volumes(args)))
    if args.json:
        for one in found:
            print(json.dumps(one))
    elif found:
        width = max(len("NAME"), *(len(one["name"]) for one in found))
        print(f"{'NAME':{width}}  {'SIZE':>7}  IN USE  PATH")
        for one in found:
            used = "yes" if one["in_use"] else "no"
            print(f"{one['name']:{width}}  {size(one['bytes']):>7}  {used:6}  {one['path']}")
    return 0


def _described(volumes: Volumes) -> Iterator[dict[str, Any]]:
    for name in volumes.names():
        path = volumes.data(name)
        used = {"bytes": _disk_use(path), "in_use": volumes.in_use(name)}
        yield {"name": name, **used, "path": str(path)}


def _disk_use(top: Path) -> int:
    """Bytes that the files take, as du(1) counts them; what goes meanwhile is nothing."""
    seen: dict[tuple[int, int], int] = {}
    for directory, names, files in os.walk(top):
        for name in (*names, *files):
            try:
                status = os.lstat(os.path.join(directory, name))
            except FileNotFoundError:
                continue
            seen[status.st_dev, status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


def _remove(args: argparse.Namespace) -> int:
    """All that can be; the others are told, and the status is 1."""
    volumes, status = _volumes(args), 0
    for name in args.names:
        try:
            volumes.remove(name)
        except SupervisorError as error:
            print(f"supervise: {error}", file=sys.stderr)
            status = 1
    return status
