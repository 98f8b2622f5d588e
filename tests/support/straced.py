"""What strace(1) sees of a start, in the words of `supervise plan`, to be compared with it.

strace -ff writes a file for each process, so that no call of one stands within another's.  Who is
who is told by what they do: the launcher clones with CLONE_NEWPID, the init calls pivot_root, the
payload executes the job's command.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from supervisor.linux import caps
from supervisor.linux import constants as c
from tests.support.command import ROOT

CALLS = (
    "mount", "umount2", "move_mount", "open_tree", "mount_setattr", "pivot_root", "chroot",
    "chdir", "fchdir", "setns", "unshare", "clone", "clone3", "setresuid", "setresgid",
    "setgroups", "setuid", "setgid", "capset", "prctl", "seccomp", "execve", "execveat",
    "sethostname", "setsid", "keyctl", "prlimit64", "setrlimit", "close_range", "mknod", "mknodat",
    "symlink", "symlinkat", "write", "landlock_restrict_self", "ioctl",
)  # fmt: skip
"""Those that make a container; of the others' `write` and `ioctl` only some count."""

LINE = re.compile(r"(\w+)\((.*)\)\s+= (-?\w+)(?:<.*>)?(?: .*)?$")
FD = re.compile(r"(\d+|AT_FDCWD)<(.*)>$")
POOLED = re.compile(r"/run\.\d+\.\d+")
ATTRIBUTES = {"MOUNT_ATTR_RDONLY": "ro", "MOUNT_ATTR_NOSUID": "nosuid", "MOUNT_ATTR_NODEV": "nodev"}
RLIMITS = {"RLIMIT_CORE": "core", "RLIMIT_FSIZE": "fsize", "RLIMIT_NOFILE": "nofile"}


@dataclass
class Call:
    """A system call that succeeded, with its arguments as strace writes them."""

    name: str
    arguments: list[str]
    result: str

    def path(self, number: int) -> str:
        """Of a descriptor, as -y tells it."""
        match = FD.match(self.arguments[number])
        return match[2] if match else ""

    def text(self, number: int) -> str:
        return self.arguments[number].strip('"')


@dataclass
class Seen:
    """The steps of each process, in plan's words."""

    supervisor: list[str]
    launcher: list[str]
    init: list[str]
    payload: list[str]


def strace(config: Path, into: Path) -> dict[int, list[Call]]:
    """Run a configuration under strace; the calls of each process."""
    command = ["strace", "-ff", "-y", "-s", "4096", "-e", "trace=" + ",".join(CALLS)]
    program = [sys.executable, "-m", "supervisor", str(config), "--plain"]
    done = subprocess.run(
        [*command, "-o", str(into / "calls"), *program],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return {
        int(path.suffix[1:]): list(_calls(path.read_text(errors="replace")))
        for path in into.glob("calls.*")
    }


def _calls(text: str) -> Iterator[Call]:
    for line in text.splitlines():
        match = LINE.match(line)
        if match and not match[3].startswith("-"):
            yield Call(match[1], _split(match[2]), match[3])


def _split(text: str) -> list[str]:
    """Arguments at their commas, but for those in brackets and quotes."""
    found, depth, quoted, begin = [], 0, False, 0
    for at, char in enumerate(text):
        if char == '"' and text[at - 1 : at] != "\\":
            quoted = not quoted
        elif not quoted and char in "{[(":
            depth += 1
        elif not quoted and char in "}])":
            depth -= 1
        elif char == "," and not quoted and not depth:
            found.append(text[begin:at].strip())
            begin = at + 1
    return [*found, text[begin:].strip()]


def seen(processes: dict[int, list[Call]], run: str, argv: Sequence[str]) -> Seen:
    """Who did what.  `run` is what the plan calls the run's cgroup."""

    def has(calls: list[Call], name: str, word: str = "") -> bool:
        return any(one.name == name and word in " ".join(one.arguments) for one in calls)

    first = min(processes)
    words = ", ".join(f'"{word}"' for word in argv)
    launcher = next(p for p, calls in processes.items() if has(calls, "clone3", "CLONE_NEWPID"))
    init = next(p for p, calls in processes.items() if has(calls, "pivot_root"))
    payload = next(p for p, calls in processes.items() if has(calls, "execve", f"[{words}]"))
    assert len({first, launcher, init, payload}) == 4
    teller = {who: Teller(run) for who in (first, launcher, init, payload)}
    processes[payload] = _until_exec(processes[payload], f"[{words}]")
    for who, told in teller.items():
        for call in processes[who]:
            told.take(call)
    dropped = teller[payload].dropped
    if not has(processes[launcher], "clone3", "CLONE_NEWUSER"):  # that begins with a full set
        dropped = dropped | teller[launcher].dropped
    teller[payload].kept(dropped)
    return Seen(*(teller[who].steps for who in (first, launcher, init, payload)))


def _until_exec(calls: list[Call], argv: str) -> list[Call]:
    """Without what the job's own program does."""
    last = next(n for n, one in enumerate(calls) if one.name == "execve" and argv in one.arguments)
    return calls[: last + 1]


@dataclass
class Teller:
    """One process's calls, told one by one."""

    run: str
    steps: list[str] = field(default_factory=list)
    dropped: set[int] = field(default_factory=set)
    _sources: dict[str, str] = field(default_factory=dict)
    _binds: dict[str, str] = field(default_factory=dict)
    _at: str = ""

    def take(self, call: Call) -> None:
        tell = getattr(self, f"_{call.name}", None)
        words = tell(call) if tell is not None else f"? {call.name} {call.arguments}"
        if words:
            self.steps.append(words)

    def _cgroup(self, path: str) -> str:
        return POOLED.sub(f"/{self.run}", path)

    def _write(self, call: Call) -> str:
        path, data = self._cgroup(call.path(0)), call.text(1)
        if path.endswith("oom_score_adj"):
            return f"write {data} > /proc/self/oom_score_adj"
        if path.endswith(("/uid_map", "/gid_map")):
            name = path.rpartition("/")[2]
            return f"write /proc/PID/{name}: {data.removesuffix(chr(92) + 'n')}"
        if path.endswith("cgroup.event_control"):
            return f"write EVENTFD FD > {path}"
        inside = "/supervise." in path
        return f"write {data} > {path}" if inside and "/proc/" not in path else ""

    def _ioctl(self, call: Call) -> str:
        return "ip link set lo up" if call.arguments[1] == "SIOCSIFFLAGS" else ""

    def _clone3(self, call: Call) -> str:
        flags = set(re.findall(r"CLONE_\w+", call.arguments[0].partition("=>")[0]))
        if flags & {"CLONE_THREAD", "CLONE_VFORK"}:
            return ""
        if "CLONE_NEWPID" in flags:
            order = list(c.CLONE_NAMES.values())
            assert flags <= set(order)
            return "clone3 " + " | ".join(one for one in order if one in flags)
        return "clone3 the payload" + (
            ", CLONE_INTO_CGROUP" if "CLONE_INTO_CGROUP" in flags else ""
        )

    def _open_tree(self, call: Call) -> str:
        number = call.result
        if "AT_EMPTY_PATH" in call.arguments[2]:
            self._binds[number] = call.path(0)
            return ""
        source = self._sources[number] = call.text(1)
        deep = " with all below it" if "AT_RECURSIVE" in call.arguments[2] else ""
        return f"open_tree {source}{deep}"

    def _mount_setattr(self, call: Call) -> str:
        setting = re.search(r"attr_set=([\w|]+)", call.arguments[3])
        names = setting[1].split("|") if setting else []
        if names == ["MOUNT_ATTR_IDMAP"]:
            return "idmap"
        options = ",".join(ATTRIBUTES[name] for name in ATTRIBUTES if name in names)
        if call.arguments[0].startswith("AT_FDCWD"):
            return f"mount -o remount,bind,{options} {call.text(1)}"
        number = call.arguments[0].partition("<")[0]
        if number in self._binds:
            assert options == "ro"
            return ""
        private = ["private"] if "MS_PRIVATE" in call.arguments[3] else []
        return "  " + ",".join([*private, *([options] if options else [])])

    def _move_mount(self, call: Call) -> str:
        number, target = call.arguments[0].partition("<")[0], call.path(2)
        if number in self._binds:
            return f"mount --bind -o ro {self._binds.pop(number)} {target}"
        return f"move_mount {self._sources.pop(number, '*')} {target}"

    def _mount(self, call: Call) -> str:
        fstype, flags = call.text(2), call.arguments[3].split("|")
        target = self._at if call.text(1) == "." else call.text(1)
        if "MS_SLAVE" in flags:
            return "mount --make-rslave /"
        if "MS_BIND" in flags:
            return f"mount --bind {call.text(0)} {target}"
        named = {f"MS_{name.upper()}": name for name in c.MS_NAMES.values()} | {"MS_RDONLY": "ro"}
        options = [named[flag] for flag in flags if flag in named]
        options += [call.text(4)] if call.arguments[4] != "NULL" else []
        said = f" -o {','.join(options)}" if options else ""
        return (
            f"mount -t {fstype}{said} {call.text(0) if fstype != call.text(0) else 'none'} {target}"
        )

    def _fchdir(self, call: Call) -> str:
        self._at = call.path(0)
        return ""

    def _chdir(self, call: Call) -> str:
        return f"cd {call.text(0)}"

    def _pivot_root(self, call: Call) -> str:
        return f"pivot_root {call.text(0)} {call.text(1)}"

    def _umount2(self, call: Call) -> str:
        return "umount --lazy the old root" if call.arguments[1] == "MNT_DETACH" else "umount /tmp"

    def _unshare(self, call: Call) -> str:
        return f"unshare {call.arguments[0]}"

    def _setsid(self, _call: Call) -> str:
        return "setsid"

    def _close_range(self, _call: Call) -> str:
        closing = "close all but 0 1 2"
        return "" if self.steps and self.steps[-1] == closing else closing

    def _prlimit64(self, call: Call) -> str:
        if call.arguments[2] == "NULL":
            return ""
        soft, hard = re.findall(r"rlim_\w+=(\w+)", call.arguments[2])
        return f"setrlimit {RLIMITS[call.arguments[1]]} {soft}" + (
            f":{hard}" if soft != hard else ""
        )

    def _keyctl(self, call: Call) -> str:
        return "keyctl " + call.arguments[0].removeprefix("KEYCTL_")

    def _sethostname(self, call: Call) -> str:
        return f"hostname {call.text(0)}"

    def _setgroups(self, call: Call) -> str:
        return "setgroups " + call.arguments[1].strip("[]").replace(" ", "")

    def _setresgid(self, call: Call) -> str:
        return "setresgid " + _ids(call.arguments)

    def _setresuid(self, call: Call) -> str:
        return "setresuid " + _ids(call.arguments)

    def _landlock_restrict_self(self, _call: Call) -> str:
        return "landlock"

    def _prctl(self, call: Call) -> str:
        what, *rest = call.arguments
        match what:
            case "PR_CAPBSET_DROP":
                self.dropped.add(_capability(rest[0]))
                return ""
            case "PR_SET_SECCOMP":
                size = re.search(r"len=(\d+)", rest[1])
                return f"PR_SET_SECCOMP, a filter of {size[1] if size else '?'} instructions"
            case "PR_SET_DUMPABLE":
                return f"PR_SET_DUMPABLE {0 if 'DISABLE' in rest[0] or rest[0] == '0' else 1}"
            case "PR_CAP_AMBIENT":
                return self._ambient(rest)
            case "PR_SET_KEEPCAPS":
                return f"{what} {rest[0]}"
            case "PR_SET_NO_NEW_PRIVS":
                return what
            case "PR_SET_NAME" | "PR_SET_PDEATHSIG" | "PR_SET_CHILD_SUBREAPER":
                return ""
            case "PR_CAPBSET_READ" | "PR_SET_VMA":
                return ""
        return f"? prctl {call.arguments}"

    def _capset(self, call: Call) -> str:
        """What is to be ambient must be inheritable first (capabilities(7))."""
        return "clear inheritable capabilities" if "inheritable=0" in call.arguments[1] else ""

    def _ambient(self, rest: list[str]) -> str:
        if rest[0] == "PR_CAP_AMBIENT_CLEAR_ALL":
            return "clear ambient capabilities"
        assert rest[0] == "PR_CAP_AMBIENT_RAISE"
        name = caps.NAMES[_capability(rest[1])].lower()
        if self.steps[-1].startswith("ambient capabilities: "):
            self.steps[-1] += f" {name}"
            return ""
        return f"ambient capabilities: {name}"

    def _execve(self, call: Call) -> str:
        if not self.steps and "container.launcher" in call.arguments[1]:
            return ""
        return "execve " + " ".join(re.findall(r'"([^"]*)"', call.arguments[1]))

    def _mknodat(self, _call: Call) -> str:
        return ""

    _mknod = _symlink = _symlinkat = _mknodat

    def kept(self, dropped: set[int]) -> None:
        """What is left of the bounding set, where the first id changes."""
        left = sorted(set(range(caps.last_capability() + 1)) - dropped)
        words = " ".join(caps.NAMES[number].lower() for number in left)
        at = next(
            n
            for n, step in enumerate(self.steps)
            if step.startswith(("setgroups", "setresgid", "PR_SET_KEEP"))
        )
        self.steps.insert(at, f"bounding set of capabilities: {words or 'empty'}")


def _ids(words: list[str]) -> str:
    """One, where all three are the same."""
    return words[0] if len(set(words)) == 1 else " ".join(words)


def _capability(word: str) -> int:
    name = word.removeprefix("CAP_").split()[0]
    return int(name, 0) if name[0].isdigit() else caps.number(name)
