"""The kernel tests in guests: `python -m tests.vm.suite [options] -- [PYTEST ARGUMENTS]`.

Each test file runs in a fresh guest, a few guests side by side, those that took longest first:

    uml     every test, but for those marked `qemu`, which are skipped there
    qemu    those marked `qemu`: they need what User-Mode Linux lacks; all in one guest, which
            takes most of a minute until its first test begins

A guest's output is printed in one piece when it ends; a line tells what is still running.  At the
end stands one table.  Exit status: 0 all passed, 1 some did not, 2 wrong usage, 130 interrupted.

Arguments go to each pytest.  One that begins with `tests/` chooses files, directories or tests.

May import: the standard library and this package.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

from tests.vm.engines import PR_SET_PDEATHSIG
from tests.vm.kernel import Engine, cache_directory

ROOT = Path(__file__).parents[2]
DEFAULT = ("tests/kernel", "tests/hostile")
LIMITS: dict[Engine, float] = {"uml": 900.0, "qemu": 1500.0}
"""Seconds for one guest: several times what the longest takes on two cores."""
PATIENCE: dict[Engine, int] = {"uml": 360, "qemu": 900}
"""Seconds for one test, where the host gives it 120."""
TOLD_EVERY = 60.0
GRACE = 20.0
NO_TESTS = 5
"""pytest's exit status where nothing was selected."""


@dataclass(frozen=True)
class Part:
    """What one guest runs."""

    engine: Engine
    files: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.engine} {self.files[0] if len(self.files) == 1 else 'what is marked so'}"


@dataclass
class Running:
    """A part whose guest runs; `output` is None where it writes to our own streams."""

    part: Part
    process: subprocess.Popen[bytes]
    pidfd: int
    output: Path | None
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """For how long it has been running."""
        return time.monotonic() - self.began


@dataclass(frozen=True)
class Ended:
    """How a part ended; `summary` is pytest's last line, or what stands for it."""

    part: Part
    status: int
    seconds: float
    summary: str

    @property
    def word(self) -> str:
        """One word for the table."""
        return {0: "passed", 124: "TOO LONG", 125: "NO GUEST"}.get(self.status, "FAILED")


def parse(argv: list[str]) -> argparse.Namespace:
    """The options; `arguments` without the `--` before them."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.vm.suite", description="Run the kernel tests in cgroup v2 guests."
    )
    add = parser.add_argument
    add("--engine", choices=("both", "uml", "qemu"), default="both",
        help="both (default): uml, and qemu for what is marked so; else all in it")  # fmt: skip
    add("--guests", type=int, default=os.cpu_count() or 1, metavar="N",
        help="how many run side by side (default: one for each CPU)")  # fmt: skip
    add("--timeout", type=float, metavar="SECONDS", help="for one guest (default: by the engine)")
    add("arguments", nargs=argparse.REMAINDER)
    options = parser.parse_args(argv)
    options.arguments = options.arguments[options.arguments[:1] == ["--"] :]
    if options.engine == "both" and "-m" in options.arguments:
        parser.error("with -m choose --engine uml or qemu: for both, -m qemu is the division")
    return options


def collect(arguments: Sequence[str]) -> dict[str, int]:
    """How many tests pytest selects in each file; SystemExit with its words where it fails."""
    paths = () if any(is_path(word) for word in arguments) else DEFAULT
    argv = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *paths, *arguments]
    done = subprocess.run(
        [*argv, "--collect-only", "-qq"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode not in (0, NO_TESTS):
        print(done.stdout + done.stderr, file=sys.stderr)
        sys.exit(2)
    found = re.findall(r"^(tests/\S+\.py): (\d+)$", done.stdout, re.MULTILINE)
    return {file: int(number) for file, number in found}


def is_path(word: str) -> bool:
    """Whether an argument chooses files rather than being an option or its value."""
    return word.startswith("tests/") or word == "tests"


def only(files: Iterable[str], arguments: Sequence[str]) -> list[str]:
    """The arguments of the guest that runs these files: of the paths, those that are in them."""
    chosen: list[str] = []
    for file in files:
        inside = [word for word in arguments if word.partition("::")[0] == file]
        chosen += inside or [file]
    return [*chosen, *(word for word in arguments if not is_path(word))]


def parts(engine: Engine | Literal["both"], arguments: Sequence[str]) -> list[Part]:
    """What is to run where."""
    if engine != "both":
        return [Part(engine, (file,)) for file in collect(arguments)]
    complete = collect([*arguments, "-m", "qemu"])
    files = collect(arguments)
    rest = [file for file in files if files[file] > complete.get(file, 0)]
    marked = [Part("qemu", tuple(complete))] if complete else []
    return [*marked, *(Part("uml", (file,)) for file in rest)]


def command(part: Part, arguments: Sequence[str], both: bool, limit: float) -> list[str]:
    """The guest of one part."""
    chosen = ["-m", "qemu"] if both and part.engine == "qemu" else []
    return [
        *(sys.executable, "-m", "tests.vm", "--engine", part.engine),
        *("--timeout", f"{limit:g}", "--disk", "64M", "--"),
        *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q"),
        *("-o", f"timeout={PATIENCE[part.engine]}"),
        *only(part.files, arguments),
        *chosen,
    ]


@dataclass
class Times:
    """How long each part took the last time, kept beside the kernels; only the order needs it."""

    path: Path
    seconds: dict[str, float]

    @classmethod
    def load(cls, path: Path) -> Times:
        """A file that is missing, or not ours, is as good as empty."""
        try:
            found = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):
            found = {}
        return cls(path, {str(key): float(value) for key, value in found.items()})

    def guess(self, part: Part) -> float:
        """Seconds; for a part never seen before by the size of its files."""
        size = sum((ROOT / file).stat().st_size for file in part.files)
        return self.seconds.get(str(part), size / (1000 if part.engine == "uml" else 100))

    def keep(self, ended: Iterable[Ended]) -> None:
        """Write down what passed, for the next time."""
        self.seconds |= {str(one.part): round(one.seconds, 1) for one in ended if not one.status}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps(self.seconds, indent=1, sort_keys=True))
        beside.rename(self.path)


def stopped_with_us() -> None:
    """In the child: a guest's caller gets SIGTERM, which it cleans up after, when we are killed."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def start(part: Part, argv: list[str], output: Path | None) -> Running:
    """Start a part, in a session of its own: Ctrl-C reaches it through us alone."""
    with Path(output or os.devnull).open("wb") as file:
        process = subprocess.Popen(
            argv,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=None if output is None else file,
            stderr=None if output is None else subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=stopped_with_us,
        )
    return Running(part, process, os.pidfd_open(process.pid), output)


def end(running: Running) -> Ended:
    """Take in a part whose process has ended, and print what it said."""
    status = running.process.wait()
    seconds = running.seconds
    os.close(running.pidfd)
    if running.output is None:
        return Ended(running.part, status, seconds, f"exit status {status}")
    text = running.output.read_text(errors="replace").rstrip()
    lines = [line for line in text.splitlines() if re.search(r" in [\d.]+s", line)]
    summary = lines[-1].strip("= ") if lines else f"exit status {status}"
    ended = Ended(running.part, status, seconds, summary)
    print(f"\n=== {running.part}: {ended.word} ({seconds:.0f} s)\n{text}", flush=True)
    return ended


@contextmanager
def cleaned_up(running: list[Running]) -> Iterator[None]:
    """Whatever happens inside, no guest is left."""
    try:
        yield
    finally:
        for one in running:
            one.process.terminate()
        for one in running:
            try:
                one.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                one.process.kill()  # the machine below it dies with it
                one.process.wait()
            os.close(one.pidfd)


def wait(running: list[Running]) -> list[Running]:
    """Those that have ended; none, with a line that tells so, when TOLD_EVERY has passed."""
    poll = select.poll()
    for one in running:
        poll.register(one.pidfd, select.POLLIN)
    ready = {descriptor for descriptor, _ in poll.poll(TOLD_EVERY * 1000)}
    if not ready:
        told = ", ".join(f"{one.part} ({one.seconds:.0f} s)" for one in running)
        print(f"running: {told}", flush=True)
    return [one for one in running if one.pidfd in ready]


def run(queue: list[Part], options: argparse.Namespace, scratch: Path) -> list[Ended]:
    """Run all parts, `options.guests` at once."""
    waiting, running, ended = queue[::-1], list[Running](), list[Ended]()
    both = options.engine == "both"
    with cleaned_up(running):
        while waiting or running:
            while waiting and len(running) < max(options.guests, 1):
                part = waiting.pop()
                limit = LIMITS[part.engine] if options.timeout is None else options.timeout
                output = None if len(queue) == 1 else scratch / f"{len(waiting)}"
                argv = command(part, options.arguments, both, limit)
                running.append(start(part, argv, output))
            for one in wait(running):
                running.remove(one)
                ended.append(end(one))
    return ended


def table(ended: list[Ended], seconds: float) -> str:
    """The parts, the longest first, those that failed last."""
    order = sorted(ended, key=lambda one: (one.status != 0, -one.seconds))
    rows = [f"{o.word:<8} {o.seconds:6.0f} s  {o.part!s:<48} {o.summary}" for o in order]
    return "\n".join(["", *rows, f"{len(ended)} guests in {seconds:.0f} s"])


def prepare(engines: Iterable[Engine]) -> None:
    """Fill the cache of kernels once, so that no part's time is spent on it."""
    for engine in sorted(set(engines)):
        argv = [sys.executable, "-m", "tests.vm", "--engine", engine, "--prepare"]
        if status := subprocess.run(argv, cwd=ROOT, check=False).returncode:
            sys.exit(status)


def terminate(_number: int, _frame: object) -> NoReturn:
    """SIGTERM unwinds the stack, as Ctrl-C does, so that no guest is left."""
    raise KeyboardInterrupt


def main() -> int:
    options = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, terminate)
    began = time.monotonic()
    try:
        queue = parts(options.engine, options.arguments)
        if not queue:
            print("suite: no tests", file=sys.stderr)
            return 2
        prepare(part.engine for part in queue)
        times = Times.load(cache_directory() / "times.json")
        queue.sort(key=times.guess, reverse=True)
        with tempfile.TemporaryDirectory(prefix="vm.") as scratch:
            ended = run(queue, options, Path(scratch))
    except KeyboardInterrupt:
        return 130
    if not options.arguments:
        times.keep(ended)
    if len(ended) > 1:
        print(table(ended, time.monotonic() - began))
    return 1 if any(one.status for one in ended) else 0


if __name__ == "__main__":
    sys.exit(main())
