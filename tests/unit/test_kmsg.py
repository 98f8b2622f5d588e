"""The kernel log's records: real lines, hostile names, and a reader that never blocks."""

from __future__ import annotations

import errno
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.errors import KernelError
from supervisor.linux.kmsg import (
    COMM_MAX,
    CallFiltered,
    ForkRejected,
    Kmsg,
    OomKilled,
    OomVictim,
    open_kmsg,
    parse,
)

RUN = "/system.slice/supervise.nightly/run-1/payload"


def escape(raw: bytes) -> bytes:
    """As msg_add_ext_text of kernel/printk/printk.c does it."""
    return re.sub(rb"[^\x20-\x7e]|\\", lambda m: rb"\x%02x" % m[0][0], raw)


def record(text: bytes, prefix: bytes = b"6,423,859475344,-") -> bytes:
    return prefix + b";" + escape(text) + b"\n"


def victim_line(
    task: bytes,
    *,
    cpuset: bytes | None = b"/",
    limiting: bytes = RUN.encode(),
    memcg: bytes = RUN.encode(),
) -> bytes:
    cpus = b"" if cpuset is None else b",cpuset=%s,mems_allowed=0" % cpuset
    head = b"oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null)" + cpus
    return head + b",oom_memcg=%s,task_memcg=%s,task=%s,pid=6652,uid=99" % (limiting, memcg, task)


def killed_line(name: bytes, message: bytes = b"Memory cgroup out of memory: ") -> bytes:
    return message + (
        b"Killed process 6652 (%s) total-vm:78576kB, anon-rss:10704kB, file-rss:4296kB, "
        b"shmem-rss:7kB, UID:0 pgtables:88kB oom_score_adj:0" % name
    )


def victim(task: str) -> OomVictim:
    return OomVictim("CONSTRAINT_MEMCG", RUN, RUN, task, 6652, 99)


def killed(name: str, in_memcg: bool = True) -> OomKilled:
    return OomKilled(6652, name, 78576, 10704, 4296, 7, in_memcg)


REAL = [
    (
        rb"6,423,859475344,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/,"
        rb"mems_allowed=0,oom_memcg=/p/e20/probe,task_memcg=/p/e20/probe/x,"
        b'task=a,oom_memcg=\\x0a",pid=6652,uid=0\n',
        OomVictim("CONSTRAINT_MEMCG", "/p/e20/probe", "/p/e20/probe/x", 'a,oom_memcg=\n"', 6652, 0),
    ),
    (
        # a kernel without cpusets (User-Mode Linux 6.1)
        b"6,90,1,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),oom_memcg=/probe,"
        b"task_memcg=/probe,task=python,pid=745,uid=0\n",
        OomVictim("CONSTRAINT_MEMCG", "/probe", "/probe", "python", 745, 0),
    ),
    (
        b"6,90,1,-,caller=T745;oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=a.scope,"
        b"mems_allowed=0-1,3,global_oom,task_memcg=/a.scope,task=stress,pid=7,uid=1000\n",
        OomVictim("CONSTRAINT_NONE", None, "/a.scope", "stress", 7, 1000),
    ),
    (
        b"3,424,859475372,-;Memory cgroup out of memory: Killed process 6675 "
        b"(,pid=1,uid=0\\xff\\x5c) total-vm:78576kB, anon-rss:10828kB, file-rss:4272kB, "
        b"shmem-rss:0kB, UID:0 pgtables:84kB oom_score_adj:0\n",
        OomKilled(6675, ",pid=1,uid=0\\xff\\", 78576, 10828, 4272, 0, True),
    ),
    (
        b"3,1,1,-;Out of memory: Killed process 9 (x) total-vm:1kB, anon-rss:2kB, file-rss:3kB, "
        b"shmem-rss:4kB, UID:0 pgtables:5kB oom_score_adj:-1000\n SUBSYSTEM=memory\n DEVICE=x\n",
        OomKilled(9, "x", 1, 2, 3, 4, False),
    ),
    (
        b"3,1,1,-;Out of memory (oom_kill_allocating_task): Killed process 9 (x) total-vm:1kB, "
        b"anon-rss:2kB, file-rss:3kB, shmem-rss:4kB, UID:0 pgtables:5kB oom_score_adj:0\n",
        OomKilled(9, "x", 1, 2, 3, 4, False),
    ),
    (
        b"6,425,859483191,-;cgroup: fork rejected by pids controller in /a b/\\xc3\\xa4\n",
        ForkRejected("/a b/ä"),
    ),
    (b"6,425,1,-;cgroup: fork rejected by pids controller in \n", ForkRejected("")),
]


@pytest.mark.parametrize(("raw", "expected"), REAL)
def test_real_records(raw: bytes, expected: object) -> None:
    assert parse(raw) == expected


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b";",
        b"no record at all",
        b"6,1,1,-;",
        b"x,1,1,-;cgroup: fork rejected by pids controller in /a\n",
        b"6,424,1,-;Tasks state (memory values in pages):\n",
        b"4,346,1,-;oom-kill:constra invoked oom-killer: gfp_mask=0xcc0(GFP_KERNEL), order=0\n",
        b"4,346,1,-;Killed process  invoked oom-killer: gfp_mask=0xcc0, order=0\n",
        b"6,1,1,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=/\n",  # torn off
        b"6,1,1,c;,task=x,pid=1,uid=0\n",
    ],
)
def test_what_says_nothing_of_limits(raw: bytes) -> None:
    assert parse(raw) is None


@pytest.mark.parametrize("text", [victim_line(b"x"), killed_line(b"x")])
def test_what_root_writes_into_the_log_is_not_the_kernels(text: bytes) -> None:
    assert parse(record(text)) is not None
    for priority in (8, 12, 14, 191):  # facility 1 and more: a process wrote it
        assert parse(record(text, b"%d,423,859475344,-" % priority)) is None


HOSTILE = [
    b"",
    b",pid=1,uid=0",
    b",task=y",
    b"task=y,pid=1",
    b",oom_memcg=/f",
    b",task_memcg=/f",
    b",mems_allowed=",
    b",global_oom",
    b") total-vm:1kB,",
    b")) (((",
    b"\n\r\x1b[31m",
    b"\\x0a",
    b"\"'; ,=",
    b"\xff\xfe",
    b"oom-kill:constr",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_task_cannot_forge_by_its_name(name: bytes) -> None:
    shown = name.decode("utf-8", "backslashreplace")
    assert parse(record(victim_line(name))) == victim(shown)
    assert parse(record(victim_line(name, cpuset=None))) == victim(shown)
    assert parse(record(killed_line(name))) == killed(shown)


PIECES = st.sampled_from(
    [b",task=", b",pid=", b",uid=", b"0", b"/", b",oom_memcg=", b")", b"kB", b"\\x41", b"\n", b";"]
)
NAMES = (
    st.lists(PIECES | st.binary(min_size=1, max_size=4), max_size=6)
    .map(b"".join)
    .map(lambda raw: raw.replace(b"\0", b"")[:COMM_MAX])
)


@given(NAMES)
def test_no_name_moves_another_field(name: bytes) -> None:
    shown = name.decode("utf-8", "backslashreplace")
    assert parse(record(victim_line(name))) == victim(shown)
    assert parse(record(killed_line(name))) == killed(shown)


FORGED = b"x,mems_allowed=0,oom_memcg=/forged,task_memcg=/forged,task=y"


@pytest.mark.parametrize("where", ["cpuset", "limiting", "memcg"])
def test_a_directory_named_to_forge_makes_the_line_worthless(where: str) -> None:
    prefix = b"" if where == "cpuset" else RUN.encode() + b"/"
    line = victim_line(b"x", **{where: prefix + FORGED})  # type: ignore[arg-type]
    assert parse(record(line)) is None


@given(NAMES, st.sampled_from(["cpuset", "limiting", "memcg"]))
def test_a_directory_name_never_names_another_cgroup(name: bytes, where: str) -> None:
    prefix = b"" if where == "cpuset" else RUN.encode() + b"/"
    found = parse(record(victim_line(b"x", **{where: prefix + name})))  # type: ignore[arg-type]
    if isinstance(found, OomVictim):
        for path in (found.limiting, found.memcg):
            assert path is not None and path.startswith(RUN)


@given(st.binary(max_size=300))
def test_anything_at_all_is_read_without_an_exception(raw: bytes) -> None:
    for head in (b"", b"6,1,1,-;", b"6,1,1,-;oom-kill:", b"3,1,1,-;Killed process 1 ("):
        parse(head + raw)


@pytest.fixture
def wire() -> Iterator[tuple[Kmsg, socket.socket]]:
    """A socket that gives one message a read, as /dev/kmsg does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    kmsg = Kmsg(ours.detach())
    with theirs:
        yield kmsg, theirs
    kmsg.close()


def test_reading_ends_where_there_is_nothing_more(wire: tuple[Kmsg, socket.socket]) -> None:
    kmsg, kernel = wire
    assert list(kmsg.read()) == []
    kernel.send(b"one")
    kernel.send(b"two")
    assert list(kmsg.read()) == [b"one", b"two"]
    assert list(kmsg.read()) == []
    kmsg.close()
    kmsg.close()
    assert kmsg.fileno() == -1
    assert list(kmsg.read()) == []


def test_overwritten_records_are_counted_and_passed_over(
    wire: tuple[Kmsg, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    kmsg, kernel = wire
    kernel.send(b"after")
    real, failures = os.read, [errno.EPIPE]

    def read(fd: int, size: int) -> bytes:
        if fd == kmsg.fileno() and failures:
            raise OSError(failures.pop(), "overwritten")
        return real(fd, size)

    monkeypatch.setattr(os, "read", read)
    assert list(kmsg.read()) == [b"after"]
    assert kmsg.overwritten == 1
    failures.append(errno.EINVAL)
    with pytest.raises(KernelError, match="read /dev/kmsg"):
        list(kmsg.read())


def test_what_is_no_kernel_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KernelError) as missing:
        open_kmsg(str(tmp_path / "kmsg"))
    assert missing.value.errno == errno.ENOENT
    for other in ("/dev/null", str(tmp_path)):
        with pytest.raises(KernelError, match="not the kernel's log") as wrong:
            open_kmsg(other)
        assert wrong.value.errno == errno.ENODEV


AUDIT = (
    "audit: type=1326 audit(1795595084.824:8): auid=4294967295 uid=0 gid=0 ses=4294967295 pid=82 "
    'comm={comm} exe="/usr/bin/unshare" sig=0 arch=c000003e syscall=272 compat=0 '
    "ip=0x7fe62db970f7 code=0x{code}"
)


@pytest.mark.parametrize(
    ("comm", "code", "found"),
    [
        ('"unshare"', "7ffc0000", ("unshare", True)),
        ('"unshare"', "80000000", ("unshare", False)),
        ("756E20222078", "7ffc0000", ('un " x', True)),
    ],
)
def test_a_filtered_call(comm: str, code: str, found: tuple[str, bool]) -> None:
    line = AUDIT.format(comm=comm, code=code)
    record = parse(f"5,1,2,-;{line}\n".encode())
    assert isinstance(record, CallFiltered)
    assert (record.comm, record.let_through) == found
    assert (record.pid, record.call, record.architecture) == (82, 272, 0xC000003E)


@pytest.mark.parametrize(
    "line",
    [
        AUDIT.format(comm='"a" pid=1 comm="b"', code="0"),  # no kernel prints such a name so
        AUDIT.format(comm='"a"', code="0").replace("type=1326", "type=1300"),
        AUDIT.format(comm='"a"', code="0") + " more",
    ],
)
def test_what_only_looks_like_one_is_none(line: str) -> None:
    assert parse(f"5,1,2,-;{line}\n".encode()) is None
