"""Who speaks to whom while a container is made, and which message is legal when.

    supervisor ── control (SOCK_SEQPACKET) ── launcher
        │                                        │ clones, with CLONE_PARENT
        └──────── status (SOCK_SEQPACKET) ── job's init ── error pipe ── payload

control, one exchange per job, answers in the order of the requests:
    → request   a Request; with it the descriptors status, stdin, stdout, stderr, record; if it says
                `has_layer`, the mount of a writable layer; and those that the init keeps as long as
                it lives, the payload not at all: the lease of the image, whose lock holds its
                layers even when the supervisor has been killed.  A long request is None, and comes
                in a memfd, the last of them
    ← cloned    (CLONED, pid); with it the pidfd of the job's init
    ← refused   (REFUSED, stage, errno, path, text): nothing was cloned
status, one answer per job, then end of file:
    → go        (GO,): only to a job with `awaits_network`, once its interface is complete; the
                init waits for it when it has set itself up, and ends on end of file
    ← started   (STARTED,); SCM_CREDENTIALS names the payload's pid: exec has succeeded; with it
                a descriptor for each path of `shown`, the other side of its `terminal` if it has
                one, and its namespaces (`NAMESPACES`) if it `hands_over`
    ← failed    (FAILED, stage, errno, path, text): no instruction of the command ran
    end of file without either: the init died while it set the container up
record: the init writes one line, once, when the payload has ended (`exit_record`).

A command that is to run in a job that is there already (`enters`) has no init of its own:

    supervisor ── control ── launcher
        ├──────── status ── entrant ── the command     each cloned with CLONE_PARENT

`record` is then the pidfd of the job's init, and where the launcher has no right to look at that
process, what is kept are its namespaces, in the order of `NAMESPACES`.  The answer to the request
names the entrant.  It joins the job's cgroup, then its namespaces, clones the command, and ends.
On the status socket:
    ← entered   (ENTERED,); with it the command's pidfd and, if it has one, its terminal.  Only
                then does the command do anything; an entrant that dies before takes it along
    ← failed    from either, as above
    end of file after entered: exec has succeeded

Everything is `marshal`: built in, and the two sides run the same interpreter.  The launcher trusts
the supervisor; the supervisor trusts what init and launcher say, never what the payload can
write: the payload has none of these descriptors.
"""

from __future__ import annotations

import marshal

from supervisor.linux import constants

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION = 6
MAX_MESSAGE = 96 * 1024
"""Longer requests travel in a memfd; a socket buffer holds 208 KiB by default."""

MOST_SHOWN = 64
"""Paths in `shown`: a message takes 253 descriptors (SCM_MAX_FD)."""

CLONED, REFUSED, STARTED, FAILED, GO = "cloned", "refused", "started", "failed", "go"
ENTERED = "entered"

STAGES = (
    "request",
    "clone",
    "user_namespace",
    "cgroup",
    "enter",
    "mounts",
    "network",
    "hostname",
    "time_namespace",
    "init",
    "payload_cgroup",
    "terminal",
    "rlimits",
    "keyring",
    "oom_score_adj",
    "user",
    "capabilities",
    "working_dir",
    "landlock",
    "seccomp",
    "exec",
)
"""Where making a container can fail, in the order in which it happens."""

DESCRIPTORS = ("status", "stdin", "stdout", "stderr", "record")
"""What comes with a request, in this order, before a layer and what the init is to keep."""
LAYER = -1
"""The number of the writable layer's mount among the trees (`mounts.OpenTree` counts from 0)."""

NAMESPACES = (
    (constants.CLONE_NEWUSER, "user"),
    (constants.CLONE_NEWNS, "mnt"),
    (constants.CLONE_NEWPID, "pid"),
    (constants.CLONE_NEWNET, "net"),
    (constants.CLONE_NEWUTS, "uts"),
    (constants.CLONE_NEWIPC, "ipc"),
    (constants.CLONE_NEWTIME, "time_for_children"),
)
"""Of a job's init, by their names in /proc/PID/ns, in the order in which they are joined.

The user namespace gives the right to the others.  The init's own clocks are the host's; its cgroup
namespace is not the payload's, who makes one in its cgroup, as a command that enters does.
"""

MOST_KEPT = 64
ELSEWHERE = marshal.dumps(None)
"""The message of a request that lies in a memfd, the last of the descriptors."""


class Request:
    """All that the launcher and the child need; no decision is left to them.

    flags           CLONE_NEW* of the init
    user_map        (inside, outside, count) for uids, as many as there are, and those for gids;
                    None for no user namespace
    map_helpers     newuidmap(1) and newgidmap(1), if it is they who may write these
    init_files …    see `cgroup.api.Entry`
    operations      mount operations as tuples (`container.mounts`)
    hostname        "" leaves it
    loopback        bring `lo` up
    awaits_network  do not start the payload before GO
    clocks          nanoseconds added to CLOCK_MONOTONIC and to CLOCK_BOOTTIME, or None
    argv, env       of the payload; bytes, as execve takes them
    shown           paths in the job, mount points, that the supervisor is to see (O_PATH)
    search          directories that argv[0] is looked for in, when it has no slash
    uid, gid, groups, working_dir: of the payload
    capabilities    all it may ever have; `ambient`: those it keeps as a user who is not root
    rlimits         (number, soft, hard) of each
    oom_score_adj   or None to leave it
    landlock        rights to files that are given up, scopes, (path, rights left) pairs; or None
    filters         BPF programs of seccomp(2), in the order of their installation
    terminal        (rows, columns) of a terminal that takes the place of its streams, or None
    enters          0 for a job; else the pid of the init of the one that the command is to be in:
                    `flags` are the namespaces, and `init_*` say how to come to the payload's cgroup
    hands_over      the init hands over its namespaces: the launcher may not look at it
    dies_with_us    SIGKILL when the supervisor ends
    """

    __slots__ = (
        "ambient",
        "argv",
        "awaits_network",
        "capabilities",
        "clocks",
        "dies_with_us",
        "enters",
        "env",
        "filters",
        "flags",
        "gid",
        "groups",
        "hands_over",
        "has_layer",
        "hostname",
        "init_dir",
        "init_files",
        "landlock",
        "loopback",
        "map_helpers",
        "oom_score_adj",
        "operations",
        "payload_dir",
        "payload_files",
        "rlimits",
        "run",
        "search",
        "shown",
        "terminal",
        "uid",
        "user_map",
        "working_dir",
    )

    run: str
    flags: int
    user_map: tuple[tuple[tuple[int, int, int], ...], tuple[tuple[int, int, int], ...]] | None
    map_helpers: tuple[str, ...]
    init_files: tuple[str, ...]
    init_dir: str | None
    payload_files: tuple[str, ...]
    payload_dir: str | None
    operations: tuple[tuple[Any, ...], ...]
    has_layer: bool
    hostname: str
    loopback: bool
    awaits_network: bool
    clocks: tuple[int, int] | None
    argv: tuple[bytes, ...]
    env: dict[bytes, bytes]
    search: tuple[bytes, ...]
    shown: tuple[str, ...]
    uid: int
    gid: int
    groups: tuple[int, ...]
    capabilities: tuple[int, ...]
    ambient: tuple[int, ...]
    rlimits: tuple[tuple[int, int, int], ...]
    oom_score_adj: int | None
    landlock: tuple[int, int, tuple[tuple[str, int], ...]] | None
    filters: tuple[bytes, ...]
    working_dir: str
    terminal: tuple[int, int] | None
    enters: int
    hands_over: bool
    dies_with_us: bool

    def __init__(self, **values: Any) -> None:
        for name in self.__slots__:
            setattr(self, name, values.pop(name))
        if values:
            raise TypeError(f"unknown fields: {', '.join(values)}")

    @property
    def has_groups(self) -> bool:
        """Whether the job has more than one group, and setgroups(2): not so with a single id."""
        return self.user_map is None or sum(count for _, _, count in self.user_map[1]) > 1

    def pack(self) -> bytes:
        return marshal.dumps((VERSION, *(getattr(self, name) for name in self.__slots__)))

    @classmethod
    def unpack(cls, data: bytes) -> Request:
        """The request in `data`; ValueError if another version wrote it."""
        version, *values = marshal.loads(data)
        if version != VERSION:
            raise ValueError(f"request of version {version}, expected {VERSION}")
        return cls(**dict(zip(cls.__slots__, values, strict=True)))


def namespaces(request: Request) -> list[tuple[int, str]]:
    """Those of NAMESPACES that the job of a request has of its own."""
    flags = request.flags
    if request.clocks is not None:
        flags |= constants.CLONE_NEWTIME
    return [(kind, name) for kind, name in NAMESPACES if flags & kind]


def pack(*message: str | int) -> bytes:
    """A message as bytes; an over-long last text is cut, never the stage or the errno."""
    return marshal.dumps(tuple(m[:8000] if isinstance(m, str) else m for m in message))


def unpack(data: bytes, legal: tuple[str, ...]) -> tuple[Any, ...]:
    """The message in `data`; ValueError when its kind is none of those `legal` now."""
    message = marshal.loads(data)
    if not isinstance(message, tuple) or not message or message[0] not in legal:
        raise ValueError(f"{message!r:.80} is not one of {', '.join(legal)}")
    return message
