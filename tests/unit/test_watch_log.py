"""What is remembered of the kernel's log, and told about one cgroup."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.linux import proc
from supervisor.linux.kmsg import ForkRejected, Kmsg, Record
from supervisor.watch.kernel_log import REMEMBERED, KernelLog, Mark

RUN = "/s/run-1/payload"


class Kernel:
    """Prints into the log that `log` reads."""

    def __init__(self) -> None:
        ours, self._socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self.kmsg = Kmsg(ours.detach())
        self.log = KernelLog(self.kmsg)

    def say(self, text: str) -> None:
        self._socket.send(f"6,1,1,-;{text}\n".encode())

    def chose(self, pid: int, memcg: str, limiting: str | None) -> None:
        whose = f"oom_memcg={limiting}" if limiting else "global_oom"
        self.say(
            "oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,mems_allowed=0,"
            f"{whose},task_memcg={memcg},task=xz,pid={pid},uid=0"
        )

    def killed(self, pid: int, name: str = "xz") -> None:
        self.say(
            f"Memory cgroup out of memory: Killed process {pid} ({name}) total-vm:9kB, "
            "anon-rss:5kB, file-rss:3kB, shmem-rss:1kB, UID:0 pgtables:84kB oom_score_adj:0"
        )

    def close(self) -> None:
        self._socket.close()
        self.log.close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    one = Kernel()
    yield one
    one.close()


def told(log: KernelLog, *paths: str, pids: tuple[int, ...] = ()) -> list[str]:
    found = log.evidence_for(*paths, pids=pids)
    assert {one.source for one in found} <= {"/dev/kmsg"}
    return [one.what for one in found]


def test_a_kill_is_told_with_victim_memory_and_limit(kernel: Kernel) -> None:
    kernel.chose(7, RUN, RUN)
    kernel.killed(7)
    what = "killed process 7 ('xz'), anon-rss 5 kB, file-rss 3 kB, shmem-rss 1 kB, for the limit of"
    assert told(kernel.log, RUN) == [f"{what} {RUN}"]
    assert kernel.log.limiting(RUN) == RUN


def test_the_limit_may_be_an_ancestors_or_the_hosts(kernel: Kernel) -> None:
    assert kernel.log.limiting(RUN) is None
    kernel.chose(7, RUN, "/s")
    kernel.killed(7)
    assert kernel.log.limiting(RUN) == "/s"
    kernel.chose(8, f"{RUN}/inner", None)
    kernel.killed(8)
    assert kernel.log.limiting(RUN) == "/"
    assert told(kernel.log, RUN)[1].endswith("for the whole host")


def test_others_kills_are_not_ours(kernel: Kernel) -> None:
    for other in ("/s/run-1/payload2", "/s/run-1", "/s", "/", "/t" + RUN):
        kernel.chose(7, other, other)
        kernel.killed(7)
    assert told(kernel.log, RUN, pids=(7,)) == []
    assert kernel.log.limiting(RUN) is None


def test_a_kill_without_its_choice_is_known_by_its_pid(kernel: Kernel) -> None:
    kernel.killed(7)
    kernel.chose(8, RUN, RUN)
    kernel.killed(9)  # the group's others follow the chosen one
    assert told(kernel.log, RUN) == [f"chose process 8 ('xz'), for the limit of {RUN}"]
    assert len(told(kernel.log, RUN, pids=(7, 9))) == 3


def test_a_group_kill_tells_of_the_chosen_one_once(kernel: Kernel) -> None:
    kernel.chose(7, RUN, RUN)
    for pid in (7, 8, 7, 9, 8):
        kernel.killed(pid)
    assert len(told(kernel.log, RUN, pids=(7, 8, 9))) == 3
    kernel.chose(7, RUN, RUN)  # later, and another process of that number
    kernel.killed(7)
    assert len(told(kernel.log, RUN)) == 2


def test_a_refused_fork_is_evidence(kernel: Kernel) -> None:
    kernel.say("cgroup: fork rejected by pids controller in /p/run-1/payload")
    kernel.say("cgroup: fork rejected by pids controller in ")
    assert told(kernel.log, RUN, "/p/run-1/payload") == ["refused a fork in /p/run-1/payload"]


def test_names_come_out_harmless(kernel: Kernel) -> None:
    kernel.killed(7, "\\x1b[31m\\x0a")
    assert "('\\x1b[31m\\n')" in told(kernel.log, pids=(7,))[0]


def test_everybody_who_reads_lets_the_listener_hear(kernel: Kernel) -> None:
    heard: list[Record] = []
    kernel.log.listener = heard.append
    kernel.say("cgroup: fork rejected by pids controller in /a")
    kernel.say("nothing")
    kernel.log.evidence_for("/b")
    kernel.log.drain()
    assert heard == [ForkRejected("/a")]


def test_the_oldest_are_forgotten(kernel: Kernel) -> None:
    for pid in range(REMEMBERED + 5):
        kernel.killed(pid)
        kernel.log.drain()
    assert len(told(kernel.log, pids=tuple(range(REMEMBERED + 5)))) == REMEMBERED
    assert told(kernel.log, pids=(4,)) == []


def test_a_gap_is_admitted(kernel: Kernel) -> None:
    kernel.kmsg.overwritten = 1
    assert told(kernel.log, RUN) == []
    kernel.chose(7, RUN, RUN)
    assert told(kernel.log, RUN)[-1] == "some records were overwritten before they were read"


def test_without_a_log_everything_else_goes_on(tmp_path: Path) -> None:
    log = KernelLog.open(str(tmp_path / "kmsg"))
    assert "No such file" in log.why
    assert log.fileno() == -1
    assert told(log, RUN) == []
    assert log.limiting(RUN) is None
    log.close()


def test_a_log_that_fails_is_given_up_with_the_reason(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel.chose(7, RUN, RUN)
    kernel.log.drain()

    def read(fd: int, size: int) -> bytes:
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patched:
        patched.setattr(os, "read", read)
        kernel.log.drain()
    assert "Input/output error" in kernel.log.why
    assert kernel.log.fileno() == -1
    assert len(told(kernel.log, RUN)) == 1


def test_a_kill_is_known_by_its_pid_from_a_mark_on(kernel: Kernel, monkeypatch) -> None:
    """The number may have been an earlier victim's: what was before the mark does not count."""
    monkeypatch.setattr(proc, "pids_are_the_kernels", lambda: True)
    kernel.killed(7)
    mark = kernel.log.mark()
    assert kernel.log.killed(7, mark) is False
    kernel.killed(8)
    assert (kernel.log.killed(7, mark), kernel.log.killed(8, mark)) == (False, True)
    assert kernel.log.killed(8, kernel.log.mark()) is False


def test_a_log_that_may_lack_a_kill_denies_none(kernel: Kernel, monkeypatch) -> None:
    monkeypatch.setattr(proc, "pids_are_the_kernels", lambda: True)
    mark = kernel.log.mark()
    for pid in range(2, REMEMBERED + 3):
        kernel.killed(pid)
        kernel.log.drain()
    assert kernel.log.killed(1, mark) is None
    assert kernel.log.killed(REMEMBERED, mark) is True
    kernel.kmsg.overwritten += 1
    assert kernel.log.killed(1, Mark(REMEMBERED, 0)) is None


def test_where_numbers_differ_from_the_kernels_or_there_is_no_log_nothing_is_known(
    kernel: Kernel, monkeypatch
) -> None:
    mark = kernel.log.mark()
    kernel.killed(7)
    monkeypatch.setattr(proc, "pids_are_the_kernels", lambda: False)
    assert kernel.log.killed(7, mark) is None
    monkeypatch.setattr(proc, "pids_are_the_kernels", lambda: True)
    blind = KernelLog(None, "no such file")
    assert blind.killed(7, blind.mark()) is None
