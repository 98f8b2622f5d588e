"""Single attempts: each is made in four kinds of jobs, and where it must go through, to be real.

The attempts are functions in `escapes` and `kernel`; what each came to in one batch of jobs is
looked at here.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile import support
from tests.support.containers import Ended, own_state, run_jobs

pytestmark = pytest.mark.kernel

MODULES = ("escapes", "kernel")
KINDS = {
    "root": {},
    "overlay": {"write": "overlay"},
    "nobody": {"user": "nobody"},
    "userns": {"user_namespace": "self"},
}

EPERM, EACCES, EROFS, ENOENT, ENOSYS, CONTAINED, BAD_CALL = (
    "EPERM", "EACCES", "EROFS", "ENOENT", "ENOSYS", "EXDEV", "SIGSYS",
)  # fmt: skip
DENIED = {EPERM, EACCES}
READ_ONLY = {EROFS, *DENIED}
HIDDEN = {ENOENT, EACCES, "ENOTDIR"}

OPEN, HOST = "in a job without walls", "outside of a job"
V1 = Path("/sys/fs/cgroup/memory/release_agent").exists()

TRIES: dict[str, tuple[set[str], str]] = {
    "init_root": (DENIED, OPEN),
    "init_cwd": (DENIED, OPEN),
    "init_descriptors": (DENIED, OPEN),
    "init_program": (DENIED, OPEN),
    "init_memory": (DENIED, OPEN),
    "init_environment": (DENIED, OPEN),
    "init_ptrace": (DENIED, OPEN),
    "init_read_memory": (DENIED, OPEN),
    "init_take_descriptor": (DENIED, OPEN),
    "init_namespaces": (DENIED, OPEN),
    "init_namespaces_by_pidfd": (DENIED, OPEN),
    "init_limits": (DENIED, "sibling_limits"),
    "kill_the_init": (DENIED, "stop_a_sibling"),
    "mount_tmpfs": (DENIED, OPEN),
    "mount_proc_without_masks": (DENIED, OPEN),
    "mount_sys": (DENIED, OPEN),
    "mount_bind": (DENIED, OPEN),
    "mount_cgroup2": (DENIED, OPEN),
    "mount_cgroup1_for_its_release_agent": (DENIED, OPEN if V1 else ""),
    "unshare_then_mount_cgroup1": (DENIED, OPEN),
    "remount_root_writable": (DENIED, OPEN),
    "remount_proc_sys_writable": (DENIED, OPEN),
    "remount_a_read_only_bind": (DENIED, OPEN),
    "unmount_a_mask": (DENIED, OPEN),
    "new_mount_interface": (DENIED, OPEN),
    "clone_the_root_mount": (DENIED, OPEN),
    "clear_read_only": (DENIED, OPEN),
    "unshare_user": (DENIED, OPEN),
    "unshare_mounts": (DENIED, OPEN),
    "unshare_network": (DENIED, OPEN),
    "clone_user": (DENIED, OPEN),
    "clone3_user": ({ENOSYS}, OPEN),
    "climb_out_of_the_root": ({CONTAINED, EPERM}, "climb_out_of_a_chroot"),
    "above_the_root_by_descriptor": ({CONTAINED}, ""),
    "open_by_handle": (DENIED, OPEN),
    "hidden_by_name": (HIDDEN, OPEN),
    "hidden_by_proc_root": (HIDDEN, OPEN),
    "hidden_by_hard_link": (HIDDEN | READ_ONLY | {CONTAINED}, OPEN),
    "hidden_by_removing_the_cover": (HIDDEN | READ_ONLY | {CONTAINED, "EBUSY"}, OPEN),
    "set_id_program": ({CONTAINED} | READ_ONLY, HOST),
    "file_capabilities": (DENIED, OPEN),
    "regain_a_capability": (DENIED, OPEN),
    "memory_of_a_read_only_file": ({CONTAINED, "EIO"}, ""),
    "raw_socket": (DENIED, OPEN),
    "packet_socket": (DENIED, OPEN),
    "interface_down": (DENIED, OPEN),
    "netlink_change_interface": (DENIED, OPEN),
    "core_pattern": (READ_ONLY, HOST),
    "modprobe_path": (READ_ONLY | {ENOENT}, HOST),
    "overcommit": (READ_ONLY, HOST),
    "sysrq": (READ_ONLY | {ENOENT}, HOST),
    "settings_by_link": (READ_ONLY, HOST),
    "settings_of_devices": (READ_ONLY, HOST),
    "format_of_programs": (DENIED, ""),
    "files_of_cgroups": ({ENOENT}, HOST),
    "kernel_memory": (DENIED | {ENOENT}, HOST),
    "list_of_keys": (DENIED | {ENOENT}, HOST),
    "timers_of_others": (DENIED | {ENOENT}, HOST),
    "kernel_log": (DENIED, OPEN),
    "kernel_log_device": ({ENOENT}, HOST),
    "node_of_the_disk": (READ_ONLY, "node_of_null"),
    "node_of_memory": (READ_ONLY, "node_of_null"),
    "node_of_null": (READ_ONLY, OPEN),
    "write_through_the_terminal": (DENIED, OPEN),
    "write_through_the_console": (DENIED, OPEN),
    "kernel_program": (DENIED, OPEN),
    "performance_counters": (DENIED, OPEN),
    "page_faults_in_user_space": (DENIED, OPEN),
    "io_uring": (DENIED, OPEN),
    "keyring": (DENIED, OPEN),
    "add_a_key": (DENIED, OPEN),
    "load_another_kernel": (DENIED, OPEN),
    "load_a_module": (DENIED, OPEN),
    "reboot": (DENIED, OPEN),
    "swap": (DENIED, OPEN),
    "accounting": (DENIED, OPEN),
    "set_the_clock": (DENIED, OPEN),
    "host_name": (DENIED, OPEN),
    "be_quicker_than_others": (DENIED, OPEN),
    "other_execution_domain": ({ENOSYS}, OPEN),
    "call_of_another_machine": ({BAD_CALL}, OPEN),
}
"""What each attempt may come to in a job, and where it goes through: there, or another attempt."""

KNOWN = {("init_limits", "userns"): "with one id there is none that the init could have apart"}
"""What goes through and is no way out; `test_records` shows what comes of it."""

RARE = {"modprobe_path", "sysrq", "kernel_memory", "list_of_keys", "timers_of_others"}
"""Files that not every kernel has."""

CONTROLS = {control for _, control in TRIES.values()} - set(TRIES) - {OPEN, HOST, ""}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Ended]]:
    kinds = KINDS | {"open": support.OPEN}
    jobs = {kind: support.job(MODULES, **settings) for kind, settings in kinds.items()}
    with own_state(tmp_path_factory.mktemp("attempts")) as where:
        yield run_jobs(where, jobs)


@pytest.fixture(scope="module")
def host() -> dict[str, str]:
    names = tuple(name for name, (_, control) in TRIES.items() if control == HOST)
    return support.on_the_host(MODULES, names)


COMPLETE = {"call_of_another_machine", "io_uring", "performance_counters", "kernel_program"}
"""What User-Mode Linux has not; it also takes 32-bit calls for its own."""


def named(name: str) -> object:
    return pytest.param(name, marks=pytest.mark.qemu) if name in COMPLETE else name


@pytest.mark.parametrize("name", [named(name) for name in TRIES])
def test_an_attempt(jobs: dict[str, Ended], host: dict[str, str], name: str) -> None:
    if name == "call_of_another_machine" and platform.machine() != "x86_64":
        pytest.skip("only x86-64 has two kinds of calls")
    allowed, control = TRIES[name]
    found = {kind: jobs[kind].told[name] for kind in KINDS if (name, kind) not in KNOWN}
    assert {kind: what for kind, what in found.items() if what not in allowed} == {}
    if control == OPEN:
        assert jobs["open"].told[name] == "through"
    elif control == HOST:
        assert host[name] == "through" or (name in RARE and host[name] == ENOENT)
    elif control:
        assert {jobs["root"].told[control], jobs["open"].told[control]} & {"through"}


def test_every_attempt_is_looked_at(jobs: dict[str, Ended]) -> None:
    assert set(jobs["root"].told) == set(TRIES) | CONTROLS


def test_the_page_lists_every_attempt_and_test() -> None:
    page = (support.HERE / "README.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    files = [path for path in support.HERE.glob("test_*.py") if path != Path(__file__)]
    tests = {
        name for path in files for name in re.findall(r"^def (test_\w+)", path.read_text(), re.M)
    }
    assert named == tests
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.M)) == set(TRIES)
