"""From a JobSpec to the Request that the launcher carries out, and to the lines `plan` prints.

May import: `errors`, `model`, `linux`, `cgroup.api`, the rest of `container`.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from attrs import field, frozen

from supervisor.cgroup.api import Entry
from supervisor.container import (
    hiding,
    host,
    idmaps,
    landlock,
    mirror,
    results,
    rootfs,
    seccomp,
    users,
    view,
)
from supervisor.container.layers import Layers, base_of
from supervisor.container.protocol import Request
from supervisor.errors import SpawnError
from supervisor.linux import caps
from supervisor.linux import constants as c
from supervisor.model.job import JobSpec

RLIMITS = {
    "core": c.RLIMIT_CORE,
    "fsize": c.RLIMIT_FSIZE,
    "memlock": c.RLIMIT_MEMLOCK,
    "nproc": c.RLIMIT_NPROC,
    "stack": c.RLIMIT_STACK,
}
SIZE = (24, 80)
"""Rows and columns of a job's terminal, until somebody attaches a window to it."""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@frozen
class Command:
    """What is to be run in a job beside its own command.

    `user` as in a job ("name", "name:group", numbers), None for the job's; `working_dir` "" for
    the job's; `terminal` its rows and columns, or None.  `stays`: it outlives the supervisor.
    """

    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(factory=dict)
    user: str | None = None
    working_dir: str = ""
    terminal: tuple[int, int] | None = None
    stays: bool = False


def request(spec: JobSpec, run: str, entry: Entry, facts: host.Facts, layers: Layers) -> Request:
    """All that is needed to start `spec`; raises SpawnError for what can be told ahead."""
    base_of(spec)
    tops = hiding.hidden(spec, facts)
    hiding.check_seen(spec, tops, spec.working_dir, "working_dir")
    if "/" in spec.command[0]:
        program = os.path.join(spec.working_dir, spec.command[0])
        hiding.check_seen(spec, tops, program, "exec")
    identity = users.look_up(view.of(spec), spec.user, spec.user_group)
    env = environment(spec, identity)
    user_map = _user_map(spec, facts, identity)
    if user_map is None:
        _check_grantable(spec, facts)
    operations = rootfs.plan(spec, facts, layers, identity.uid)
    rootfs.check_possible(spec, facts, operations)
    return Request(
        run=run,
        user_map=user_map,
        map_helpers=_helpers(spec, facts),
        init_files=entry.init_files,
        init_dir=entry.init_dir,
        payload_files=entry.payload_files,
        payload_dir=entry.payload_dir,
        operations=tuple(operation.pack() for operation in operations),
        has_layer=layers.mounted,
        hostname=spec.hostname or spec.name[:64],
        loopback=spec.network != "host",
        awaits_network=spec.network == "bridge",
        shown=results.shown(spec),
        working_dir=spec.working_dir,
        terminal=SIZE if spec.terminal else None,
        enters=0,
        hands_over=not facts.traces,
        dies_with_us=False,
        **_of_payload(spec, facts, user_map, spec.command, identity, env),
    )


def entering(
    spec: JobSpec, run: str, entry: Entry, facts: host.Facts, init: int, command: Command
) -> Request:
    """What puts `command` into the running job whose init has the pid `init`.

    Raises SpawnError.  Nothing is looked up by a path of the job's: it may have changed them all.
    """
    identity = _identity_in(spec, command)
    env = environment(spec, identity) | dict(command.environment)
    user_map = _user_map(spec, facts, identity)
    return Request(
        run=run,
        user_map=user_map,
        map_helpers=(),
        init_files=entry.payload_files,
        init_dir=entry.payload_dir,
        payload_files=(),
        payload_dir=None,
        operations=(),
        has_layer=False,
        hostname="",
        loopback=False,
        awaits_network=False,
        shown=(),
        working_dir=command.working_dir or spec.working_dir,
        terminal=command.terminal,
        enters=init,
        hands_over=False,
        dies_with_us=not command.stays,
        **_of_payload(spec, facts, user_map, command.argv, identity, env),
    )


def _identity_in(spec: JobSpec, command: Command) -> users.Identity:
    if command.user is None:
        return users.look_up(view.of(spec), spec.user, spec.user_group)
    user, _, group = command.user.partition(":")
    return users.look_up(view.of(spec), user or None, group or None)


def _of_payload(
    spec: JobSpec,
    facts: host.Facts,
    user_map: idmaps.Maps | None,
    argv: tuple[str, ...],
    identity: users.Identity,
    env: Mapping[str, str],
) -> dict[str, Any]:
    """The walls, and what is to be run behind them: the same for all of a job's commands."""
    allowed = capabilities(spec)
    return {
        "flags": host.clone_flags(network=spec.network != "host", user=user_map is not None),
        "clocks": mirror.clocks(spec, time_namespaces=facts.time_namespaces),
        "argv": tuple(os.fsencode(word) for word in argv),
        "env": {os.fsencode(k): os.fsencode(v) for k, v in env.items()},
        "search": tuple(os.fsencode(d or ".") for d in env["PATH"].split(":")),
        "uid": identity.uid,
        "gid": identity.gid,
        "groups": identity.groups,
        "capabilities": tuple(sorted(allowed)),
        "ambient": _ambient(spec) if identity.uid else (),
        "rlimits": _rlimits(spec, facts),
        "oom_score_adj": spec.oom_score_adj,
        "landlock": landlock.restriction(spec),
        "filters": seccomp.programs(spec.seccomp, allowed),
    }


def _helpers(spec: JobSpec, facts: host.Facts) -> tuple[str, ...]:
    by_helpers = spec.user_namespace.kind == "auto" and facts.subordinate is not None
    return facts.subordinate.helpers if by_helpers and facts.subordinate else ()


def capabilities(spec: JobSpec) -> frozenset[int]:
    """All that the job may ever have, by number."""
    return caps.of_job(spec.capabilities.add, spec.capabilities.drop)


def _check_grantable(spec: JobSpec, facts: host.Facts) -> None:
    """A capability that the supervisor has not itself would be lacking without a word."""
    named = {name for name in spec.capabilities.add if name != "ALL"}
    lacking = sorted(name for name in named if caps.number(name) not in facts.bounding)
    if lacking:
        why = f"the supervisor has no {', '.join(lacking)} itself"
        hint = "see the bounding set of its unit or container, or leave it out"
        raise SpawnError("capabilities", 0, "", why, hint=hint)


def _ambient(spec: JobSpec) -> tuple[int, ...]:
    """A user who is not root has what was added, and nothing of the default."""
    asked = spec.capabilities
    return tuple(sorted(caps.of_job(asked.add, ("ALL", *asked.drop)))) if asked.add else ()


def _rlimits(spec: JobSpec, facts: host.Facts) -> tuple[tuple[int, int, int], ...]:
    """(number, soft, hard); of open files at least what the supervisor itself was given."""
    wanted = {name: getattr(spec.rlimits, name) for name in RLIMITS}
    numbers = RLIMITS | {"nofile": c.RLIMIT_NOFILE}
    wanted["nofile"] = spec.limits.open_files
    found = [(numbers[n], value, value) for n, value in wanted.items() if value is not None]
    if facts.open_files and spec.limits.open_files is None:
        found.append((c.RLIMIT_NOFILE, *facts.open_files))
    return tuple(found)


def environment(spec: JobSpec, identity: users.Identity) -> dict[str, str]:
    """What the payload gets: nothing of the supervisor's own but what `spec` says."""
    name = identity.name or str(identity.uid)
    base = {"PATH": PATH, "HOME": identity.home, "USER": name, "LOGNAME": name}
    return base | mirror.environment(spec) | dict(spec.environment)


def _user_map(spec: JobSpec, facts: host.Facts, identity: users.Identity) -> idmaps.Maps | None:
    namespace = spec.user_namespace
    if namespace.kind == "host":
        if facts.privileged:
            return None
        hint = 'run as root, or leave out user_namespace = "host"'
        raise SpawnError("user_namespace", 1, "", "", hint=hint)
    if identity.uid >= namespace.size or identity.gid >= namespace.size:
        why = f"user {identity.uid}:{identity.gid} is outside of its {namespace.size} mapped ids"
        raise SpawnError("user", 0, "", why, hint="leave out user, or map more ids" + _more(facts))
    return idmaps.maps(namespace, facts.subordinate, privileged=facts.privileged)


def _more(facts: host.Facts) -> str:
    """How an ordinary user comes to more ids than the one."""
    if facts.privileged or facts.subordinate is not None:
        return ""
    return ": newuidmap and newgidmap (Debian: uidmap), and lines in /etc/subuid and /etc/subgid"


def describe(request: Request) -> Iterator[str]:
    """The steps of a start in their order, a line each."""
    from supervisor.container import mounts

    names = [name for flag, name in c.CLONE_NAMES.items() if request.flags & flag]
    yield "clone3 " + " | ".join([*names, "CLONE_PARENT", "CLONE_PIDFD"])
    if request.init_dir:
        yield f"init: CLONE_INTO_CGROUP {request.init_dir}"
    operations = [mounts.unpack(operation) for operation in request.operations]
    handed = [one for one in operations if isinstance(one, mounts.OpenTree) and one.by]
    if request.user_map:
        yield from _describe_maps(request, request.user_map)
        yield from (f"launcher: {operation.describe()}" for operation in handed)
    for path in request.init_files:
        yield f"init: write 0 > {path}"
    if request.user_map:
        yield "init: setresgid 0, setresuid 0"
    for operation in operations:
        if operation not in handed:
            yield "init: " + operation.describe()
    yield from _describe_rest(request)


def _describe_maps(request: Request, maps: idmaps.Maps) -> Iterator[str]:
    """Who writes them, and what; the lines of a map with a comma between them."""
    for number, name in enumerate(("uid_map", "gid_map")):
        extents = [" ".join(map(str, extent)) for extent in maps[number]]
        if request.map_helpers:
            yield f"{request.map_helpers[number]} PID " + " ".join(extents)
        else:
            yield f"write /proc/PID/{name}: " + ", ".join(extents)


def _describe_rest(request: Request) -> Iterator[str]:
    if request.loopback:
        yield "init: ip link set lo up"
    if request.awaits_network:
        yield "init: wait until the supervisor has connected its network"
    yield f"init: hostname {request.hostname}"
    if request.clocks is not None:
        monotonic, boottime = request.clocks
        told = f"offset {monotonic / 1e9:g} s" if monotonic == boottime else "boot time begins now"
        yield f"init: unshare CLONE_NEWTIME, {told}"
    if request.shown:
        yield f"init: open {' '.join(request.shown)} for the supervisor (copy_out)"
    if request.terminal is not None:
        yield "init: open /dev/pts/ptmx, TIOCGPTPEER: a terminal for stdin, stdout and stderr"
    if request.has_groups:
        yield "init: setresgid -1 -1 1"
    # the init of a user namespace may not clone into a cgroup of the host's (`PayloadCgroup`)
    joins = request.payload_dir is not None and request.user_map is not None
    into = "" if joins or not request.payload_dir else f", CLONE_INTO_CGROUP {request.payload_dir}"
    yield f"init: PR_SET_DUMPABLE 0, clone3 the payload{into}"
    for path in request.payload_files:
        yield f"payload: write 0 > {path}"
    if joins:
        yield f"payload: write 0 > {request.payload_dir}/cgroup.procs"
    yield "payload: unshare CLONE_NEWCGROUP, setsid, close all but 0 1 2"
    names = {number: name for name, number in RLIMITS.items()} | {c.RLIMIT_NOFILE: "nofile"}
    for number, soft, hard in request.rlimits:
        yield f"payload: setrlimit {names[number]} {soft}" + (f":{hard}" if soft != hard else "")
    yield "payload: keyctl JOIN_SESSION_KEYRING"
    if request.oom_score_adj is not None and request.user_map is not None:
        yield "payload: PR_SET_DUMPABLE 1"
    if request.oom_score_adj is not None:
        yield f"payload: write {request.oom_score_adj} > /proc/self/oom_score_adj"
    kept = " ".join(caps.NAMES[number].lower() for number in request.capabilities)
    yield f"payload: bounding set of capabilities: {kept or 'empty'}"
    if request.ambient:
        yield "payload: PR_SET_KEEPCAPS 1"
    if request.has_groups:
        yield "payload: setgroups " + ",".join(map(str, request.groups))
    yield f"payload: setresgid {request.gid}, setresuid {request.uid}"
    if request.ambient:
        kept = " ".join(caps.NAMES[number].lower() for number in request.ambient)
        yield f"payload: ambient capabilities: {kept}"
    yield f"payload: PR_SET_NO_NEW_PRIVS, PR_SET_DUMPABLE 0, chdir {request.working_dir}"
    if request.landlock is not None:
        yield "payload: " + landlock.describe(request.landlock)
    for program in request.filters:
        yield f"payload: PR_SET_SECCOMP, a filter of {len(program) // 8} instructions"
    argv = shlex.join(os.fsdecode(word) for word in request.argv)
    yield "payload: execve " + argv.replace("\n", "⏎")
    if b"/" not in request.argv[0]:
        yield "payload: (found along " + ":".join(map(os.fsdecode, request.search)) + ")"
