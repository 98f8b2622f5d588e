"""What the cloned child does before it is the job's init, and what the payload does before exec.

Runs between clone and exec in a copy of the launcher: no import, and as few allocations as can be
(each page touched is a fault).  The order is the contract: cgroup first, so that nothing happens
outside of it; mounts; pivot_root; then what needs privilege, then the loss of privilege, then exec.
"""

from __future__ import annotations

import _signal  # `signal` would import enum
import _socket
import fcntl
import os
import stat

from supervisor.container import protocol
from supervisor.linux import caps, constants, landlock, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from supervisor.container.mounts import Context, Operation
    from supervisor.container.protocol import Request

_IFREQ_LO = (
    b"lo".ljust(16, b"\0")
    + (constants.IFF_UP | constants.IFF_RUNNING).to_bytes(2, "little")
    + bytes(22)
)
_NULL = os.makedev(1, 3)
_ELOOP = 40
_EBADFD = 77
_SECOND = 10**9
ALL_SIGNALS = frozenset(range(1, 65)) - {32, 33}
"""The two between are glibc's own."""
_NO_SIGNALS: frozenset[int] = frozenset()
CGROUP_REFUSES = frozenset({9, 13, 16, 19, 95})
"""EBADF, EACCES, EBUSY, ENODEV, EOPNOTSUPP: what clone3(2) says of the cgroup it is to clone into
(kernel/cgroup/cgroup.c, cgroup_css_set_fork), and of nothing else."""


class StageError(Exception):
    """A step before exec failed: `stage` and `path` beside the OSError it wraps."""

    def __init__(self, stage: str, error: OSError, path: str = "", text: str = "") -> None:
        super().__init__(stage)
        self.stage = stage
        self.errno = error.errno or 0
        named = getattr(error, "path", None) or error.filename or ""
        self.path = path or (os.fsdecode(named) if isinstance(named, (str, bytes)) else "")
        self.text = text or getattr(error, "operation", "") or ("" if error.errno else str(error))


class PayloadCgroup:
    """The payload's cgroup, held open from before pivot_root: its paths are gone after."""

    __slots__ = ("directory", "fallback", "files", "path", "paths")

    def __init__(self, files: tuple[str, ...], directory: str | None) -> None:
        self.paths = files
        self.files = [_open_to_join(path) for path in files]
        self.path = directory or ""
        self.directory = -1
        self.fallback = -1
        if directory is not None:
            self.directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def open_fallback(self) -> None:
        """For who cannot clone into a cgroup: the child writes "0" here instead.

        clone(2) has no argument for it; and clone3(2) asks whether the init's user may write to
        the cgroup, while a write asks about who opened the file (since Linux 5.16).
        """
        self.fallback = os.open("cgroup.procs", os.O_WRONLY | os.O_CLOEXEC, dir_fd=self.directory)

    def join(self) -> None:
        for fd, path in zip(self.files, self.paths, strict=True):
            _join(fd, path)
        if self.fallback >= 0:
            _join(self.fallback, self.path)

    def close(self) -> None:
        for fd in (*self.files, self.directory, self.fallback):
            if fd >= 0:
                os.close(fd)


def _join(fd: int, path: str) -> None:
    try:
        os.write(fd, b"0")
    except OSError as error:
        raise StageError("payload_cgroup", error, path) from None


def _open_to_join(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CLOEXEC)


def join_cgroup(files: tuple[str, ...]) -> None:
    """Write "0" (this task) into each v1 `tasks` or v2 `cgroup.procs` file."""
    for path in files:
        try:
            fd = _open_to_join(path)
            try:
                os.write(fd, b"0")
            finally:
                os.close(fd)
        except OSError as error:
            raise StageError("cgroup", error, path) from None


def become_root() -> None:
    """Root of the user namespace: the host's own, to whom its cgroups belong, no longer."""
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def set_up(request: Request, operations: list[Operation], context: Context) -> None:
    """Make this process's new namespaces a container: mounts, network, host name, clocks."""
    for operation in operations:
        try:
            operation.execute(context)
        except OSError as error:
            text = getattr(error, "text", "") or operation.describe()
            raise StageError("mounts", error, text=text) from None
    context.close()
    if request.loopback:
        guard("network", loopback_up)
    if request.hostname:
        guard("hostname", syscalls.sethostname, request.hostname)
    if request.clocks is not None:
        guard("time_namespace", _shift_clocks, request, *request.clocks)


def await_network(status: int) -> None:
    """Wait until the supervisor has put an interface into this network namespace, and says so."""
    try:
        message = os.read(status, 256)
    except OSError as error:
        raise StageError("network", error) from None
    if not message:
        raise StageError("network", OSError(), text="the supervisor has given the job up")
    try:
        protocol.unpack(message, (protocol.GO,))
    except (ValueError, EOFError, TypeError) as error:
        raise StageError("network", OSError(), text=repr(error)) from None


def loopback_up() -> None:
    """SIOCSIFFLAGS on `lo` (netdevice(7))."""
    with _socket_of_ioctl() as fd:
        fcntl.ioctl(fd, constants.SIOCSIFFLAGS, _IFREQ_LO)


class _socket_of_ioctl:
    def __enter__(self) -> int:
        self.socket = _socket.socket(_socket.AF_UNIX, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC, 0)
        return self.socket.fileno()

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def _shift_clocks(request: Request, monotonic: int, boottime: int) -> None:
    """A time namespace for the children to come (time_namespaces(7)); the offsets in nanoseconds.

    They can be written until the first process enters it.  In a user namespace not by somebody who
    is not dumpable: see `_set_oom_score_adj`.
    """
    if request.user_map is not None:
        syscalls.prctl(constants.PR_SET_DUMPABLE, 1)
    syscalls.unshare(constants.CLONE_NEWTIME)
    with open("/proc/self/timens_offsets", "wb", buffering=0) as file:  # noqa: PTH123
        lines = (
            b"%s %d %d\n" % (name, offset // _SECOND, offset % _SECOND)
            for name, offset in ((b"monotonic", monotonic), (b"boottime", boottime))
        )
        file.write(b"".join(lines))


def guard(stage: str, function: object, *arguments: object) -> None:
    """Call `function`; an OSError of it is a failure of that stage."""
    try:
        function(*arguments)  # type: ignore[operator]
    except OSError as error:
        raise StageError(stage, error) from None


def run_payload(
    request: Request,
    cgroup: PayloadCgroup,
    streams: tuple[int, int, int],
    bounding: frozenset[int],
    errors: int,
) -> NoReturn:
    """From the clone to exec; raises StageError when it could not get there.

    `bounding` is what the launcher has left of the bounding set; `errors`, the pipe for what goes
    wrong, is the one descriptor that stays open until exec.
    """
    cgroup.join()
    guard("payload_cgroup", syscalls.unshare, constants.CLONE_NEWCGROUP)
    os.setsid()
    _take_streams(streams, errors)
    if request.terminal is not None:
        guard("terminal", fcntl.ioctl, 0, constants.TIOCSCTTY, 0)
    ruleset = -1 if request.landlock is None else _ruleset(request.landlock)
    for resource, soft, hard in request.rlimits:
        guard("rlimits", syscalls.setrlimit, resource, soft, hard)
    guard("keyring", syscalls.new_session_keyring)
    if request.oom_score_adj is not None and not request.enters:
        guard("oom_score_adj", _set_oom_score_adj, request, request.oom_score_adj)
    guard("capabilities", caps.drop_bounding, bounding.difference(request.capabilities))
    if request.ambient:
        guard("capabilities", caps.keep_through_setuid)
    guard("user", _become, request)
    if request.ambient:
        guard("capabilities", caps.make_ambient, frozenset(request.ambient))
    guard("capabilities", syscalls.prctl, constants.PR_SET_NO_NEW_PRIVS, 1)
    # A change of ids has the kernel forget the one, and set the other to fs.suid_dumpable
    # (kernel/cred.c, commit_creds).
    guard("user", syscalls.prctl, constants.PR_SET_DUMPABLE, 0)
    if request.dies_with_us:
        guard("user", syscalls.prctl, constants.PR_SET_PDEATHSIG, 9)
    try:
        os.chdir(request.working_dir)
    except OSError as error:
        raise StageError("working_dir", error, request.working_dir) from None
    _signal.pthread_sigmask(_signal.SIG_SETMASK, _NO_SIGNALS)
    if ruleset >= 0:
        guard("landlock", landlock.restrict_self, ruleset)
    for program in request.filters:
        guard("seccomp", syscalls.install_filter, program)
    _exec(request)


def _take_streams(streams: tuple[int, int, int], errors: int) -> None:
    """They become 0, 1 and 2; all others are closed now, not at exec.

    A working directory or a #! line can be a link to /proc/self/fd/N, which leads to whatever is
    open just then: a directory of the host's cgroups, for one (CVE-2024-21626).
    """
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    for first, last in ((3, errors - 1), (errors + 1, 0x7FFFFFFF)):
        if first <= last:
            syscalls.close_range(first, last)
    for number in range(3):
        guard("init", _own_null, number)


def _own_null(number: int) -> None:
    """The host's /dev/null becomes the job's: root could change the mode of the one, of all."""
    found = os.fstat(number)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != _NULL:
        return
    access = fcntl.fcntl(number, fcntl.F_GETFL) & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR)
    fd = syscalls.openat2(
        constants.AT_FDCWD, "/dev/null", access, resolve=constants.RESOLVE_NO_MAGICLINKS
    )
    if os.fstat(fd).st_rdev != _NULL:
        raise OSError(_ELOOP, "", "/dev/null")
    os.dup2(fd, number)
    os.close(fd)


def _ruleset(restriction: tuple[int, int, tuple[tuple[str, int], ...]]) -> int:
    """While the user can still reach what he is to write to.  Close-on-exec.

    What he cannot reach even now he keeps no right to.
    """
    files, scoped, places = restriction
    path = ""
    try:
        ruleset = landlock.create_ruleset(files, scoped)
        for path, rights in places:
            try:
                landlock.allow_path(ruleset, path, rights)
            except PermissionError:
                continue
        path = "standard streams"
        if files:
            _allow_streams(ruleset, files & landlock.OF_FILES)
    except OSError as error:
        raise StageError("landlock", error, path) from None
    return ruleset


def _allow_streams(ruleset: int, rights: int) -> None:
    """A log or a terminal lies outside of the job's root, and is opened again as /dev/stderr."""
    for fd in (0, 1, 2):
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode) or stat.S_ISCHR(mode):
            try:
                landlock.allow(ruleset, fd, rights)
            except OSError as error:
                if error.errno != _EBADFD:  # a memfd, which is open to all
                    raise


def _set_oom_score_adj(request: Request, value: int) -> None:
    """Before the user changes: it is the kernel's choice that is weighed, nobody else's.

    In a user namespace the files in /proc of a process that is not dumpable are the host's root's.
    """
    if request.user_map is not None:
        syscalls.prctl(constants.PR_SET_DUMPABLE, 1)
    write_oom_score_adj(value)


def write_oom_score_adj(value: int) -> None:
    """Of this process, and of those it clones (proc(5))."""
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    os.write(fd, b"%d" % value)
    os.close(fd)


def _become(request: Request) -> None:
    if request.has_groups:
        os.setgroups(request.groups)
    os.setresgid(request.gid, request.gid, request.gid)
    os.setresuid(request.uid, request.uid, request.uid)


def _exec(request: Request) -> NoReturn:
    """execve, along the search path as execvp(3) does: EACCES is remembered, ENOENT passed over."""
    name = request.argv[0]
    candidates = (name,) if b"/" in name else tuple(d + b"/" + name for d in request.search)
    failure = StageError("exec", FileNotFoundError(2, ""), os.fsdecode(name))
    for path in candidates:
        try:
            os.execve(path, request.argv, request.env)
        except OSError as error:
            if error.errno in (2, 20) and len(candidates) > 1:  # ENOENT, ENOTDIR
                continue
            failure = StageError("exec", error, os.fsdecode(path))
            if error.errno != 13:  # EACCES: perhaps further down there is one that may
                break
    raise failure


def own_signals() -> None:
    """Block all, ignore none: a PID 1 without handlers keeps blocked signals for sigwaitinfo.

    An ignored signal would stay ignored in the payload: Python ignores SIGPIPE and SIGXFSZ, nohup
    SIGHUP, posix_spawn(3) the two of glibc's own.
    """
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ALL_SIGNALS)
    for number in ALL_SIGNALS - {9, 19}:
        _signal.signal(number, _signal.SIG_DFL)
    for number in (32, 33):
        syscalls.default_signal(number)
