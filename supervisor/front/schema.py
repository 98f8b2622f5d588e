"""The one table of settings.  It feeds the parser, `run`'s flags, and docs/config.md.

May import: `errors`, `model`, `front.kinds`, `front.compounds`, `front.networks`,
`front.registries`, `front.actions`.  A setting is
added here and nowhere else, plus a field of the class that holds it (`model.job.JobSpec` or
`front.settings`).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from attrs import define, field

from supervisor.front import actions, compounds, kinds, networks, registries
from supervisor.front.kinds import Kind
from supervisor.model import units
from supervisor.model.job import HOOKS
from supervisor.model.record import Reason

Key = tuple[str, ...]

BYTES = 'size: `"512M"`, `"1.5G"` (K M G T, base 1024), or bytes'
TIME = 'duration: `"500ms"`, `"10s"`, `"1h30m"`, or seconds'
NO_LIMIT = '; `"max"`: none'

SHARE = Kind(BYTES + ", or a share of the host's as `\"50%\"`" + NO_LIMIT,
             kinds.size(kinds.PAGE, share=True, unbounded=True), "SIZE", kinds.scalar)  # fmt: skip
DISK = Kind(BYTES + NO_LIMIT, kinds.size(units.LEAST_DISK, unbounded=True), "SIZE", kinds.scalar)
SWAP = Kind(BYTES + NO_LIMIT, kinds.size(unbounded=True), "SIZE", kinds.scalar)
DURATION = Kind(TIME, kinds.duration(), "TIME", kinds.scalar)
DEADLINE = Kind(TIME + NO_LIMIT, kinds.duration(0.001, unbounded=True), "TIME", kinds.scalar)
OFFSET = Kind(TIME + '; may be negative: `"-1h"`', kinds.duration(-float("inf")), "TIME",
              kinds.scalar)  # fmt: skip
BOOLEAN = Kind("true or false", kinds.boolean, "")
NAME = Kind('name: letters, digits, "_", "-", "."', kinds.name, "NAME")
HOST_PATH = Kind("path; a relative one starts at the file's directory", kinds.host_path, "PATH")
JOB_PATH = Kind("absolute path inside the job", kinds.job_path, "PATH")
CAPABILITIES = Kind('array of capabilities: `"NET_RAW"`, `"ALL"`', compounds.capabilities,
                    "CAPABILITY", many=True)  # fmt: skip
STRING = Kind("string", kinds.string, "K=V", many=True)


def _words(*words: str, later: tuple[str, ...] = ()) -> Kind:
    what = " or ".join(f'`"{word}"`' for word in words)
    return Kind(what, kinds.one_of(*words, later=later), "|".join(words))


def _whole(low: int, high: int, *, unbounded: bool = False) -> Kind:
    what = f"integer, {low} to {high}" + (NO_LIMIT if unbounded else "")
    return Kind(what, kinds.integer(low, high, unbounded=unbounded), "N", kinds.scalar)


def _cpus() -> Kind:
    parse = kinds.number(actions.FEWEST_CPUS, actions.MOST_CPUS, unbounded=True)
    return Kind(f"number, from {actions.FEWEST_CPUS:g}" + NO_LIMIT, parse, "N", kinds.scalar)


@define(frozen=True, slots=False)
class Setting:
    """One setting: where it is written, what it may be, and what it is for.

    `key` is dotted; a last part `*` stands for keys of the user's own.  `default` and `example`
    are TOML (the example must parse: a test reads each).  `flag`: its name on `run`'s command
    line without the dashes, empty for none.  `matrix`: placeholders are filled in.
    """

    key: str
    kind: Kind
    help: str
    default: str = ""
    example: str = ""
    flag: str = ""
    matrix: bool = False

    @cached_property
    def path(self) -> Key:
        return tuple(self.key.split("."))


@define(frozen=True, slots=False)
class Table:
    """The settings of one kind of table, looked up by their path.

    `later`: keys that other versions know, refused with their own message.
    """

    settings: tuple[Setting, ...]
    later: frozenset[str] = field(default=frozenset())

    @cached_property
    def leaves(self) -> Mapping[Key, Setting]:
        return {setting.path: setting for setting in self.settings}

    @cached_property
    def sections(self) -> frozenset[Key]:
        return frozenset(path[:end] for path in self.leaves for end in range(1, len(path)))

    def find(self, path: Key) -> Setting | None:
        """The setting at `path`, an open one ("environment.*") included."""
        return self.leaves.get(path) or self.leaves.get((*path[:-1], "*"))

    def names(self, section: Key) -> tuple[str, ...]:
        """The keys that may stand directly in `section`, in the table's order."""
        depth = len(section)
        inside = [path[depth] for path in self.leaves if path[:depth] == section]
        return tuple(dict.fromkeys(inside))


SUPERVISOR = Table((
    Setting("name", NAME, "The instance: names its state, its cgroup and its socket.",
            "the file's stem", '"nightly"'),
    Setting("state_dir", HOST_PATH, "Where records, logs and the event log are kept.",
            "`/var/lib/supervise`; without root `$XDG_STATE_HOME/supervise`",
            '"/var/lib/supervise"'),
    Setting("runtime_dir", HOST_PATH, "Where the lock and the socket are, gone after a reboot.",
            "`/run/supervise`; without root `$XDG_RUNTIME_DIR/supervise`, or `run` in "
            "`state_dir`", '"/run/supervise"'),
    Setting("socket_group", Kind("name or number of a group", kinds.account_group, "GROUP"),
            "Its members may look by the socket (`docs/socket.md`), and change nothing.", "none",
            '"adm"'),
    Setting("plugins", Kind("array of bundled or installed names, or paths of .py files",
                            kinds.array(kinds.plugin, "an array of policies"), "NAME|PATH"),
            "Policies, asked in this order; the first verdict decides.", "[]",
            '["grow-memory", "./policies/mine.py"]'),
    Setting("on_missing", _words("refuse", "warn"),
            "What to do with a job that has a limit this host cannot enforce.", '"refuse"',
            '"warn"'),
    Setting("when_done", _words("exit", "stay"),
            "What to do when every job has ended: end, or wait for jobs that are submitted until "
            "it is stopped (see steering.md).", '"exit"', '"stay"'),
    Setting("cgroup_parent", Kind("absolute path of a cgroup", kinds.cgroup_path, "PATH"),
            "Make the jobs' cgroups below this (delegated) cgroup.",
            "the cgroup `supervise` runs in", '"/batch.slice"'),
    Setting("network.pool", Kind('IPv4 network, /16 to /29: `"10.80.0.0/24"`', networks.pool,
                                 "NETWORK"),
            "Where the addresses of jobs on the bridge come from; no route of the host may lead "
            "into it.", "a free /24 of 10.0.0.0/8", '"10.80.0.0/24"'),
    Setting("capacity.memory", SHARE,
            "Jobs wait while the sum of the running ones' memory limits would exceed this. Each "
            "job must have a `limits.memory` then.", "none", '"80%"'),
    Setting("capacity.cpus", _cpus(),
            "The same for the sum of `limits.cpus`, which each job must have then.", "none", "4"),
    Setting("capacity.jobs", _whole(1, 1000000, unbounded=True), "How many jobs run at once.",
            "none", "16"),
    Setting("history.keep", DEADLINE, "How long the history knows of a run that has ended.",
            '"90d"', '"365d"'),
    Setting("history.runs", _whole(1, 100_000_000, unbounded=True),
            "How many runs it knows of, the last ones.", "10000", "100000"),
    Setting("runs.keep", DEADLINE,
            "How long a run's directory and its log files stay when it has ended.", '"max"',
            '"30d"'),
    Setting("runs.count", _whole(1, 100_000_000, unbounded=True),
            "For how many runs they stay, the last ones.", '"max"', "1000"),
    Setting("runs.layers", BOOLEAN,
            "Whether these bounds are also for runs with a kept layer (`keep`) or results "
            "(`copy_out`); else those stay until you remove them.", "false", "true"),
    Setting("events.size", Kind(BYTES + NO_LIMIT, kinds.size(65536, unbounded=True), "SIZE",
                                kinds.scalar),
            "From which size on `events.ndjson` becomes `events.ndjson.1`, and a new one is begun.",
            '"64M"', '"16M"'),
    Setting("events.files", _whole(1, 1000), "How many such files there are, the oldest goes.",
            "4", "8"),
))  # fmt: skip

_ACTION = "`{ action = … }` (see Actions), or a policy's name or path"
_HOOK_HELP = {
    "on_start": "When the job's command runs.",
    "on_memory_limit": "When its memory limit is reached; its tasks may be held meanwhile.",
    "on_oom_kill": "When the kernel has killed one of its processes for want of memory.",
    "on_pids_limit": "When fork was refused.",
    "on_disk_limit": "When its writable layer is full; for `raise`, when it is nearly so.",
    "on_pressure": "When its processes stand still for want of something: see `pressure`.",
    "on_timeout": "When `timeout` or `cpu_time` is over.",
    "on_exit": "When its run has ended.",
    "on_tick": "From time to time while it runs.",
}
_HOOK_EXAMPLE = {
    "on_start": '{ action = "notify", message = "it runs" }',
    "on_memory_limit": '{ action = "raise", to = "1G" }',
    "on_oom_kill": '{ action = "retry", limits = { memory = "2G" }, after = "10s" }',
    "on_pids_limit": '{ action = "kill", why = "a fork bomb" }',
    "on_disk_limit": '{ action = "raise", to = "4G" }',
    "on_pressure": '{ action = "freeze" }',
    "on_timeout": '{ action = "signal", signal = "HUP" }',
    "on_exit": '{ action = "ignore" }',
    "on_tick": '{ action = "ignore" }',
}


def _hook_settings() -> tuple[Setting, ...]:
    return tuple(
        Setting(
            hook,
            Kind(_ACTION, actions.hook(hook), "ACTION[:ARG]", actions.hook_from_flag),
            _HOOK_HELP[hook],
            "the plugins are asked",
            _HOOK_EXAMPLE[hook],
            flag=hook.replace("_", "-"),
        )
        for hook in HOOKS
    )


def _reason(value: object, _context: kinds.Context) -> str:
    return kinds.word(value, tuple(str(reason) for reason in Reason))


def _matrix_value(value: object, _context: kinds.Context) -> tuple[str, ...]:
    from supervisor.front.matrix import values

    return values(value)


LIMITS = (
    Setting("limits.memory", SHARE, "RAM, tmpfs pages and page cache included.", "none",
            '"256M"', "memory"),
    Setting("limits.memory_high", SHARE,
            "Above it the job is slowed down and its memory reclaimed, not killed; cgroup v2 only.",
            "none", '"192M"', "memory-high"),
    Setting("limits.memory_low", SHARE,
            "Up to this much of its memory is left alone while others have any to give; cgroup v2 "
            "only, and the cgroups above must grant it (`MemoryLow=` of a unit).", "none",
            '"64M"', "memory-low"),
    Setting("limits.swap", SWAP, "Swap beside the memory; needs `limits.memory`.", "none", "0",
            "swap"),
    Setting("limits.swappiness", _whole(0, 100), "How readily it is swapped out; cgroup v1 only.",
            "the host's", "10", "swappiness"),
    Setting("limits.pids", _whole(1, actions.MOST_PIDS, unbounded=True),
            "Tasks at once, threads included.", "none", "64", "pids"),
    Setting("limits.cpus", _cpus(), "CPUs' worth of time.", "none", "1.5", "cpus"),
    Setting("limits.cpu_weight", _whole(1, 10000), "Its share when the CPUs are busy; 100 is even.",
            "100", "200", "cpu-weight"),
    Setting("limits.cpu_idle", BOOLEAN,
            "Give it only the CPU time that nobody else wants, instead of a `cpu_weight`.", "false",
            "true", "cpu-idle"),
    Setting("limits.cpuset", Kind('list of CPUs: `"0-2,4"`', kinds.cpuset, "LIST"),
            "The CPUs it may run on.", "all", '"0-1"', "cpuset"),
    Setting("limits.io", Kind("array of tables: `path` and any of `read_bps`, `write_bps` (sizes), "
                              "`read_iops`, `write_iops` (integers)",
                              kinds.array(compounds.io_limit, "an array of tables"),
                              "PATH:KEY=RATE[,…]", compounds.io_from_flag, many=True),
            "Throttles, a second, on the device that holds `path`. On cgroup v1 not for what the "
            "kernel writes back from its cache by itself.",
            "none", '[{ path = "/srv", read_bps = "50M", write_iops = 500 }]', "io"),
    Setting("limits.output", SWAP, "Bytes of stdout and stderr together; past them it is ended as "
            "`output`.", "none", '"100M"', "output"),
    Setting("limits.disk", DISK, "What it may write to its root, in bytes; past them a write fails "
            '(ENOSPC or EDQUOT). Needs `write = "overlay"`; see `disk_by` and images.md.', "none",
            '"2G"', "disk"),
    Setting("limits.disk_inodes", _whole(16, 2**32 - 1),
            "Files, directories and links in it, beside `limits.disk`.",
            "one for each 8 KiB of `limits.disk`", "100000", "disk-inodes"),
    Setting("limits.open_files", _whole(3, 1073741816), "Open descriptors of each process.",
            "the supervisor's own", "1024", "open-files"),
)  # fmt: skip

RLIMITS = (
    Setting("rlimits.core", SWAP, "The largest core file a process writes.", "the supervisor's own",
            "0", "rlimit-core"),
    Setting("rlimits.fsize", SWAP, "The largest file it writes.", "the supervisor's own", '"1G"',
            "rlimit-fsize"),
    Setting("rlimits.memlock", SWAP, "Memory it locks.", "the supervisor's own", '"64K"',
            "rlimit-memlock"),
    Setting("rlimits.nproc", _whole(1, actions.MOST_PIDS, unbounded=True),
            "Processes of its user on the whole host; `limits.pids` counts the job's own.",
            "the supervisor's own", "1024", "rlimit-nproc"),
    Setting("rlimits.stack", SWAP, "The stack of a process.", "the supervisor's own", '"8M"',
            "rlimit-stack"),
)  # fmt: skip

LEAST_LOG = 64 * 1024
LOG = (
    Setting("log.timestamps", BOOLEAN, "Whether each line begins with the time at which it came "
            "(RFC 3339, UTC). See logs.md.", "false", "true", "log-timestamps"),
    Setting("log.max_size", Kind(BYTES + NO_LIMIT, kinds.size(LEAST_LOG, unbounded=True), "SIZE",
                                 kinds.scalar),
            "From which size on a log file's older part is moved out, without losing a byte.",
            "none", '"10M"'),
    Setting("log.keep", _whole(0, 1000), "How many such parts of each stream are kept.", "3", "5"),
    Setting("log.sink", Kind('`"files"`, `"journald"`, or an array of both', kinds.sinks,
                             "files|journald"),
            "Where its output goes: the run's log files, the systemd journal.", '"files"',
            '["files", "journald"]'),
    Setting("log.on_full", _words("error", "drop"),
            "When there is no room for its output: its own write fails (ENOSPC), or the output is "
            "dropped and counted, and it goes on.", '"error"', '"drop"'),
)  # fmt: skip

_PART = Kind('share of the time: `"15%"`' + NO_LIMIT, kinds.part(unbounded=True), "SHARE")
PRESSURE = (
    Setting("pressure.memory", _PART,
            "`on_pressure` hears of it when some process stood still for want of memory for more "
            "than this share of two seconds. Without such a hook nothing is watched.", '"15%"',
            '"30%"', "pressure-memory"),
    Setting("pressure.cpu", _PART, "The same for want of a CPU (its own quota included).", "none",
            '"80%"', "pressure-cpu"),
    Setting("pressure.io", _PART, "The same for want of I/O.", "none", '"50%"', "pressure-io"),
)  # fmt: skip

JOB = Table((
    Setting("command", Kind("array of strings (an argv), or one string split like a shell's words "
                            "without a shell", kinds.command, ""),
            "What runs. This or `script`.", "", '["gzip", "-9", "/data/in.log"]', matrix=True),
    Setting("script", Kind("string", kinds.script, ""),
            "A shell script, run by `sh -eu`. This or `command`.", "", '"""\nsort in > out\n"""',
            matrix=True),
    Setting("entrypoint", Kind("as `command`; `[]`: none", kinds.entrypoint, "PROGRAM"),
            "What stands before `command`, instead of the image's own entrypoint; images only.",
            "the image's", '["/bin/sh", "-c"]', "entrypoint", True),
    Setting("root", Kind('`"host"`; a directory: `"/srv/root"`, `"./root"`; or an image: '
                         '`"oci:DIR[:TAG]"`, `"oci-archive:FILE"`, `"docker-archive:FILE"`, '
                         '`"tar:FILE"`, `"docker://NAME:TAG"`, or its name in the store (see '
                         "images.md)", kinds.root, "host|DIR|IMAGE"),
            "The root file system the job sees. An image gives what the job does not say: command, "
            "environment, user, working directory, stop signal.", '"host"', '"docker://debian:12"',
            "root", True),
    Setting("write", _words("read-only", "overlay"),
            "Whether it may write to its root; an overlay takes the writes and is thrown away.",
            '`"read-only"` for the host, else `"overlay"`', '"overlay"', "write"),
    Setting("keep", Kind('`"never"`, `"on-failure"` or `"always"` (true)', kinds.keep,
                         "never|on-failure|always", bare="always"),
            "Whether the overlay's writes stay with the run's records: for `supervise diff` "
            "and `supervise commit`, for a look at what a failed job left.", '"never"',
            '"on-failure"', "keep"),
    Setting("copy_out", Kind("array of absolute paths inside the job",
                             kinds.array(kinds.job_path, "an array of paths"), "PATH", many=True),
            "Files and directories that are copied to `out/` in the run's directory when the job "
            "has ended, however it ended; of `supervise run` to the working directory.", "[]",
            '["/out/result.csv"]', "copy-out", True),
    Setting("disk_by", _words("auto", "quota", "loop", "tmpfs"),
            "What holds `limits.disk`: a project quota of the file system below, a file system in "
            "a file of that size, or one in memory, which counts against `limits.memory`. `auto` "
            "takes the first of these that there is.", '"auto"', '"loop"', "disk-by"),
    Setting("hide", Kind('`"default"`, `"nothing"`, or an array of paths to hide as well',
                         compounds.hide, "default|nothing|PATH[:PATH]", compounds.hide_from_flag),
            "What it does not see of the host's root unless it is mounted: home directories, "
            "secrets, other services' and the supervisor's own state.", '"default"',
            '["/srv/private"]', "hide"),
    Setting("mounts", Kind("array of `{ source, target, read_only }`, or of "
                           "`\"SOURCE:TARGET\"`, `\"SOURCE:TARGET:ro\"`",
                           kinds.array(compounds.mount, "an array of mounts"), "SRC:DST[:ro]",
                           many=True),
            "Host directories or files it sees, and may write to as far as its user may, unless "
            "`read_only` is true (`:ro`); that then holds for mounts below, too.", "[]",
            '[{ source = "/srv/data", target = "/data", read_only = true }]', "mount", True),
    Setting("volumes", Kind('array of `{ name, target, read_only }`, or of `"NAME:TARGET"`, '
                            '`"NAME:TARGET:ro"`',
                            kinds.array(compounds.volume, "an array of volumes"),
                            "NAME:TARGET[:ro]", many=True),
            "Directories that keep what is in them from run to run, made when they are first used, "
            "for the user of that job; all instances of a `state_dir` share them "
            "(`supervise volume`).", "[]", '["cache:/var/cache/job"]', "volume", True),
    Setting("tmpfs", Kind('array of `"/PATH"`, `"/PATH:size=64M"`, `"/PATH:inodes=1000"`, '
                          '`"/PATH:size=64M,inodes=1000"`',
                          kinds.array(compounds.tmpfs, "an array of tmpfs mounts"),
                          "PATH[:size=SIZE]", many=True),
            "Empty writable directories in memory, which count against `limits.memory`; or the "
            "size of its own `/tmp`, `/run` and `/dev/shm`. Each is as large as `limits.memory`, "
            "without one as a quarter of the host's memory, and has an inode for each 4 KiB.", "[]",
            '["/scratch:size=64M"]', "tmpfs"),
    Setting("devices", Kind('array of `"/dev/fuse"`, `"/dev/sr0:r"`, `"PATH:TARGET:ACCESS"` or of '
                            "`{ path, target, access }`",
                            kinds.array(compounds.device, "an array of devices"),
                            "PATH[:TARGET][:ACCESS]", many=True),
            "Devices of the host it may use beside null, zero, full, random, urandom, tty and "
            "its own terminals; `access` is of `r`, `w` and `m` (make nodes of it), else `rw`.",
            "[]", '["/dev/fuse"]', "device", True),
    Setting("network", _words("none", "host", "bridge"),
            "None but its own loopback; the host's; or an address of its own on the instance's "
            "bridge (see network.md).", '"none"', '"bridge"', "network"),
    Setting("ports", Kind('array of `"[ADDRESS:]PORT:INSIDE[/tcp|/udp]"`',
                          kinds.array(networks.port, "an array of ports"),
                          "[ADDRESS:]PORT:INSIDE[/udp]", many=True),
            "Ports of the host at which its own are reached; `bridge` only.", "[]",
            '["127.0.0.1:8080:80"]', "port"),
    Setting("egress", Kind('array of `"NETWORK[:PORT][/tcp|/udp]"`; `[]`: nowhere',
                           kinds.array(networks.egress, "an array of networks"),
                           "NETWORK[:PORT][/udp]", many=True),
            "Where it may open connections to; `bridge` only.",
            "anywhere", '["10.0.0.0/8:443", "[2001:db8::/32]:443"]', "egress"),
    Setting("reach", Kind("array of jobs' names; a matrix's own name means all its members",
                          kinds.array(kinds.string, "an array of jobs' names"), "JOB"),
            "Jobs on the bridge to which it may open connections, by their names; `bridge` only.",
            "[]", '["db"]'),
    Setting("dns", Kind("array of IP addresses", kinds.array(networks.address, "an array of "
                        "IP addresses"), "ADDRESS", many=True),
            "The name servers it asks; `bridge` only.", "the host's", '["192.0.2.53"]', "dns"),
    Setting("bandwidth", Kind(BYTES, kinds.size(networks.SLOWEST, high=networks.FASTEST), "SIZE",
                              kinds.scalar),
            "Bytes a second that it receives, and that it sends; `bridge` only.", "none",
            '"10M"', "bandwidth"),
    Setting("user", Kind('`"name"`, `"name:group"` or a number', kinds.account, "USER[:GROUP]"),
            "Who it runs as.", "who runs `supervise`", '"nobody"', "user"),
    Setting("group", Kind("name or number", kinds.account_group, "GROUP"),
            "Its group.", "the user's own", '"nogroup"', "group"),
    Setting("user_namespace", Kind('`"host"`, `"self"`, `"auto"` or '
                                   '`{ host_id = 100000, size = 65536, files = "try" }`',
                                   compounds.user_namespace, "host|self|auto|ID:SIZE",
                                   compounds.user_namespace_from_flag),
            "Its user numbers: the host's; only who runs `supervise`, as root; a range of its own "
            "for each run; or a range given. See security.md.",
            '`"host"` as root, else `"auto"`', '"auto"', "user-namespace"),
    Setting("capabilities.add", CAPABILITIES,
            "What its root may do beyond the default; a user who is not root gets just these.",
            "[]", '["NET_RAW"]', "cap-add"),
    Setting("capabilities.drop", CAPABILITIES, "What not even its root may do.", "[]",
            '["ALL"]', "cap-drop"),
    Setting("seccomp", Kind('`"default"`, `"log"`, `"unconfined"`, or the path of a profile in '
                            "Docker's or OCI's JSON", compounds.seccomp,
                            "default|log|unconfined|PATH"),
            "Which system calls it may make; `log` lets all through and has the kernel log those "
            "that `default` refuses.", '"default"', '"./profile.json"', "seccomp"),
    Setting("landlock", _words("auto", "require", "off"),
            "Whether Landlock, too, keeps it from writing but where it may, and with the host's "
            "network from the host's abstract sockets: where the kernel can, or else no start, or "
            "never.", '"auto"', '"require"', "landlock"),
    Setting("oom_score_adj", _whole(-1000, 1000),
            "How readily the kernel kills it when the whole host is short of memory.", "200",
            "500", "oom-score-adj"),
    Setting("time_offset", OFFSET,
            "Shift CLOCK_MONOTONIC and CLOCK_BOOTTIME inside (its own time namespace).", "none",
            '"1d"', "time-offset"),
    Setting("proc", _words("host", "limits"),
            "Whether /proc/meminfo, stat, cpuinfo, loadavg and the like, and with them `free`, "
            "`top`, `uptime` and `nproc`, tell it of the whole host or of its own share "
            "(see proc.md).", '"host"', '"limits"', "proc"),
    Setting("hostname", Kind("host name", kinds.host_name, "NAME"), "The name it sees.",
            "the job's name", '"worker"', "hostname"),
    Setting("environment.*", STRING, "Variables it gets, beside PATH, HOME and the like.", "none",
            '"C.UTF-8"', "env", True),
    Setting("stdin", _words("null", "open"),
            "Its input: none; or what `supervise attach` sends, which keeps it open until its end. "
            "See exec.md.", '"null"', '"open"'),
    Setting("terminal", BOOLEAN,
            "Whether its streams are a terminal of its own, to which `supervise attach` is the "
            "window. What it shows is in its log of stdout.", "false", "true"),
    Setting("working_dir", JOB_PATH, "Where it starts.", '"/"', '"/data"', "working-dir", True),
    *LIMITS,
    *RLIMITS,
    Setting("timeout", DEADLINE, "Wall-clock time, then it is stopped as `timeout`.", "none",
            '"10m"', "timeout"),
    Setting("cpu_time", DEADLINE, "CPU time of its whole tree, then `cpu_timeout`.", "none",
            '"5m"', "cpu-time"),
    Setting("stop.signal", Kind("signal's name", kinds.signal_name, "SIGNAL", kinds.scalar),
            "What asks its whole tree to end.", '"TERM"', '"INT"', "stop-signal"),
    Setting("stop.grace", DURATION, "How long until SIGKILL.", '"10s"', '"3s"', "stop-grace"),
    *PRESSURE,
    Setting("restart.when", _words("never", "on-failure", "on-oom", "always"),
            "After which ends it is started again.", '"never"', '"on-failure"', "restart-when"),
    Setting("restart.attempts", _whole(1, 1000000, unbounded=True), "How many further times.",
            "3", "5", "restart-attempts"),
    Setting("restart.backoff", DURATION, "The wait before the first, doubled each time.", '"1s"',
            '"500ms"', "restart-backoff"),
    Setting("restart.max_backoff", DURATION, "The longest wait.", '"1m"', '"10m"',
            "restart-max-backoff"),
    *LOG,
    Setting("after", Kind("array of jobs' names; a matrix's own name means all its members",
                          kinds.array(kinds.string, "an array of jobs' names"), "JOB"),
            "Start when these have ended as they should.", "[]", '["fetch"]'),
    Setting("matrix.*", Kind("array of strings or numbers", _matrix_value, ""),
            "One job for each value (for each combination of several keys); `{key}` stands for it "
            "in command, script, environment, working_dir, root, mounts and devices, `{{key}}` for "
            "itself.",
            "none", "[1, 6, 9]"),
    Setting("priority", _whole(-1000000, 1000000), "The higher one starts first.", "0", "10"),
    *_hook_settings(),
    Setting("oom", _words("kill", "continue"),
            "An OOM kill ends the whole job, or the survivors go on.", '"kill"', '"continue"',
            "oom"),
    Setting("expect", Kind("a reason: see verdicts.md", _reason, "REASON"),
            "The reason that counts as ended well.", '"succeeded"', '"timeout"', "expect"),
), frozenset({
    "schedule",
}))  # fmt: skip

_HOSTS = Kind("array of hosts, HOST or HOST:PORT",
              kinds.array(registries.host, "an array of hosts"), "HOST")  # fmt: skip
_MIRRORS = Kind('array of `"[http[s]://]HOST[:PORT][/PREFIX]"`',
                kinds.array(kinds.string, "an array of mirrors"), "MIRROR")  # fmt: skip
_IMAGE_SIZE = Kind(BYTES, kinds.size(1), "SIZE", kinds.scalar)
IMAGES = Table((
    Setting("mirrors.*", _MIRRORS,
            "Asked for the images of this registry, in this order and before it.", "none",
            '["http://127.0.0.1:5001", "https://mirror.example/hub"]'),
    Setting("insecure", _HOSTS,
            "Registries and mirrors that may be spoken to in plain HTTP if they know no TLS, "
            "without credentials; certificates are checked all the same. Loopback hosts may.",
            "[]", '["10.0.0.9:5000"]'),
    Setting("ca", HOST_PATH, "A file of certificates (PEM) that are trusted beside the system's.",
            "none", '"/etc/ssl/registry.pem"'),
    Setting("store", HOST_PATH, "Where images are kept, for every instance that says so.",
            "`.images` in `state_dir`", '"/srv/images"'),
    Setting("platform", Kind('platform: `"OS/ARCHITECTURE[/VARIANT]"`', kinds.platform,
                             "PLATFORM"),
            "Which image is taken where there are several.", "this host's", '"linux/arm64"'),
    Setting("limits.bytes", _IMAGE_SIZE, "What one layer may have unpacked; sparse files count "
            "with their length.", '"64G"', '"8G"'),
    Setting("limits.entries", _whole(1, 2**31), "How many files one layer may have.",
            "2000000", "100000"),
    Setting("limits.seconds", _whole(1, 2**20), "CPU time that unpacking one layer may take.",
            "3600", "60"),
))  # fmt: skip

TOP = ("supervisor", "images", "policies", "defaults", "jobs")
