"""An imagined kernel's cgroup hierarchies, as plain files below a directory.

`Hierarchies` lays out /sys/fs/cgroup and /proc/self and, once `install`ed, answers this project's
mkdir, rmdir and writes as cgroups(7) says.  It knows the rules that the code has to obey: files
appear with their controller, no processes beside enabled controllers, limit <= memsw.limit, an
empty cpuset takes no task, a task frozen by v1 dies only when it is thawed.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path

import pytest

from supervisor.cgroup import files, v1
from supervisor.errors import KernelError

PAGE = os.sysconf("SC_PAGE_SIZE")
_MAX = str((1 << 63) // PAGE * PAGE - PAGE)

V1_FILES = {
    "memory": {"memory.limit_in_bytes": _MAX, "memory.memsw.limit_in_bytes": _MAX,
               "memory.usage_in_bytes": "0", "memory.max_usage_in_bytes": "0",
               "memory.memsw.max_usage_in_bytes": "0", "memory.failcnt": "0",
               "memory.memsw.failcnt": "0", "memory.swappiness": "60",
               "memory.stat": f"hierarchical_memory_limit {_MAX}\n"
                              f"hierarchical_memsw_limit {_MAX}\ntotal_cache 8192\n"
                              "total_rss 4096\ntotal_shmem 1000\ntotal_swap 700",
               "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0",
               "cgroup.event_control": ""},
    "pids": {"pids.max": "max", "pids.current": "0", "pids.events": "max 0"},
    "cpu": {"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000", "cpu.shares": "1024",
            "cpu.idle": "0", "cpu.stat": "nr_periods 9\nnr_throttled 4\nthrottled_time 2500000000"},
    "cpuacct": {"cpuacct.usage": "3000000000", "cpuacct.usage_user": "2000000000",
                "cpuacct.usage_sys": "1000000000"},
    "cpuset": {"cpuset.cpus": "", "cpuset.mems": ""},
    "blkio": {f"blkio.throttle.{way}_{unit}_device": ""
              for way in ("read", "write") for unit in ("bps", "iops")}
             | {"blkio.throttle.io_service_bytes":
                "8:0 Read 4096\n8:0 Write 512\n8:0 Total 4608\nTotal 4608",
                "blkio.throttle.io_serviced": "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3"},
    "freezer": {"freezer.state": "THAWED"},
    "devices": {"devices.list": "a *:* rwm", "devices.allow": "", "devices.deny": ""},
}  # fmt: skip

V2_FILES = {
    "memory": {"memory.max": "max", "memory.swap.max": "max", "memory.high": "max",
               "memory.low": "0", "memory.current": "0", "memory.peak": "0",
               "memory.swap.current": "700", "memory.oom.group": "0",
               "memory.stat": "anon 4096\nfile 8192\nkernel 900\nkernel_stack 0\nshmem 1000",
               "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0",
               "memory.events.local": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0"},
    "pids": {"pids.max": "max", "pids.current": "0", "pids.peak": "0", "pids.events": "max 0"},
    "cpu": {"cpu.max": "max 100000", "cpu.weight": "100", "cpu.idle": "0"},
    "io": {"io.max": "", "io.stat": "8:0 rbytes=4096 wbytes=512 rios=1 wios=2 dbytes=0 dios=0"},
    "cpuset": {"cpuset.cpus": "", "cpuset.cpus.effective": "0-1"},
}  # fmt: skip

CORE = {"cgroup.controllers": "", "cgroup.subtree_control": "", "cgroup.type": "domain",
        "cgroup.events": "populated 0\nfrozen 0", "cgroup.freeze": "0", "cgroup.kill": "",
        "cpu.stat": "usage_usec 3000000\nuser_usec 2000000\nsystem_usec 1000000\n"
                    "nr_periods 9\nnr_throttled 4\nthrottled_usec 2500000"}  # fmt: skip


class Hierarchies:
    """`v1`: the controllers of each v1 mount; `v2`: those of the unified one, None: no such."""

    def __init__(
        self, top: Path, *, v1: tuple[str, ...], v2: str | None, own: str = "/own"
    ) -> None:
        self.root = str(top)
        self.proc = f"{top}/proc/self"
        self.own = own
        self.v1 = {f"{top}/sys/fs/cgroup/{mount}": mount for mount in v1}
        unified = f"{top}/sys/fs/cgroup" + ("/unified" if v1 else "")
        self.v2 = unified if v2 is not None else None
        os.makedirs(self.proc)
        for mount in self.v1:
            os.makedirs(mount)
            self._fill_v1(mount, mount)
            if "cpuset" in self.v1[mount].split(","):
                self.put(f"{mount}/cpuset.cpus", "0-1")
                self.put(f"{mount}/cpuset.mems", "0")
            self._make_path(mount)
        if self.v2:
            os.makedirs(self.v2, exist_ok=True)
            for name in ("cgroup.subtree_control", "cgroup.procs"):
                self.put(f"{self.v2}/{name}", "")
            self.put(f"{self.v2}/cgroup.subtree_control", v2 or "")
            self.put(f"{self.v2}/cgroup.controllers", v2 or "")
            self._make_path(self.v2)
        self._write_proc()
        self._pinned: dict[int, int] = {}
        self._doomed: set[int] = set()

    def _make_path(self, mount: str) -> None:
        directory = mount
        for part in filter(None, self.own.split("/")):
            directory = f"{directory}/{part}"
            self.make(directory)
            if "cpuset" in self.v1.get(mount, "").split(","):
                v1.Cpuset.inherit(directory)

    def _write_proc(self) -> None:
        mounts = ["1 0 8:1 / / rw - ext4 /dev/sda1 rw"]
        cgroups = []
        for number, mount in enumerate(self.v1, 1):
            point = mount.removeprefix(self.root)
            mounts.append(
                f"{number + 9} 1 0:{number} / {point} rw - cgroup cgroup rw,{self.v1[mount]}"
            )
            cgroups.append(f"{number}:{self.v1[mount]}:{self.own}")
        cgroups.append(f"0::{self.own if self.v2 else '/'}")
        if self.v2:
            mounts.append(f"9 1 0:99 / {self.v2.removeprefix(self.root)} rw - cgroup2 cgroup2 rw")
        self.put(f"{self.proc}/mountinfo", "\n".join(mounts) + "\n")
        self.put(f"{self.proc}/cgroup", "\n".join(cgroups) + "\n")

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Answer in the kernel's place until the test ends."""
        monkeypatch.setattr(files, "_make", self.make)
        monkeypatch.setattr(files, "_remove", self.remove)
        monkeypatch.setattr(files, "_write", self.write)
        monkeypatch.setattr(os, "pidfd_open", self._pidfd_open)
        monkeypatch.setattr(signal, "pidfd_send_signal", self._kill)

    # What files there are.

    def put(self, path: str, text: str) -> None:
        Path(path).write_text(text)

    def get(self, path: str) -> str:
        return Path(path).read_text()

    def mount_of(self, path: str) -> str:
        mounts = [*self.v1, *filter(None, [self.v2])]
        return max((m for m in mounts if path == m or path.startswith(f"{m}/")), key=len)

    def make(self, directory: str, hint: str = "") -> None:
        try:
            os.mkdir(directory)
        except OSError as error:
            raise KernelError("mkdir", directory, error.errno or 0, hint=hint) from error
        mount = self.mount_of(directory)
        if mount == self.v2:
            for name, text in CORE.items():
                self.put(f"{directory}/{name}", text)
            self.put(f"{directory}/cgroup.procs", "")
            self._fill_v2(directory)
        else:
            self._fill_v1(directory, mount)

    def _fill_v1(self, directory: str, mount: str) -> None:
        for name in ("cgroup.procs", "tasks"):
            self.put(f"{directory}/{name}", "")
        for controller in self.v1[mount].split(","):
            for name, text in V1_FILES.get(controller, {}).items():
                self.put(f"{directory}/{name}", text)

    def _fill_v2(self, directory: str) -> None:
        """The files of the controllers that the parent has enabled, and of no others."""
        enabled = self.get(f"{os.path.dirname(directory)}/cgroup.subtree_control").split()
        self.put(f"{directory}/cgroup.controllers", " ".join(enabled))
        for controller, contents in V2_FILES.items():
            for name, text in contents.items():
                path = Path(directory, name)
                if controller not in enabled:
                    path.unlink(missing_ok=True)
                elif not path.exists():
                    path.write_text(text)

    def remove(self, directory: str) -> bool:
        if not os.path.isdir(directory):
            return False
        if self.members(directory):
            raise KernelError("rmdir", directory, errno.EBUSY)
        if files.names(directory):
            raise KernelError("rmdir", directory, errno.ENOTEMPTY)
        shutil.rmtree(directory)
        return True

    # What a write does.

    def write(self, path: str, text: str, hint: str = "") -> None:
        directory, name = os.path.split(path)
        try:
            if not os.path.exists(path):
                raise OSError(errno.ENOENT, "")
            rule = getattr(self, "_write_" + name.replace(".", "_"), None)
            if rule:
                rule(directory, text)
            else:
                self.put(path, text)
        except OSError as error:
            raise KernelError(f"write {text!r} to", path, error.errno or 0, hint=hint) from error

    def _pages(self, path: str, text: str) -> None:
        self.put(path, text if text == "max" else str(int(text) // PAGE * PAGE))

    def _write_memory_max(self, directory: str, text: str) -> None:
        self._pages(f"{directory}/memory.max", text)

    def _write_memory_high(self, directory: str, text: str) -> None:
        self._pages(f"{directory}/memory.high", text)

    def _write_memory_low(self, directory: str, text: str) -> None:
        self._pages(f"{directory}/memory.low", text)

    def _write_memory_limit_in_bytes(self, directory: str, text: str) -> None:
        text = _MAX if text == "-1" else text
        if int(text) > int(self.get(f"{directory}/memory.memsw.limit_in_bytes")):
            raise OSError(errno.EINVAL, "")
        self._pages(f"{directory}/memory.limit_in_bytes", text)
        self._tell(directory, "memory.limit_in_bytes", "hierarchical_memory_limit")

    def _write_memory_memsw_limit_in_bytes(self, directory: str, text: str) -> None:
        text = _MAX if text == "-1" else text
        if int(text) < int(self.get(f"{directory}/memory.limit_in_bytes")):
            raise OSError(errno.EINVAL, "")
        self._pages(f"{directory}/memory.memsw.limit_in_bytes", text)
        self._tell(directory, "memory.memsw.limit_in_bytes", "hierarchical_memsw_limit")

    def _tell(self, directory: str, limit: str, line: str) -> None:
        """memory.stat has the lowest limit on the way up; here only the own and the one above."""
        above = Path(os.path.dirname(directory), limit)
        values = [Path(directory, limit).read_text(), above.read_text() if above.exists() else _MAX]
        self._set(f"{directory}/memory.stat", line, min(map(int, values)))

    def _write_cpu_cfs_quota_us(self, directory: str, text: str) -> None:
        if text != "-1" and int(text) < 1000:
            raise OSError(errno.EINVAL, "")
        self.put(f"{directory}/cpu.cfs_quota_us", text)

    def _write_memory_oom_control(self, directory: str, text: str) -> None:
        self._set(f"{directory}/memory.oom_control", "oom_kill_disable", int(text))

    def _write_devices_deny(self, directory: str, text: str) -> None:
        if text != "a" or files.names(directory):
            raise OSError(errno.EINVAL, "")
        self.put(f"{directory}/devices.list", "")

    def _write_devices_allow(self, directory: str, text: str) -> None:
        listed = self.get(f"{directory}/devices.list").split("\n")
        self.put(f"{directory}/devices.list", "\n".join([*filter(None, listed), text]))

    def _write_io_max(self, directory: str, text: str) -> None:
        device, *pairs = text.split(" ")
        values = dict.fromkeys(("rbps", "wbps", "riops", "wiops"), "max")
        values.update(dict(pair.split("=") for pair in pairs))
        self.put(
            f"{directory}/io.max", f"{device} " + " ".join("=".join(v) for v in values.items())
        )

    def _write_cgroup_subtree_control(self, directory: str, text: str) -> None:
        enabled = set(self.get(f"{directory}/cgroup.subtree_control").split())
        available = self.get(f"{directory}/cgroup.controllers").split()
        for word in text.split():
            if word[0] == "+":
                if word[1:] not in available:
                    raise OSError(errno.ENOENT, "")
                if self.members(directory) and directory != self.v2:
                    raise OSError(errno.EBUSY, "")
                enabled.add(word[1:])
            else:
                for below in files.names(directory):
                    if word[1:] in self.get(f"{directory}/{below}/cgroup.subtree_control").split():
                        raise OSError(errno.EBUSY, "")
                enabled.discard(word[1:])
        self.put(f"{directory}/cgroup.subtree_control", " ".join(sorted(enabled)))
        for below in files.names(directory):
            self._fill_v2(f"{directory}/{below}")

    def _write_cgroup_procs(self, directory: str, text: str) -> None:
        self.enter(directory, int(text))

    def _write_cgroup_kill(self, directory: str, _text: str) -> None:
        for below in files.tree(directory):
            for pid in self.members(below):
                self.exit(pid)

    def _write_cgroup_freeze(self, directory: str, text: str) -> None:
        self.put(f"{directory}/cgroup.freeze", text)
        self._set(f"{directory}/cgroup.events", "frozen", int(text))

    def _write_freezer_state(self, directory: str, text: str) -> None:
        self.put(f"{directory}/freezer.state", text)
        if text == "THAWED":
            for pid in set(self.members(directory)) & self._doomed:
                self.exit(pid)

    def _set(self, path: str, key: str, value: int) -> None:
        table = {**files.table(path), key: value}
        self.put(path, "\n".join(f"{k} {v}" for k, v in table.items()))

    def count(self, path: str, key: str) -> None:
        """Add one to an event counter."""
        self._set(path, key, files.table(path)[key] + 1)

    # Processes.

    def members(self, directory: str) -> list[int]:
        return [int(pid) for pid in self.get(f"{directory}/cgroup.procs").split()]

    def enter(self, directory: str, pid: int) -> None:
        """As if the process wrote itself into the cgroup."""
        mount = self.mount_of(directory)
        if mount == self.v2:
            if directory != mount and self.get(f"{directory}/cgroup.subtree_control"):
                raise OSError(errno.EBUSY, "")
        elif "cpuset" in self.v1[mount].split(",") and not self.get(f"{directory}/cpuset.cpus"):
            raise OSError(errno.ENOSPC, "")
        self._leave(mount, pid)
        self._list(directory, [*self.members(directory), pid])

    def exit(self, pid: int) -> None:
        for mount in (*self.v1, *filter(None, [self.v2])):
            self._leave(mount, pid)

    def _leave(self, mount: str, pid: int) -> None:
        for directory in files.tree(mount):
            if self.mount_of(directory) == mount and os.path.exists(f"{directory}/cgroup.procs"):
                members = self.members(directory)
                if pid in members:
                    self._list(directory, [other for other in members if other != pid])

    def _list(self, directory: str, members: list[int]) -> None:
        self.put(f"{directory}/cgroup.procs", "".join(f"{pid}\n" for pid in members))
        while self.v2 and directory.startswith(f"{self.v2}/"):
            populated = any(self.members(below) for below in files.tree(directory))
            self._set(f"{directory}/cgroup.events", "populated", int(populated))
            directory = os.path.dirname(directory)

    def _pidfd_open(self, pid: int, _flags: int = 0) -> int:
        fd = os.open("/dev/null", os.O_RDONLY)
        self._pinned[fd] = pid
        return fd

    def _kill(self, fd: int, number: int) -> None:
        assert number == signal.SIGKILL
        pid = self._pinned[fd]
        for mount, controllers in self.v1.items():
            if "freezer" in controllers.split(","):
                for directory in files.tree(mount):
                    frozen = self.get(f"{directory}/freezer.state") == "FROZEN"
                    if frozen and pid in self.members(directory):
                        self._doomed.add(pid)
                        return
        self.exit(pid)
