"""Attempts to get out: by the init, by mounts, namespaces, handles, links and set-id programs.

Runs in a job (`inside`): the standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import socket
import struct
import subprocess
import tempfile

from .inside import alone, attempt, call, contained, reached

NEWNS, NEWCGROUP, NEWUTS, NEWUSER, NEWNET = 0x20000, 0x2000000, 0x4000000, 0x10000000, 0x40000000
BIND, REMOUNT, RDONLY, DETACH = 4096, 32, 1, 2
NOBODY = 65534


def secrets() -> tuple[str, ...]:
    return ("/etc/shadow", "/etc/gshadow", "/root/.profile", "/root/.bashrc")


# By the init: a process of the host's own program, with the host's descriptors in its past.


@attempt
def init_root() -> None:
    os.listdir("/proc/1/root")


@attempt
def init_cwd() -> None:
    os.stat("/proc/1/cwd/.")


@attempt
def init_descriptors() -> None:
    for name in os.listdir("/proc/1/fd"):
        os.open(f"/proc/1/fd/{name}", os.O_PATH)


@attempt
def init_program() -> None:
    os.close(os.open("/proc/1/exe", os.O_PATH))


@attempt
def init_memory() -> None:
    os.close(os.open("/proc/1/mem", os.O_RDWR))


@attempt
def init_environment() -> None:
    os.close(os.open("/proc/1/environ", os.O_RDONLY))


@attempt
def init_ptrace() -> None:
    call("ptrace", 0x4206, 1, None, None)  # PTRACE_SEIZE


@attempt
def init_read_memory() -> None:
    class Iovec(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    ours = ctypes.create_string_buffer(8)
    local = Iovec(ctypes.addressof(ours), 8)
    remote = Iovec(0x10000, 8)
    try:
        call("process_vm_readv", 1, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    except OSError as error:
        reached(error, errno.EFAULT)


@attempt
def init_take_descriptor() -> None:
    try:
        call("pidfd_getfd", os.pidfd_open(1), 0, 0)
    except OSError as error:
        reached(error, errno.EBADF)


@attempt
def init_namespaces() -> None:
    call("setns", os.open("/proc/1/ns/uts", os.O_RDONLY), 0)


@attempt
def init_namespaces_by_pidfd() -> None:
    call("setns", os.pidfd_open(1), NEWUTS | NEWNET)


@attempt
def init_limits() -> None:
    resource.prlimit(1, resource.RLIMIT_FSIZE)


@attempt
def sibling_limits() -> None:
    resource.prlimit(os.getppid(), resource.RLIMIT_FSIZE)


# By mounts.


def _mount(source: bytes, fstype: bytes | None, flags: int = 0, data: bytes | None = None) -> None:
    """On a directory of its own, and off again: later attempts need what it would cover."""
    target = tempfile.mkdtemp().encode()
    call("mount", source, target, fstype, flags, data)
    call("umount2", target, DETACH)


@attempt
def mount_tmpfs() -> None:
    _mount(b"none", b"tmpfs")


@attempt
def mount_proc_without_masks() -> None:
    _mount(b"none", b"proc")


@attempt
def mount_sys() -> None:
    _mount(b"none", b"sysfs")


@attempt
def mount_bind() -> None:
    _mount(b"/", None, BIND)


@attempt
def mount_cgroup2() -> None:
    _mount(b"none", b"cgroup2")


@attempt
def mount_cgroup1_for_its_release_agent() -> None:
    _mount(b"none", b"cgroup", 0, b"memory")


@attempt
def unshare_then_mount_cgroup1() -> None:
    call("unshare", NEWUSER | NEWNS | NEWCGROUP)
    try:
        call("mount", b"none", b"/tmp", b"cgroup", 0, b"memory")
    except OSError as error:
        reached(error, errno.EPERM, errno.EINVAL, errno.EBUSY)


@attempt
def remount_root_writable() -> None:
    call("mount", None, b"/", None, BIND | REMOUNT, None)


@attempt
def remount_proc_sys_writable() -> None:
    call("mount", None, b"/proc/sys", None, BIND | REMOUNT, None)


@attempt
def remount_a_read_only_bind() -> None:
    call("mount", None, b"/run/hostile", None, BIND | REMOUNT, None)


@attempt
def unmount_a_mask() -> None:
    call("umount2", b"/proc/keys", DETACH)


@attempt
def new_mount_interface() -> None:
    os.close(call("fsopen", b"tmpfs", 0))


@attempt
def clone_the_root_mount() -> None:
    os.close(call("open_tree", -100, b"/", 1))


@attempt
def clear_read_only() -> None:
    attributes = (ctypes.c_uint64 * 4)(0, RDONLY, 0, 0)
    call("mount_setattr", -100, b"/", 0, ctypes.byref(attributes), ctypes.sizeof(attributes))


# By namespaces of one's own, in which one is root.


@attempt
def unshare_user() -> None:
    call("unshare", NEWUSER)


@attempt
def unshare_mounts() -> None:
    call("unshare", NEWNS)


@attempt
def unshare_network() -> None:
    call("unshare", NEWNET)


@attempt
def clone_user() -> None:
    if call("clone", NEWUSER | 17, 0, 0, 0, 0) == 0:
        os._exit(0)


@attempt
def clone3_user() -> None:
    arguments = (ctypes.c_uint64 * 11)(NEWUSER, 0, 0, 0, 17)
    if call("clone3", ctypes.byref(arguments), ctypes.sizeof(arguments)) == 0:
        os._exit(0)


# Past the root directory.


def _identity(path: str | int) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _climb() -> None:
    for _ in range(64):
        os.chdir("..")


@alone
def climb_out_of_the_root() -> None:
    before = _identity("/")
    jail = tempfile.mkdtemp()
    os.chdir("/")
    os.chroot(jail)
    _climb()
    os.chroot(".")
    if _identity("/") == before:
        contained()


@alone
def climb_out_of_a_chroot() -> None:
    before = _identity("/")
    jail, second = tempfile.mkdtemp(), "second"
    os.chroot(jail)
    os.chdir("/")
    os.mkdir(second)
    os.chroot(second)
    _climb()
    os.chroot(".")
    if _identity("/") != before:
        contained()


@attempt
def above_the_root_by_descriptor() -> None:
    fd = os.open("/", os.O_PATH)
    before = _identity(fd)
    for _ in range(8):
        fd = os.open("..", os.O_PATH, dir_fd=fd)
    if _identity(fd) == before:
        contained()


@attempt
def open_by_handle() -> None:
    """As the exploit "shocker" did: an inode by its number, wherever it is."""
    with tempfile.NamedTemporaryFile(dir="/tmp") as file:
        handle = ctypes.create_string_buffer(struct.pack("Ii", 128, 0) + bytes(128))
        mount = ctypes.c_int()
        path = file.name.encode()
        call("name_to_handle_at", -100, path, handle, ctypes.byref(mount), 0)
        at = os.open("/tmp", os.O_RDONLY)
        os.close(call("open_by_handle_at", at, handle, os.O_RDONLY))


# What is hidden, by other ways.


def _read(path: str) -> None:
    with open(path, "rb") as file:  # noqa: PTH123
        if not file.read(1):
            raise FileNotFoundError(errno.ENOENT, "empty", path)


def _any(*ways: object) -> None:
    last: OSError = FileNotFoundError(errno.ENOENT, "")
    for way in ways:
        try:
            way()  # type: ignore[operator]
        except OSError as error:
            last = error
        else:
            return
    raise last


@attempt
def hidden_by_name() -> None:
    _any(*(lambda path=path: _read(path) for path in secrets()))


@attempt
def hidden_by_proc_root() -> None:
    tops = ("/proc/self/root", "/proc/thread-self/root", "/proc/1/root", "/proc/self/cwd")
    _any(*(lambda name=top + path: _read(name) for top in tops for path in secrets()))


@attempt
def hidden_by_hard_link() -> None:
    def link(path: str) -> None:
        os.link(path, "/tmp/linked")
        _read("/tmp/linked")

    def link_beside(path: str) -> None:
        os.link(path, path + ".linked")
        _read(path + ".linked")

    _any(*(lambda p=p, w=way: w(p) for p in secrets() for way in (link, link_beside)))


@attempt
def hidden_by_removing_the_cover() -> None:
    _any(lambda: os.unlink("/etc/shadow"), lambda: os.rename("/root", "/moved"))


# More than one was given.


def _run_as_set_id(directory: str) -> str:
    program = f"{directory}/id"
    with open("/usr/bin/id", "rb") as source, open(program, "wb") as copy:  # noqa: PTH123
        copy.write(source.read())
    os.chmod(program, 0o4755)
    argv = [program, "-u"]
    done = subprocess.run(argv, user=NOBODY, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@attempt
def set_id_program() -> None:
    """In /var/tmp, as /tmp is mounted nosuid: there an overlay takes it."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as directory:
        os.chmod(directory, 0o755)
        if _run_as_set_id(directory) != "0":
            contained()


@attempt
def file_capabilities() -> None:
    with tempfile.NamedTemporaryFile(dir="/tmp") as file:
        value = struct.pack("<IIIII", 0x02000001, 1 << 21, 0, 0, 0)
        os.setxattr(file.name, "security.capability", value)


@attempt
def regain_a_capability() -> None:
    """capset(2): what it has, and CAP_SYS_ADMIN."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    call("capget", header, data)
    data[0] |= 1 << 21
    data[1] |= 1 << 21
    call("capset", header, data)


@attempt
def memory_of_a_read_only_file() -> None:
    """The kernel writes through /proc/self/mem what the mapping forbids, into a private copy."""
    path = "/etc/passwd"
    fd = os.open(path, os.O_RDONLY)
    before = os.pread(fd, 1, 0)
    mapped = mmap.mmap(fd, 0, mmap.MAP_PRIVATE, mmap.PROT_READ)
    with open("/proc/self/maps") as file:  # noqa: PTH123
        (line,) = (line for line in file if line.rstrip().endswith(path))
    memory = os.open("/proc/self/mem", os.O_RDWR)
    os.pwrite(memory, b"\0", int(line.partition("-")[0], 16))
    if mapped[:1] != b"\0":
        raise AssertionError("nothing was written")
    if os.pread(fd, 1, 0) == before:
        contained()


# The network's own settings.


@attempt
def raw_socket() -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, 1).close()


@attempt
def packet_socket() -> None:
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close()


@attempt
def interface_down() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        fcntl.ioctl(one, 0x8914, b"lo".ljust(16, b"\0") + struct.pack("H", 0) + bytes(22))


@attempt
def netlink_change_interface() -> None:
    """RTM_NEWLINK: the largest packet of lo."""
    body = struct.pack("BxHiII", 0, 0, 1, 0, 0) + struct.pack("HHI", 8, 4, 65536)
    message = struct.pack("IHHII", 16 + len(body), 16, 5, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as one:
        one.bind((0, 0))
        one.send(message)
        (number,) = struct.unpack_from("i", one.recv(4096), 16)
    if number:
        raise OSError(-number, os.strerror(-number))
