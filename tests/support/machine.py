"""A shell on what looks like a fresh machine: no state of `supervise`, an empty home.

Its mounts are private, so that nobody else sees the state; its cgroup is its own, so that instances
of other shells may have the same names.
"""

from __future__ import annotations

import os
import select
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from supervisor.cgroup import detect
from tests.support import cgroups
from tests.support.command import ROOT

PLACES = (Path("/var/lib/supervise"), Path("/run/supervise"))
HOME = "/root"
"""What the documents call the directory in which commands are given."""


@dataclass
class Machine:
    """One shell that goes on from command to command, and its directories."""

    shell: subprocess.Popen[str]
    told: int
    mark: int
    output: Path
    home: Path
    seen: int = 0

    def run(self, command: str, seconds: float = 120) -> tuple[int, list[str]]:
        """The command's status and what it and those in the background have said meanwhile."""
        assert self.shell.stdin is not None
        words = f"(exit ${{LAST-0}}); eval {shlex.quote(command)} </dev/null; LAST=$?"
        self.shell.stdin.write(f"{words}; echo $LAST >&{self.mark}\n")
        self.shell.stdin.flush()
        if not select.select([self.told], [], [], seconds)[0]:
            raise AssertionError(
                f"{command}: not done after {seconds:g} s\n{self.output.read_text()}"
            )
        status = os.read(self.told, 100).decode().strip()
        if not status:
            raise AssertionError(f"{command}: the shell has ended\n{self.output.read_text()}")
        text = self.output.read_text(errors="replace")
        new, self.seen = text[self.seen :], len(text)
        return int(status), new.replace(str(self.home), HOME).splitlines()


ENTER = """
for file; do echo 0 >"$file" || exit; done
exec unshare --mount --propagation private bash -c "$SETUP"
"""
SETUP = """
mount --bind "$MACHINE/state" /var/lib/supervise || exit
mount --bind "$MACHINE/run" /run/supervise || exit
exec bash --noprofile --norc
"""
END = 'for job in $(jobs -p); do kill "$job"; done; wait\n'
PATIENCE = 60


@contextmanager
def machine(directory: Path) -> Iterator[Machine]:
    """At its end, what still runs in the background is asked to end, and waited for."""
    for name in ("state", "home", "bin"):
        (directory / name).mkdir()
    run = Path(tempfile.mkdtemp(prefix="sv-"))  # short: a socket's path ends at 107 bytes
    (directory / "run").symlink_to(run)
    run.chmod(0o711)
    command = directory / "bin/supervise"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m supervisor "$@"\n')
    command.chmod(0o755)
    made = [place for place in PLACES if not place.exists()]
    for place in made:
        place.mkdir(exist_ok=True)
    reader, writer = os.pipe()
    try:
        with (
            cgroups.session_parent() as parent,
            (directory / "output").open("a") as output,
            _shell(directory, parent, writer, output.fileno()) as shell,
        ):
            yield Machine(shell, reader, writer, directory / "output", directory / "home")
    finally:
        os.close(reader)
        os.close(writer)
        shutil.rmtree(run)
        for place in made:
            with suppress(OSError):  # somebody else has begun to use it
                place.rmdir()


@contextmanager
def _shell(directory: Path, parent: str, told: int, output: int) -> Iterator[subprocess.Popen[str]]:
    kept = ("HOME", "LANG", "SUPERVISE_TEST_SESSION")
    environment = {
        **{key: os.environ[key] for key in kept if key in os.environ},
        "PATH": f"{directory}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "MACHINE": str(directory), "CHECKOUT": str(ROOT), "SETUP": SETUP,
        "TERM": "dumb", "COLUMNS": "80",
    }  # fmt: skip
    files = [f"{one.base}/cgroup.procs" for one in detect.find(parent).hierarchies]
    shell = subprocess.Popen(
        ["/bin/sh", "-c", ENTER, "sh", *files],
        cwd=directory / "home", env=environment, stdin=subprocess.PIPE, text=True,
        stdout=output, stderr=output, pass_fds=[told], start_new_session=True,
    )  # fmt: skip
    try:
        yield shell
        shell.communicate(END, timeout=PATIENCE)
    finally:
        shell.kill()
        with suppress(OSError):
            shell.communicate()
