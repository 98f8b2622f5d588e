"""Where a running instance is found: by its name, by its socket, or because it is the only one.

May import: `errors`.  It must not read a configuration: `supervise ps` is to be quick.
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from supervisor.errors import SupervisorError

NAME = "socket"
VARIABLE = "SUPERVISE_SOCKET"
LONGEST = 107
"""Bytes of a path in sockaddr_un (unix(7)), without the zero at its end."""


class NoInstance(SupervisorError):
    """There is no instance to speak to, or more than one."""


def instance_flags(verb: argparse.ArgumentParser) -> None:
    """Which instance is meant."""
    where = verb.add_mutually_exclusive_group()
    where.add_argument(
        "-n", "--instance", metavar="INSTANCE", help="the instance (default: the one that runs)"
    )
    where.add_argument("--socket", metavar="PATH", help=f"its socket (default: ${VARIABLE})")


def colour_flag(verb: argparse.ArgumentParser) -> None:
    """Whether to colour what is printed."""
    choices = ("auto", "always", "never")
    verb.add_argument("--color", choices=choices, default="auto", help="(NO_COLOR is honoured)")


def find(args: argparse.Namespace, environ: Mapping[str, str]) -> Path:
    """The socket that is meant.  Raises NoInstance."""
    if args.socket:
        return Path(args.socket)
    if args.instance is None and environ.get(VARIABLE):
        return Path(environ[VARIABLE])
    return chosen(args.instance, directories(environ))


def chosen(name: str | None, places: tuple[Path, ...]) -> Path:
    """The socket of the instance `name`, or of the only one that runs.  Raises NoInstance."""
    running = [path for path in sockets(places) if alive(path)]
    meant = [path for path in running if name in (None, path.parent.name)]
    if len(meant) == 1:
        return meant[0]
    names = ", ".join(sorted(path.parent.name for path in running))
    if meant:
        raise NoInstance(f"several instances run: {names}", hint="choose one by --instance NAME")
    where = " or ".join(map(str, places))
    what = "no instance runs here" if name is None else f"no instance named {name} runs here"
    hint = f"there are {names}" if running else "start one by supervise CONFIG, or give --socket"
    raise NoInstance(f"{where}: {what}", hint=hint)


def directories(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Where instances have their run-time directories, unless a configuration says otherwise.

    Those of the user's own, and the system's, which may let him in by its group.
    """
    system = Path("/run/supervise")
    if os.geteuid() == 0:
        return (system,)
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        return (Path(runtime, "supervise"), system)
    state = environ.get("XDG_STATE_HOME", "")
    home = Path(state) if state.startswith("/") else Path(environ.get("HOME", "/"), ".local/state")
    return (home / "supervise" / "run", system)


def sockets(places: tuple[Path, ...]) -> Iterator[Path]:
    """Every instance's, stale ones included."""
    for place in places:
        try:
            names = sorted(os.listdir(place))
        except OSError:
            continue  # there is none, or it is not for us to see
        yield from (place / name / NAME for name in names if (place / name / NAME).is_socket())


def alive(path: Path) -> bool:
    """Whether somebody listens, or only root could tell."""
    try:
        connect(path).close()
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def connect(path: Path) -> socket.socket:
    """A connection.  Raises OSError."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if len(os.fsencode(path)) <= LONGEST:
            stream.connect(str(path))
        else:
            _connect_below(stream, path)
    except BaseException:
        stream.close()
        raise
    return stream


def _connect_below(stream: socket.socket, path: Path) -> None:
    """By way of its directory, where the path is too long for the kernel."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        stream.connect(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)
