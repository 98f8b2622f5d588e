"""What an instance's network is planned to be: names, pools, leases, files, rules."""

from __future__ import annotations

import json
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from supervisor.container import firewall, network
from supervisor.container.network import Leases, Plan
from supervisor.errors import SpawnError, SupervisorError
from supervisor.front.kinds import Context
from supervisor.front.networks import egress, port, text
from supervisor.front.problems import Wrong
from supervisor.linux import nft, pasta
from supervisor.model.job import Egress, JobSpec, Mount, Port
from supervisor.supervise import preflight
from tests.unit.test_config_parse import read

TAG = network.tag_of("/run/supervise/nightly")
PLAN = Plan(TAG, IPv4Network("10.1.2.0/24"), network.pool6_of(TAG))
HERE = Context(Path("/"))


@pytest.mark.parametrize("number", [2, 254, 65534])
def test_names_fit_the_kernels_15_bytes(number: int) -> None:
    seat = Plan(TAG, IPv4Network("10.1.0.0/16")).seat(number)
    assert len(seat.outside) <= 15 and len(PLAN.bridge) <= 15
    assert seat.outside.startswith(PLAN.bridge) and not network.is_bridge(seat.outside)
    assert network.is_bridge(PLAN.bridge)


@pytest.mark.parametrize("name", ["sv", "svg1234567", "sv1234567", "eth0", "sv12345678-2"])
def test_other_interfaces_are_none_of_ours(name: str) -> None:
    assert not network.is_bridge(name)


def test_each_job_has_addresses_of_its_own() -> None:
    seats = [PLAN.seat(number) for number in PLAN.numbers]
    assert len(seats) == 253
    for of in ("outside", "mac", "v4", "v6"):
        assert len({getattr(seat, of) for seat in seats}) == len(seats)
    assert {PLAN.gateway4, "10.1.2.0", "10.1.2.255"}.isdisjoint(seat.v4 for seat in seats)
    assert all(int(seat.mac[:2], 16) & 3 == 2 for seat in seats)  # local, and not a group's


@pytest.mark.parametrize("forwarding", [False, True])
def test_the_alias_of_a_bridge_is_read_back(forwarding: bool) -> None:
    alias = network.alias_of("/run/a b", forwarding=forwarding)
    assert network.read_alias(alias) == ("/run/a b", forwarding)
    assert network.read_alias("uplink of the office") is None


def test_a_pool_meets_no_route_of_the_host() -> None:
    first = network.choose_pool(TAG, [], None, None)
    assert first.prefixlen == 24 and str(first).startswith("10.")
    other = network.choose_pool(TAG, [(str(first[7]), 32)], None, None)
    assert not other.overlaps(first)
    assert network.choose_pool(TAG, [(str(first[7]), 32)], None, str(first)) != first
    assert network.choose_pool(TAG, [], None, "10.9.9.0/24") == IPv4Network("10.9.9.0/24")


def test_without_a_free_network_the_way_out_is_named() -> None:
    with pytest.raises(SpawnError, match=r"routes to every network.*network\.pool"):
        network.choose_pool(TAG, [("10.0.0.0", 8)], None, None)
    with pytest.raises(SpawnError, match=r"10\.1\.2\.0/24.*leads to 10\.1\.0\.0/16"):
        network.choose_pool(TAG, [("10.1.0.0", 16)], "10.1.2.0/24", None)


def test_a_job_keeps_its_address_over_restarts(tmp_path: Path) -> None:
    path = tmp_path / "network.json"
    leases = Leases(path)
    leases.use(PLAN.pool)
    given = {job: leases.take(job, PLAN.numbers, ()) for job in ("a", "b", "c")}
    assert len(set(given.values())) == 3
    again = Leases(path)
    again.use(PLAN.pool)
    assert again.pool == "10.1.2.0/24"
    assert {job: again.take(job, PLAN.numbers, ()) for job in "cba"} == given
    again.use(IPv4Network("10.1.3.0/24"))
    assert again.take("c", PLAN.numbers, ()) == 2  # another pool: from the beginning


def test_an_address_is_taken_from_a_job_that_is_there_no_more() -> None:
    leases = Leases(None)
    leases.use(IPv4Network("10.0.0.0/29"))
    numbers = range(2, 4)
    first = leases.take("gone", numbers, {"a", "b"})
    leases.take("a", numbers, {"a", "b"})
    assert leases.take("b", numbers, {"a", "b"}) == first
    with pytest.raises(SpawnError, match=r"every address is taken.*larger network\.pool"):
        leases.take("c", numbers, {"a", "b", "c"})


@pytest.mark.parametrize(
    "written", ["", "[]", "{}", '{"pool": 7}', '{"pool": "10.0.0.0/24", "leases": ["a"]}', "\0"]
)
def test_leases_that_cannot_be_read_are_given_anew(tmp_path: Path, written: str) -> None:
    path = tmp_path / "network.json"
    path.write_text(written)
    leases = Leases(path)
    assert leases.pool is None
    leases.use(PLAN.pool)
    leases.take("a", PLAN.numbers, ())
    assert json.loads(path.read_text()) == {"pool": "10.1.2.0/24", "leases": {"a": 2}}


def test_only_name_servers_that_a_job_can_ask(tmp_path: Path) -> None:
    stub, real = tmp_path / "stub", tmp_path / "real"
    stub.write_text("# local\nnameserver 127.0.0.53\nsearch example.org\n")
    real.write_text("nameserver 192.0.2.53\nnameserver fe80::1%eth0\nsearch example.org\n")
    both = (str(stub), str(real))
    assert network.resolv_text(None, both) == "nameserver 192.0.2.53\nsearch example.org\n"
    assert network.resolv_text(None, (str(stub), str(tmp_path / "none"))) == ""
    assert network.resolv_text(("9.9.9.9", "::2"), both) == "nameserver 9.9.9.9\nnameserver ::2\n"
    assert network.resolv_text((), both) == ""


def test_the_jobs_own_file_wins() -> None:
    spec = JobSpec("a", ("true",), mounts=(Mount("/my/hosts", "/etc/hosts"),))
    resolved = {path: path for path in network.FILES.values()}
    (only,) = network.mounts(spec, Path("/run/x/net"), "r-a", resolved)
    assert only == Mount("/run/x/net/r-a.resolv", "/etc/resolv.conf", read_only=True)


def test_the_table_names_only_what_is_its_own() -> None:
    table = firewall.table_text(PLAN)
    assert table.startswith(f"table inet {PLAN.table} {{}}\ndelete table inet {PLAN.table}\n")
    assert "flush ruleset" not in table
    hooks = [part for part in table.split("  chain ") if "hook" in part]
    here = [part for part in hooks if part.startswith("publish_here ")]
    assert len(hooks) == 7 and all(PLAN.bridge in part for part in hooks if part not in here)
    assert "meta l4proto != udp accept" in here[0]  # nothing but what the ports' maps name


def test_what_a_job_opens_it_takes_back() -> None:
    opening = firewall.Opening(
        PLAN, PLAN.seat(2),
        ports=(Port(8080, 80), Port(8080, 80), Port(53, 53, "192.0.2.1", "udp")),
        reach=(PLAN.seat(3),), egress=(Egress("10.0.0.0/8", 443, "tcp"),), rate=1 << 20,
    )  # fmt: skip
    added, removed = opening.added().splitlines(), opening.removed().splitlines()
    elements = [line.split("{")[0] for line in added if line.startswith("add element")]
    assert [line.split("{")[0] for line in removed if "element" in line] == [
        line.replace("add", "delete") for line in elements
    ]
    assert sum(" ports {" in line for line in added) == 1
    chains = [line for line in added if line.startswith("add chain")]
    assert [line for line in removed if "chain" in line] == [
        line.replace("add", "delete") for line in chains
    ]


@pytest.mark.parametrize("where", ["127.0.0.1", "::1", "2001:db8::1"])
def test_loopback_and_ipv6_are_not_translated(where: str) -> None:
    opening = firewall.Opening(PLAN, PLAN.seat(2), ports=(Port(8080, 80, where),))
    assert "ports" not in opening.added()


@pytest.mark.parametrize(
    ("written", "value", "shown"),
    [
        ("80:8080", Port(80, 8080), "80:8080/tcp"),
        ("0.0.0.0:80:8080", Port(80, 8080), "80:8080/tcp"),
        ("[::1]:80:81/tcp", Port(80, 81, "::1"), "[::1]:80:81/tcp"),
        ("192.0.2.1:53:53/udp", Port(53, 53, "192.0.2.1", "udp"), "192.0.2.1:53:53/udp"),
    ],
)
def test_a_port(written: str, value: Port, shown: str) -> None:
    assert port(written, HERE) == value == port(text(value), HERE)
    assert text(value) == shown


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("80", "a port like"),
        ("0:80", "from 1 to 65535"),
        ("80:65536", "from 1 to 65535"),
        ("localhost:80:80", "a port like"),
        ("1.2.3:80:80", "an IP address"),
        ("::1:80:80", "a port like"),
        ("127.0.0.1:53:53/udp", "other than loopback"),
        ("80:80/sctp", "a port like"),
        ("٨٠:80", "a port like"),
    ],
)
def test_no_port(written: str, why: str) -> None:
    with pytest.raises(Wrong) as error:
        port(written, HERE)
    assert why in str(error.value.problems)


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("10.0.0.0/8:443", Egress("10.0.0.0/8", 443, "tcp")),
        ("10.0.0.0/8", Egress("10.0.0.0/8")),
        ("192.0.2.7:53/udp", Egress("192.0.2.7/32", 53, "udp")),
        ("10.0.0.0/8/udp", Egress("10.0.0.0/8", None, "udp")),
        ("2001:db8::/32", Egress("2001:db8::/32")),
        ("[2001:db8::/32]:443", Egress("2001:db8::/32", 443, "tcp")),
        ("[2001:db8::]/32:53/udp", Egress("2001:db8::/32", 53, "udp")),
    ],
)
def test_an_egress(written: str, value: Egress) -> None:
    assert egress(written, HERE) == value == egress(text(value), HERE)


@pytest.mark.parametrize("written", ["", "example.org:443", "10.1.0.0/8", "10.0.0.0/33", "[::1]:0"])
def test_no_egress(written: str) -> None:
    with pytest.raises(Wrong):
        egress(written, HERE)


@pytest.mark.parametrize("pool", ["10.0.0.0/8", "10.0.0.0/30", "10.0.0.1/24", "127.0.0.0/24", "x"])
def test_no_pool(pool: str) -> None:
    from supervisor.errors import ConfigError

    text = f"[supervisor]\nnetwork.pool = '{pool}'\n[jobs.a]\ncommand = 'x'"
    with pytest.raises(ConfigError, match=r"supervisor\.network\.pool: must be an IPv4 network"):
        read(text)


def test_without_nft_nothing_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nft.shutil, "which", lambda *_, **__: None)
    monkeypatch.setattr(preflight.os, "geteuid", lambda: 0)
    monkeypatch.setattr(preflight.caps, "effective", lambda: 1 << 21)
    job = JobSpec("web", ("true",), network="bridge")
    manager: object = None
    with pytest.raises(SupervisorError, match=r"web: nft is not installed \(install the package"):
        preflight.check(manager, [job], "warn")  # type: ignore[arg-type]
    with pytest.raises(SupervisorError, match="nft is not installed"):
        nft.apply("")


def test_without_root_and_pasta_there_is_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(pasta.shutil, "which", lambda *_, **__: None)
    job = JobSpec("web", ("true",), network="bridge")
    manager: object = None
    with pytest.raises(SupervisorError) as raised:
        preflight.check(manager, [job], "warn")  # type: ignore[arg-type]
    told = 'network = "bridge" of web: pasta is not installed (install the package passt; or '
    assert told in str(raised.value)
