"""What the doctor looks at of the host as a whole: kernel, boot options, numbers, systemd.

Nothing here can be tried by exceeding it, but what can be asked of the kernel is asked: watches and
descriptors are taken, a datagram goes to the journal's socket.  May import: `errors`, `linux`,
`record.journald`.
"""

from __future__ import annotations

import gzip
import os
import re
import resource
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

from supervisor.errors import KernelError
from supervisor.front.doctor_trial import Check, attempt
from supervisor.linux.inotify import Inotify
from supervisor.record.journald import SOCKET

OLDEST = (5, 12)
"""mount_setattr(2), without which no job's root is read-only all the way down."""
CONFIGS = ("/proc/config.gz", "/boot/config-{release}", "/lib/modules/{release}/config")
OPTIONS = (
    *("CGROUPS", "MEMCG", "CGROUP_PIDS", "CFS_BANDWIDTH", "CPUSETS", "BLK_CGROUP"),
    *("BLK_DEV_THROTTLING", "CGROUP_DEVICE", "CGROUP_BPF", "CGROUP_FREEZER", "NAMESPACES"),
    *("UTS_NS", "IPC_NS", "PID_NS", "NET_NS", "USER_NS", "TIME_NS", "OVERLAY_FS", "TMPFS"),
    *("TMPFS_XATTR", "SECCOMP_FILTER", "SECURITY_LANDLOCK", "PSI", "FANOTIFY", "INOTIFY_USER"),
    *("BLK_DEV_LOOP", "EXT4_FS", "QUOTA", "BRIDGE", "VETH", "TUN", "NF_TABLES", "NFT_NAT"),
)
"""What of the kernel's configuration something here rests on (CONFIG_…)."""
COMMAND = Path("/proc/cmdline")
COMMAND_LINE = "take it out of GRUB_CMDLINE_LINUX in /etc/default/grub, then update-grub and reboot"
FEWEST = {"descriptors": 2048, "processes": 4096, "watches": 1024, "instances": 64}
"""Below these a hundred jobs at once meet the host's bounds before their own."""


def checks() -> list[Callable[[], Check]]:
    """All of them, each to be called by itself."""
    return [
        kernel,
        configuration,
        boot,
        processes,
        descriptors,
        watches,
        pressure,
        systemd,
        journal,
    ]


def kernel() -> Check:
    """The version, and the machine: only x86-64 has been tried."""
    found = os.uname()
    told = f"Linux {found.release}, {found.machine}"
    numbers = tuple(int(part) for part in re.findall(r"\d+", found.release)[:2])
    if numbers < OLDEST:
        fix = "a kernel from 5.12 on: apt-get install linux-image-amd64, and reboot"
        return Check("kernel", "unavailable", told, fix, True)
    if found.machine != "x86_64":
        return Check("kernel", "accounted only", f"{told}: never tried", "see the rows below", True)
    return Check("kernel", "enforced", told, "", True)


def configuration() -> Check:
    """How it was built, where it says so; the rows below tell what comes of it."""
    name = "kernel options"
    for pattern in CONFIGS:
        path = pattern.format(release=os.uname().release)
        try:
            text = _text(path)
        except OSError:
            continue
        built = set(re.findall(r"^CONFIG_(\w+)=[ym]$", text, re.MULTILINE))
        lacking = [option for option in OPTIONS if option not in built]
        if not lacking:
            return Check(name, "enforced", f"all {len(OPTIONS)} that matter, says {path}")
        fix = "not needed where the rows below are well; else a distribution's kernel"
        return Check(name, "accounted only", f"{path} lacks {' '.join(lacking)}", fix)
    told = "it does not show its configuration: the rows below say what it can"
    return Check(name, "accounted only", told, "not needed; modprobe configs")


def _text(path: str) -> str:
    data = Path(path).read_bytes()
    return (gzip.decompress(data) if path.endswith(".gz") else data).decode()


LOST = r"cgroup_disable=\S+|swapaccount=0|psi=0|user_namespace\.enable=0|lsm=(?!\S*landlock)\S+"
"""Options that take something away."""
TOLD = r"cgroup_no_v1=\S+|systemd\.unified_cgroup_hierarchy=\S+|swapaccount=1|psi=1"
"""Options that say which hierarchy has what."""


def boot() -> Check:
    """/proc/cmdline (kernel-parameters.txt): whether something was switched off there."""
    name = "boot options"
    words = COMMAND.read_text().split()
    lost = [word for word in words if re.fullmatch(LOST, word)]
    if lost:
        return Check(name, "accounted only", f"switched off by {' '.join(lost)}", COMMAND_LINE)
    told = " ".join(word for word in words if re.fullmatch(TOLD, word))
    return Check(name, "enforced", f"nothing is switched off{f'; {told}' if told else ''}")


def processes() -> Check:
    """How many there can be: pid_max(5), threads-max, and the user's own bound (RLIMIT_NPROC)."""
    bounds = {
        "kernel.pid_max": int(Path("/proc/sys/kernel/pid_max").read_text()),
        "kernel.threads-max": int(Path("/proc/sys/kernel/threads-max").read_text()),
    }
    own = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    name, least = min(bounds.items(), key=lambda pair: pair[1])
    if os.geteuid() != 0 and own != resource.RLIM_INFINITY and own < least:
        name, least = "ulimit -u", own
    told = f"{least} at once ({name})"
    if least >= FEWEST["processes"]:
        return Check("process numbers", "enforced", told)
    fix = "LimitNPROC=infinity in the unit, or ulimit -u" if name == "ulimit -u" else ""
    return Check("process numbers", "accounted only", told, fix or f"sysctl -w {name}=4194304")


def descriptors() -> Check:
    """As many are opened as a hundred jobs take, below the hard bound, as the supervisor does."""
    name, hard = "descriptors", resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = FEWEST["descriptors"]
    outcome = attempt(lambda: _opened(wanted))
    fix = f"LimitNOFILE=524288 in the unit; ulimit -Hn 524288; fs.file-max above {wanted}"
    if outcome.failure:
        return Check(name, "unavailable", outcome.failure, fix)
    if outcome.value < wanted:
        told = (
            f"{outcome.value} could be opened: enough for some {outcome.value // 20} jobs at once"
        )
        return Check(name, "accounted only", told, fix)
    return Check(name, "enforced", f"{wanted} could be opened at once; the bound is {hard}")


def _opened(wanted: int) -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    first = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    count = 1
    try:
        while count < wanted:
            os.dup(first)
            count += 1
    except OSError:
        pass  # so many there are
    return count


def watches() -> Check:
    """inotify(7): on v2 each job with limits is watched; `logs -f` watches too."""
    name, where = "inotify", Path("/proc/sys/fs/inotify")
    most = {one: int((where / f"max_user_{one}").read_text()) for one in ("instances", "watches")}
    few = [one for one, count in most.items() if count < FEWEST[one]]
    fix = "sysctl -w fs.inotify.max_user_instances=1024 fs.inotify.max_user_watches=524288"
    try:
        watch = Inotify()
        try:
            watch.add("/proc/self/oom_score_adj")
        finally:
            watch.close()
    except (KernelError, OSError) as error:
        return Check(name, "unavailable", str(error), fix, True)
    told = f"a watch was had; of {most['watches']}, in {most['instances']} instances"
    return Check(name, "accounted only" if few else "enforced", told, fix if few else "", True)


def pressure() -> Check:
    """PSI: how much the host suffers for want of memory (accounting/psi.rst)."""
    path = Path("/proc/pressure/memory")
    try:
        path.read_text()
    except OSError as error:
        fix = "boot with psi=1, on a kernel with CONFIG_PSI"
        return Check("pressure (PSI)", "unavailable", f"{path}: {error.strerror}", fix)
    return Check("pressure (PSI)", "enforced", f"{path} is readable")


def systemd() -> Check:
    """Whether it is PID 1 (sd_booted(3)), and which; not needed, but it delegates and restarts."""
    name, fix = "systemd", "not needed; else run it as a service (supervise init --systemd)"
    if not Path("/run/systemd/system").is_dir():
        return Check(name, "unavailable", "it is not PID 1 here", fix)
    found = shutil.which("systemctl")
    if found is None:
        return Check(name, "unavailable", "no systemctl here", fix)
    done = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    told = done.stdout.partition("\n")[0].strip() or f"status {done.returncode}"
    if os.environ.get("INVOCATION_ID"):
        told += "; this is one of its units"
    return Check(name, "enforced", told)


def journal() -> Check:
    """Whether its socket takes a datagram: an empty one, which the journal drops."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as tried:
            tried.connect(SOCKET)
            tried.send(b"")
    except OSError as error:
        fix = "not needed: all is in files, too; else apt-get install systemd"
        return Check("journal", "unavailable", f"{SOCKET}: {error.strerror}", fix)
    return Check("journal", "enforced", f"{SOCKET} took a datagram")
