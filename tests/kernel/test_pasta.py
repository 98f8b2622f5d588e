"""Jobs on a network of somebody who is not root: `network = "bridge"` by pasta(1).

The supervisor is nobody's, in a network namespace of the test; `world.outside` is another machine.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from supervisor.linux import pasta, proc
from tests.support import host, netns, procs
from tests.support.containers import private_mounts
from tests.support.netns import HOST, OUTSIDE, Namespace, World
from tests.support.nobody import NOBODY, Nobody, nobody

pytestmark = pytest.mark.kernel

PATIENCE = 60.0 * host.SLOWNESS
TUN = (10, 200)


@pytest.fixture(scope="module")
def user() -> Iterator[Nobody]:
    able = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    if subprocess.run([*able, "unshare", "-Urn", "true"], check=False).returncode:
        pytest.skip("this kernel gives no user namespace to ordinary users")
    if host.in_guest():
        pytest.skip("the network does not depend on the generation of cgroups")
    if pasta.find("pasta") is None:
        host.miss("tools", "needs pasta: apt-get install passt")
    with nobody() as found:
        yield found


@pytest.fixture
def world() -> Iterator[World]:
    """A host that has other addresses than the one with its default route."""
    with netns.world() as made:
        made.host.run("ip", "addr", "add", "10.99.0.1/32", "dev", "lo")
        yield made


@pytest.fixture
def wrapper(world: World, tmp_path: Path) -> list[str]:
    """Before the command: the world's host, where everybody may use /dev/net/tun."""
    tun = Path("/dev/net/tun")
    lines = [f"mount -t tmpfs -o mode=755 none {tun.parent}",
             f"mknod {tun} c {TUN[0]} {TUN[1]}", f"chmod 666 {tun}"]  # fmt: skip
    if not tun.parent.is_dir():
        pytest.skip("this host has no /dev/net")
    inside = ["nsenter", f"--net=/proc/{world.host.pid}/ns/net"]
    return [*inside, *private_mounts("\n".join(lines))]


class Batch:
    """A configuration of nobody's."""

    def __init__(self, user: Nobody, wrapper: list[str]) -> None:
        self.run, self.own = user
        self.wrapper = wrapper
        self.name = f"n{uuid4().hex[:8]}"
        self.path = self.own / f"{self.name}.toml"

    def write(self, jobs: str) -> Path:
        self.path.write_text(jobs)
        return self.path

    def records(self, jobs: str) -> dict[str, dict[str, Any]]:
        done = self.run(self.write(jobs), "--json", "--plain", wrapper=self.wrapper)
        found = {one["job"]: one for one in map(json.loads, done.stdout.splitlines())}
        assert found, done.stderr
        return found

    def output(self, record: dict[str, Any]) -> str:
        logs = self.own / ".local/state/supervise" / self.name / "logs"
        (path,) = logs.glob(f"*.{record['run'].partition('-')[0]}.out")
        return path.read_text()

    def entries(self) -> list[dict[str, Any]]:
        path = self.own / ".local/state/supervise" / self.name / "events.ndjson"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def wait(self, what: Callable[[], Any]) -> Any:
        """Until `what` is true: of processes that are not ours nothing tells."""
        deadline = time.monotonic() + PATIENCE
        while not (found := what()):
            assert time.monotonic() < deadline, "it does not come to be"
            time.sleep(0.05)
        return found

    def _begun(self, before: int) -> bool:
        events = {entry["event"] for entry in self.entries()[before:]}
        return bool(events & {"job_started", "job_ended"})

    @contextmanager
    def started(self, jobs: str) -> Iterator[subprocess.Popen[str]]:
        """In the background, until the end of the block."""
        before = len(self.entries())
        words = [*self.wrapper, "setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}",
                 "--clear-groups", "/usr/bin/python3", "-m", "supervisor", str(self.write(jobs)),
                 "--plain"]  # fmt: skip
        environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(self.own.parent / "lib"),
                       "HOME": str(self.own), "XDG_RUNTIME_DIR": str(self.own)}  # fmt: skip
        with subprocess.Popen(
            words, cwd=self.own, env=environment, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            try:
                self.wait(lambda: self._begun(before) or process.poll() is not None)
                assert process.poll() is None, process.stderr and process.stderr.read()
                yield process
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
                process.communicate(timeout=PATIENCE)


@pytest.fixture
def batch(user: Nobody, wrapper: list[str], world: World) -> Iterator[Batch]:
    """Nothing of it is left: no pasta, no file at run time, and the host as it was."""
    before = world.host.state()
    made = Batch(user, wrapper)
    yield made
    made.wait(lambda: not pastas(world))
    assert world.host.state() == before
    assert not list(made.own.glob("supervise/*/net/*"))


def pastas(world: World) -> list[int]:
    """Those that live in the world's host."""
    mine = _net(world.host.pid)
    alive = [pid for pid, stat in procs.table().items() if stat.state != "Z"]
    return [pid for pid in alive if _name(pid).startswith(("passt", "pasta")) and _net(pid) == mine]


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def _net(pid: int) -> int:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:
        return 0


def job(name: str, script: str, more: str = "") -> str:
    return f'[jobs.{name}]\nnetwork = "bridge"\n{more}\nscript = {json.dumps(script)}\n'


SERVE = "mkdir /tmp/www; hostname >/tmp/www/index.html\nbusybox httpd -p 80 -h /tmp/www\n"
STAY = "exec sleep 1000"


def send(text: str, port: int) -> str:
    """A command that sends a line to the machine outside."""
    return f"bash -c 'echo {text} >/dev/tcp/{OUTSIDE}/{port}'"


def test_a_job_is_reached_at_its_published_ports_and_goes_out(batch: Batch, world: World) -> None:
    echo = (
        "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 53));"
        "data, who = s.recvfrom(9); s.sendto(data.upper(), who)"
    )
    ports = ["8080:80", "127.0.0.1:8081:80/tcp", f"{HOST}:8082:80", "5353:53/udp"]
    script = SERVE + f"/usr/bin/python3 -c {shlex.quote(echo)} &\n" + send("inside", 9000) + "\n"
    server = world.outside.listen(9000)
    with server, batch.started(job("web", script + STAY, f"ports = {json.dumps(ports)}")):
        peer, (seen, _port) = server.accept()
        with peer:
            peer.settimeout(netns.PATIENCE)
            assert (seen, peer.recv(100)) == (HOST, b"inside\n")
        for port, answer in ((8080, "web\n"), (8082, "web\n"), (8081, "")):
            assert world.outside.get(f"http://{HOST}:{port}/") == answer, port
        for url in ("127.0.0.1:8080", "127.0.0.1:8081", f"{HOST}:8080", f"{HOST}:8082"):
            assert world.host.get(f"http://{url}/") == "web\n", url
        netns.until(lambda: world.outside.ask(HOST, 5353) == b"HELLO")


PROBE = """
import ipaddress, socket
def tries(where, port, kind, *options):
    family = socket.AF_INET6 if ":" in where else socket.AF_INET
    with socket.socket(family, kind) as s:
        s.settimeout(1)
        try:
            for level, name, value in options:
                s.setsockopt(level, name, value)
            s.connect((where, port))
            s.send(b"hello")
            if kind == socket.SOCK_STREAM:  # a datagram is sent, whether it arrives or not
                print("reached", where, port, options)
        except OSError:
            pass
eth0 = socket.if_nametoindex("eth0")
BOUND = (socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0\\0")
UNICAST = (socket.IPPROTO_IP, 50, eth0.to_bytes(4, "big"))  # IP_UNICAST_IF
LSRR = (socket.IPPROTO_IP, socket.IP_OPTIONS, bytes((1, 131, 7, 4, 192, 0, 2, 2)))
gateway = open("/proc/net/route").read().split("\\n")[1].split()[2]
gateway = str(ipaddress.IPv4Address(bytes.fromhex(gateway)[::-1]))
for where in WHERE + [gateway]:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        for options in ((), (BOUND,), (UNICAST,), (BOUND, LSRR)):
            tries(where, 7000, kind, *options)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    info = eth0.to_bytes(4, "little") + bytes(8)  # struct in_pktinfo
    for where in WHERE:
        try:
            s.sendmsg([b"hello"], [(socket.IPPROTO_IP, 8, info)], 0, (where, 7000))
        except OSError:
            pass
print("done")
"""


@contextmanager
def listening(space: Namespace, addresses: list[str], port: int) -> Iterator[list[socket.socket]]:
    """Sockets of both kinds, at each address; none of them has heard anything at the end."""
    found: list[socket.socket] = []

    def listen() -> None:
        for address in addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                one = socket.socket(family, kind)
                found.append(one)
                one.bind((address, port))
                one.setblocking(False)
                if kind == socket.SOCK_STREAM:
                    one.listen()

    try:
        space.call(listen)
        yield found
    finally:
        for one in found:
            one.close()


def heard(sockets: list[socket.socket]) -> list[str]:
    """Who has been spoken to."""
    told = []
    for one in sockets:
        try:
            if one.type == socket.SOCK_STREAM:
                one.accept()[0].close()
            else:
                one.recv(9)
        except BlockingIOError:
            continue
        told.append(f"{one.type.name} {one.getsockname()}")
    return told


@contextmanager
def six(world: World) -> Iterator[None]:
    """A host with IPv6, and a way out by it."""
    with_six = ((world.host, "2001:db8::1/64", "up0"), (world.outside, "2001:db8::2/64", "up0"),
                (world.host, "fe80::1/64", "up0"), (world.host, "fd99::1/128", "lo"))  # fmt: skip
    for space, address, device in with_six:
        space.run("ip", "-6", "addr", "add", address, "dev", device, "nodad")
    world.host.run("ip", "-6", "route", "add", "default", "via", "2001:db8::2")
    yield
    world.host.run("ip", "-6", "route", "del", "default")
    for space, address, device in with_six:
        space.run("ip", "-6", "addr", "del", address, "dev", device)


def test_nothing_of_the_host_is_in_reach(batch: Batch, world: World) -> None:
    """Its loopback above all, to which pasta itself would pass on what comes by eth0."""
    where = ["127.0.0.1", "127.1.2.3", HOST, "10.99.0.1", "fd99::1", "::1"]
    text = f"WHERE = {[*where, '169.254.169.254']!r}\n{PROBE}"
    with six(world), listening(world.host, where, 7000) as sockets:
        found = batch.records(job("spy", f"/usr/bin/python3 -c {shlex.quote(text)}"))
        assert heard(sockets) == []
    assert found["spy"]["reason"] == "succeeded", found
    assert batch.output(found["spy"]) == "done\n"


def test_ipv6_goes_out_where_the_host_has_it(batch: Batch, world: World) -> None:
    server = world.outside.call(lambda: socket.create_server(("::", 9000), family=socket.AF_INET6))
    ask = "import socket; socket.create_connection(('2001:db8::2', 9000)).sendall(b'six')"
    with six(world), server:
        server.settimeout(netns.PATIENCE)
        found = batch.records(job("six", f"/usr/bin/python3 -c {shlex.quote(ask)}"))
        peer, where = server.accept()
        with peer:
            assert (where[0], peer.recv(9)) == ("2001:db8::1", b"six")
    assert found["six"]["reason"] == "succeeded"


def test_a_job_goes_only_where_its_egress_lets_it(batch: Batch, world: World) -> None:
    tries = "".join(
        f"{send(str(port), port)} 2>/dev/null || echo refused {port}\n" for port in (9000, 9001)
    )
    with world.outside.listen(9000) as open_one, world.outside.listen(9001) as closed:
        found = batch.records(
            job("some", tries, f'egress = ["{OUTSIDE}:9000"]') + job("none", tries, "egress = []")
        )
        peer, _address = open_one.accept()
        peer.close()
        for one in (open_one, closed):
            one.settimeout(0)
            with pytest.raises(BlockingIOError):
                one.accept()
    assert batch.output(found["some"]) == "refused 9001\n"
    assert batch.output(found["none"]) == "refused 9000\nrefused 9001\n"


def test_what_pasta_cannot_do_is_refused_before_anything_is_started(batch: Batch) -> None:
    jobs = (
        job("a", "true", 'reach = ["b"]')
        + job("b", "true", 'bandwidth = "1M"')
        + job("c", "true", 'capabilities.add = ["NET_RAW"]')
        + job("d", "true", 'ports = ["127.0.0.1:8080:80", "192.0.2.1:8080:81"]')
    )
    done = batch.run(batch.write(jobs), "--plain", wrapper=batch.wrapper)
    assert done.returncode == 125, done
    assert "Traceback" not in done.stderr and not batch.entries()
    for text in ("reach of a: jobs have no network in common", "bandwidth of b: pasta has no",
                 "capabilities.add = NET_RAW of c: with it", "ports of d: 8080/tcp is published",
                 "as root"):  # fmt: skip
        assert text in done.stderr, text
    plan = batch.run("plan", batch.path, wrapper=batch.wrapper).stdout
    assert "# lacking: bandwidth: pasta has no limit for it" in plan
    assert "--no-map-gw" in plan and "nft table inet supervise" in plan


@pytest.mark.parametrize(
    ("port", "errno", "told"), [(8080, 98, "another job or service"), (81, 13, "take root")]
)
def test_a_port_that_cannot_be_had_is_a_failed_start(
    batch: Batch, world: World, port: int, errno: int, told: str
) -> None:
    with world.host.listen(8080, "127.0.0.1"):
        found = batch.records(
            job("web", "echo never", f'ports = ["{port}:80"]') + job("other", "echo fine")
        )
    assert found["other"]["reason"] == "succeeded"
    record = found["web"]
    assert record["start_error"] == {"stage": "network", "errno": errno, "path": f"*:{port}"}
    assert told in record["detail"]


def test_a_host_without_a_way_out_is_a_failed_start(batch: Batch, world: World) -> None:
    world.host.run("ip", "route", "del", "default")
    record = batch.records(job("web", "echo never"))["web"]
    assert record["start_error"]["stage"] == "network"
    assert "xternal" in record["detail"], record  # pasta's own words
    world.host.run("ip", "route", "add", "default", "via", OUTSIDE)


def test_a_pasta_that_is_killed_is_told_of(batch: Batch, world: World) -> None:
    wait = "while grep -q eth0: /proc/net/dev; do sleep 0.1; done; echo offline"
    with batch.started(job("web", wait)) as process:
        (pid,) = pastas(world)
        os.kill(pid, signal.SIGKILL)
        process.wait(timeout=PATIENCE)
    (warning,) = [e for e in batch.entries() if "pasta" in e.get("text", "")]
    assert warning["text"] == "pasta was killed (SIGKILL): the job has no network any more"
    (ended,) = [e for e in batch.entries() if e["event"] == "job_ended"]
    assert (warning["job"], warning["run"]) == ("web", ended["run"])
    assert ended["reason"] == "succeeded" and batch.output(ended["record"]) == "offline\n"


def is_free(space: Namespace, port: int) -> bool:
    try:
        space.listen(port).close()
    except OSError:
        return False
    return True


def test_a_supervisor_that_is_killed_takes_pasta_with_it(batch: Batch, world: World) -> None:
    with batch.started(job("web", STAY, 'ports = ["8080:80"]')) as process:
        (entry,) = [e for e in batch.entries() if e["event"] == "job_started"]
        pid = entry["pid"]
        process.kill()
        process.wait()
        batch.wait(lambda: is_free(world.host, 8080) and not pastas(world))
        assert proc.stat(pid).state != "Z"
        assert "eth0" not in Namespace(pid).run("cat", "/proc/net/dev")
        os.kill(pid, signal.SIGKILL)
    assert batch.records(job("web", "echo fine"))["web"]["reason"] == "succeeded"


def test_the_doctor_tries_it(batch: Batch, world: World) -> None:
    def row() -> dict[str, str]:
        done = batch.run("doctor", "--json", wrapper=batch.wrapper)
        found: dict[str, dict[str, str]] = {one["name"]: one for one in json.loads(done.stdout)}
        return found["network bridge"]

    assert row()["verdict"] == "enforced"
    world.host.run("ip", "route", "del", "default")
    assert row()["verdict"] == "unavailable"
    world.host.run("ip", "route", "add", "default", "via", OUTSIDE)
