"""Attempts on the machine itself: its settings, devices, clock, memory and rarely used calls.

Runs in a job (`inside`): the standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import signal

from .inside import alone, attempt, call, open_to_write, reached

ZERO = ctypes.create_string_buffer(256)


# Settings of the whole machine: files of /proc and /sys.


@attempt
def core_pattern() -> None:
    open_to_write("/proc/sys/kernel/core_pattern")


@attempt
def modprobe_path() -> None:
    open_to_write("/proc/sys/kernel/modprobe")


@attempt
def overcommit() -> None:
    open_to_write("/proc/sys/vm/overcommit_memory")


@attempt
def sysrq() -> None:
    open_to_write("/proc/sysrq-trigger")


@attempt
def settings_by_link() -> None:
    """The same file by the link that every process has to its own root."""
    open_to_write("/proc/self/root/proc/sys/kernel/core_pattern")


@attempt
def settings_of_devices() -> None:
    open_to_write("/sys/class/net/lo/mtu")


@attempt
def format_of_programs() -> None:
    call("mount", b"none", b"/run", b"binfmt_misc", 0, None)


@attempt
def files_of_cgroups() -> None:
    found = [f"{top}/cgroup.procs" for top, _, files in os.walk("/sys/fs/cgroup")
             if "cgroup.procs" in files]  # fmt: skip
    if not found:
        raise FileNotFoundError(errno.ENOENT, "", "/sys/fs/cgroup")
    open_to_write(found[0])


# What is in the machine's memory.


def _first_bytes(path: str) -> None:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        if not file.read(64):
            raise FileNotFoundError(errno.ENOENT, "empty", path)


@attempt
def kernel_memory() -> None:
    _first_bytes("/proc/kcore")


@attempt
def list_of_keys() -> None:
    _first_bytes("/proc/keys")


@attempt
def timers_of_others() -> None:
    _first_bytes("/proc/timer_list")


@attempt
def kernel_log() -> None:
    call("klogctl", 3, ZERO, 64)


@attempt
def kernel_log_device() -> None:
    os.close(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK))


# Devices.


def _make_and_open(major: int, minor: int, kind: int) -> None:
    path = "/hostile-node"
    os.mknod(path, kind | 0o600, os.makedev(major, minor))
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
    finally:
        os.unlink(path)


@attempt
def node_of_the_disk() -> None:
    """The first disk of the machine, as /proc/partitions tells."""
    with open("/proc/partitions") as file:  # noqa: PTH123
        rows = [line.split() for line in file.readlines()[2:]]
    major, minor = (int(rows[0][0]), int(rows[0][1])) if rows else (8, 0)
    _make_and_open(major, minor, 0o060000)


@attempt
def node_of_memory() -> None:
    _make_and_open(1, 1, 0o020000)


@attempt
def node_of_null() -> None:
    _make_and_open(1, 3, 0o020000)


@alone
def write_through_the_terminal() -> None:
    """TIOCSTI: type on the terminal that the caller will read next."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ours, theirs = os.openpty()
    os.setsid()
    try:
        fcntl.ioctl(theirs, 0x540E, 0)  # TIOCSCTTY
        fcntl.ioctl(theirs, 0x5412, b"x")
    except OSError as error:
        reached(error, errno.EIO)  # Linux 6.2 can turn it off
    os.close(ours)


@attempt
def write_through_the_console() -> None:
    """TIOCLINUX: paste on a virtual console."""
    try:
        fcntl.ioctl(os.openpty()[1], 0x541C, b"\x03")
    except OSError as error:
        reached(error, errno.ENOTTY, errno.EINVAL)


# Calls that have been the way out before.


@attempt
def kernel_program() -> None:
    try:
        call("bpf", 0, ZERO, 48)
    except OSError as error:
        reached(error, errno.EINVAL)


@attempt
def performance_counters() -> None:
    try:
        call("perf_event_open", ZERO, 0, -1, -1, 0)
    except OSError as error:
        reached(error, errno.EINVAL, errno.ENOENT, errno.EOPNOTSUPP, errno.E2BIG, errno.ENOSYS)


@attempt
def page_faults_in_user_space() -> None:
    try:
        os.close(call("userfaultfd", os.O_CLOEXEC))
    except OSError as error:
        reached(error, errno.ENOSYS)  # a kernel without it


@attempt
def io_uring() -> None:
    try:
        call("io_uring_setup", 1, ZERO)
    except OSError as error:
        reached(error, errno.EINVAL, errno.EFAULT)


@attempt
def keyring() -> None:
    call("keyctl", 0, -3, 0)  # KEYCTL_GET_KEYRING_ID of the session


@attempt
def add_a_key() -> None:
    call("add_key", b"user", b"hostile", b"x", 1, -3)


@attempt
def load_another_kernel() -> None:
    try:
        call("kexec_load", 0, 99, 0, 0x7FFF0000)
    except OSError as error:
        reached(error, errno.EINVAL, errno.ENOSYS)


@attempt
def load_a_module() -> None:
    try:
        call("init_module", ZERO, 16, b"")
    except OSError as error:
        reached(error, errno.ENOEXEC, errno.EINVAL, errno.ENOSYS)


@attempt
def reboot() -> None:
    try:
        call("reboot", 0)  # RB_DISABLE_CAD: harmless, and refused in a pid namespace
    except OSError as error:
        reached(error, errno.EINVAL)


@attempt
def swap() -> None:
    try:
        call("swapoff", b"/nowhere")
    except OSError as error:
        reached(error, errno.ENOENT)


@attempt
def accounting() -> None:
    try:
        call("acct", b"/nowhere")
    except OSError as error:
        reached(error, errno.ENOENT, errno.ENOSYS)


@attempt
def set_the_clock() -> None:
    try:
        call("clock_settime", 0, 0)
    except OSError as error:
        reached(error, errno.EFAULT)


@attempt
def host_name() -> None:
    name = os.uname().nodename.encode()
    call("sethostname", name, len(name))


@attempt
def be_quicker_than_others() -> None:
    os.setpriority(os.PRIO_PROCESS, 0, -5)


@attempt
def other_execution_domain() -> None:
    call("personality", 0x0040000)  # ADDR_NO_RANDOMIZE


@alone
def call_of_another_machine() -> None:
    """int 0x80: a 32-bit call's number means another call, past a filter that knows only 64."""
    code = mmap.mmap(-1, 4096, prot=7)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    if ctypes.CFUNCTYPE(ctypes.c_int)(address)() != os.getpid():
        raise OSError(errno.ENOSYS, "no such calls here")


@attempt
def kill_the_init() -> None:
    """The kernel drops these, and says nothing: the init is its namespace's first process."""
    os.kill(1, signal.SIGKILL)
    os.kill(1, signal.SIGSTOP)
    with open("/proc/1/stat") as file:  # noqa: PTH123
        state = file.read().rpartition(")")[2].split()[0]
    if state in "SRD":
        raise PermissionError(errno.EPERM, f"it is {state}")


@attempt
def stop_a_sibling() -> None:
    """What `kill_the_init` would look like if it worked."""
    pid = os.fork()
    if pid == 0:
        signal.pause()
    os.kill(pid, signal.SIGSTOP)
    os.waitpid(pid, os.WUNTRACED)
    with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
        state = file.read().rpartition(")")[2].split()[0]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if state != "T":
        raise PermissionError(errno.EPERM, f"it is {state}")
