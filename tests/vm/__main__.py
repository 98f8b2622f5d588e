"""The command line of the test guest: `python -m tests.vm [options] -- COMMAND [ARGUMENT ...]`.

Exit status: the command's own; 124 when the time limit was reached; 125 when the guest failed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import NoReturn

from tests.vm import engines, kernel, session
from tests.vm.errors import RigError
from tests.vm.guest import Guest, Hierarchy
from tests.vm.systemd import root

PACKAGE_OF = {
    "busybox": "busybox-static",
    "unshare": "util-linux",
    "qemu-system-x86_64": "qemu-system-x86",
    str(engines.VIRTIOFSD): "qemu-system-common",
    "xz": "xz-utils",
}


def parse(argv: list[str]) -> argparse.Namespace:
    """The options; `command` without the `--` before it."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.vm",
        description="Run one command as root in a throw-away guest, by default with cgroup v2.",
    )
    add = parser.add_argument
    add("--engine", choices=("uml", "qemu"), default="uml", help="default: uml, the quick one")
    add("--memory", type=int, default=2048, metavar="MIB")
    add("--cpus", type=int, default=2, help="qemu only")
    add("--accelerator", choices=("tcg", "kvm"), default="tcg", help="qemu only")
    add("--timeout", type=float, default=300, metavar="SECONDS", help="0: none")
    add("--writable", type=Path, action="append", default=[], metavar="DIRECTORY",
        help="a host directory the guest may write")  # fmt: skip
    add("--disk", action="append", default=[], metavar="SIZE", help="an empty /dev/vda, vdb, ...")
    add("--hierarchy", default="v2", metavar="KIND",
        help="v2 (default): every controller on the unified hierarchy; v1: none, each on one of "
        "its own; hybrid: the same, with an empty unified one beside them; mixed:NAME,NAME...: "
        "these on v1 and the others on the unified one")  # fmt: skip
    add("--append", action="append", default=[], metavar="WORDS",
        help="for the kernel's command line, e.g. --append 'cgroup_no_v1=memory psi=0'; "
        "they come last")  # fmt: skip
    add("--systemd", action="store_true",
        help="a small Debian root with systemd as PID 1, which sees of the host the current "
        "directory and what --show names, read-only")  # fmt: skip
    add("--show", type=Path, action="append", default=[], metavar="DIRECTORY")
    add("--terminal", action="store_true", help="give the command this terminal")
    add("--prepare", action="store_true", help="only fill the cache of kernels and roots")
    add("command", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    options.command = options.command[options.command[:1] == ["--"] :]
    if not options.command and not options.prepare:
        parser.error("no command")
    return options


def guest_of(options: argparse.Namespace) -> Guest:
    """The run that the options describe."""
    return Guest(
        engine=options.engine,
        command=tuple(options.command),
        memory=options.memory,
        cpus=options.cpus,
        accelerator=options.accelerator,
        writable=tuple(directory.resolve(strict=True) for directory in options.writable),
        disks=tuple(options.disk),
        terminal=options.terminal,
        hierarchy=Hierarchy.parse(options.hierarchy),
        append=tuple(word for words in options.append for word in words.split()),
        debian=root.prepare(kernel.cache_directory()) if options.systemd else None,
        shown=tuple(d.resolve(strict=True) for d in (Path.cwd(), *options.show) if options.systemd),
    )


def check(guest: Guest) -> Path:
    """The busybox; RigError for the first thing that is lacking, with its package."""
    if os.geteuid() != 0:
        raise RigError("must be run as root")
    for tool in ("busybox", *engines.tools(guest)):
        if not shutil.which(tool):
            raise RigError(f"no {tool} here: apt-get install {PACKAGE_OF[tool]}")
    if guest.terminal:
        engines.check_terminal()
    return Path(shutil.which("busybox") or "")


def terminate(_number: int, _frame: object) -> NoReturn:
    """SIGTERM unwinds the stack, as Ctrl-C does, so that nothing is left."""
    sys.exit(128 + signal.SIGTERM)


def main() -> int:
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, terminate)
    try:
        guest = guest_of(options)
        busybox = check(guest)
        ready = kernel.prepare(guest.engine, busybox, kernel.cache_directory())
        return 0 if options.prepare else session.run(guest, ready, options.timeout)
    except (RigError, OSError) as error:
        print(f"vm: {error}", file=sys.stderr)
        return 125
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
