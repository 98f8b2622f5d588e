"""`supervise exec`: run a command in a running job, its streams or its terminal our own.

May import: `front.verbs.{client,pipes,place,talk,terminal}`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Mapping
from typing import Any

from supervisor.errors import ConfigError, SupervisorError
from supervisor.front.verbs.client import Client, Refused
from supervisor.front.verbs.pipes import Pipes
from supervisor.front.verbs.place import instance_flags
from supervisor.front.verbs.talk import Dialogue, Talk, signals

PROTOCOL = "supervise-exec"
FAILED, NOT_EXECUTABLE, NOT_FOUND, BY_SIGNAL = 125, 126, 127, 128
PASSED_ON = (signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
"""What reaches the command, when it has no terminal of its own."""
ENDS_US = (signal.SIGTERM, signal.SIGHUP)
"""What makes us go; the instance then ends the command."""

USAGE = "supervise exec [FLAG ...] JOB [--] COMMAND [ARGUMENT ...]"
EPILOG = """\
The command is in the job's cgroup and namespaces, behind the same walls, and ends with the job.
When all three streams are terminals it gets a terminal of its own; else its stdout and stderr
stay apart.  ctrl-p ctrl-q leaves it running.

exit status: the command's own, 128+n by signal n, 126 not executable, 127 not found, 125 when the
job does not run or supervise failed.

examples:
  supervise exec web -- sh
  supervise exec -u nobody web -- ps aux
  supervise exec db -- pg_dump shop > shop.sql
"""


def configure(verb: argparse.ArgumentParser) -> None:
    """The flags of `exec`."""
    verb.usage = USAGE
    verb.epilog = EPILOG
    verb.add_argument("job", metavar="JOB", help="a job that runs")
    # the flags after the job are the command's, with or without the two dashes
    verb.add_argument(
        "command", metavar="COMMAND", nargs=argparse.REMAINDER, help="and its arguments"
    )
    own = verb.add_mutually_exclusive_group()
    own.add_argument("-t", "--terminal", action="store_true", help="with a terminal of its own")
    own.add_argument("-T", "--no-terminal", action="store_true", help="without one")
    own.add_argument("-d", "--detach", action="store_true", help="start it, and leave it alone")
    verb.add_argument("-u", "--user", metavar="USER[:GROUP]", help="(default: the job's)")
    verb.add_argument("-w", "--working-dir", metavar="DIR", default="", help="(default: the job's)")
    verb.add_argument(
        "-e",
        "--env",
        metavar="NAME[=VALUE]",
        action="append",
        default=[],
        help="beside the job's; without a value: as it is here",
    )
    verb.add_argument("--no-stdin", action="store_true", help="its input is empty")
    verb.add_argument(
        "--detach-keys",
        metavar="KEYS",
        default="ctrl-p,ctrl-q",
        help='what leaves a terminal (default: ctrl-p,ctrl-q; "": nothing)',
    )
    verb.add_argument("--json", action="store_true", help="with --detach: what runs now, as JSON")
    instance_flags(verb)
    verb.set_defaults(verb=run)


def run(args: argparse.Namespace) -> int:
    """The command's exit status, or what stands for it.  Raises SupervisorError."""
    job, command = args.job, args.command
    if command[:1] == ["--"]:
        command = command[1:]
    if not command:
        raise ConfigError([f"exec: no command for {job}; {USAGE}"])
    body: dict[str, Any] = {
        "command": command,
        "environment": [_variable(one) for one in args.env],
        "user": args.user,
        "working_dir": args.working_dir,
    }
    client = Client.of(args)
    try:
        if args.detach:
            return _detached(args, client, job, body)
        if args.terminal or (not args.no_terminal and _all_terminals()):
            return _in_terminal(args, client, job, body)
        return _through_pipes(args, client, job, body)
    except Refused as error:
        if error.status == 409:  # 1 would be the command's own
            error.exit_status = FAILED
        raise


def _variable(text: str) -> str:
    if "=" in text:
        return text
    if text not in os.environ:
        raise ConfigError([f"--env {text}: there is no such variable here; give {text}=VALUE"])
    return f"{text}={os.environ[text]}"


def _all_terminals() -> bool:
    return all(os.isatty(fd) for fd in (0, 1, 2))


def _detached(args: argparse.Namespace, client: Client, job: str, body: dict[str, Any]) -> int:
    answer = client.post("jobs", job, "exec", "detached", body=body)
    print(json.dumps(answer) if args.json else answer["session"])
    return 0


def _through_pipes(args: argparse.Namespace, client: Client, job: str, body: dict[str, Any]) -> int:
    pipes = Pipes(stdin=not args.no_stdin)
    try:
        with (
            signals((*PASSED_ON, *ENDS_US)) as heard,
            Talk.open(
                client, PROTOCOL, "jobs", job, "exec", body=body, descriptors=pipes.theirs
            ) as talk,
        ):
            pipes.hand_over()
            return Conversation(talk, pipes, heard).held()
    finally:
        pipes.close()


def _in_terminal(args: argparse.Namespace, client: Client, job: str, body: dict[str, Any]) -> int:
    from supervisor.front.verbs import terminal

    if not os.isatty(0):
        raise ConfigError(["--terminal: stdin is no terminal; leave it out, or give one"])
    sequence = terminal.keys(args.detach_keys)
    rows, columns = terminal.size()
    body |= {"terminal": True, "rows": rows, "columns": columns}
    names = [variable.partition("=")[0] for variable in body["environment"]]
    if "TERM" in os.environ and "TERM" not in names:
        body["environment"].append(f"TERM={os.environ['TERM']}")
    with (
        signals((signal.SIGWINCH, *ENDS_US)) as heard,
        Talk.open(client, PROTOCOL, "jobs", job, "exec", body=body) as talk,
    ):
        first = talk.next()
        if "started" not in first:
            return _failed(first["failed"])
        window = terminal.Window(talk.descriptor, sequence)
        window.fit()
        with terminal.raw():
            status = Conversation(talk, window, heard).held()
    if window.left:
        print(f"supervise: left it running in {job}", file=sys.stderr)
    return status


class Conversation(Dialogue):
    """About one command; its exit status is the command's, if it has one."""

    _interrupts = 0

    def obey(self, number: int) -> int | None:
        """Pass it on; one that ends us, or a second Ctrl-C, leaves the command behind."""
        self._interrupts += number == signal.SIGINT
        if number in ENDS_US or self._interrupts > 1:
            return BY_SIGNAL + number
        if number == signal.SIGWINCH:
            self._copying.fit()
        else:
            self._talk.say({"signal": signal.Signals(number).name.removeprefix("SIG")})
        return None

    def heed(self, told: Mapping[str, Any]) -> int | None:
        if "failed" in told:
            return _failed(told["failed"])
        if "ended" in told:
            self._copying.drain()
            return _ended(told["ended"])
        return None

    def leave(self) -> int:
        self._talk.say({"detach": True})
        return 0


def _failed(why: dict[str, Any]) -> int:
    print(f"supervise: {SupervisorError(why['error'], hint=why['hint'])}", file=sys.stderr)
    if why.get("stage") != "exec":
        return FAILED
    return NOT_FOUND if why["errno"] in (2, 20) else NOT_EXECUTABLE


def _ended(how: dict[str, Any]) -> int:
    if how["over"]:
        print("supervise: the job has ended, and the command with it", file=sys.stderr)
    if how["signal"] is not None:
        return BY_SIGNAL + int(how["signal"])
    return FAILED if how["code"] is None else int(how["code"])
