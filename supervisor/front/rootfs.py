"""`supervise rootfs build`: a minimal root from programs, checked, and saved as an image if wanted.

May import: everything.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from attrs import define, field

from supervisor.errors import ConfigError, RootError
from supervisor.image import reference
from supervisor.rootfs.build import Built, Wishes, build
from supervisor.rootfs.gather import SEARCH, Copy, Program

EPILOG = """\
example:
  supervise rootfs build /srv/tools --copy /bin/bash --copy /usr/bin/python3 --with-ca
  supervise run --root /srv/tools -- python3 -c 'print("hello")'

A program comes with its libraries and its loader, found by reading the files; a script with its
interpreters; python3, perl and tclsh with their own modules; a directory with all that is in it.
Nothing of what is copied is executed, but by the check: there the loader of each program, in a
container, lists what it would load.

exit status: 0 built, 1 it cannot be built (then nothing is left), 2 wrong usage, 125 supervise
failed.
"""
NOT_BUILT = 1
ARCHITECTURES = {
    ("EM_X86_64", 64): "amd64",
    ("EM_386", 32): "386",
    ("EM_AARCH64", 64): "arm64",
    ("EM_ARM", 32): "arm",
    ("EM_RISCV", 64): "riscv64",
    ("EM_PPC64", 64): "ppc64le",
    ("EM_S390", 64): "s390x",
}
"""As images name them (Go's GOARCH)."""
MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "i686": "386", "armv7l": "arm"}


def configure(verb: argparse.ArgumentParser) -> None:
    """The flags of the verb."""
    verb.usage = "supervise rootfs build DIRECTORY --copy PATH[:TARGET] ... [FLAG ...]"
    verb.epilog = EPILOG
    verb.add_argument("action", metavar="build", choices=("build",), help=argparse.SUPPRESS)
    verb.add_argument("directory", metavar="DIRECTORY", help="where the root is made")
    add = verb.add_argument
    # fmt: off
    add("--copy", metavar="PATH[:TARGET]", action="append", default=[],
        help="a program, script, file or directory, and what it needs; at the same path, or TARGET")
    add("--with-nss", action="store_true", help="names of users and hosts by files and DNS")
    add("--with-ca", action="store_true", help="the certificates of the authorities trusted here")
    add("--with-locale", metavar="NAME", action="append", default=[],
        help='a locale of this host, as "C.UTF-8"')
    add("--from-packages", metavar="NAME,...", default="",
        help="begin with packages and what they depend on, unpacked by mmdebstrap")
    add("--setuid", action="store_true",
        help="keep set-user-ID and set-group-ID bits, and capabilities, of files")
    add("--check", action=argparse.BooleanOptionalAction, default=True,
        help="have each program's loader list its libraries, in a container (default: yes)")
    add("--save", metavar="oci:PATH[:TAG]", help="write it as an image of one layer, too")
    add("--force", action="store_true", help="replace a DIRECTORY that is there")
    add("--json", action="store_true", help="tell the result as JSON")
    # fmt: on
    verb.set_defaults(verb=run)


def run(args: argparse.Namespace) -> int:
    """Build what `args` ask for; the exit status.

    Raises ConfigError for what is written wrongly, SupervisorError.
    """
    wishes, save = wishes_of(args), save_of(args.save)
    work = _Work(args.check, save)
    try:
        with terminated_as_interrupted():
            built = build(Path(args.directory), wishes, work.finish, force=args.force)
    except RootError as error:
        for problem in error.problems:
            print(f"supervise: {problem}", file=sys.stderr)
        if error.hint:
            print(f"supervise: ({error.hint})", file=sys.stderr)
        return NOT_BUILT
    _tell(args, built, work)
    return 0


@define
class _Work:
    """What is done with a root before it gets its name, and what came of it."""

    check: bool
    save: reference.OciLayout | None
    checked: list[str] = field(factory=list)
    digest: str | None = None

    def finish(self, built: Built) -> None:
        if self.check:
            from supervisor.front.rootcheck import check

            self.checked = check(built.path, built.programs)
        if self.save is not None:
            self.digest = save(built, self.save)


def wishes_of(args: argparse.Namespace) -> Wishes:
    """Raises ConfigError with everything that is wrong with the flags."""
    problems: list[str] = []
    copies = [found for text in args.copy if (found := copy_of(text, problems))]
    packages = tuple(name.strip() for name in args.from_packages.split(",") if name.strip())
    if args.from_packages and not packages:
        problems.append("--from-packages: names no package")
    if not packages and not copies and not problems:
        problems.append("--copy PATH or --from-packages NAME,...: say what the root is made of")
    if problems:
        raise ConfigError(problems)
    return Wishes(
        copies=tuple(copies),
        nss=args.with_nss,
        ca=args.with_ca,
        locales=tuple(args.with_locale),
        packages=packages,
        privileged=args.setuid,
        lenient=not args.check,
    )


def copy_of(text: str, problems: list[str]) -> Copy | None:
    """ "PATH" or "PATH:TARGET"; a TARGET that ends in a slash is a directory for it.

    A path that has a colon itself is taken as a whole, if it is there.
    """
    source, colon, target = text.rpartition(":")
    if not colon or not source or not target.startswith("/") or os.path.lexists(text):
        source, target = text, ""
    source = os.path.abspath(source)
    if not text or "\0" in text:
        problems.append(f"--copy {text!r}: names no path")
        return None
    if not target:
        return Copy(source, source)
    if ".." in target.split("/"):
        problems.append(f'--copy {text}: the target must be a path without ".."')
        return None
    if target.endswith("/"):
        target += os.path.basename(source)
    return Copy(source, "/" + os.path.normpath(target).lstrip("/"))


def save_of(text: str | None) -> reference.OciLayout | None:
    """Raises ConfigError for what is not "oci:PATH[:TAG]"."""
    if text is None:
        return None
    try:
        found = reference.parse(text, Path.cwd())
    except ValueError as error:
        raise ConfigError([f"--save {text}: {error}"]) from None
    if not isinstance(found, reference.OciLayout):
        raise ConfigError([f"--save {text}: a root is saved as oci:PATH or oci:PATH:TAG"])
    return found


def save(built: Built, target: reference.OciLayout) -> str:
    """The root as an image of one layer; its digest.  Raises ImageError."""
    from supervisor.image.layout import Layout, created, source_date_epoch
    from supervisor.image.pack import pack

    epoch = source_date_epoch(os.environ)

    def write(out: IO[bytes]) -> str:
        return pack(built.path, out, newest=epoch).diff_id

    layout = Layout(target.path)
    layer = layout.add_layer(write)
    when = created(time.time() if epoch is None else epoch)
    return layout.add_image(target.tag, config_of(built.programs, when), [layer])


def config_of(programs: Sequence[Program], when: str) -> dict[str, Any]:
    """The image's configuration: the first program is what it runs unless told otherwise."""
    arch = next((program.arch for program in programs if program.arch), None)
    machine = os.uname().machine
    name = ARCHITECTURES.get((arch.machine, arch.bits)) if arch else None
    config: dict[str, Any] = {"Env": [f"PATH={':'.join(SEARCH)}"]}
    if programs:
        config["Cmd"] = [programs[0].path]
    return {
        "created": when,
        "architecture": name or MACHINES.get(machine, machine),
        "os": "linux",
        "config": config,
        "history": [{"created": when, "created_by": "supervise rootfs build"}],
    }


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends the build as Ctrl-C does: with nothing left behind."""

    def interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(args: argparse.Namespace, built: Built, work: _Work) -> None:
    path = os.path.abspath(args.directory)
    if args.json:
        print(json.dumps(report(path, built, work.checked, args.save, work.digest)))
    else:
        told = f"{len(work.checked)} programs checked" if args.check else "not checked"
        print(f"{path}: {built.files} files, {built.size / 2**20:.1f} MiB; {told}")
        if work.digest:
            print(f"{work.save}: {work.digest}")
    for remark in built.remarks:
        print(f"supervise: {remark}", file=sys.stderr)


def report(
    path: str, built: Built, checked: Sequence[str], saved: str | None, digest: str | None
) -> dict[str, Any]:
    """The result as JSON; sizes in bytes."""
    return {
        "path": path,
        "files": built.files,
        "bytes": built.size,
        "programs": [
            {
                "path": program.path,
                "kind": program.kind,
                "architecture": str(program.arch) if program.arch else None,
                "loader": program.loader,
                "checked": program.path in checked,
            }
            for program in built.programs
        ],
        "saved": {"reference": saved, "digest": digest} if digest else None,
        "remarks": list(built.remarks),
    }
