"""Rules of the packet filter, by nft(8) of the package nftables: one transaction for each call.

May import: `errors`.  Call it from a thread: it waits for a process, and a transaction that takes
rules away waits some 20 ms for the kernel (synchronize_rcu).
"""

from __future__ import annotations

import os
import shutil
import subprocess

from supervisor.errors import SupervisorError

HINT = "install the package nftables"
_SBIN = ":/usr/sbin:/sbin"
"""Where it lies, and what the PATH of an ordinary login may lack."""


def program() -> str | None:
    """The path of nft, or None."""
    return shutil.which("nft", path=os.environ.get("PATH", "") + _SBIN)


def require() -> str:
    """The path of nft; SupervisorError where it is not installed."""
    path = program()
    if path is None:
        raise SupervisorError("nft is not installed", hint=HINT)
    return path


def apply(text: str, inside: int | None = None) -> None:
    """`nft -f -`: all of `text` holds, or nothing of it.  Raises SupervisorError.

    `inside`: in the user and network namespaces of this process (nsenter(1)).
    """
    words = [require(), "-f", "-"]
    if inside is not None:
        enter = shutil.which("nsenter", path=os.environ.get("PATH", "") + _SBIN) or "nsenter"
        words = [enter, "--user", "--net", "--preserve-credentials", f"--target={inside}", *words]
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False, env={})
    if done.returncode != 0:
        told = " ".join(done.stderr.split()) or f"status {done.returncode}"
        raise SupervisorError(f"nft: {told:.400}")
