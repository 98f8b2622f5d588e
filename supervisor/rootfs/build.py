"""One root, from the wishes to a finished directory: made aside, checked, then put in its place.

    gather      the table of all that is to be there (nothing is written yet)
    write       into a new directory beside the target, open to nobody else
    cache       /etc/ld.so.cache, by the host's ldconfig(8)
    check, save as the caller wants, on the new directory
    rename      to the target's name: there is a whole root, or none

May import: `errors`, `rootfs`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from attrs import frozen

from supervisor.errors import KernelError, RootError
from supervisor.rootfs import packages, settings
from supervisor.rootfs.gather import Copy, Gathered, Gatherer, Program
from supervisor.rootfs.tree import File, covered
from supervisor.rootfs.write import Writer

LDCONFIG = ("/sbin/ldconfig", "/usr/sbin/ldconfig", "/usr/bin/ldconfig")
SHOWN = 4
"""Names in one remark."""


@frozen
class Wishes:
    """What a root is to have.  What `packages` bring stays, should a copy be of the same name."""

    copies: tuple[Copy, ...] = ()
    nss: bool = False
    ca: bool = False
    locales: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    privileged: bool = False
    lenient: bool = False


@frozen
class Built:
    """A root that is complete, still under its own name.

    `size` in bytes, hard links counted once; `programs` are what the check looks at.
    """

    path: Path
    programs: tuple[Program, ...]
    files: int
    size: int
    remarks: tuple[str, ...]


def build(
    target: Path, wishes: Wishes, finish: Callable[[Built], None], *, force: bool = False
) -> Built:
    """Build a root at `target`; `finish` checks it, or does more with it, before it is there.

    Raises RootError for what cannot be had, KernelError, and whatever `finish` raises.  Then
    nothing is left, and what was at `target` is as it was.
    """
    target = Path(os.path.abspath(target))
    _check_target(target, force)
    with _beside(target) as work:
        new = work / "root"
        new.mkdir(mode=0o755)
        if wishes.packages:
            packages.bootstrap(new, wishes.packages)
        built = _fill(new, target, wishes)
        finish(built)
        _replace(new, target, work)
    return built


def _fill(new: Path, target: Path, wishes: Wishes) -> Built:
    """Copy what is wished for into `new`, which may have packages in it."""
    done, cache = gather(wishes, (str(new), str(target)), new if wishes.packages else None)
    writer = Writer(new, wishes.privileged)
    writer.write(done.tree.entries)
    new.chmod(0o755)
    remarks = [*done.remarks, *_covered(done), *_unseen(done)]
    if cache:
        remarks += _make_cache(new)
    if writer.stripped:
        names = _some(writer.stripped)
        remarks.append(f"without set-user-ID bits and capabilities (--setuid keeps them): {names}")
    programs = tuple(done.programs.values())
    return Built(new, programs, len(done.tree.entries), _size(new), tuple(remarks))


def _size(root: Path) -> int:
    """Bytes of the files, hard links counted once."""
    seen = {}
    for directory, _, names in os.walk(root):
        for name in names:
            status = os.lstat(os.path.join(directory, name))
            seen[status.st_ino] = status.st_size
    return sum(seen.values())


def gather(
    wishes: Wishes, outside: tuple[str, ...] = (), base: Path | None = None
) -> tuple[Gathered, bool]:
    """The table, and whether a loader's cache is to be made of it.

    `outside` must not be copied; `base` has packages in it already.

    Raises RootError with every problem of every wish at once.
    """
    gatherer = Gatherer(outside, lenient=wishes.lenient)
    if base is not None:
        gatherer.done.tree.take(str(base))
        gatherer.done.programs.update((p.path, p) for p in packages.programs(base))
    problems: list[str] = []
    hints: dict[str, None] = {}
    for work in _work(gatherer, wishes):
        try:
            work()
        except RootError as error:
            problems += error.problems
            hints[error.hint] = None
    if problems:
        raise RootError(dict.fromkeys(problems), hint="; ".join(filter(None, hints)))
    return gatherer.done, settings.loader_configuration(gatherer)


def _work(gatherer: Gatherer, wishes: Wishes) -> Iterator[Callable[[], None]]:
    for wish in wishes.copies:
        yield lambda wish=wish: gatherer.copy(wish)  # type: ignore[misc]
    if wishes.nss:
        yield lambda: settings.with_nss(gatherer)
    if wishes.ca:
        yield lambda: settings.with_ca(gatherer)
    for name in wishes.locales:
        yield lambda name=name: settings.with_locale(gatherer, name)  # type: ignore[misc]
    yield lambda: settings.minimal(gatherer)


def _covered(done: Gathered) -> Iterator[str]:
    paths = [path for path, entry in done.tree.entries.items()
             if covered(path) and isinstance(entry, File)]  # fmt: skip
    if paths:
        yield f"a job has a {covered(paths[0])} of its own, and does not see: {_some(paths)}"


def _unseen(done: Gathered) -> Iterator[str]:
    """What those may need whose code asks for files by name when it runs."""
    if names := done.callers.get("dlopen"):
        yield (
            f"can load more when they run (dlopen), which no header tells: {_some(names)}; "
            "copy what they need of it"
        )
    if names := done.callers.get("iconv_open"):
        yield f"can convert character sets, from files of gconv that are not copied: {_some(names)}"


def _some(names: Sequence[str]) -> str:
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def _make_cache(root: Path) -> Iterator[str]:
    """ldconfig(8) reads the root's libraries, and executes nothing of it."""
    tool = next((path for path in LDCONFIG if os.access(path, os.X_OK)), None)
    if tool is None:
        yield "no ldconfig here, so no /etc/ld.so.cache: only the loader's own directories count"
        return
    done = subprocess.run(
        [tool, "-X", "-r", str(root)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
    )  # fmt: skip
    shutil.rmtree(root / "var/cache/ldconfig", ignore_errors=True)
    if done.returncode:
        why = " ".join(done.stderr.split())[:200]
        raise RootError([f"{tool} could not make /etc/ld.so.cache: {why}"])


def _check_target(target: Path, force: bool) -> None:
    if not target.parent.is_dir():
        raise RootError([f"{target.parent}: no such directory, to make {target.name} in"])
    if not os.path.lexists(target):
        return
    if not force:
        raise RootError([f"{target}: is there already"], hint="--force replaces it")
    here = Path.cwd()
    if target.is_symlink() or not target.is_dir() or target.is_mount():
        raise RootError([f"{target}: is not a plain directory, which --force could replace"])
    if target in (here, *here.parents, Path.home()):
        raise RootError([f"{target}: --force does not replace the directory you are in, or home"])


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A directory on the same file system, gone afterwards with all that is in it."""
    try:
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    except OSError as error:
        raise KernelError("mkdir", str(target.parent), error.errno or 0) from error
    try:
        yield work
    finally:
        remove(work)


def remove(tree: Path) -> None:
    """rmtree, also past directories that their owner closed to himself."""
    for directory, names, _files in os.walk(tree):
        for name in names:
            path = os.path.join(directory, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    shutil.rmtree(tree)


def _replace(new: Path, target: Path, work: Path) -> None:
    """Put the new root at its name; with an old one there, that goes first, and back on failure."""
    old = work / "old"
    moved = os.path.lexists(target)
    try:
        if moved:
            target.rename(old)
        try:
            new.rename(target)
        except OSError:
            if moved:
                old.rename(target)
            raise
    except OSError as error:
        raise KernelError("rename", str(target), error.errno or 0) from error
