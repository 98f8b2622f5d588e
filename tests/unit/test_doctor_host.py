"""What the doctor says of a host that lacks something: the row, and the fix that is exact."""

from __future__ import annotations

import gzip
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from supervisor.errors import SpawnError
from supervisor.front import doctor_host, doctor_kernel, doctor_trial, doctor_walls


def uname(release: str, machine: str = "x86_64") -> SimpleNamespace:
    return SimpleNamespace(release=release, machine=machine)


@pytest.mark.parametrize(
    ("release", "machine", "verdict"),
    [
        ("6.1.0-13-amd64", "x86_64", "enforced"),
        ("5.12.0", "x86_64", "enforced"),
        ("5.10.0-26-amd64", "x86_64", "unavailable"),
        ("4.19", "x86_64", "unavailable"),
        ("6.6.1", "aarch64", "accounted only"),
    ],
)
def test_a_kernel_is_new_enough_or_not(
    monkeypatch: pytest.MonkeyPatch, release: str, machine: str, verdict: str
) -> None:
    monkeypatch.setattr(os, "uname", lambda: uname(release, machine))
    check = doctor_host.kernel()
    assert (check.verdict, check.needed) == (verdict, True)
    assert bool(check.fix) == (verdict != "enforced")


@pytest.mark.parametrize("name", ["config", "config.gz"])
def test_what_a_kernel_was_built_without_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    lines = [f"CONFIG_{one}={'ym'[number % 2]}" for number, one in enumerate(doctor_host.OPTIONS)]
    lacking = lines[0].partition("=")[0]
    file = tmp_path / name
    monkeypatch.setattr(doctor_host, "CONFIGS", (str(tmp_path / "none"), str(file)))
    for shown, verdict in ((lines, "enforced"), (lines[1:], "accounted only")):
        data = "\n".join([*shown, f"# {lacking} is not set"]).encode()
        file.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        check = doctor_host.configuration()
        assert check.verdict == verdict
    assert check.detail == f"{file} lacks {doctor_host.OPTIONS[0]}"


@pytest.mark.parametrize(
    ("line", "verdict", "told"),
    [
        ("root=/dev/sda quiet psi=1", "enforced", "nothing is switched off; psi=1"),
        ("cgroup_no_v1=all ro", "enforced", "nothing is switched off; cgroup_no_v1=all"),
        ("cgroup_disable=memory,pids", "accounted only", "switched off by cgroup_disable="),
        ("swapaccount=0 psi=0", "accounted only", "switched off by swapaccount=0 psi=0"),
        ("lsm=apparmor,bpf", "accounted only", "switched off by lsm=apparmor,bpf"),
        ("lsm=landlock,apparmor", "enforced", "nothing is switched off"),
        ("notpsi=0 xswapaccount=0", "enforced", "nothing is switched off"),
    ],
)
def test_what_was_switched_off_at_boot_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, verdict: str, told: str
) -> None:
    (tmp_path / "cmdline").write_text(f"{line}\n")
    monkeypatch.setattr(doctor_host, "COMMAND", tmp_path / "cmdline")
    check = doctor_host.boot()
    assert check.verdict == verdict and check.detail.startswith(told)
    assert ("update-grub" in check.fix) == (verdict != "enforced")


def test_bounds_that_are_too_small_are_told_with_the_setting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor_host, "FEWEST", dict.fromkeys(doctor_host.FEWEST, 2**40))
    processes, watches = doctor_host.processes(), doctor_host.watches()
    assert processes.verdict == watches.verdict == "accounted only"
    assert processes.fix.startswith(("sysctl -w kernel.", "LimitNPROC"))
    assert watches.fix.startswith("sysctl -w fs.inotify.max_user_instances=")


def test_a_journal_that_takes_a_datagram_is_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    monkeypatch.setattr(doctor_host, "SOCKET", str(path))
    assert doctor_host.journal().verdict == "unavailable"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(path))
        assert doctor_host.journal().verdict == "enforced"
    check = doctor_host.journal()
    assert (check.verdict, check.needed) == ("unavailable", False)
    assert "Connection refused" in check.detail


def test_the_setting_that_forbids_user_namespaces_is_the_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(doctor_kernel, "SYSCTL", tmp_path)
    assert "seccomp=unconfined" in doctor_kernel.user_fix()
    for name, value in (
        ("user/max_user_namespaces", "0"),
        ("kernel/unprivileged_userns_clone", "1"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    assert doctor_kernel.user_fix() == "as root: sysctl -w user.max_user_namespaces=15000"
    (tmp_path / "kernel/unprivileged_userns_clone").write_text("0\n")
    assert doctor_kernel.user_fix().endswith("kernel.unprivileged_userns_clone=1")


def test_without_libseccomp_the_package_is_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise SpawnError("seccomp", 0, "", "no libseccomp: x", hint="apt-get install libseccomp2")

    monkeypatch.setattr(doctor_walls.filters, "library_version", none)
    check = doctor_walls.seccomp()
    assert (check.verdict, check.needed) == ("unavailable", True)
    assert check.fix == "apt-get install libseccomp2"


def test_a_lack_of_privilege_is_told_apart_from_a_lack_of_the_kernels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doctor_trial, "has_admin", lambda: False)
    assert doctor_trial.way_out("unshare: Operation not permitted", "x") == doctor_trial.as_root()
    assert doctor_trial.way_out("unshare: Invalid argument", "x") == "x"
    monkeypatch.setattr(doctor_trial, "has_admin", lambda: True)
    assert doctor_trial.way_out("mount: Operation not permitted", "x") == "x"
    for number, word in ((0, "CAP_SYS_ADMIN"), (1000, "as root")):
        monkeypatch.setattr(os, "geteuid", lambda number=number: number)
        assert word in doctor_trial.as_root()
