"""What pasta is told, the rules inside, and what a job cannot have by it."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from supervisor.container import pasta
from supervisor.linux import pasta as programs
from supervisor.model.job import Capabilities, Egress, JobSpec, Port

OWN = pasta.Own(IPv4Network("10.7.0.0/24"))
PLAIN = JobSpec("web", ("true",), network="bridge")


def job(**more: object) -> JobSpec:
    return JobSpec("web", ("true",), network="bridge", **more)  # type: ignore[arg-type]


def told(spec: JobSpec) -> str:
    return " ".join(pasta.argv("/bin/pasta", spec, OWN, ("/r/ready", "/r/log"), 42))


def test_nothing_is_forwarded_that_was_not_asked_for() -> None:
    words = told(PLAIN)
    off = [f"--{which} none" for which in ("tcp-ports", "udp-ports", "tcp-ns", "udp-ns")]
    for part in (*off, "--no-map-gw", "--foreground", "--address 10.7.0.2", "--gateway 10.7.0.1"):
        assert part in words
    assert words.endswith("--pid /r/ready 42")


def test_ports_are_published_where_they_are_to_be() -> None:
    ports = (Port(8080, 80), Port(8081, 81, "127.0.0.1"), Port(8082, 82, "::1"),
             Port(53, 53, None, "udp"))  # fmt: skip
    words = told(job(ports=ports))
    assert "--tcp-ports 8080:80 --tcp-ports 127.0.0.1/8081:81 --tcp-ports ::1/8082:82" in words
    assert "--udp-ports 53:53" in words and "none --udp-ports" not in words


def test_the_rules_refuse_the_host_before_they_let_anything_out() -> None:
    text = pasta.rules(PLAIN, ("127.0.0.1", "192.0.2.1", "::1", "2001:db8::1", "169.254.7.7"))
    host, link_local = text.index("192.0.2.1/32"), text.index("169.254.0.0/16")
    assert host < link_local and "2001:db8::1/128" in text and "127.0.0.0/8" in text
    allowed = pasta.rules(job(egress=(Egress("10.0.0.0/8", 443, "tcp"),)), ("10.0.0.9",))
    assert allowed.index("10.0.0.9/32") < allowed.index("ip daddr 10.0.0.0/8 tcp dport 443 accept")
    assert "169.254" not in allowed


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (job(reach=("db",)), "reach: jobs have no network in common"),
        (job(bandwidth=1 << 20), "bandwidth: pasta has no limit"),
        (job(capabilities=Capabilities(add=("NET_RAW",))), "capabilities.add = NET_RAW: "),
        (job(capabilities=Capabilities(add=("SYS_PTRACE",))), "capabilities.add = SYS_PTRACE: "),
        (job(ports=(Port(80, 1, "127.0.0.1"), Port(80, 2, "192.0.2.1"))), "ports: 80/tcp is"),
    ],
)
def test_what_it_lacks_is_told(spec: JobSpec, why: str) -> None:
    (line,) = pasta.lacks(spec)
    assert line.startswith(why)


def test_all_capabilities_are_three_too_many() -> None:
    assert len(list(pasta.lacks(job(capabilities=Capabilities(add=("ALL",)))))) == 3


def test_what_it_can_do_is_not_refused() -> None:
    ports = (Port(80, 1, "127.0.0.1"), Port(80, 1, "192.0.2.1"), Port(80, 2, None, "udp"))
    assert list(pasta.lacks(job(ports=ports, egress=(), dns=("192.0.2.53",)))) == []


def test_the_device_must_be_there_for_everybody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(programs, "find", lambda name: f"/bin/{name}")
    monkeypatch.setattr(programs, "TUN", str(tmp_path / "tun"))
    what, hint = programs.lacking() or ("", "")
    assert "tun: no such file" in what and "modprobe tun" in hint
    (tmp_path / "tun").touch()
    assert programs.lacking() is None
    monkeypatch.setattr(programs, "find", lambda name: None if name == "nft" else f"/bin/{name}")
    assert programs.lacking() == ("nft is not installed", "install the package nftables")


def test_what_matters_of_its_complaints() -> None:
    text = "Failed to send 46 bytes to syslog\nNo external routable interface for IPv6\nno tun\n\n"
    assert programs.complaint(text) == "no tun"
