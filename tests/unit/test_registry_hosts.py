"""Which host is asked, in which way, and where a server may send us."""

from __future__ import annotations

import pytest

from supervisor.image.hosts import RegistrySettings, endpoints, is_loopback, mirror, refusal
from supervisor.image.reference import remote

NONE = RegistrySettings()


def asked(text, **settings):
    return [
        (one.host, one.prefix, one.schemes)
        for one in endpoints(remote(text), RegistrySettings(**settings))
    ]


def test_docker_hub_is_elsewhere_than_its_name():
    (one,) = endpoints(remote("debian"), NONE)
    assert (one.host, one.account, one.schemes) == ("registry-1.docker.io", "docker.io", ("https",))


def test_plain_http_is_for_loopback_and_for_whom_is_named():
    both = ("https", "http")
    assert asked("quay.io/a/b") == [("quay.io", "", ("https",))]
    assert asked("127.0.0.1:5000/a") == [("127.0.0.1:5000", "", both)]
    assert asked("[::1]:5000/a") == [("[::1]:5000", "", both)]
    assert asked("localhost/a") == [("localhost", "", both)]
    assert asked("10.0.0.9:5000/a") == [("10.0.0.9:5000", "", ("https",))]
    assert asked("10.0.0.9:5000/a", insecure=("10.0.0.9:5000",)) == [("10.0.0.9:5000", "", both)]
    assert asked("10.0.0.9:5000/a", insecure=("10.0.0.9",)) == [("10.0.0.9:5000", "", ("https",))]


def test_mirrors_come_first_and_in_order():
    mirrors = {"docker.io": ("http://127.0.0.1:5001", "m.example/hub/", "https://n.example:444")}
    assert asked("debian", mirrors=mirrors) == [
        ("127.0.0.1:5001", "", ("http",)),
        ("m.example", "hub/", ("https",)),
        ("n.example:444", "", ("https",)),
        ("registry-1.docker.io", "", ("https",)),
    ]
    assert asked("quay.io/a/b", mirrors=mirrors) == [("quay.io", "", ("https",))]


@pytest.mark.parametrize(
    "text",
    [
        "http://m.example", "ftp://m.example", "https://", "", "https://u:p@m.example",
        "https://m.example?x", "https://m.example#x", "https://m.example:x", "https://m .example",
        "https://m.example:0", "https://m.example:99999", "http://127.0.0.1.example",
        "https://m.ex\u00e4mple",
    ],
)  # fmt: skip
def test_what_is_no_mirror_is_refused(text):
    with pytest.raises(ValueError):
        mirror(text, NONE)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("localhost", True), ("LOCALHOST", True), ("127.0.0.1", True), ("127.9.8.7", True),
        ("::1", True), ("[::1]", True), ("localhost.example", False), ("127.0.0.1.example", False),
        ("10.0.0.1", False), ("0.0.0.0", False), ("", False),
    ],
)  # fmt: skip
def test_loopback_is_told_by_the_address(host, loopback):
    assert is_loopback(host) is loopback


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "[::1]", "169.254.169.254", "[fe80::1]", "0.0.0.0", "[::]",
        "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "[::ffff:127.0.0.1]", "a.localhost",
        "127.0.0.1.", "localhost.",
    ],
)  # fmt: skip
def test_nobody_elsewhere_sends_us_to_ourselves(host):
    assert refusal(f"https://{host}/x", "https://quay.io/", NONE)
    assert refusal(f"https://{host}:80/x", "https://10.0.0.1/", NONE)


def test_but_a_host_of_this_machine_may():
    assert refusal("http://127.0.0.1:81/x", "http://127.0.0.1:80/", NONE) == ""
    assert refusal("https://cdn.example/x", "http://127.0.0.1:80/", NONE) == ""
    assert refusal("https://cdn.example/x", "https://quay.io/", NONE) == ""


@pytest.mark.parametrize("target", ["http://cdn.example/", "ftp://x/", "https://u@x/", "/x", ""])
def test_what_else_is_refused(target):
    assert refusal(target, "https://quay.io/", NONE)
    assert refusal("http://cdn.example/", "https://quay.io/", RegistrySettings(insecure=("x",)))
    allowed = RegistrySettings(insecure=("cdn.example",))
    assert refusal("http://cdn.example/", "https://quay.io/", allowed) == ""
