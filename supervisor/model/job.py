"""What a job is: the configuration of one job, resolved, checked and frozen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from attrs import field, frozen

from supervisor.model.limits import Limits

Resource = Literal["memory", "cpu", "io"]
"""What processes can stand still for, by the kernel's names (accounting/psi.rst)."""

HOOKS = (
    "on_start",
    "on_memory_limit",
    "on_oom_kill",
    "on_pids_limit",
    "on_disk_limit",
    "on_pressure",
    "on_timeout",
    "on_exit",
    "on_tick",
)
"""The hooks a job may set for itself, named as in `policy.hookspec`."""


DiskBy = Literal["auto", "quota", "loop", "tmpfs"]
"""What bounds a job's writable layer: a project quota, a file system in a file, one in memory."""

OOM_SCORE_ADJ = 200
"""Of a job, unless it says otherwise: the host's own services are to outlive it (proc(5))."""


HIDDEN = (
    "/boot",
    "/etc/NetworkManager/system-connections",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/krb5.keytab",
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/ssh/ssh_host_*_key",
    "/etc/ssl/private",
    "/etc/sudoers",
    "/etc/sudoers.d",
    "/etc/wireguard",
    "/home",
    "/root",
    "/var/backups",
    "/var/cache/supervise",
    "/var/lib/containerd",
    "/var/lib/containers",
    "/var/lib/docker",
    "/var/lib/kubelet",
    "/var/lib/libvirt",
    "/var/lib/lxc",
    "/var/lib/supervise",
    "/var/mail",
    "/var/spool/cron",
)
"""What a job with the host's root does not see unless it is mounted: others' data, and secrets.

The sockets of the host's services are in /run, of which a job has its own.  `*` as in glob(7).
"""


@frozen
class Mount:
    """A bind mount of a host path into the job; `read_only` holds for mounts below it too."""

    source: str
    target: str
    read_only: bool = False


@frozen
class Volume:
    """A directory of the state directory's that keeps its content from run to run, by its name."""

    name: str
    target: str
    read_only: bool = False


@frozen
class Tmpfs:
    """A tmpfs at `target`; what is in it counts against the job's memory.  `size` in bytes.

    One at /tmp, /run or /dev/shm is the job's own with that size.
    """

    target: str
    size: int | None = None
    inodes: int | None = None


@frozen
class Device:
    """A device of the host that a job may use, at `target` in its own tree.

    `access`: any of r (read), w (write) and m (make nodes of it), in this order.
    """

    path: str
    target: str
    access: str = "rw"


@frozen
class Stop:
    """How a job is stopped: `signal` to the whole tree, SIGKILL after `grace` seconds."""

    signal: str = "TERM"
    grace: float = 10.0


@frozen
class Restart:
    """When a job that ended is started again; `attempts` are the further ones, None: no bound.

    `backoff` seconds before the first, doubled each time up to `max_backoff`.
    """

    when: Literal["never", "on-failure", "on-oom", "always"] = "never"
    attempts: int | None = 3
    backoff: float = 1.0
    max_backoff: float = 60.0


@frozen
class PressureAt:
    """From which share of the time (0 to 1) on pressure is told to `on_pressure`; None: never."""

    memory: float | None = 0.15
    cpu: float | None = None
    io: float | None = None

    def wanted(self) -> dict[Resource, float]:
        shares: dict[Resource, float | None] = {
            "memory": self.memory,
            "cpu": self.cpu,
            "io": self.io,
        }
        return {resource: share for resource, share in shares.items() if share is not None}


Sink = Literal["files", "journald"]


@frozen
class Log:
    """Where its stdout and stderr go; `max_size` in bytes of one file, None: it just grows.

    `keep` are the older files beside it.  `on_full`: what a write does where the disk is full.
    """

    timestamps: bool = False
    max_size: int | None = None
    keep: int = 3
    sink: tuple[Sink, ...] = ("files",)
    on_full: Literal["error", "drop"] = "error"

    @property
    def copied(self) -> bool:
        """Whether the supervisor stands between the job and its files in any case."""
        return self.timestamps or self.on_full == "drop" or self.sink != ("files",)


@frozen
class UserNamespace:
    """Whose ids the job's are.

    `host`: no user namespace.  `self`: the caller's one id as root.  `map`: `size` ids from
    `host_id` on.  `auto`: a range of its own for each run (then `map`); without root what the
    caller has been given in /etc/subuid, else as `self`.

    `files`: whether what root owns on a mount is root's inside too (an idmapped mount).  `try`:
    where the kernel and the file system can, `mapped`: or the job is refused, `plain`: never.
    """

    kind: Literal["host", "self", "map", "auto"] = "host"
    host_id: int = 0
    size: int = 1
    files: Literal["try", "mapped", "plain"] = "try"


@frozen
class Capabilities:
    """What its root may do beyond, and less than, the default: names as "NET_RAW", or "ALL"."""

    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()


@frozen
class Port:
    """A port of the job's that is reached from outside, at `outside` of the host.

    `address` is the host's, None for all it has.
    """

    outside: int
    inside: int
    address: str | None = None
    protocol: Literal["tcp", "udp"] = "tcp"


@frozen
class Egress:
    """Where a job may go: a network, as "10.0.0.0/8"; None: every protocol, every port."""

    network: str
    port: int | None = None
    protocol: Literal["tcp", "udp"] | None = None


@frozen
class Rlimits:
    """setrlimit(2), soft and hard alike; None leaves what the supervisor has.

    core, fsize, stack and memlock in bytes; nproc counts the processes of one user.
    """

    core: int | None = None
    fsize: int | None = None
    memlock: int | None = None
    nproc: int | None = None
    stack: int | None = None


@frozen
class InlineAction:
    """A hook set in the job itself: the name of an action and its arguments, as written."""

    action: str
    arguments: Mapping[str, Any] = field(factory=dict)


@frozen
class PolicyName:
    """A hook that one policy decides, given by its name or path; the others are not asked."""

    name: str


@frozen
class JobSpec:
    """One job.  Times in seconds, sizes in bytes, paths absolute.

    `group` is the part of `name` before a matrix's suffix, so that `after = ["compress"]` waits
    for every member.  `command` is an argv; a `script` has become one.  `reach` are jobs whose
    ports it may use; `egress` None: it may go anywhere; `dns` None: the host's name servers;
    `bandwidth` in bytes a second, each way.  `copy_out` are paths in the job, copied to the run's
    directory when it has ended.

    `root` is "host", a directory, or the canonical text of `image.reference`.  Of an image,
    `layers` are the host directories once it is there, the top one first, and `places` are
    directories that are made in its root where they are missing; an `entrypoint` of None, a
    `working_dir` and a `stop.signal` of "" are as the image says.
    """

    name: str
    command: tuple[str, ...]
    group: str = ""
    entrypoint: tuple[str, ...] | None = None
    root: str = "host"
    layers: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    write: Literal["read-only", "overlay"] = "read-only"
    keep: Literal["never", "on-failure", "always"] = "never"
    copy_out: tuple[str, ...] = ()
    disk_by: DiskBy = "auto"
    hide: tuple[str, ...] = HIDDEN
    mounts: tuple[Mount, ...] = ()
    volumes: tuple[Volume, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    devices: tuple[Device, ...] = ()
    network: Literal["none", "host", "bridge"] = "none"
    ports: tuple[Port, ...] = ()
    reach: tuple[str, ...] = ()
    egress: tuple[Egress, ...] | None = None
    dns: tuple[str, ...] | None = None
    bandwidth: int | None = None
    user: str | None = None
    user_group: str | None = None
    user_namespace: UserNamespace = UserNamespace()
    capabilities: Capabilities = Capabilities()
    seccomp: str = "default"
    landlock: Literal["auto", "require", "off"] = "auto"
    rlimits: Rlimits = Rlimits()
    oom_score_adj: int | None = OOM_SCORE_ADJ
    time_offset: float | None = None
    proc: Literal["host", "limits"] = "host"
    hostname: str | None = None
    environment: Mapping[str, str] = field(factory=dict)
    working_dir: str = "/"
    stdin: Literal["null", "open"] = "null"
    terminal: bool = False
    limits: Limits = Limits()
    timeout: float | None = None
    cpu_time: float | None = None
    stop: Stop = Stop()
    restart: Restart = Restart()
    log: Log = Log()
    after: tuple[str, ...] = ()
    priority: int = 0
    hooks: Mapping[str, InlineAction | PolicyName] = field(factory=dict)
    pressure: PressureAt = PressureAt()
    oom: Literal["kill", "continue"] = "kill"
    expect: str = "succeeded"

    @property
    def in_image(self) -> bool:
        """Whether its root is an image."""
        return self.root != "host" and not self.root.startswith("/")
