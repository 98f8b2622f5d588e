"""Real jobs for the tests: a configuration written and run as a user would, and what they left.

A function is run inside a job by its source: `python(look)` is a command that calls `look` there
and prints what it returns as JSON.  Such a function imports what it needs itself, and sees nothing
of the module it stands in.
"""

from __future__ import annotations

import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supervisor.linux import proc
from tests.support.command import ROOT, Done, State, Supervise, seen, stop

PYTHON = os.path.realpath(sys.executable)
"""The interpreter behind a virtual environment: the environment may lie in /tmp, which jobs have
an own one of."""


@dataclass(frozen=True)
class Ended:
    """A job that has ended: its record, and its streams as text."""

    record: dict[str, Any]
    out: str
    err: str

    @property
    def told(self) -> Any:
        """What a `python` function returned."""
        assert self.record["reason"] == "succeeded", f"{self.record}\n{self.err}"
        return json.loads(self.out)

    @property
    def reason(self) -> str:
        return str(self.record["reason"])

    @property
    def failure(self) -> tuple[str, int, str]:
        """Stage, errno and path of a start that failed."""
        error = self.record["start_error"]
        return error["stage"], error["errno"], error["path"]


def python(function: Callable[..., object], *arguments: Any) -> list[str]:
    """The command that calls `function` with `arguments` (of JSON's types) and prints the result.

    A generator prints a line for each value at once.
    """
    source = textwrap.dedent(inspect.getsource(function))
    call = f"{function.__name__}(*json.loads(sys.argv[1]))"
    if inspect.isgeneratorfunction(function):
        tail = f"for value in {call}: print(json.dumps(value), flush=True)"
    else:
        tail = f"print(json.dumps({call}), flush=True)"
    code = f"from __future__ import annotations\nimport json, sys\n{source}\n{tail}\n"
    return [PYTHON, "-I", "-S", "-c", code, json.dumps(arguments)]


def toml(value: Any) -> str:
    """`value` as TOML writes it."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml(one) for one in value) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value, ensure_ascii=False)


def with_python(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """A job that runs PYTHON sees it, even where it lies in somebody's home directory."""
    command = settings.get("command", "")
    if settings.get("root", "host") != "host" or command[:1] != [PYTHON]:
        return settings
    mounts = [*settings.get("mounts", ()), f"{sys.base_prefix}:{sys.base_prefix}:ro"]
    return {**settings, "mounts": mounts} if PYTHON.startswith(("/root/", "/home/")) else settings


def write_config(
    where: State, jobs: Mapping[str, Mapping[str, Any]], *, name: str = "", head: str = ""
) -> Path:
    """A configuration of `jobs` below the state directory; `name` of the instance: unique."""
    lines = [where.table, f'name = "{name or instance_name(where)}"', head]
    for job, settings in jobs.items():
        lines.append(f"[jobs.{json.dumps(job)}]")
        lines += [f"{key} = {toml(value)}" for key, value in with_python(settings).items()]
    path = where.state / "jobs.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def instance_name(where: State) -> str:
    return f"test-{where.runtime.name}"


def run_jobs(
    where: State,
    jobs: Mapping[str, Mapping[str, Any]],
    *,
    head: str = "",
    environment: Mapping[str, str] | None = None,
) -> dict[str, Ended]:
    """Run `jobs` with `supervise CONFIG --json`; how the last run of each ended."""
    config = write_config(where, jobs, head=head)
    done = Supervise(where)(config, "--json", "--plain", environment=environment, timeout=90)
    assert done.status in (0, 1), f"{done.status}: {done.stderr}"
    found = ended(where, done.stdout)
    assert set(found) == set(jobs), f"some jobs have no record\n{done.stderr}"
    return found


def ended(where: State, records: str) -> dict[str, Ended]:
    """The jobs of `records` (JSON lines), with what they wrote."""
    found: dict[str, Ended] = {}
    for line in records.splitlines():
        record = json.loads(line)
        found[record["job"]] = Ended(
            record, log_of(where, record["job"], "out"), log_of(where, record["job"], "err")
        )
    return found


def log_of(where: State, job: str, stream: str) -> str:
    """What the last run of `job` wrote; nothing where it has no log."""
    logs = sorted((where.state / instance_name(where) / "logs").glob(f"{job}.*.{stream}"))
    return logs[-1].read_text(errors="replace") if logs else ""


@contextmanager
def own_state(base: Path) -> Iterator[State]:
    """Like the fixture `tmp_state`, for a batch that a whole module looks at."""
    (base / "state").mkdir()
    runtime = Path(tempfile.mkdtemp(prefix="sv-"))
    try:
        yield State(state=base / "state", runtime=runtime)
    finally:
        shutil.rmtree(runtime)


def within(
    where: State,
    wrapper: Sequence[str],
    *arguments: str | Path,
    environment: Mapping[str, str] | None = None,
    **options: Any,
) -> subprocess.Popen[str]:
    """`WRAPPER supervise ARGUMENTS`, started: a shell, `unshare` or the like around the command."""
    own = {**os.environ, **where.environment, "PYTHONPATH": str(ROOT), **(environment or {})}
    argv = [*wrapper, sys.executable, "-m", "supervisor", *seen(arguments)]
    streams: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
    }
    return subprocess.Popen(argv, env=own, text=True, **(streams | options))


def after(where: State, wrapper: Sequence[str], *arguments: str | Path, **options: Any) -> Done:
    """The same, waited for."""
    with within(where, wrapper, *arguments, **options) as process:
        try:
            out, err = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            out, err = stop(process)
            raise AssertionError(f"not done after 60 s\n{out}\n{err}") from None
    return Done(out, err, process.returncode)


def private_mounts(script: str, propagation: str = "private") -> list[str]:
    """A wrapper: run the lines of `script` in a mount namespace of its own, then the command."""
    shell = ["/bin/sh", "-ec", f'{script}\nexec "$@"', "sh"]
    return ["unshare", "--mount", f"--propagation={propagation}", *shell]


def out_of_the_way() -> str:
    """A directory at the top of the host in which nothing lies that the tests themselves need."""
    needed = [os.path.realpath(one) for one in (ROOT, sys.prefix, sys.base_prefix)]
    for top in ("/srv", "/media", "/mnt", "/opt"):
        if os.path.isdir(top) and not any(one.startswith(f"{top}/") for one in needed):
            return top
    raise AssertionError("no directory of the host's that a test could mount over")


@contextmanager
def background(
    supervise: Supervise, *arguments: str | Path, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """`supervise ARGUMENTS` while the block runs; stopped, and waited for, at its end."""
    with supervise.start(*arguments, **options) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                stop(process)


def next_line(process: subprocess.Popen[str]) -> str:
    """The next line on its stdout: how a job tells that it is where the test wants it."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        assert process.stderr is not None
        raise AssertionError(f"ended instead of telling: {process.stderr.read()}")
    return line.rstrip("\n")


def init_of(supervisor: int) -> int:
    """The init of the one job of a supervisor, once it has told that the command runs.

    The command can be heard of before that; then the init has closed its status socket.
    """
    init = named_child(supervisor, "supervise:init")
    deadline = time.monotonic() + 30
    while any(link.startswith("socket:") for link in _links(init)):
        assert time.monotonic() < deadline, "the init does not tell that the command runs"
    return init


def _links(pid: int) -> list[str]:
    found = []
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(fd.readlink()))
    return found


def named_child(parent: int, comm: str) -> int:
    """The child of `parent` with the name `comm` (15 bytes are kept of one)."""
    (found,) = (pid for pid in proc.children(parent) if proc.stat(pid).comm == comm[:15])
    return found
