"""The launcher: a lean, single-threaded interpreter that clones jobs on request.

Started once by `spawn`, as `python -I -S -c … WORK CONTROL KEPT HIDDEN… -- NAMES…`: its work
directory, the number of the control socket, the capabilities it keeps in its bounding set, the
directories that are hidden in WORK/seen, and the names that WORK/white hides.  A raw clone costs
~40 µs per resident MB and must not happen in a process with threads: hence a process of its own,
whose memory holds this file, `child`, `init`, `mounts` and the standard library's C modules.  Jobs'
inits are cloned with CLONE_PARENT: they are the supervisor's children, and outlive the launcher.

It owns a mount namespace of its own, in which WORK is a tmpfs: WORK/root, where a job's root is put
together, WORK/dev, the skeleton of every job's /dev, and WORK/seen, the host's root as a job with
default settings sees it, to be taken as a whole.  The host sees an empty directory.
"""

from __future__ import annotations

import _socket
import gc
import marshal
import os
import sys

from supervisor.container import child, entrant, init, mounts, protocol
from supervisor.errors import KernelError
from supervisor.linux import caps, constants, syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from supervisor.container.protocol import Request

    Gate = tuple[_socket.socket, _socket.socket]

_FD_SIZE = 4
_AT_ONCE = 64
"""Mounts in one message of a gate; the kernel takes 253 descriptors (SCM_MAX_FD)."""
WORK_OPTIONS = "mode=711,size=1M"
"""Of the tmpfs at WORK, which the root of a user namespace must be able to walk through."""


class Bounding:
    """What a job's bounding set begins with: as the launcher's, or full in a user namespace."""

    __slots__ = ("host", "user")

    def __init__(self, kept: frozenset[int]) -> None:
        self.host = kept
        self.user = frozenset(range(caps.last_capability() + 1))


def main() -> None:
    """Serve requests until the supervisor's end of the control socket is closed."""
    os.umask(0o022)
    os.setsid()  # Ctrl-C is the supervisor's to handle
    child.own_signals()
    syscalls.set_name("supervise:launch")
    bounding = Bounding(frozenset(int(number) for number in sys.argv[3].split(",")))
    if os.geteuid() == 0:
        at = sys.argv.index("--")
        prepare_work(sys.argv[1], sys.argv[4:at], sys.argv[at + 1 :])
        # Here, once: each job would pay 0.5 ms for it.  A new user namespace begins with a full
        # set again, so its jobs drop for themselves.
        caps.drop_bounding(caps.all_but(bounding.host))
        syscalls.clear_inheritable_capabilities(caps.effective())
    number = int(sys.argv[2])
    control = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0, number)
    os.set_inheritable(number, False)
    control.send(marshal.dumps("ready"))
    forget_imports()
    while serve_one(control, bounding):
        pass


def prepare_work(work: str, hidden: list[str], names: list[str]) -> None:
    """The mount namespace and the tmpfs described above; raises KernelError."""
    syscalls.unshare(constants.CLONE_NEWNS)
    syscalls.mount(None, "/", None, constants.MS_REC | constants.MS_SLAVE)
    syscalls.mount("supervise", work, "tmpfs", constants.MS_NOSUID, WORK_OPTIONS)
    for operation in skeleton(work):
        operation.execute(_NOTHING)
    for name in names:
        mounts.Whiteout(path=f"{work}/white{name}").execute(_NOTHING)
    for view in view_of_host(work, hidden):
        syscalls.mount(*view, None, constants.MS_BIND)


def view_of_host(work: str, hidden: list[str]) -> list[tuple[str, str]]:
    """The binds (source, target) of the host's bare root, and of the same with paths hidden."""
    found = [("/", f"{work}/host"), ("/", f"{work}/seen")]
    return found + [(f"{work}/empty", f"{work}/seen{path}") for path in hidden]


def skeleton(work: str) -> list[mounts.Operation]:
    """What is in WORK from the start."""
    found: list[mounts.Operation] = []
    for name in mounts.WORK_DIRS:
        found.append(mounts.MakeDir(path=f"{work}/{name}", mode=0o755))
    for name, major, minor in mounts.DEV_NODES:
        found.append(mounts.MakeNode(path=f"{work}/dev/{name}", major=major, minor=minor))
    for name, target in mounts.DEV_LINKS:
        found.append(mounts.Symlink(target=target, path=f"{work}/dev/{name}"))
    return found


_NOTHING = mounts.Context()


def forget_imports() -> None:
    """From now on nothing can be imported: a child's / is somebody else's.

    The garbage collector stays off: a collection would touch every page, and copy it.
    """
    sys.path.clear()
    sys.meta_path.clear()
    sys.path_hooks.clear()
    sys.path_importer_cache.clear()
    gc.collect()
    gc.disable()
    gc.freeze()


def serve_one(control: _socket.socket, bounding: Bounding) -> bool:
    """One request and its answer; False at the end of the supervisor."""
    data, fds = receive(control)
    if not data:
        return False
    try:
        pid, pidfd = launch(control, data, fds, bounding)
    except child.StageError as error:
        answer = protocol.pack(protocol.REFUSED, error.stage, error.errno, error.path, error.text)
        send(control, answer, ())
    except KernelError as error:
        answer = protocol.pack(
            protocol.REFUSED, "clone", error.errno or 0, error.path or "", error.operation
        )
        send(control, answer, ())
    except OSError as error:
        answer = protocol.pack(
            protocol.REFUSED, "clone", error.errno or 0, str(error.filename or ""), ""
        )
        send(control, answer, ())
    except (LookupError, ValueError, TypeError, EOFError) as error:
        send(control, protocol.pack(protocol.REFUSED, "request", 0, "", repr(error)), ())
    else:
        send(control, protocol.pack(protocol.CLONED, pid), (pidfd,))
        os.close(pidfd)
    for fd in fds:
        os.close(fd)
    return True


def receive(control: _socket.socket) -> tuple[bytes, list[int]]:
    """A message and its descriptors; a long one came as a memfd, the last of them."""
    most = len(protocol.DESCRIPTORS) + protocol.MOST_KEPT + 2
    space = _socket.CMSG_SPACE(_FD_SIZE * most)
    data, ancillary, _, _ = control.recvmsg(protocol.MAX_MESSAGE, space, _socket.MSG_CMSG_CLOEXEC)
    fds = descriptors(ancillary)
    if fds and data == protocol.ELSEWHERE:
        memfd = fds.pop()
        data = os.pread(memfd, os.fstat(memfd).st_size, 0)
        os.close(memfd)
    return data, fds


def descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[int]:
    """Those that came with a message (SCM_RIGHTS)."""
    return [
        int.from_bytes(raw[at : at + _FD_SIZE], sys.byteorder)
        for _level, _kind, raw in ancillary
        for at in range(0, len(raw) - len(raw) % _FD_SIZE, _FD_SIZE)
    ]


def send(control: _socket.socket, data: bytes, fds: tuple[int, ...]) -> None:
    raw = b"".join(fd.to_bytes(_FD_SIZE, sys.byteorder) for fd in fds)
    ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, raw)] if fds else []
    control.sendmsg([data], ancillary)


def launch(
    control: _socket.socket, data: bytes, fds: list[int], bounding: Bounding
) -> tuple[int, int]:
    """Clone the init of the job that `data` describes; its pid and pidfd."""
    request = protocol.Request.unpack(data)
    if request.enters:
        return launch_entrant(control, request, fds, bounding)
    named = init.Descriptors(fds[: len(protocol.DESCRIPTORS)])
    layer = fds[len(protocol.DESCRIPTORS)] if request.has_layer else -1
    operations = [mounts.unpack(operation) for operation in request.operations]
    gate = None
    if request.user_map is not None:
        gate = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    flags = request.flags | constants.CLONE_PARENT | constants.CLONE_PIDFD
    try:
        pid, pidfd = clone_init(flags, request)
    except (OSError, child.StageError):
        for end in gate or ():
            end.close()
        raise
    if pid == 0:
        left = bounding.host if gate is None else bounding.user
        be_init(request, named, operations, control, gate, left, layer)
    if gate is not None:
        open_gate(gate, pid, request, operations)
    return pid, pidfd


def launch_entrant(
    control: _socket.socket, request: Request, fds: list[int], bounding: Bounding
) -> tuple[int, int]:
    """Clone who is to bring a command into a job that runs; its pid and pidfd."""
    count = len(protocol.DESCRIPTORS)
    pid, pidfd = clone_init(constants.CLONE_PARENT | constants.CLONE_PIDFD, request)
    if pid == 0:
        left = bounding.host if request.user_map is None else bounding.user
        entrant.run(request, init.Descriptors(fds[:count]), fds[count:], control, left)
    return pid, pidfd


def clone_init(flags: int, request: Request) -> tuple[int, int]:
    """Into the init's unified cgroup at once where the kernel can, else the child joins it.

    StageError where it is the cgroup that takes nobody.
    """
    if request.init_dir is None:
        return syscalls.clone(flags, exit_signal=0)
    directory = os.open(request.init_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return syscalls.clone(flags, exit_signal=0, cgroup_fd=directory)
    except KernelError as error:
        if error.errno in child.CGROUP_REFUSES:
            raise child.StageError("cgroup", error, request.init_dir) from None
        if error.errno != 38:  # ENOSYS: no clone3, by age or by a seccomp filter
            raise
    finally:
        os.close(directory)
    request.init_files = (*request.init_files, request.init_dir + "/cgroup.procs")
    return syscalls.clone(flags, exit_signal=0)


def open_gate(gate: Gate, pid: int, request: Request, operations: list[mounts.Operation]) -> None:
    """Write the id maps of the child's user namespace (user_namespaces(7)), then let it go on.

    What is mounted for it and takes privilege goes through the gate as well.  A child that cannot
    be mapped is told why, and says so itself.
    """
    ours, theirs = gate
    theirs.close()
    stage = "user_namespace"
    try:
        write_maps(pid, request)
        stage = "mounts"
        hand_over(ours, pid, operations)
        ours.send(marshal.dumps(("go",)))
    except OSError as error:
        path = getattr(error, "path", None) or error.filename or ""
        text = getattr(error, "operation", "")
        ours.send(marshal.dumps(("failed", stage, error.errno or 5, str(path), text)))
    finally:
        ours.close()


def write_maps(pid: int, request: Request) -> None:
    assert request.user_map is not None
    if request.map_helpers:
        for helper, extents in zip(request.map_helpers, request.user_map, strict=True):
            numbers = [str(number) for extent in extents for number in extent]
            run_helper(helper, [helper, str(pid), *numbers])
        return
    if os.geteuid() != 0:
        write_file(f"/proc/{pid}/setgroups", b"deny")
    for name, extents in zip(("uid_map", "gid_map"), request.user_map, strict=True):
        lines = (b"%d %d %d\n" % extent for extent in extents)
        write_file(f"/proc/{pid}/{name}", b"".join(lines))


def run_helper(path: str, argv: list[str]) -> None:
    """One of the set-user-ID programs newuidmap(1), newgidmap(1); its complaint is on stderr."""
    child_pid = os.posix_spawn(path, argv, {})
    if os.waitpid(child_pid, 0)[1]:
        raise OSError(1, "", path)  # EPERM: it refuses what /etc/subuid does not allow


def hand_over(ours: _socket.socket, pid: int, operations: list[mounts.Operation]) -> None:
    """Send the child the mounts that it could not open, or map, by itself."""
    wanted = [one for one in operations if type(one) is mounts.OpenTree and one.by]
    if not wanted:
        return
    space = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for at in range(0, len(wanted), _AT_ONCE):
            some = wanted[at : at + _AT_ONCE]
            fds: list[int] = []
            try:
                for one in some:
                    fds.append(one.open(space))
                send(ours, marshal.dumps(("trees", [one.tree for one in some])), tuple(fds))
            finally:
                for fd in fds:
                    os.close(fd)
    finally:
        os.close(space)


def write_file(path: str, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def be_init(
    request: Request,
    fds: init.Descriptors,
    operations: list[mounts.Operation],
    control: _socket.socket,
    gate: Gate | None,
    bounding: frozenset[int],
    layer: int,
) -> NoReturn:
    """The child's whole life; whatever goes wrong is one message, and the end."""
    try:
        control.close()
        context = mounts.Context()
        if layer >= 0:
            context.trees[protocol.LAYER] = layer
        if gate is not None:
            pass_gate(gate, context)
        child.join_cgroup(request.init_files)
        try:
            cgroup = child.PayloadCgroup(request.payload_files, request.payload_dir)
            if gate is not None and cgroup.directory >= 0:
                cgroup.open_fallback()
        except OSError as error:
            raise child.StageError("payload_cgroup", error) from None
        if gate is not None:
            child.become_root()
        child.set_up(request, operations, context)
        if request.awaits_network:
            child.await_network(fds.status)
        syscalls.set_name("supervise:init")
        init.run(request, cgroup, fds, bounding)
    except child.StageError as error:
        os.write(fds.status, init.failed(error))
    except BaseException as error:
        os.write(fds.status, protocol.pack(protocol.FAILED, "init", 0, "", repr(error)))
    finally:
        os._exit(127)


def pass_gate(gate: Gate, context: mounts.Context) -> None:
    """Wait until the id maps are written, and take the mounts that the launcher has opened."""
    ours, theirs = gate
    ours.close()
    space = _socket.CMSG_SPACE(_FD_SIZE * _AT_ONCE)
    while True:
        data, ancillary, _, _ = theirs.recvmsg(65536, space, _socket.MSG_CMSG_CLOEXEC)
        if not data:
            raise child.StageError("user_namespace", OSError(5, ""), "uid_map")
        message = marshal.loads(data)
        if message[0] == "failed":
            _, stage, errno, path, text = message
            raise child.StageError(stage, OSError(errno, ""), path, text)
        if message[0] == "go":
            theirs.close()
            return
        context.trees.update(zip(message[1], descriptors(ancillary), strict=True))
