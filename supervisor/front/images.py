"""`supervise image`: what is in the store of images, and how it gets there and goes.

Digests and JSON go to stdout, for scripts; how it goes on, and what to know, to stderr.

May import: `errors`, `model`, `image`, `front.{config,kinds,lines,live,pulling,settings}`, trio.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import asdict, frozen

from supervisor.errors import ConfigError, ImageError
from supervisor.front.lines import clean, duration, size

if TYPE_CHECKING:
    from supervisor.front.pulling import Pulling
    from supervisor.front.settings import ImageSettings
    from supervisor.image.collect import Collected
    from supervisor.image.install import Choice
    from supervisor.image.reference import File, Local, Remote
    from supervisor.image.store import Store, Stored
    from supervisor.model import Image

EPILOG = """\
examples:
  supervise image pull docker://debian:12
  supervise image pull --name base:1 oci:/srv/layout:12
  supervise run --root debian:12 -- cat /etc/os-release
  supervise image prune --unused-for 30d --all

A reference is docker://NAME:TAG, oci:DIRECTORY[:TAG], oci-archive:FILE[:TAG],
docker-archive:FILE[:NAME:TAG], tar:FILE, or the name or digest of what is in the store.
"""


def configure(verb: argparse.ArgumentParser) -> None:
    """The verb's own verbs."""
    verb.epilog = EPILOG
    verbs = verb.add_subparsers(metavar="VERB", required=True)
    for name, help_text, add, do in (
        ("pull", "get images, from a registry or from files", _pull_flags, _pull),
        ("list", "each image: its names, size, and whether a job uses it", _list_flags, _list),
        ("inspect", "all that is known of an image, as JSON", _inspect_flags, _inspect),
        ("remove", "take names away, and images without any", _remove_flags, _remove),
        ("prune", "remove what no name and no job needs", _prune_flags, _prune),
    ):
        one = verbs.add_parser(name, help=help_text, description=help_text)
        add(one)
        one.add_argument("--config", metavar="FILE", type=Path, help="with its [images], state_dir")
        one.add_argument("--state-dir", metavar="DIR", type=Path, help="(default: as of a file)")
        one.set_defaults(verb=do)


def _json(verb: argparse.ArgumentParser, what: str) -> None:
    verb.add_argument("--json", action="store_true", help=what)


def _pull_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("references", metavar="REFERENCE", nargs="+", help="what to get")
    verb.add_argument("--name", metavar="NAME", help="another name for it in the store")
    verb.add_argument("--platform", metavar="OS/ARCH", help="(default: this host's)")
    verb.add_argument(
        "--missing", action="store_true", help="be content with what is there, however old"
    )
    verb.add_argument("--quiet", action="store_true", help="no progress on stderr")
    verb.add_argument("--plain", action="store_true", help="lines instead of bars")
    verb.add_argument("--color", choices=("auto", "always", "never"), default="auto",
                      help="(NO_COLOR is honoured)")  # fmt: skip
    _json(verb, "what was got, one image a line")


def _list_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--quiet", action="store_true", help="digests alone")
    _json(verb, "one image a line")


def _inspect_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("name", metavar="NAME", help="a name, a digest or the start of one")


def _remove_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("names", metavar="NAME", nargs="+", help="a digest takes all its names")
    _json(verb, "what went, as an object")


def _prune_flags(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--all", action="store_true", help="images with names as well")
    verb.add_argument("--unused-for", metavar="TIME", default="0s", help='as "30d": not the others')
    verb.add_argument("--dry-run", action="store_true", help="only tell what would go")
    _json(verb, "what went, as an object")


@frozen
class Place:
    """The store that a command is for, and what the configuration says of images."""

    store: Store
    settings: ImageSettings

    @classmethod
    def of(cls, args: argparse.Namespace) -> Place:
        from supervisor.front import config
        from supervisor.front.kinds import Context
        from supervisor.front.settings import ImageSettings, default_state
        from supervisor.image.store import Store

        settings, state = ImageSettings(), default_state(Context(Path.cwd()))
        if args.config is not None:
            found = config.load(args.config)
            settings, state = found.images, found.supervisor.state_dir
        return cls(Store(settings.place(args.state_dir or state)), settings)


def choice(settings: ImageSettings, platform: str | None = None) -> Choice:
    """What is wanted of images, by the configuration and (if given) a flag."""
    from supervisor.image import platforms
    from supervisor.image.install import Choice
    from supervisor.image.unpack import Bounds

    bounds = Bounds(**asdict(settings.limits), name="[images] limits")
    try:
        told = settings.platform if platform is None else platforms.parse(platform)
    except ValueError as err:
        raise ConfigError([f"--platform: {err}"]) from None
    return Choice(told, bounds)


def _parse(text: str) -> File | Remote | Local:
    """A reference to an image, on the command line."""
    from supervisor.image import reference

    try:
        found = reference.parse(text, Path.cwd())
    except ValueError as err:
        raise ConfigError([f"{clean(text)}: {err}"]) from None
    if isinstance(found, reference.Host | reference.Directory):
        raise ConfigError([f"{clean(text)}: is no image"])
    return found


def _name(text: str) -> str:
    """What a reference on the command line is called in the store."""
    from supervisor.image.acquire import name_of

    return name_of(_parse(text))


def _pull(args: argparse.Namespace) -> int:
    import trio

    from supervisor.image.reference import Local

    place = Place.of(args)
    references: list[File | Remote] = []
    for found in map(_parse, args.references):
        if isinstance(found, Local):
            raise ConfigError([f"{found}: is a name in the store; to get it: docker://{found}"])
        references.append(found)
    name = _new_name(args.name, len(references))
    for image in trio.run(_pull_all, place, references, args):
        if name is not None:
            place.store.name(name, image.digest)
        print(json.dumps(_got(image)) if args.json else image.digest)
    return 0


def _new_name(text: str | None, references: int) -> str | None:
    from supervisor.image.reference import Local

    if text is None:
        return None
    if references > 1:
        raise ConfigError(["--name: is for one reference"])
    found = _parse(text)
    if not isinstance(found, Local) or "sha256:" in text:
        raise ConfigError([f'--name: "{clean(text)}" is no name like "debian:12"'])
    return str(found)


def _got(image: Image) -> dict[str, Any]:
    return {"name": image.name, "digest": image.digest, "platform": image.platform}


async def _pull_all(
    place: Place, references: Sequence[File | Remote], args: argparse.Namespace
) -> list[Image]:
    from supervisor.image import remote
    from supervisor.image.acquire import acquire

    wanted = choice(place.settings, args.platform)

    async def all_of(listener: Callable[..., None]) -> list[Image]:
        opener = remote.opener(place.settings.registries, listener)
        return [
            await acquire(
                place.store, one, choice=wanted, pull="missing" if args.missing else "always",
                progress=listener, remote=opener,
            )
            for one in references
        ]  # fmt: skip

    if args.quiet:
        from supervisor.image.progress import silent

        return await all_of(silent)
    return await _watched(_view(args), all_of)


def _view(args: argparse.Namespace) -> Pulling:
    from supervisor.front import live
    from supervisor.front.lines import use_colour
    from supervisor.front.pulling import Pulling

    drawn = not args.plain and live.available(sys.stderr, os.environ)
    return Pulling(sys.stderr, live=drawn, colour=use_colour(args.color, sys.stderr, os.environ))


async def _watched(view: Pulling, work: Callable[..., Any]) -> list[Image]:
    """Do the work while the view shows how it goes on."""
    import trio

    from supervisor.image.threads import first

    done: list[Image] = []
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(view.run)
            done = await work(view)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise first(group) from None
    return done


def _list(args: argparse.Namespace) -> int:
    found = Place.of(args).store.images()
    for one in found:
        if one.damage:
            print(f"supervise: {_title(one)}: {one.damage}; pull it again", file=sys.stderr)
    if args.json:
        for one in found:
            print(json.dumps(_described(one)))
    elif args.quiet:
        for one in found:
            print(one.record.digest)
    elif found:
        print("\n".join(_table(found)))
    return 0


def _title(one: Stored) -> str:
    return clean(one.names[0]) if one.names else one.record.digest


def _table(found: Sequence[Stored]) -> list[str]:
    now = datetime.now(UTC).timestamp()
    rows = [("NAME", "DIGEST", "PLATFORM", "SIZE", "SHARED", "USED")]
    for one in found:
        used = "now" if one.leased else f"{duration(max(now - one.used, 0))} ago"
        numbers = (size(one.size), size(one.shared), used)
        for name in one.names or ("-",):
            rows.append((clean(name), one.record.digest[:19], one.record.platform, *numbers))
    widths = [max(len(row[at]) for row in rows) for at in range(6)]
    return [
        f"{row[0]:{widths[0]}}  {row[1]:{widths[1]}}  {row[2]:{widths[2]}}  "
        f"{row[3]:>{widths[3]}}  {row[4]:>{widths[4]}}  {row[5]}"
        for row in rows
    ]


def _described(one: Stored) -> dict[str, Any]:
    record = one.record
    return {
        "digest": record.digest, "names": list(one.names), "platform": record.platform,
        "size": one.size, "shared": one.shared, "in_use": one.leased,
        "used_at": _time(one.used), "imported_at": _time(record.imported),
        "source": record.source, "damage": one.damage or None,
    }  # fmt: skip


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")


def _inspect(args: argparse.Namespace) -> int:
    store = Place.of(args).store
    name = _name(args.name)
    image = store.find(name)
    if image is None:
        raise ImageError(f"no such image is in the store {store.root}", name,
                         hint="supervise image list tells what is")  # fmt: skip
    digest = image.digest
    stored = next((one for one in store.images() if one.record.digest == digest), None)
    if stored is None:
        raise ImageError("was removed this moment", name)
    facts = [(one, store.layers.facts(one)) for one in stored.record.layers]
    layers = [
        {
            "diff_id": diff_id, "path": str(store.layers.tree(diff_id)), "size": known.size,
            "entries": known.entries, "left_out": known.left_out,
        }
        for diff_id, known in facts if known is not None
    ]  # fmt: skip
    config = asdict(image.config)
    config |= {key: dict(config[key]) for key in ("environment", "labels")}
    whole = {**_described(stored), "config": config, "layers": layers}
    print(json.dumps(whole, indent=2))
    return 0


def _remove(args: argparse.Namespace) -> int:
    from supervisor.image import collect

    place = Place.of(args)
    done = collect.remove(place.store, [_name(text) for text in args.names])
    return _told(done, args.json, dry=False)


def _prune(args: argparse.Namespace) -> int:
    from supervisor.image.collect import Wish, collect
    from supervisor.model import units

    try:
        unused_for = units.duration(args.unused_for)
    except ValueError as err:
        raise ConfigError([f"--unused-for: {err}"]) from None
    wish = Wish(all=args.all, unused_for=unused_for)
    done = collect(Place.of(args).store, wish, dry=args.dry_run)
    return _told(done, args.json, dry=args.dry_run)


def _told(done: Collected, as_json: bool, *, dry: bool) -> int:
    if as_json:
        print(json.dumps(asdict(done)))
        return 0
    for digest in done.images:
        print(digest)
    for digest in done.kept:
        print(f"supervise: {digest}: a job uses it, so it stays until then", file=sys.stderr)
    went = f"{len(done.images)} images, {len(done.layers)} layers, {size(done.size)}"
    print(f"supervise: {'would free' if dry else 'freed'} {went}", file=sys.stderr)
    return 0
