"""`supervise run`: the streams are the caller's, and each flag does what it says.

The statuses of bad ends are in test_verdicts.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from supervisor.front.schema import JOB
from tests.support import netns
from tests.support.batch import PATIENCE, assert_clean
from tests.support.command import ROOT, Supervise
from tests.support.host import disk_directory, in_guest, memory_version

pytestmark = pytest.mark.kernel


def binary(*command: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "supervisor", "run", *command],
        input=stdin, capture_output=True, timeout=PATIENCE, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


# Streams.


def test_the_streams_carry_any_bytes() -> None:
    data = bytes(range(256)) * 4096
    done = binary("--", "sh", "-c", "cat; echo err >&2", stdin=data)
    assert (done.stdout, done.stderr, done.returncode) == (data, b"err\n", 0)


def test_the_record_follows_the_command_s_output(supervise: Supervise) -> None:
    done = supervise("run", "--record", "-", "--", "sh", "-c", "printf 'one\\ntwo\\n'")
    *output, record = done.stdout.splitlines()
    assert output == ["one", "two"]
    assert json.loads(record)["reason"] == "succeeded"


def test_a_reader_that_has_enough_ends_the_command(supervise: Supervise) -> None:
    """SIGPIPE reaches it as in a shell's pipe: `yes | head -n 3`."""
    process = supervise.start("run", "--", "yes")
    with process:
        assert process.stdout is not None and process.stderr is not None
        assert [process.stdout.readline() for _ in range(3)] == ["y\n"] * 3
        process.stdout.close()
        err = process.stderr.read()
        assert process.wait(PATIENCE) == 128 + signal.SIGPIPE, err
    assert "SIGPIPE" in err


def test_a_closed_standard_input_is_closed_for_the_command(supervise: Supervise) -> None:
    done = supervise("run", "--", "sh", "-c", "read line || echo end", stdin="")
    assert (done.stdout, done.status) == ("end\n", 0)


def test_a_record_that_cannot_be_written_is_told(supervise: Supervise, tmp_path: Path) -> None:
    done = supervise("run", "--record", tmp_path / "no/such/r.json", "--", "true")
    assert done.status == 125
    assert f"{tmp_path}/no/such/r.json" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_the_command_in_order(supervise: Supervise, number: int) -> None:
    script = "trap 'echo bye; exit 0' TERM; echo ready; while :; do sleep 0.1; done"
    process = supervise.start("run", "--", "sh", "-c", script)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "bye\n"
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert_clean(f"supervise.run-{process.pid}", f"/run/supervise/run-{process.pid}")


# Flags.

MEMORY = ("--memory", "64M")
SMALL = ("--write", "overlay", "--disk", "4M")
BRIDGE = ("--network", "bridge")
DISK = "/dev/vda" if in_guest() else "DISK"  # the guest keeps its files in memory
USES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "root": (("--root", "ROOT"), "echo /mark*; [ -e /etc/passwd ] || echo nothing else",
             "/marker\nnothing else"),
    "write": (("--write", "overlay"), "echo yes > /var/f; cat /var/f", "yes"),
    "keep": (("--write", "overlay", "--keep", "never"), "echo yes > /var/f; cat /var/f", "yes"),
    "mount": (("--mount", "DATA:/tmp/data:ro"),
              "cat /tmp/data/f; touch /tmp/data/g 2>/dev/null || echo read-only",
              "data\nread-only"),
    "tmpfs": (("--tmpfs", "/tmp/t:size=4M"), "stat -f -c %T /tmp/t; df -k --output=size /tmp/t "
              "| tail -n 1 | tr -d ' '", "tmpfs\n4096"),
    "device": (("--device", "/dev/kmsg:/dev/log:w"), "[ -c /dev/log ] && echo there", "there"),
    "network": (("--network", "none"), "grep -c : /proc/net/dev", "1"),
    "port": ((*BRIDGE, "--port", "127.0.0.1:58080:80"), "cat /sys/class/net/eth0/operstate", "up"),
    "egress": ((*BRIDGE, "--egress", "192.0.2.0/24:443"), "cat /sys/class/net/eth0/mtu", "1500"),
    "dns": ((*BRIDGE, "--dns", "192.0.2.53"), "cat /etc/resolv.conf", "nameserver 192.0.2.53"),
    "bandwidth": ((*BRIDGE, "--bandwidth", "10M"), "grep -c : /proc/net/dev", "2"),
    "user": (("--user", "nobody"), "id -un", "nobody"),
    "group": (("--user", "nobody", "--group", "daemon"), "id -gn", "daemon"),
    "user-namespace": (("--user-namespace", "self"), "cat /proc/self/uid_map | tr -s ' '",
                       " 0 0 1"),
    "hide": (("--hide", "/usr/share:/usr/games"), "ls /usr/share /usr/games",
             "/usr/games:\n\n/usr/share:"),
    "cap-add": (("--cap-add", "NET_RAW"), "grep CapEff /proc/self/status | cut -f 2",
                "00000000000424fb"),
    "cap-drop": (("--cap-drop", "ALL"), "grep CapEff /proc/self/status | cut -f 2",
                 "0000000000000000"),
    "seccomp": (("--seccomp", "unconfined"), "grep Seccomp: /proc/self/status | cut -f 2", "0"),
    "landlock": (("--landlock", "off"), "echo ok", "ok"),
    "rlimit-core": (("--rlimit-core", "0"), "ulimit -c", "0"),
    "rlimit-fsize": (("--rlimit-fsize", "1M"), "ulimit -f", "2048"),
    "rlimit-memlock": (("--rlimit-memlock", "64K"), "ulimit -l", "64"),
    "rlimit-nproc": (("--rlimit-nproc", "500"), "ulimit -p", "500"),
    "rlimit-stack": (("--rlimit-stack", "4M"), "ulimit -s", "4096"),
    "oom-score-adj": (("--oom-score-adj", "7"), "cat /proc/self/oom_score_adj", "7"),
    "time-offset": (("--time-offset", "365d"),
                    "[ $(cut -d. -f1 /proc/uptime) -gt 31536000 ] && echo later", "later"),
    "proc": ((*MEMORY, "--proc", "limits"), "grep MemTotal /proc/meminfo | tr -s ' '",
             "MemTotal: 65536 kB"),
    "log-timestamps": (("--log-timestamps",), "echo ok", "TIME ok"),
    "volume": (("--volume", "v:/v:ro"), "touch /v/x 2>/dev/null || echo read-only", "read-only"),
    "copy-out": (("--copy-out", "/none"), "echo ok", "ok"),
    "hostname": (("--hostname", "worker-7"), "hostname", "worker-7"),
    "env": (("--env", "A=1", "--env", "B=x y=z"), 'echo "$A $B"', "1 x y=z"),
    "working-dir": (("--working-dir", "/usr"), "pwd", "/usr"),
    "memory": (MEMORY, "echo ok", "ok"),
    "memory-high": ((*MEMORY, "--memory-high", "40M"), "echo ok", "ok"),
    "memory-low": (("--memory-low", "1M"), "echo ok", "ok"),
    "swap": ((*MEMORY, "--swap", "0"), "echo ok", "ok"),
    "swappiness": ((*MEMORY, "--swappiness", "10"), "echo ok", "ok"),
    "pids": (("--pids", "16"), "echo ok", "ok"),
    "cpus": (("--cpus", "0.5"), "echo ok", "ok"),
    "cpu-weight": (("--cpu-weight", "50"), "echo ok", "ok"),
    "cpu-idle": (("--cpu-idle",), "echo ok", "ok"),
    "cpuset": (("--cpuset", "0"), "nproc", "1"),
    "io": (("--io", f"{DISK}:read_bps=50M"), "echo ok", "ok"),
    "disk": ((*SMALL, "--disk-by", "tmpfs"), "df -k --output=size / | tail -n 1 | tr -d ' '",
             "4096"),
    "disk-inodes": ((*SMALL, "--disk-by", "tmpfs", "--disk-inodes", "77"),
                    "[ $(df --output=itotal / | tail -n 1) -lt 100 ] && echo few", "few"),
    "disk-by": ((*SMALL, "--disk-by", "tmpfs"), "echo yes > /var/f; cat /var/f", "yes"),
    "on-disk-limit": ((*SMALL, "--on-disk-limit", "kill:full"), "echo ok", "ok"),
    "output": (("--output", "3"), "echo ok", "ok"),
    "open-files": (("--open-files", "77"), "ulimit -n", "77"),
    "timeout": (("--timeout", "1m"), "echo ok", "ok"),
    "cpu-time": (("--cpu-time", "1m"), "echo ok", "ok"),
    "stop-signal": (("--stop-signal", "USR1", "--timeout", "300ms", "--expect", "timeout"),
                    "trap 'echo usr1; exit 0' USR1; while :; do sleep 0.1; done", "usr1"),
    "stop-grace": (("--stop-grace", "100ms", "--timeout", "300ms"),
                   "trap '' TERM; echo ok; while :; do sleep 1; done", "ok"),
    "restart-when": (("--restart-when", "on-failure", "--restart-attempts", "2",
                      "--restart-backoff", "10ms", "--restart-max-backoff", "15ms"),
                     "echo again; exit 1", "again\nagain\nagain"),
    "on-start": (("--on-start", "notify:hello"), "echo ok", "ok"),
    "on-memory-limit": ((*MEMORY, "--on-memory-limit", "raise:128M"), "echo ok", "ok"),
    "on-oom-kill": ((*MEMORY, "--on-oom-kill", "ignore"), "echo ok", "ok"),
    "on-pids-limit": (("--pids", "16", "--on-pids-limit", "kill:no"), "echo ok", "ok"),
    "on-pressure": (("--on-pressure", "notify:short"), "echo ok", "ok"),
    "pressure-memory": (("--pressure-memory", "30%"), "echo ok", "ok"),
    "pressure-cpu": (("--pressure-cpu", "30%"), "echo ok", "ok"),
    "pressure-io": (("--pressure-io", "30%"), "echo ok", "ok"),
    "on-timeout": (("--timeout", "200ms", "--on-timeout", "signal:USR1"),
                   "trap 'echo usr1; exit 0' USR1; while :; do sleep 0.1; done", "usr1"),
    "on-exit": (("--on-exit", "notify:over"), "echo ok", "ok"),
    "on-tick": (("--on-tick", "ignore"), "echo ok", "ok"),
    "oom": (("--oom", "continue"), "echo ok", "ok"),
    "expect": (("--expect", "failed"), "echo ok; exit 1", "ok"),
}  # fmt: skip
ONLY = {"swappiness": "v1", "memory-high": "v2", "memory-low": "v2"}
"""What one generation of control groups alone has."""
TOGETHER = {"entrypoint", "restart-attempts", "restart-backoff", "restart-max-backoff"}
"""Used with another flag of the table; an entrypoint with an image (test_images_store.py)."""
ON_BRIDGE = ("port", "egress", "dns", "bandwidth")
LACKED = dict.fromkeys(("cpuset", "time-offset", *ON_BRIDGE), pytest.mark.qemu)
"""What User-Mode Linux has not got."""


def test_every_flag_of_the_help_is_tried_here() -> None:
    assert {setting.flag for setting in JOB.settings if setting.flag} == set(USES) | TOGETHER


@pytest.mark.parametrize("flag", [pytest.param(f, marks=LACKED.get(f, ())) for f in USES])
def test_a_flag_does_what_it_says(
    supervise: Supervise, tmp_path: Path, busybox: Path, flag: str
) -> None:
    flags, script, expected = USES[flag]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/f").write_text("data\n")
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    (root / "marker").mkdir()
    (root / "bin/sh").write_bytes(busybox.read_bytes())
    (root / "bin/sh").chmod(0o755)
    words = [word.replace("DATA", f"{tmp_path}/data").replace("ROOT", str(root)) for word in flags]
    if flag == "io":
        words = [word.replace("DISK", str(disk_directory(tmp_path))) for word in words]
    with ExitStack() as stack:
        if flag in ON_BRIDGE:
            supervise = stack.enter_context(netns.namespace()).inside(supervise)
        done = supervise("run", *words, "--", "sh", "-c", script)
    assert "Traceback" not in done.stderr
    if flag == "volume":
        assert supervise("volume", "remove", "v").status == 0
    if flag in ONLY and memory_version() != ONLY[flag]:  # which has no such thing
        assert (done.stdout, done.status) == ("", 125), done
        assert f"limits.{flag.replace('-', '_')}" in done.stderr and "fix: " in done.stderr
        return
    if flag == "on-pressure" and not Path("/proc/pressure").exists():
        assert (done.stdout, done.status) == ("", 125), done
        return
    out = re.sub(r"(?m)^\d{4}-\d\d-\d\dT[\d:.]+Z ", "TIME ", done.stdout)
    assert out == expected + "\n", done
    bad = {"stop-grace": 124, "stop-signal": 124, "restart-when": 1, "expect": 1}
    assert done.status == bad.get(flag, 0), done
    if flag in ("on-start", "on-exit"):
        assert {"on-start": "hello", "on-exit": "over"}[flag] in done.stderr


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("--memory", "lots"), "--memory"),
        (("--swap", "1M"), "--swap"),
        (("--mount", "nonsense"), "--mount"),
        (("--timeout", "-1s"), "--timeout"),
        (("--on-exit", "kill"), "--on-exit"),
        (("--env", "NOVALUE"), "--env"),
        (("--plugin", "no-such-policy"), "no-such-policy"),
    ],
)
def test_a_wrong_flag_starts_nothing(supervise: Supervise, flags, told) -> None:
    done = supervise("run", *flags, "--", "sh", "-c", "echo started")
    assert done.status == 2, done
    assert told in done.stderr and done.stdout == "" and "Traceback" not in done.stderr


def test_a_usage_without_a_command_is_wrong(supervise: Supervise) -> None:
    assert supervise("run").status == 2
    assert supervise("run", "--memory", "1M").status == 2
