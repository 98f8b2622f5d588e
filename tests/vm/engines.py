"""The two machines a guest can run on, behind one interface: `start`.

uml    User-Mode Linux: a kernel that is a program.  Near native speed; one CPU, no PSI, no cpuset,
       no nftables NAT.  It runs as the host's root with the host's files in reach: no sandbox.
qemu   A stock kernel on an emulated PC.  Complete; some 12 to 20 times slower.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.vm.errors import RigError, with_log
from tests.vm.guest import Guest, host_mounts
from tests.vm.kernel import Kernel

VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
PR_SET_PDEATHSIG = 1
APPEND = "quiet rcupdate.rcu_expedited=1 cryptomgr.notests audit=0"
QEMU_APPEND = (
    "console=ttyS0 panic=-1 mitigations=off nokaslr psi=1 random.trust_cpu=on no_timer_check "
)


@dataclass
class Machine:
    """The processes of one guest and its directory; `ports` are the writing ends of three pipes."""

    work: Path
    ports: Sequence[int]
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def console(self) -> Path:
        """What the guest's kernel printed."""
        return self.work / "console"

    def end(self) -> None:
        """Kill what still runs, the machine before its file server, and wait for it."""
        for process in reversed(self.processes):
            process.kill()
            process.wait()


def tools(guest: Guest) -> tuple[str, ...]:
    """The programs an engine needs, beside busybox."""
    if guest.engine == "uml":
        return ("unshare",)
    return ("unshare", "qemu-system-x86_64", str(VIRTIOFSD), "xz")


def start(guest: Guest, kernel: Kernel, machine: Machine) -> None:
    """Start the guest; its processes are added to `machine` one by one, so that `end` finds them.

    Raises RigError when the file server does not come up.
    """
    tree = machine.work / "tree"
    mounts = host_mounts(tree, kernel.modules, guest.writable)
    disks = [_disk(machine.work / f"disk{i}", size) for i, size in enumerate(guest.disks)]
    if guest.engine == "uml":
        _start_uml(guest, kernel, machine, mounts, disks)
    else:
        _start_virtiofsd(machine, mounts, tree)
        _spawn(machine, _qemu(guest, kernel, machine, disks), "qemu", terminal=guest.terminal)


def _disk(path: Path, size: str) -> Path:
    subprocess.run(["truncate", "-s", size, str(path)], check=True)
    return path


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _spawn(machine: Machine, argv: list[str], log: str, *, terminal: bool = False) -> None:
    """One process that ends with us; its output in a log, but for a machine with a terminal."""
    with (machine.work / log).open("wb") as file:
        process = subprocess.Popen(
            argv,
            stdin=None if terminal else subprocess.DEVNULL,
            stdout=None if terminal else file,
            stderr=file,
            pass_fds=machine.ports,
            preexec_fn=_die_with_parent,
        )
    machine.processes.append(process)


def _start_uml(
    guest: Guest, kernel: Kernel, machine: Machine, mounts: list[str], disks: list[Path]
) -> None:
    """User-Mode Linux is many processes: a pid namespace, whose PID 1 is the shell, ends them."""
    ports = [f"ssl{i}=null,fd:{port}" for i, port in enumerate(machine.ports, 1)]
    argv = [str(kernel.image), f"mem={guest.memory}M", f"initrd={machine.work}/initrd"]
    argv += ["con=null", "con0=null,fd:2", "ssl=null", *ports]
    argv += ["ssl0=fd:0,fd:1"] if guest.terminal else []
    argv += [f"ubd{i}={path}" for i, path in enumerate(disks)]
    argv += _append(guest, APPEND)
    script = "\n".join([*mounts, shlex.join(argv), "exit"])
    space = ["unshare", "-m", "-p", "-f", "--kill-child", "--mount-proc"]
    _spawn(machine, [*space, "sh", "-ec", script], "console", terminal=guest.terminal)


def _append(guest: Guest, ours: str) -> list[str]:
    """The end of the kernel's command line; the caller's words come last, so that they decide."""
    return [*ours.split(), *guest.hierarchy.kernel_arguments.split(), *guest.append]


def _start_virtiofsd(machine: Machine, mounts: list[str], tree: Path) -> None:
    socket = machine.work / "fs.sock"
    options = f"source={tree},cache=always,sandbox=chroot,log_level=err"
    serve = shlex.join([str(VIRTIOFSD), f"--socket-path={socket}", "-f", "-o", options])
    script = "\n".join([*mounts, f"exec {serve}"])
    _spawn(machine, ["unshare", "-m", "sh", "-ec", script], "virtiofsd")
    deadline = time.monotonic() + 20
    while not socket.exists():
        if machine.processes[-1].poll() is not None or time.monotonic() > deadline:
            raise with_log("virtiofsd did not start", machine.work / "virtiofsd")
        time.sleep(0.005)  # it tells of its socket in no other way


def _qemu(guest: Guest, kernel: Kernel, machine: Machine, disks: list[Path]) -> list[str]:
    # Under multi-threaded TCG guest kernels die now and then of "Oops: int3": one CPU runs the
    # static key that another is patching.
    emulated = guest.accelerator == "tcg"
    append = " ".join(_append(guest, QEMU_APPEND + APPEND + " supervise.disks" * bool(disks)))
    return [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
        *("-M", "q35,memory-backend=mem", "-m", str(guest.memory), "-smp", str(guest.cpus)),
        *("-object", f"memory-backend-memfd,id=mem,share=on,size={guest.memory}M"),
        *("-accel", "tcg,thread=single" if emulated else "kvm"),
        *("-cpu", "max" if emulated else "host"),
        *("-kernel", str(kernel.image), "-initrd", f"{machine.work}/initrd", "-append", append),
        *("-serial", f"file:{machine.console}"),
        *(("-chardev", "stdio,id=tty,signal=off", "-serial", "chardev:tty") * guest.terminal),
        *("-chardev", f"socket,id=fs,path={machine.work}/fs.sock"),
        *("-device", "vhost-user-fs-pci,chardev=fs,tag=host,queue-size=1024"),
        *("-device", "virtio-serial-pci"),
        *(word for i, port in enumerate(machine.ports, 1) for word in _qemu_port(i, port)),
        *(word for i, disk in enumerate(disks) for word in _qemu_disk(i, disk)),
    ]


def _qemu_port(number: int, descriptor: int) -> tuple[str, ...]:
    return (
        *("-add-fd", f"fd={descriptor},set={number}"),
        *("-chardev", f"file,id=c{number},path=/dev/fdset/{number},append=on"),
        *("-device", f"virtserialport,chardev=c{number},nr={number}"),
    )


def _qemu_disk(number: int, path: Path) -> tuple[str, ...]:
    return (
        *("-drive", f"file={path},format=raw,if=none,id=d{number},cache=unsafe"),
        *("-device", f"virtio-blk-pci,drive=d{number},serial=disk{number}"),
    )


def check_terminal() -> None:
    """Raises RigError where there is no terminal to hand to the guest."""
    if not (os.isatty(0) and os.isatty(1)):
        raise RigError("--terminal needs a terminal on stdin and stdout")
