"""The messages between supervisor, launcher and init."""

from __future__ import annotations

import errno
import marshal
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from supervisor.container import child, launcher, protocol, spawn
from supervisor.container.protocol import Request
from supervisor.errors import SpawnError

BOUNDING = launcher.Bounding(frozenset())
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def request(**changes: Any) -> Request:
    values: dict[str, Any] = dict.fromkeys(Request.__slots__, 0)
    values |= {"argv": (b"true", b"\xff\n"), "env": {b"A": b""}, "operations": (("MakeDir", 1),),
               "clocks": (-5, 10**18), "user_map": None, "groups": (1, 2)}  # fmt: skip
    return Request(**(values | changes))


def test_a_request_arrives_as_it_was_sent():
    sent = request()
    arrived = Request.unpack(sent.pack())
    assert [getattr(arrived, name) for name in Request.__slots__] == [
        getattr(sent, name) for name in Request.__slots__
    ]


def test_a_request_has_exactly_its_fields():
    with pytest.raises(TypeError, match="unknown fields: more"):
        request(more=1)
    with pytest.raises(KeyError):
        Request(run="x")


@pytest.mark.parametrize("version", [0, protocol.VERSION + 1, None, "1"])
def test_a_request_of_another_version_is_refused(version):
    fields = marshal.loads(request().pack())[1:]
    with pytest.raises(ValueError, match="version"):
        Request.unpack(marshal.dumps((version, *fields)))


@pytest.mark.parametrize("fields", [(), (1,), (0,) * 40])
def test_a_request_with_too_few_or_too_many_fields_is_refused(fields):
    with pytest.raises(ValueError, match="zip"):
        Request.unpack(marshal.dumps((protocol.VERSION, *fields)))


@pytest.mark.parametrize(
    ("message", "legal"),
    [
        ((protocol.STARTED,), (protocol.STARTED, protocol.FAILED)),
        ((protocol.FAILED, "exec", 2, "/x", ""), (protocol.STARTED, protocol.FAILED)),
        ((protocol.CLONED, 4711), (protocol.CLONED, protocol.REFUSED)),
    ],
)
def test_a_legal_message(message, legal):
    assert protocol.unpack(protocol.pack(*message), legal) == message


@pytest.mark.parametrize(
    "data",
    [
        protocol.pack(protocol.CLONED, 1),  # legal elsewhere, not here
        protocol.pack("unheard of"),
        marshal.dumps(()),
        marshal.dumps("started"),
        marshal.dumps([protocol.STARTED]),
        marshal.dumps(None),
    ],
)
def test_a_message_out_of_order_is_refused(data):
    with pytest.raises(ValueError, match="is not one of started, failed"):
        protocol.unpack(data, (protocol.STARTED, protocol.FAILED))


def test_an_endless_text_is_cut_but_not_what_matters():
    packed = protocol.pack(protocol.FAILED, "exec", 2, "/x", "y" * 10**6)
    assert len(packed) < protocol.MAX_MESSAGE
    assert protocol.unpack(packed, (protocol.FAILED,))[:4] == (protocol.FAILED, "exec", 2, "/x")


@pytest.mark.parametrize("size", [1, protocol.MAX_MESSAGE, protocol.MAX_MESSAGE + 1, 3 << 20])
def test_requests_of_every_size_arrive_with_their_descriptors(pair: Pair, size):
    """A long one in a memfd, which is not among the descriptors that arrive."""
    ours, theirs = pair
    sent = os.urandom(size)
    files = [os.memfd_create(name) for name in protocol.DESCRIPTORS]
    got: list[int] = []
    try:
        spawn.send(ours, sent, tuple(files))
        data, got = launcher.receive(theirs)
        assert data == sent
        assert [os.readlink(f"/proc/self/fd/{fd}") for fd in got] == [
            os.readlink(f"/proc/self/fd/{fd}") for fd in files
        ]
        assert not any(os.get_inheritable(fd) for fd in got)
    finally:
        for fd in (*files, *got):
            os.close(fd)


def test_the_end_of_the_supervisor_is_the_end_of_the_launcher(pair: Pair):
    ours, theirs = pair
    ours.close()
    assert launcher.serve_one(theirs, BOUNDING) is False


@pytest.mark.parametrize(
    "data",
    [
        b"no marshal at all",
        marshal.dumps((2, 0)),
        marshal.dumps(7),
        marshal.dumps((protocol.VERSION, 1)),
        request().pack()[:-20],
        request(operations=(("no such operation", "/"),)).pack(),
        request(operations=((),)).pack(),
    ],
)
def test_what_cannot_be_understood_is_refused_and_costs_no_descriptor(pair: Pair, data):
    ours, theirs = pair
    before = set(os.listdir("/proc/self/fd"))
    file = os.memfd_create("status")
    try:
        spawn.send(ours, data, (file,) * len(protocol.DESCRIPTORS))
        assert launcher.serve_one(theirs, BOUNDING) is True
        answer = protocol.unpack(ours.recv(65536), (protocol.CLONED, protocol.REFUSED))
    finally:
        os.close(file)
    assert answer[:2] == (protocol.REFUSED, "request")
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_cgroup_that_is_gone_is_refused_by_name_and_the_launcher_lives(pair: Pair, tmp_path):
    ours, theirs = pair
    gone = str(tmp_path / "gone")
    data = request(operations=(), flags=0, init_dir=gone).pack()
    spawn.send(ours, data, (ours.fileno(),) * len(protocol.DESCRIPTORS))
    assert launcher.serve_one(theirs, BOUNDING) is True
    answer = protocol.unpack(ours.recv(65536), (protocol.REFUSED,))
    assert answer[1:4] == ("clone", errno.ENOENT, gone)


def test_a_directory_that_takes_no_process_is_refused_by_name(pair: Pair, tmp_path):
    ours, theirs = pair
    before = set(os.listdir("/proc/self/fd"))
    data = request(operations=(), flags=0, init_dir=str(tmp_path)).pack()
    spawn.send(ours, data, (ours.fileno(),) * len(protocol.DESCRIPTORS))
    assert launcher.serve_one(theirs, BOUNDING) is True
    answer = protocol.unpack(ours.recv(65536), (protocol.REFUSED,))
    assert answer[1:] == ("cgroup", errno.EBADF, str(tmp_path), "clone3")
    assert set(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("stage", ["cgroup", "payload_cgroup"])
@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.EACCES, "Delegate=yes"),
        (errno.EBUSY, "cgroup.subtree_control"),
        (errno.ENODEV, "start it again"),
        (errno.EOPNOTSUPP, "cgroup.type"),
    ],
)
def test_a_cgroup_that_refuses_says_the_way_out(stage, number, way_out):
    text = str(spawn.spawn_error(stage, number, "/sys/fs/cgroup/x", "clone3"))
    assert text.startswith(f"{stage}: /sys/fs/cgroup/x: {os.strerror(number)} (clone3) (")
    assert way_out in text


def test_a_job_waits_until_its_network_is_there(pair: Pair):
    ours, theirs = pair
    container = spawn.Container(
        0, os.open("/dev/null", os.O_RDONLY), ours, request(shown=(), terminal=None)
    )
    assert not container.has_news()
    container.go()
    child.await_network(theirs.fileno())
    assert not container.has_news()
    theirs.send(protocol.pack(protocol.FAILED, "mounts", 2, "/x", ""))
    theirs.close()
    container.go()  # to who has died: what it has said is still to be read
    assert container.has_news()
    container.close()


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (protocol.pack(protocol.STARTED), "is not one of go"),
        (b"nonsense", "error"),
        (None, "the supervisor has given the job up"),
    ],
)
def test_without_the_word_of_the_supervisor_nothing_starts(pair: Pair, said, text):
    ours, theirs = pair
    if said is not None:
        ours.send(said)
    ours.close()
    with pytest.raises(child.StageError) as error:
        child.await_network(theirs.fileno())
    assert error.value.stage == "network"
    assert text in error.value.text.lower()


def test_too_few_descriptors_are_refused(pair: Pair):
    ours, theirs = pair
    spawn.send(ours, request().pack(), (ours.fileno(),))
    assert launcher.serve_one(theirs, BOUNDING) is True
    answer = protocol.unpack(ours.recv(65536), (protocol.REFUSED,))
    assert answer[1] == "request"


def test_a_failure_that_travelled_is_readable():
    error = spawn.spawn_error("exec", 2, "/bin/nothing", "")
    assert isinstance(error, SpawnError)
    assert str(error).startswith("exec: /bin/nothing: No such file or directory (")
    assert "interpreter" in error.hint
    assert {stage for stage, _ in spawn._HINTS} <= set(protocol.STAGES)
