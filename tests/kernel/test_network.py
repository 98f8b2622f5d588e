"""Jobs on the instance's bridge, from outside, from inside, from each other; and its end.

Everything happens in network namespaces of the test: `world.host` is the machine the supervisor
runs on, `world.outside` another one.  cgroups and files are the real host's.
"""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from supervisor.front.verbs.client import Client
from tests.support import netns
from tests.support.batch import Batch, Running
from tests.support.command import Supervise
from tests.support.host import in_guest
from tests.support.netns import HOST, OUTSIDE, World

pytestmark = pytest.mark.kernel

in_every_kernel = pytest.mark.qemu
"""In the guest with nftables too; what needs no other kernel is not run again in the slow one."""

SERVE = """
mkdir /tmp/www; hostname > /tmp/www/index.html
busybox httpd -p 80 -h /tmp/www
echo "$(hostname) $(ip -4 -o addr show eth0 | awk '{print $4}')" > /tmp/ready
"""
"""Answers at port 80 with its name; then the job may go on."""


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if in_guest() and request.node.get_closest_marker("qemu") is None:
        pytest.skip("the network does not depend on the generation of cgroups")
    with netns.world() as made:
        yield made


@pytest.fixture
def batch(world: World, supervise: Supervise, tmp_path: Path) -> Iterator[Batch]:
    """A configuration that is run on `world.host`; nothing of it stays there."""
    before = world.host.state()
    yield Batch(world.host.inside(supervise), tmp_path)
    assert world.host.state() == before


def job(name: str, script: str, more: str = "") -> str:
    return f'[jobs.{name}]\nnetwork = "bridge"\n{more}\nscript = {json.dumps(script)}\n'


def send(text: str, port: int) -> str:
    """A command that sends a line to the machine outside."""
    return f"bash -c 'echo {text} > /dev/tcp/{OUTSIDE}/{port}'"


def addresses(batch: Batch, fifo: Path, jobs: int) -> dict[str, str]:
    """Wait until so many jobs serve; where."""
    lines = [line.split() for line in batch.told(fifo, jobs)]
    return {name: address.partition("/")[0] for name, address in lines}


def pid_of(running: Running, name: str) -> int:
    return running.wait_started(name)[name]


@in_every_kernel
def test_a_job_is_reached_at_its_published_ports_and_goes_out_by_nat(batch: Batch, world: World):
    fifo = batch.fifo("ready")
    ports = 'ports = ["8080:80", "127.0.0.1:8081:80/tcp", "192.0.2.1:8082:80"]'
    out = send("from inside", 9000) + "\n"
    server = world.outside.listen(9000)
    with (
        server,
        batch.start(
            job("web", SERVE + out + "exec sleep 1000", ports), defaults=batch.sees(fifo)
        ) as running,
    ):
        (address,) = addresses(batch, fifo, 1).values()
        for port, answer in ((8080, "web\n"), (8082, "web\n"), (8081, "")):
            assert world.outside.get(f"http://{HOST}:{port}/") == answer
        for url in ("127.0.0.1:8080", "127.0.0.1:8081", f"{HOST}:8080", f"{HOST}:8082", address):
            assert world.host.get(f"http://{url}/") == "web\n", url
        assert world.host.get("http://[::1]:8080/") == "web\n"
        peer, (seen, _port) = server.accept()
        with peer:
            peer.settimeout(netns.PATIENCE)
            assert seen == HOST and peer.recv(100) == b"from inside\n"
        # a machine that sends to the job's own address by way of the host gets nothing
        world.outside.run("ip", "route", "add", address, "via", HOST)
        assert world.outside.get(f"http://{address}/") == ""
        running.signal(signal.SIGINT)


ECHO = (
    "import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('', 53))\n"
    "while True:\n    data, who = s.recvfrom(9); s.sendto(data.upper(), who)"
)


def answers(space: netns.Namespace, port: int) -> bool:
    return space.ask(HOST, port) == b"HELLO"


@in_every_kernel
def test_udp_is_published_for_others_and_for_the_host(batch: Batch, world: World):
    """At its loopback the host does not reach it: that would take `route_localnet`."""
    fifo = batch.fifo("ready")
    script = f"/usr/bin/python3 -c {shlex.quote(ECHO)} &\n" + SERVE + "exec sleep 1000"
    ports = f'ports = ["5353:53/udp", "{HOST}:5354:53/udp"]'
    with batch.start(job("dns", script, ports), defaults=batch.sees(fifo)) as running:
        addresses(batch, fifo, 1)
        for space in (world.outside, world.host):
            for port in (5353, 5354):
                netns.until(partial(answers, space, port))
        assert world.host.ask("127.0.0.1", 5353) == b""
        assert world.outside.ask(HOST, 53) == world.host.ask(HOST, 53) == b""
        running.signal(signal.SIGINT)


def test_what_a_job_finds_inside(batch: Batch, world: World):
    (batch.directory / "root").mkdir()
    with world.outside.listen(9000):
        done = batch.run(
            job("plain", "cat /etc/hosts /etc/resolv.conf; hostname; ls /sys/class/net",
                'dns = ["192.0.2.53"]\nhostname = "worker"')
            + job("mapped", "ip -o addr show eth0; ip route; " + send("x", 9000),
                  "user_namespace = { host_id = 200000, size = 65536 }")
            + job("root", "/bin/cat /etc/hosts", 'root = "./root"\n'
                  'mounts = ["/bin:/bin:ro", "/lib:/lib:ro", "/lib64:/lib64:ro", "/usr:/usr:ro"]'),
            top='network.pool = "10.77.0.0/28"',
        )  # fmt: skip
    assert set(done.reasons.values()) == {"succeeded"}, done.done
    plain = batch.output(done["plain"]).split("\n")
    assert re.fullmatch(r"10\.77\.0\.\d+ worker plain", plain[2])
    assert plain[-5:] == ["nameserver 192.0.2.53", "worker", "eth0", "lo", ""]
    mapped = batch.output(done["mapped"])
    assert "10.77.0." in mapped and "default via 10.77.0.1" in mapped
    assert re.search(r"10\.77\.0\.\d+ root\n", batch.output(done["root"]))


LOOK = """
look() { timeout 3 busybox wget -q -O - "http://$1/" 2>/dev/null || echo "not $1"; }
"""


def test_jobs_reach_each_other_by_name_only_when_they_ask(batch: Batch):
    fifo = batch.fifo("ready")
    with batch.start(
        job("db", SERVE + "exec sleep 1000") + job("web", SERVE + "exec sleep 1000"),
        defaults=batch.sees(fifo),
    ) as running:
        first = addresses(batch, fifo, 2)
        running.signal(signal.SIGINT)
    look = LOOK + "\n".join(f"look {where}" for where in ("db", first["db"], first["web"], "web"))
    stays = SERVE + "while [ ! -e /tmp/over ]; do sleep 0.1; done"
    with batch.start(
        job("db", stays) + job("web", stays)
        + job("client", "echo x > /tmp/ready; read go < /tmp/go\n" + look, 'reach = ["db"]')
        + job("other", "echo x > /tmp/ready; read go < /tmp/go\n" + look),
        defaults=f'mounts = ["{fifo}:/tmp/ready", "{batch.fifo("go")}:/tmp/go"]',
    ) as running:  # fmt: skip
        lines = [line.split() for line in batch.told(fifo, 4)]
        assert {line[0]: line[1].partition("/")[0] for line in lines if len(line) > 1} == first
        with (batch.directory / "go").open("w") as go:
            go.write("go\ngo\n")
            go.flush()
            running.wait_for("client ended: succeeded")
            running.wait_for("other ended: succeeded")
        running.signal(signal.SIGINT)
        done = running.finish()
    db, web = first["db"], first["web"]
    assert batch.output(done["client"]) == f"db\ndb\nnot {web}\nnot web\n"
    assert batch.output(done["other"]) == f"not db\nnot {db}\nnot {web}\nnot web\n"


def test_a_job_that_comes_later_reaches_those_that_are_there(batch: Batch):
    """One that is handed in, and one that a reload brings; and who comes later still."""
    fifo = batch.fifo("ready")
    look = LOOK + "look db\nlook later"
    reach = 'reach = ["db", "later"]'
    db = job("db", SERVE + "exec sleep 1000")
    with batch.start(db, defaults=batch.sees(fifo)) as running:
        batch.told(fifo, 1)
        client = Client(batch.where.runtime / batch.name / "socket")
        batch.write(db + job("later", SERVE + "exec sleep 1000"), defaults=batch.sees(fifo))
        assert [one["what"] for one in client.post("reload", body={})["jobs"]] == ["added"]
        batch.told(fifo, 1)
        table = tomllib.loads(job("client", look, reach))["jobs"]["client"]
        body = {"name": "client", "job": table, "wait": True}
        (record,) = client.post("jobs", body=body)["records"]
        assert batch.output(record) == "db\nlater\n"
        running.signal(signal.SIGINT)


@in_every_kernel
def test_a_job_goes_only_where_its_egress_lets_it(batch: Batch, world: World):
    tries = "".join(
        f"{send(str(port), port)} 2>/dev/null || echo refused {port}\n" for port in (9000, 9001)
    )
    with world.outside.listen(9000) as open_one, world.outside.listen(9001) as closed:
        done = batch.run(
            job("some", tries, f'egress = ["{OUTSIDE}:9000"]') + job("none", tries, "egress = []")
        )
        got = accepted(open_one)
        closed.settimeout(0)
        with pytest.raises(BlockingIOError):
            closed.accept()
    assert got == b"9000\n"
    assert "refused 9000" not in batch.output(done["some"])
    assert "refused 9001" in batch.output(done["some"])
    assert {"refused 9000", "refused 9001"} <= set(batch.output(done["none"]).splitlines())


def accepted(server: socket.socket) -> bytes:
    peer, _address = server.accept()
    with peer:
        peer.settimeout(netns.PATIENCE)
        return peer.recv(100)


def test_a_job_reaches_no_service_of_the_host(batch: Batch, world: World):
    fifo = batch.fifo("ready")
    gate = "gate=$(ip route | awk '/default/ {print $3}')\n"
    tries = "".join(
        f"look {where}\n"
        for where in (
            "$gate:7000",
            f"{HOST}:7000",
            "127.0.0.1:7001",
            "$gate:7001",
            f"{HOST}:8080",
            "$gate:8080",
        )
    )
    with world.host.listen(7000) as wide, world.host.listen(7001, "127.0.0.1") as local:
        with batch.start(
            job("web", SERVE + "exec sleep 1000", 'ports = ["8080:80"]')
            + job("spy", "read go < /tmp/go\n" + gate + LOOK + tries),
            defaults=f'mounts = ["{fifo}:/tmp/ready", "{batch.fifo("go")}:/tmp/go"]',
        ) as running:
            addresses(batch, fifo, 1)
            (batch.directory / "go").write_text("go\n")
            running.wait_for("spy ended: succeeded")
            running.signal(signal.SIGINT)
            done = running.finish()
        for server in (wide, local):
            server.settimeout(0)
            with pytest.raises(BlockingIOError):
                server.accept()
    assert batch.output(done["spy"]).count("not ") == 6


def test_a_job_that_takes_other_addresses_gets_nowhere(batch: Batch, world: World):
    """It has CAP_NET_ADMIN, and a neighbour whose addresses it takes."""
    fifo = batch.fifo("ready")
    with batch.start(
        job("web", SERVE + "exec sleep 1000", 'ports = ["8080:80"]')
        + job("spy", SERVE + "exec sleep 1000", 'capabilities.add = ["NET_ADMIN", "NET_RAW"]'),
        defaults=batch.sees(fifo),
    ) as running:
        pids = running.wait_started("web", "spy")
        where = addresses(batch, fifo, 2)
        spy, web = netns.Namespace(pids["spy"]), netns.Namespace(pids["web"])
        known = neighbours(world)
        gate = spy.run("ip", "route").split()[2]
        assert "1 packets received" in ping(spy, gate)
        spy.run("ip", "addr", "add", f"{where['web']}/32", "dev", "eth0")
        assert " 0 packets received" in ping(spy, gate, "-I", where["web"])
        mac = re.search(r"link/ether (\S+)", web.run("ip", "link", "show", "eth0"))
        assert mac is not None
        spy.run("busybox", "arping", "-U", "-c", "3", "-I", "eth0", where["web"], check=False)
        spy.run("ip", "link", "set", "eth0", "address", mac[1])
        spy.run("ip", "route", "replace", gate, "dev", "eth0")
        spy.run("ip", "route", "replace", "default", "via", gate)
        assert " 0 packets received" in ping(spy, gate)
        assert " 0 packets received" in ping(spy, gate, "-I", where["web"])
        assert "1 packets received" in ping(web, gate)
        assert world.outside.get(f"http://{HOST}:8080/") == "web\n"
        assert neighbours(world) == known
        running.signal(signal.SIGINT)


def neighbours(world: World) -> set[str]:
    """What the host knows of hardware addresses on the bridge."""
    lines = world.host.run("ip", "neigh").splitlines()
    return {line for line in lines if " dev sv" in line}


def ping(space: netns.Namespace, where: str, *flags: str) -> str:
    return space.run("busybox", "ping", "-c", "1", "-W", "2", *flags, where, check=False)


def test_a_flood_of_arp_and_neighbour_requests_fills_no_table_of_the_host(
    batch: Batch, world: World
):
    fifo = batch.fifo("ready")
    with batch.start(
        job("spy", SERVE + "exec sleep 1000", 'capabilities.add = ["NET_ADMIN", "NET_RAW"]')
        + job("web", SERVE + "exec sleep 1000"),
        defaults=batch.sees(fifo),
    ) as running:
        pids = running.wait_started("spy", "web")
        addresses(batch, fifo, 2)
        spy, web = netns.Namespace(pids["spy"]), netns.Namespace(pids["web"])
        known, heard = neighbours(world), received(web)
        gate = spy.run("ip", "route").split()[2]
        spy.call(lambda: flood(gate, source_mac(spy)))
        assert "1 packets received" in ping(spy, gate)  # what was sent before has been seen
        assert neighbours(world) == known
        assert received(web) - heard < 50
        running.signal(signal.SIGINT)


def source_mac(space: netns.Namespace) -> bytes:
    match = re.search(r"link/ether (\S+)", space.run("ip", "link", "show", "eth0"))
    assert match is not None
    return bytes.fromhex(match[1].replace(":", ""))


def received(space: netns.Namespace) -> int:
    """Packets that have come to a job's interface."""
    line = next(one for one in space.run("cat", "/proc/net/dev").splitlines() if "eth0" in one)
    return int(line.split()[2])


def flood(gateway: str, mac: bytes) -> None:
    """Requests for the gateway's hardware address, from 2,000 senders that there are not."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        for number in range(2000):
            sender = bytes((172, 16, number >> 8, number & 255))
            request = b"\0\1\x08\0\6\4\0\1" + mac + sender + bytes(6) + socket.inet_aton(gateway)
            raw.send(b"\xff" * 6 + mac + b"\x08\x06" + request)


def test_a_port_that_is_taken_is_a_failed_start(batch: Batch, world: World):
    with world.host.listen(8080):
        done = batch.run(
            job("web", "echo never", 'ports = ["8080:80"]') + job("other", "echo fine")
        )
    assert done.reasons == {"web": "start_failed", "other": "succeeded"}
    record = done["web"]
    assert record["start_error"] == {"stage": "network", "errno": 98, "path": "*:8080"}
    assert "another job or service" in record["detail"]


def test_a_pool_without_an_address_left_is_a_failed_start(batch: Batch):
    jobs = "".join(job(f"j{n}", "echo here") for n in range(6))
    done = batch.run(jobs, top='network.pool = "10.77.0.0/29"')
    assert sorted(done.reasons.values()) == ["start_failed"] + ["succeeded"] * 5
    failed = next(record for record in done.runs if record["reason"] == "start_failed")
    assert failed["start_error"]["stage"] == "network" and "every address" in failed["detail"]


def test_a_pool_that_the_host_has_a_route_to_is_refused(batch: Batch):
    done = batch.run(job("web", "echo never"), top='network.pool = "192.0.2.0/25"')
    assert done.reasons == {"web": "start_failed"}
    assert "a route of the host leads to 192.0.2.0/24" in done["web"]["detail"]


def test_an_interface_that_cannot_be_made_is_a_failed_start(batch: Batch, world: World):
    """Somebody has taken the name: the job never runs, and what is not ours stays."""
    fifo = batch.fifo("ready")
    with batch.start(
        job("first", SERVE + "read go < /tmp/go")
        + job("second", "echo never", 'ports = ["8080:80"]\nafter = ["first"]'),
        defaults=f'mounts = ["{fifo}:/tmp/ready", "{batch.fifo("go")}:/tmp/go"]',
    ) as running:
        addresses(batch, fifo, 1)
        (bridge,) = re.findall(r" (sv[0-9a-f]{8}):", world.host.run("ip", "-o", "link"))
        assert json.loads((batch.state / "network.json").read_text())["leases"] == {"first": 2}
        world.host.run("ip", "link", "add", f"{bridge}-3", "type", "bridge")
        (batch.directory / "go").write_text("go\n")
        done = running.finish()
    assert done.reasons == {"first": "succeeded", "second": "start_failed"}
    where = {"stage": "network", "errno": 17, "path": f"{bridge}-3"}
    assert done["second"]["start_error"] == where
    assert batch.output(done["second"]) == ""
    world.host.run("ip", "link", "del", f"{bridge}-3")


@in_every_kernel
def test_what_a_killed_supervisor_leaves_is_removed_by_the_next(batch: Batch, world: World):
    fifo = batch.fifo("ready")
    before = world.host.state()
    jobs = job("web", SERVE + "exec sleep 1000", 'ports = ["8080:80"]')
    batch.write(jobs, defaults=batch.sees(fifo))
    process = batch.supervise.start(batch.path, "--json")
    running = Running(process, batch)
    first = addresses(batch, fifo, 1)
    process.kill()
    process.wait()
    running.stderr()
    for stream in (process.stdin, process.stdout, process.stderr):
        assert stream is not None
        stream.close()
    left = world.host.state()
    assert "supervise_" in left[0] and "sv" in left[1]
    with batch.start(jobs, defaults=batch.sees(fifo)) as running:
        assert addresses(batch, fifo, 1) == first
        assert world.outside.get(f"http://{HOST}:8080/") == "web\n"
        running.signal(signal.SIGINT)
    assert world.host.state() == before
    told = [entry["text"] for entry in batch.entries("warning")]
    assert any("removed the network that an earlier supervisor left behind" in one for one in told)


def test_two_instances_share_the_host(batch: Batch, world: World, supervise: Supervise):
    """Forwarding, which the first switched on, stays until the second has ended as well."""
    other = Batch(batch.supervise, batch.directory)
    fifos = batch.fifo("ready"), batch.fifo("other")
    serves = SERVE + "exec sleep 1000"
    look = job("spy", "read go < /tmp/go\n" + LOOK + "read where < /tmp/go\nlook $where\n")
    with batch.start(job("web", serves), defaults=batch.sees(fifos[0])) as running:
        (web,) = addresses(batch, fifos[0], 1).values()
        go = batch.fifo("go")
        with other.start(
            look + job("api", serves, 'ports = ["8080:80"]'),
            defaults=f'mounts = ["{fifos[1]}:/tmp/ready", "{go}:/tmp/go"]',
        ) as second:
            addresses(other, fifos[1], 1)
            with go.open("w") as stream:
                stream.write("go\n")
                stream.flush()
                stream.write(f"{web}\n")
                stream.flush()
                second.wait_for("spy ended: succeeded")
            running.signal(signal.SIGINT)
            running.finish()
            assert world.host.run("cat", "/proc/sys/net/ipv4/ip_forward") == "1\n"
            assert world.outside.get(f"http://{HOST}:8080/") == "api\n"
            second.signal(signal.SIGINT)
            done = second.finish()
    assert other.output(done["spy"]) == f"not {web}\n"


def test_a_bandwidth_holds_both_ways(batch: Batch, world: World):
    """4 MiB at 1 MiB/s, each way; a burst may be faster."""
    size = 4 << 20
    script = (
        f"busybox nc {OUTSIDE} 9000 < /dev/null | busybox wc -c\n"
        f"busybox head -c {size} /dev/zero | busybox nc {OUTSIDE} 9001\n"
    )
    source, sink = world.outside.listen(9000), world.outside.listen(9001)
    with source, sink, batch.start(job("web", script, 'bandwidth = "1M"')) as running:
        peer, _ = source.accept()
        with peer:
            peer.settimeout(netns.PATIENCE)
            peer.sendall(bytes(size))
        peer, _ = sink.accept()
        with peer:
            peer.settimeout(netns.PATIENCE)
            got = 0
            while data := peer.recv(1 << 16):
                got += len(data)
        done = running.finish()
    assert batch.output(done["web"]) == f"{size}\n" and got == size
    assert done["web"]["wall_seconds"] > 6


def test_ipv6_goes_on_where_the_host_forwards_it_already(batch: Batch, world: World):
    """Switching it on would make the host deaf to router advertisements: that is not ours to do."""
    script = f"{LOOK}\nip -6 route\nip -6 -o addr show eth0\nlook '[2001:db8::2]:9000'\n"
    done = batch.run(job("web", script))
    assert "default" not in batch.output(done["web"])
    assert re.search(r"inet6 fd[0-9a-f:]+/128 scope global", batch.output(done["web"]))
