"""The command line: which verb, with which flags; each verb imports what it needs.

Results go to stdout, chatter to stderr.  Exit status: 2 for a wrong configuration or usage, 125
when supervise itself failed; else what the verb says.

May import: everything.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import traceback
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

from supervisor import __version__
from supervisor.errors import ConfigError, SupervisorError

USAGE, FAILED, INTERRUPTED = 2, 125, 130

DESCRIPTION = """\
Run batch jobs and services, each in a container made straight from the kernel, within limits
that hold; and tell, with evidence, why each of them ended.

  supervise CONFIG              run the jobs of a file (the same as: supervise up CONFIG)
  supervise run -- COMMAND      run one command, its streams your own
  supervise check CONFIG        is the file right?  --show: what it comes to
  supervise plan CONFIG [JOB]   every step of a start, without doing it
  supervise doctor              what of all this can this host enforce?  (tries it)
  supervise init                print an example configuration
  supervise rootfs build DIR    a minimal root from programs and what they need

while an instance runs:
  supervise ps                  its jobs, and what they are doing
  supervise status [JOB]        one job in full, or the instance
  supervise events -f           what happens
  supervise wait [JOB ...]      until they have ended, or run
  supervise top [JOB]           what they use, of what they may
  supervise stop [JOB ...]      stop jobs, or all of it
  supervise exec JOB -- COMMAND run a command in a job
  supervise attach JOB          a window to its own streams
"""

EPILOG = """\
examples:
  supervise init > jobs.toml && supervise jobs.toml
  supervise run --memory 64M --pids 32 --timeout 10s -- sort /var/log/syslog
  supervise run --memory 256M --on-memory-limit raise:1G --record - -- python3 job.py

exit status of a batch: 0 all ended as expected, 1 some did not, 2 the configuration is wrong,
125 supervise failed, 130 interrupted.  Of run: the command's own, 128+n by signal n, 124 timed
out, 125 supervise failed, 126 not executable, 127 not found.
"""

RUN_EPILOG = """\
example:
  supervise run --memory 64M --mount /srv/data:/data:ro --record run.json -- /data/grade.sh

The root is the host's own, read-only; /tmp and /run are the job's own; there is no network but
loopback, and no variable of yours but TERM.  A bad end is explained on stderr.
"""


def command(argv: Sequence[str]) -> int:
    """Run the command; its exit status.  Everything that can go wrong becomes one message."""
    arguments = list(argv)
    if not arguments:
        parser().print_help(sys.stderr)
        return USAGE
    try:
        refuse_name_clash()
        if arguments[0] not in VERBS and not arguments[0].startswith("-"):
            refuse_mistyped_verb(arguments[0])
            arguments.insert(0, "up")
        args = parser(arguments[0]).parse_args(arguments)
        run: Callable[[argparse.Namespace], int] = args.verb
        return run(args)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return USAGE
    except SupervisorError as error:
        print(f"supervise: {error}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        # Whoever read our output has gone; so that Python's exit does not say it once more:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception:
        # A bug of ours: its status must not be taken for "some job did not end well".
        traceback.print_exc()
        print("supervise: this is a bug, please report it with the lines above", file=sys.stderr)
        return FAILED


def refuse_name_clash() -> None:
    """PyPI's `supervisor` has the same import name, and pip overwrites one with the other."""
    from supervisor.front.clash import name_clash

    clash = name_clash()
    if clash:
        raise SupervisorError(clash)


def refuse_mistyped_verb(word: str) -> None:
    """What is no file, and has no dot or slash as files' names have, was meant to be a verb."""
    if not os.path.exists(word) and "." not in word and "/" not in word:
        near = get_close_matches(word, VERBS, 1)
        meant = f'; did you mean "{near[0]}"?' if near else f"; verbs are {', '.join(VERBS)}"
        raise ConfigError([f"{word}: neither a verb nor a file{meant}"])


class Parser(argparse.ArgumentParser):
    """With the nearest flag for one that does not exist, and this verb's usage beside it."""

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN201
        found, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"{rest[0]}: no such flag{self._nearest(rest[0])}")
        return found, rest

    def _nearest(self, flag: str) -> str:
        near = get_close_matches(flag.partition("=")[0], self._option_string_actions, 1)
        return f"; did you mean {near[0]}?" if near else f"; see {self.prog} --help"


def parser(only: str = "") -> argparse.ArgumentParser:
    """Of all verbs; those beside `only` without their flags, as some take long to import."""
    raw = argparse.RawDescriptionHelpFormatter
    top = Parser(
        prog="supervise",
        usage="supervise CONFIG | supervise VERB ...",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=raw,
    )
    top.add_argument("--version", action="version", version=f"supervise {__version__}")
    verbs = top.add_subparsers(metavar="VERB", required=True, title="verbs", prog="supervise")
    for name, (help_text, configure) in VERBS.items():
        verb = verbs.add_parser(name, help=help_text, description=help_text, formatter_class=raw)
        if only in (name, "") or only not in VERBS:
            configure(verb)
    return top


def _colour(verb: argparse.ArgumentParser) -> None:
    choices = ("auto", "always", "never")
    verb.add_argument("--color", choices=choices, default="auto", help="(NO_COLOR is honoured)")


def _config(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("config", metavar="CONFIG", type=Path, help="a TOML file (docs/config.md)")


def _up(verb: argparse.ArgumentParser) -> None:
    _config(verb)
    verb.add_argument("--json", action="store_true", help="one record a line as runs end")
    verb.add_argument("--plain", action="store_true", help="lines instead of the live table")
    _colour(verb)
    verb.epilog = "examples:\n  supervise up jobs.toml\n  supervise jobs.toml --json > records"
    verb.set_defaults(verb=_do_up)


def _run(verb: argparse.ArgumentParser) -> None:
    from supervisor.front.flags import add_job_flags

    verb.usage = "supervise run [FLAG ...] -- COMMAND [ARGUMENT ...]   (an image may have its own)"
    verb.epilog = RUN_EPILOG
    add_job_flags(verb)
    verb.add_argument("--record", metavar="FILE", help="write the JSON record there; -: stdout")
    verb.add_argument(
        "--on-missing",
        choices=("refuse", "warn"),
        default="refuse",
        help="what to do about a limit that this host cannot enforce (default: refuse)",
    )
    verb.add_argument("command", metavar="COMMAND", nargs="*", help=argparse.SUPPRESS)
    verb.set_defaults(verb=_do_run)


def _check(verb: argparse.ArgumentParser) -> None:
    _config(verb)
    verb.add_argument("--show", action="store_true", help="print the merged, resolved view")
    verb.epilog = "example:\n  supervise check jobs.toml --show"
    verb.set_defaults(verb=_do_check)


def _plan(verb: argparse.ArgumentParser) -> None:
    _config(verb)
    verb.add_argument("job", metavar="JOB", nargs="?", help="one job (default: all)")
    verb.epilog = "example:\n  supervise plan jobs.toml compress"
    verb.set_defaults(verb=_do_plan)


def _doctor(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--json", action="store_true", help="the table as JSON")
    _colour(verb)
    verb.epilog = "example:\n  supervise doctor --json | jq -r '.[].fix'"
    verb.set_defaults(verb=_do_doctor)


def _run_of_before(verb: argparse.ArgumentParser) -> None:
    from supervisor.front.layers import place_flags

    verb.add_argument("run", metavar="RUN", help="its id, INSTANCE/ID, or its directory")
    place_flags(verb)


def _verb(module: str, name: str = "configure") -> Callable[[argparse.ArgumentParser], None]:
    """What configures a verb: a function of a module of `front.verbs`, imported when it is used."""

    def configure(verb: argparse.ArgumentParser) -> None:
        getattr(import_module(f"supervisor.front.verbs.{module}"), name)(verb)

    return configure


def _diff(verb: argparse.ArgumentParser) -> None:
    _run_of_before(verb)
    verb.add_argument("--json", action="store_true", help="one change a line as JSON")
    verb.epilog = "example:\n  supervise diff mx0lnjr9-compress"
    verb.set_defaults(verb=_do_diff)


def _commit(verb: argparse.ArgumentParser) -> None:
    _run_of_before(verb)
    verb.add_argument("name", metavar="NAME", help="what the image is called: NAME[:TAG]")
    verb.add_argument("--message", metavar="TEXT", default="", help="for the image's history")
    verb.epilog = "example:\n  supervise commit mx0lnjr9-install tools:1"
    verb.set_defaults(verb=_do_commit)


def _volume(verb: argparse.ArgumentParser) -> None:
    from supervisor.front.volumes import configure

    configure(verb)


def _replay(verb: argparse.ArgumentParser) -> None:
    from supervisor.front.replaying import configure

    configure(verb)


def _explain(verb: argparse.ArgumentParser) -> None:
    from supervisor.front.verbs.explain import configure

    configure(verb)


def _history(verb: argparse.ArgumentParser) -> None:
    from supervisor.front.history import configure

    configure(verb)


def _image(verb: argparse.ArgumentParser) -> None:
    from supervisor.front.images import configure

    configure(verb)


def _ps(verb: argparse.ArgumentParser) -> None:
    from supervisor.front.verbs.ps import configure

    configure(verb)


def _status(verb: argparse.ArgumentParser) -> None:
    from supervisor.front.verbs.status import configure

    configure(verb)


def _events(verb: argparse.ArgumentParser) -> None:
    from supervisor.front.verbs.events import configure

    configure(verb)


def _wait(verb: argparse.ArgumentParser) -> None:
    from supervisor.front.verbs.wait import configure

    configure(verb)


def _logs(verb: argparse.ArgumentParser) -> None:
    from supervisor.front.verbs.logs import configure

    configure(verb)


def _stop(verb: argparse.ArgumentParser) -> None:
    from supervisor.front.verbs.stop import configure

    configure(verb)


def _kill(verb: argparse.ArgumentParser) -> None:
    from supervisor.front.verbs.stop import configure_kill

    configure_kill(verb)


def _top(verb: argparse.ArgumentParser) -> None:
    from supervisor.front.verbs.top import configure

    configure(verb)


def _stats(verb: argparse.ArgumentParser) -> None:
    from supervisor.front.verbs.stats import configure

    configure(verb)


def _init(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--systemd", action="store_true", help="print a unit instead, supervise@.service"
    )
    verb.add_argument("--man", action="store_true", help="print the man page instead, supervise.1")
    verb.epilog = "examples:\n  supervise init > jobs.toml\n  supervise init --man | man -l -"
    verb.set_defaults(verb=_do_init)


def _completion(verb: argparse.ArgumentParser) -> None:
    from supervisor.front.completion import configure

    configure(verb)


def _rootfs(verb: argparse.ArgumentParser) -> None:
    from supervisor.front.rootfs import configure

    configure(verb)


def _do_up(args: argparse.Namespace) -> int:
    from supervisor.front.up import up

    return up(args.config, as_json=args.json, plain=args.plain, color=args.color)


def _do_run(args: argparse.Namespace) -> int:
    from supervisor.front.oneshot import run

    return run(args)


def _do_check(args: argparse.Namespace) -> int:
    from supervisor.front import config, doctor_proc, imaging
    from supervisor.front.profiles import check_profiles
    from supervisor.front.risks import risks
    from supervisor.policy import registry

    found = config.load(args.config)
    registry.load(found.supervisor.plugins, found.policies, found.jobs, where=found.where)
    check_profiles(found)
    if args.show:
        print(config.show(found), end="")
    else:
        print(f"{args.config}: {len(found.jobs)} jobs, no problem found")
    for line in (*imaging.told(found), *doctor_proc.told(found.jobs)):
        print(f"# {line}" if args.show else line)
    for line in risks(found.jobs, privileged=os.geteuid() == 0):
        print(f"supervise: risk: {line}", file=sys.stderr)
    return 0


def _do_plan(args: argparse.Namespace) -> int:
    from supervisor.front.planning import plan

    for line in plan(args.config, args.job):
        print(line)
    return 0


def _do_doctor(args: argparse.Namespace) -> int:
    from supervisor.front.doctor import doctor
    from supervisor.front.lines import use_colour

    colour = use_colour(args.color, sys.stdout, os.environ)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 80
    return doctor(as_json=args.json, colour=colour, say=print, width=width)


def _do_diff(args: argparse.Namespace) -> int:
    import json

    from attrs import asdict

    from supervisor.front import layers
    from supervisor.front.lines import clean

    left = layers.find(args.run, layers.state_dir(args))
    for change in layers.diff(left):
        print(json.dumps(asdict(change)) if args.json else f"{change.kind} {clean(change.path)}")
    return 0


def _do_commit(args: argparse.Namespace) -> int:
    from supervisor.front import layers
    from supervisor.front.committing import commit
    from supervisor.front.images import Place

    left = layers.find(args.run, layers.state_dir(args))
    image, packed = commit(left, args.name, Place.of(args).store, comment=args.message)
    for path in packed.left_out:
        print(f"supervise: left out, as no image has sockets: {path}", file=sys.stderr)
    print(image.digest)
    return 0


def _do_init(args: argparse.Namespace) -> int:
    from supervisor.front import example

    if args.man:
        from supervisor.front.manual import man_page

        print(man_page(), end="")
        return 0
    print(example.unit() if args.systemd else example.text(), end="")
    return 0


VERBS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None]]] = {
    "up": ("run the jobs of a configuration file", _up),
    "run": ("run one command in a container of its own", _run),
    "check": ("check a configuration file, start nothing", _check),
    "plan": ("print every step of a start, in order, without doing it", _plan),
    "doctor": ("try each namespace and each limit on this host", _doctor),
    "ps": ("list the jobs of a running instance, and what they are doing", _ps),
    "status": ("one job of a running instance in full, or the instance", _status),
    "events": ("what has happened in a running instance, and what happens", _events),
    "wait": ("wait until jobs have ended, or run", _wait),
    "logs": ("what jobs have printed; -f: and go on printing", _logs),
    "stop": ("stop jobs of a running instance, or all of it", _stop),
    "kill": ("kill jobs at once, or send them a signal", _kill),
    "explain": ("why a job ended, what happened to it so far, or what it waits for", _explain),
    "replay": ("what other policies would have decided about recorded events", _replay),
    "exec": ("run a command in a running job", _verb("exec")),
    "attach": ("a window to a running job's own output, input and terminal", _verb("attach")),
    "history": ("the runs of before: which there were, why they ended, and on what", _history),
    "pause": ("freeze jobs where they are", _verb("steer", "configure_pause")),
    "resume": ("let paused jobs go on", _verb("steer", "configure_resume")),
    "restart": ("stop jobs in order and run them again", _verb("steer", "configure_restart")),
    "set": ("change limits of a job while it runs", _verb("steer", "configure_set")),
    "submit": ("give a running instance one more job", _verb("submit")),
    "reload": ("have a running instance read its configuration again", _verb("reload")),
    "top": ("watch what the jobs of a running instance use", _top),
    "stats": ("print all that is known of what jobs use", _stats),
    "diff": ("what a run has changed in its root: Added, Changed, Deleted", _diff),
    "image": ("get images; list, inspect and remove those that are there", _image),
    "commit": ("make an image of what a run has written on top of its own", _commit),
    "volume": ("list and remove the named volumes of a state directory", _volume),
    "completion": ("print the completion script of a shell", _completion),
    "init": ("print an example configuration", _init),
    "rootfs": ("build a minimal root from programs and what they need", _rootfs),
}
