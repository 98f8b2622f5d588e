"""pasta(1) of the package passt: a network namespace's way out for somebody without root.

May import: `errors`.
"""

from __future__ import annotations

import os
import shutil

HINT = "install the package passt"
TUN = "/dev/net/tun"
"""What pasta makes a job's interface with."""
_WITH = ("setpriv", "nsenter", "nft")
_PACKAGES = {"setpriv": "util-linux", "nsenter": "util-linux", "nft": "nftables"}
_SBIN = ":/usr/sbin:/sbin"


def find(name: str) -> str | None:
    """The path of a program, sbin directories too."""
    return shutil.which(name, path=os.environ.get("PATH", "") + _SBIN)


def lacking() -> tuple[str, str] | None:
    """What is not there that it takes, and the way out; None: nothing."""
    if find("pasta") is None:
        return "pasta is not installed", HINT
    for name in _WITH:
        if find(name) is None:
            return f"{name} is not installed", f"install the package {_PACKAGES[name]}"
    try:
        os.close(os.open(TUN, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        hint = f"as root: modprobe tun; chmod 0666 {TUN}"
        return f"{TUN}: {(error.strerror or str(error)).lower()}", hint
    return None


_NOISE = ("Failed to send", "No external routable interface for IPv6")
"""Of what it says: that there is no syslog, and that the host has no way out by IPv6."""


def complaint(text: str) -> str:
    """What matters of its standard error, on one line."""
    lines = [line.strip() for line in text.splitlines() if not line.startswith(_NOISE)]
    return "; ".join(filter(None, lines))[:400]
