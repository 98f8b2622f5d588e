"""What a root has beside what was copied: mount points, a minimal /etc, NSS, certificates, locales.

A file that the user has copied wins over one of ours.

May import: `errors`, `rootfs`.
"""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from supervisor.errors import RootError
from supervisor.rootfs.gather import Copy, Gatherer
from supervisor.rootfs.search import CONF

MOUNT_POINTS = {
    "/dev": 0o755,
    "/proc": 0o755,
    "/sys": 0o755,
    "/run": 0o755,
    "/tmp": 0o1777,
    "/etc": 0o755,
    "/root": 0o700,
    "/var": 0o755,
    "/var/tmp": 0o1777,
}
"""Where a job's own file systems go; with them no start has to lay a skeleton over the root."""

PASSWD = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n"
GROUP = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n"
HOSTS = "127.0.0.1 localhost\n::1 localhost\n"
NSSWITCH = """\
passwd: files
group: files
shadow: files
hosts: files dns
networks: files
protocols: files
services: files
"""
NSS_MODULES = ("files", "dns", "compat")
"""Those that need no daemon.  glibc has had files and dns in itself since 2.34."""
CERTIFICATES = (
    "/etc/ssl/certs",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/pki/tls/cert.pem",
    "/etc/pki/ca-trust/extracted",
    "/usr/lib/ssl/certs",
    "/usr/lib/ssl/cert.pem",
    "/usr/lib/ssl/openssl.cnf",
)
"""Where OpenSSL, GnuTLS and NSS of the distributions look; never a directory of private keys."""
BUNDLES = ("ca-certificates.crt", "ca-bundle.crt", "cert.pem", "ca-bundle.pem", "tls-ca-bundle.pem")
LOCALES = "/usr/lib/locale"
ARCHIVE = f"{LOCALES}/locale-archive"


def minimal(gatherer: Gatherer) -> None:
    """Mount points, and the files of /etc that a name service and a job's user need.

    /etc/hosts and /etc/resolv.conf are where the bridge's files are mounted (docs/network.md).
    """
    tree = gatherer.done.tree
    for path, mode in MOUNT_POINTS.items():
        tree.make(path, mode)
    tree.write("/etc/passwd", PASSWD)
    tree.write("/etc/group", GROUP)
    tree.write("/etc/hosts", HOSTS)
    tree.write("/etc/resolv.conf", "")


def with_nss(gatherer: Gatherer) -> None:
    """Name services by files and DNS: nsswitch.conf, and the modules for each loader's libc.

    Those of other services (sssd, systemd) speak to daemons that a job has not got.
    """
    gatherer.done.tree.write("/etc/nsswitch.conf", NSSWITCH)
    for path in ("/etc/protocols", "/etc/services"):
        if os.path.isfile(path):
            gatherer.copy(Copy(path, path))
    for directory in list(gatherer.done.library_dirs):
        for module in NSS_MODULES:
            path = f"{directory}/libnss_{module}.so.2"
            if os.path.isfile(path):
                gatherer.copy(Copy(path, path))


def with_ca(gatherer: Gatherer) -> None:
    """The certificates of the authorities that this host trusts.  Raises RootError: it has none."""
    found = [path for path in CERTIFICATES if os.path.exists(path)]
    if not any(_has_bundle(path) for path in found):
        hint = "install the package ca-certificates"
        raise RootError(["no bundle of certificates in /etc/ssl or /etc/pki"], hint=hint)
    for path in found:
        gatherer.copy(Copy(path, path))


def _has_bundle(path: str) -> bool:
    if os.path.isfile(path):
        return os.path.basename(path) in BUNDLES
    return any(name in BUNDLES for _top, _, names in os.walk(path) for name in names)


def with_locale(gatherer: Gatherer, name: str) -> None:
    """glibc's files of a locale.  Raises RootError when this host has none of that name."""
    plain = _normal(name)
    for path in sorted(glob.glob(f"{LOCALES}/*/")):
        directory = path.rstrip("/")
        if _normal(os.path.basename(directory)) == plain:
            gatherer.copy(Copy(directory, directory))
            return
    if _in_archive(plain):
        gatherer.copy(Copy(ARCHIVE, ARCHIVE))
        return
    if plain in ("C", "POSIX"):
        return  # in libc itself
    hint = f"{_available()}; localedef(1) makes others"
    raise RootError([f"{name}: no such locale in {LOCALES}"], hint=hint)


def _normal(name: str) -> str:
    """As locale(1) shows it: the character set in small letters, without dashes."""
    base, dot, charset = name.partition(".")
    charset, at, modifier = charset.partition("@")
    return base + dot + re.sub(r"[^a-z0-9]", "", charset.lower()) + at + modifier


def _in_archive(plain: str) -> bool:
    """Whether the archive has a locale; the names in it are normal ones, each ended by a zero."""
    if not os.path.isfile(ARCHIVE):
        return False
    return b"\0" + os.fsencode(plain) + b"\0" in Path(ARCHIVE).read_bytes()


def _available() -> str:
    names = sorted(os.path.basename(path.rstrip("/")) for path in glob.glob(f"{LOCALES}/*/"))
    return f"there is {', '.join(names)}" if names else "there is none"


def loader_configuration(gatherer: Gatherer) -> bool:
    """An ld.so.conf of the directories in use; whether the root needs a cache made of it.

    glibc's loader reads the cache, never the configuration: without one it knows its own
    directories only, and which these are is compiled into it.
    """
    done = gatherer.done
    glibc = any(
        p.kind == "dynamic" and "ld-musl" not in (p.loader or "") for p in done.programs.values()
    )
    if not glibc:
        return False
    if done.library_dirs:
        done.tree.write(CONF, "".join(f"{path}\n" for path in done.library_dirs))
    return CONF in done.tree
