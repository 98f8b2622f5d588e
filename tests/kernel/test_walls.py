"""What a job may not do although it runs: system calls, capabilities, rlimits, keyrings."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from supervisor.linux import caps
from tests.support.command import State, Supervise
from tests.support.containers import (
    Ended,
    after,
    ended,
    python,
    run_jobs,
    within,
    write_config,
)
from tests.support.system_calls import NUMBERS

pytestmark = pytest.mark.kernel

Run = Callable[..., Ended]


@pytest.fixture
def look(tmp_state: State) -> Run:
    """Run a function inside one job and say how it ended."""

    def run(function: Callable[..., object], *arguments: Any, **settings: Any) -> Ended:
        job = {"command": python(function, *arguments), "timeout": "30s", **settings}
        return run_jobs(tmp_state, {"one": job})["one"]

    return run


def attempt(numbers: dict[str, int], calls: list[list[Any]]) -> dict[str, int]:
    """Make each call [name, arguments…] as the process is; the errno of each, 0 for success.

    An argument is a number, or a text: a C string.  `numbers` has those of the names.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    found = {}
    for name, *arguments in calls:
        if name not in numbers:
            continue
        values = [
            argument.encode() if isinstance(argument, str) else ctypes.c_long(argument)
            for argument in arguments
        ]
        ctypes.set_errno(0)
        done = libc.syscall(ctypes.c_long(numbers[name]), *values)
        if name == "clone" and done == 0:
            libc._exit(0)
        label = " ".join(map(str, [name, *arguments])).strip()
        found[label] = ctypes.get_errno() if done < 0 else 0
    return found


BAD = -1
"""No address and no descriptor: a call that gets through does no harm, and says EFAULT or EBADF."""

FORBIDDEN: list[list[Any]] = [
    ["keyctl", 0, -3, 0], ["add_key", "user", "x", "y", 1, -3], ["request_key", "user", "x", 0, -3],
    ["bpf", 0, BAD, 0], ["perf_event_open", BAD, 0, 0, 0, 0], ["userfaultfd", 0],
    ["kexec_load", 0, 0, 0, 0], ["kexec_file_load", BAD, BAD, 0, 0, 0], ["init_module", BAD, 0, ""],
    ["finit_module", BAD, "", 0], ["delete_module", "none", 0], ["mount", "", "/", "tmpfs", 0, 0],
    ["umount2", "/proc", 2], ["setns", BAD, 0], ["unshare", 0x10000000], ["unshare", 0x20000],
    ["unshare", 0], ["swapon", "/none", 0], ["swapoff", "/none"], ["reboot", 0, 0, 0, 0],
    ["pivot_root", ".", "."], ["acct", "/none"], ["settimeofday", BAD, 0],
    ["clock_settime", 0, BAD], ["process_vm_readv", 1, 0, 0, 0, 0, 0],
    ["process_vm_writev", 1, 0, 0, 0, 0, 0], ["kcmp", 1, 1, 0, 0, 0],
    ["open_by_handle_at", BAD, BAD, 0], ["quotactl", 0, "", 0, 0], ["quotactl_fd", BAD, 0, 0, 0],
    ["syslog", 3, BAD, 0], ["iopl", 3], ["vhangup"], ["lookup_dcookie", 0, BAD, 0],
    ["move_pages", 1, 0, 0, 0, 0, 0], ["migrate_pages", 1, 0, 0, 0], ["fanotify_init", 0, 0],
    ["sethostname", "x", 1], ["setdomainname", "x", 1], ["open_tree", -100, "/", 1],
    ["move_mount", BAD, "", BAD, "", 0], ["fsopen", "tmpfs", 0], ["fsmount", BAD, 0, 0],
    ["fspick", -100, "/", 0], ["mount_setattr", -100, "/", 0, BAD, 32], ["pidfd_getfd", BAD, 0, 0],
    ["io_uring_setup", 1, BAD], ["io_uring_enter", BAD, 0, 0, 0, 0],
    ["io_uring_register", BAD, 0, 0, 0], ["uselib", "/none"], ["ustat", 0, BAD], ["sysfs", 3],
    ["clone", 0x10000011, 0, 0, 0, 0], ["clone", 0x20011, 0, 0, 0, 0],
    ["clone", 0x40000011, 0, 0, 0, 0], ["clone", 0x20000011, 0, 0, 0, 0],
    ["ioctl", 0, 0x5412, "x"], ["ioctl", 0, 0x541C, "x"],
    ["ioctl", 0, 0x5412 + (1 << 32), "x"],  # the kernel looks at 32 bits, and so must a filter
]  # fmt: skip

MISSING: list[list[Any]] = [
    ["clone3", BAD, 88], ["unknown"], ["socket", 40, 1, 0], ["socket", 38, 5, 0],
    ["personality", 0x40000],
]  # fmt: skip

ALLOWED: list[list[Any]] = [
    ["getpid"], ["clone", 17, 0, 0, 0, 0], ["socket", 1, 1, 0], ["socket", 10, 1, 0],
    ["personality", 0xFFFFFFFF], ["ptrace", 16, 1, 0, 0], ["ioctl", 0, 0x5413, BAD],
    ["name_to_handle_at", BAD, "x", BAD, BAD, 0],
]  # fmt: skip


def test_the_default_profile_call_by_call(look: Run) -> None:
    told = look(attempt, NUMBERS, FORBIDDEN).told
    assert {call: number for call, number in told.items() if number != errno.EPERM} == {}
    told = look(attempt, NUMBERS, MISSING).told
    assert {call: number for call, number in told.items() if number != errno.ENOSYS} == {}
    told = look(attempt, NUMBERS, ALLOWED).told
    assert {c: n for c, n in told.items() if n in (errno.EPERM, errno.ENOSYS)} == {
        "ptrace 16 1 0 0": errno.EPERM  # the kernel's word about the init, not the filter's
    } or "ptrace 16 1 0 0" not in told


def test_unconfined_leaves_it_to_the_kernel(look: Run) -> None:
    told = look(attempt, NUMBERS, FORBIDDEN + MISSING, seccomp="unconfined").told
    assert told["keyctl 0 -3 0"] == 0
    assert told["unshare 0"] == 0
    assert told["socket 38 5 0"] != errno.ENOSYS
    assert told["mount  / tmpfs 0 0"] == errno.EPERM  # no CAP_SYS_ADMIN: the next wall stands


def test_a_job_with_sys_admin_may_mount(look: Run) -> None:
    told = look(
        attempt, NUMBERS,
        [["unshare", 0x20000], ["mount", "x", "/tmp", "tmpfs", 0, 0], ["bpf", 0, BAD, 0]],
        capabilities={"add": ["CAP_SYS_ADMIN"]},
    ).told  # fmt: skip
    assert told["unshare 131072"] == 0
    assert told["mount x /tmp tmpfs 0 0"] == 0


def test_a_profile_of_docker_s_form(look: Run, tmp_path: Path) -> None:
    profile = tmp_path / "mine.json"
    profile.write_text(
        json.dumps(
            {
                "defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [
                    {"names": ["getpid"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.EXFULL},
                    {"names": ["unshare"], "action": "SCMP_ACT_ERRNO",
                     "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}]},
                    {"names": ["keyctl"], "action": "SCMP_ACT_ERRNO",
                     "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                ],
            }
        )
    )  # fmt: skip
    calls = [["getpid"], ["unshare", 0], ["unshare", 0x400], ["keyctl", 0, -3, 0]]
    told = look(attempt, NUMBERS, calls, seccomp=str(profile)).told
    assert told == {
        "getpid": errno.EXFULL, "unshare 0": errno.EPERM, "unshare 1024": 0, "keyctl 0 -3 0": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Expecting property name"),
        ("[1]", "not subscriptable"),
        ('{"syscalls": []}', "lacks 'defaultAction'"),
        ('{"defaultAction": "SCMP_ACT_NOTIFY"}', "'SCMP_ACT_NOTIFY' is none of SCMP_ACT_KILL"),
        ('{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["no_such_call"],'
         ' "action": "SCMP_ACT_ERRNO"}]}', "knows no system call no_such_call"),
        ('{"defaultAction": "SCMP_ACT_ERRNO", "listenerPath": "/x"}', "listenerPath"),
    ],
)  # fmt: skip
def test_a_profile_that_cannot_be_used_starts_nothing(
    supervise: Supervise, tmp_path: Path, text: str, said: str
) -> None:
    profile = tmp_path / "bad.json"
    profile.write_text(text)
    done = supervise("run", "--seccomp", str(profile), "--", "true")
    assert done.status == 125
    assert str(profile) in done.stderr and said in done.stderr


def test_a_missing_profile_is_named(supervise: Supervise) -> None:
    done = supervise("run", "--seccomp", "/no/such.json", "--", "true")
    assert done.status == 125
    assert "seccomp: /no/such.json: No such file or directory" in done.stderr


STATUS = "cat /proc/self/status"


def status(job: Ended) -> dict[str, str]:
    """What a job that ran STATUS was."""
    assert job.reason == "succeeded", job.record["detail"]
    lines = (line.partition(":\t") for line in job.out.splitlines())
    return {name: value for name, _, value in lines}


def numbers(mask: str) -> set[str]:
    return {name for n, name in enumerate(caps.NAMES) if int(mask, 16) >> n & 1}


DEFAULT = {caps.NAMES[n] for n in caps.JOB_DEFAULT}


@pytest.mark.parametrize(
    ("settings", "effective", "ambient"),
    [
        ({}, DEFAULT, set()),
        ({"capabilities": {"drop": ["ALL"]}}, set(), set()),
        ({"capabilities": {"add": ["NET_RAW"], "drop": ["CAP_CHOWN"]}},
         DEFAULT | {"NET_RAW"} - {"CHOWN"}, set()),
        ({"capabilities": {"drop": ["ALL"], "add": ["KILL"]}}, {"KILL"}, set()),
        ({"user": "nobody"}, set(), set()),
        ({"user": "nobody", "capabilities": {"add": ["net_bind_service"]}},
         {"NET_BIND_SERVICE"}, {"NET_BIND_SERVICE"}),
        ({"user_namespace": {"host_id": 200000, "size": 65536},
          "capabilities": {"add": ["NET_ADMIN"]}}, DEFAULT | {"NET_ADMIN"}, set()),
    ],
    ids=["default", "drop-all", "add-and-drop", "only-kill", "nobody", "ambient", "userns"],
)  # fmt: skip
def test_capabilities(
    tmp_state: State, settings: dict[str, Any], effective: set[str], ambient: set[str]
) -> None:
    expected = effective - ({"CHOWN"} if "CAP_CHOWN" in str(settings) else set())
    told = status(run_jobs(tmp_state, {"one": {"command": STATUS, **settings}})["one"])
    assert numbers(told["CapEff"]) == numbers(told["CapPrm"]) == expected
    assert numbers(told["CapAmb"]) == ambient
    if not settings.get("user"):
        assert numbers(told["CapBnd"]) == expected
    assert told["NoNewPrivs"] == "1"
    assert told["Seccomp"] == "2"


def test_a_policy_may_ask_for_a_capability_that_no_job_had(
    tmp_state: State, tmp_path: Path
) -> None:
    """The launcher has given it up by then: it is replaced, and the job before goes on."""
    plugin = tmp_path / "wider.py"
    plugin.write_text(
        "from attrs import evolve\n"
        "from supervisor.model.job import Capabilities\n"
        "from supervisor.policy.hookspec import hookimpl\n"
        "@hookimpl\n"
        "def prepare(spec):\n"
        "    if spec.name == 'wide':\n"
        "        return evolve(spec, capabilities=Capabilities(add=('NET_RAW',)))\n"
    )
    job = {"command": STATUS, "timeout": "30s"}
    found = run_jobs(
        tmp_state, {"narrow": job, "wide": job | {"after": ["narrow"]}},
        head=f'plugins = ["{plugin}"]',
    )  # fmt: skip
    assert "NET_RAW" not in numbers(status(found["narrow"])["CapBnd"])
    assert "NET_RAW" in numbers(status(found["wide"])["CapEff"])


def limits() -> dict[str, Any]:
    import resource

    names = ("CORE", "FSIZE", "MEMLOCK", "NPROC", "STACK", "NOFILE")
    found: dict[str, Any] = {n: resource.getrlimit(getattr(resource, f"RLIMIT_{n}")) for n in names}
    with open("/proc/self/oom_score_adj") as file:  # noqa: PTH123
        found["oom"] = int(file.read())
    return found


def test_rlimits_and_the_oom_score(look: Run) -> None:
    told = look(
        limits,
        rlimits={"core": 0, "fsize": "1M", "memlock": "64K", "nproc": 99, "stack": "8M"},
        limits={"open_files": 77}, oom_score_adj=321,
    ).told  # fmt: skip
    assert told == {
        "CORE": [0, 0], "FSIZE": [2**20] * 2, "MEMLOCK": [65536] * 2, "NPROC": [99, 99],
        "STACK": [8 * 2**20] * 2, "NOFILE": [77, 77], "oom": 321,
    }  # fmt: skip
    assert look(limits).told["oom"] == 200


def test_many_jobs_need_more_descriptors_than_each_of_them_gets(tmp_state: State) -> None:
    """The supervisor raises its own soft limit, 64 here, and hands on the one it was given."""
    jobs = {"one": {"script": "ulimit -Sn; ulimit -Hn; sleep 1", "matrix": {"n": [*range(40)]}}}
    config = write_config(tmp_state, jobs)
    done = after(tmp_state, ["prlimit", "--nofile=64:4000"], config, "--json")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["reason"] for record in records] == ["succeeded"] * 40, done.stderr
    found = ended(tmp_state, done.stdout)
    assert {job.out for job in found.values()} == {"64\n4000\n"}


def test_the_oom_score_in_a_user_namespace(tmp_state: State) -> None:
    job = {
        "command": "cat /proc/self/oom_score_adj",
        "user_namespace": {"host_id": 200000, "size": 65536},
    }
    assert run_jobs(tmp_state, {"one": job})["one"].out == "200\n"


def test_two_jobs_share_no_session_keyring(tmp_state: State) -> None:
    def serial(number: int) -> int:
        import ctypes

        return int(ctypes.CDLL(None).syscall(number, 0, -3, 0))  # KEYCTL_GET_KEYRING_ID

    job = {"command": python(serial, NUMBERS["keyctl"]), "seccomp": "unconfined", "timeout": "30s"}
    found = run_jobs(tmp_state, {"one": job, "two": job})
    assert found["one"].told != found["two"].told


@pytest.mark.skipif(
    os.uname().machine != "x86_64" or os.environ.get("SUPERVISE_VM") == "uml",
    reason="x86-64 has another kind of call; User-Mode Linux takes both for one",
)
def test_a_32_bit_call_is_the_end(look: Run) -> None:
    """int 0x80 makes a call of another machine's kind, past a filter that knows only its own."""

    def call_as_32_bit() -> int:
        import ctypes
        import mmap

        code = mmap.mmap(-1, 4096, prot=7)
        code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")  # mov eax, 20 (getpid); int 0x80; ret
        address = ctypes.addressof(ctypes.c_char.from_buffer(code))
        return int(ctypes.CFUNCTYPE(ctypes.c_int)(address)())

    killed = look(call_as_32_bit)
    assert (killed.reason, killed.record["signal"]) == ("signal", 31)  # SIGSYS


def test_the_profile_is_compiled_once(
    supervise: Supervise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second start needs no libseccomp: its programs come from the cache."""
    assert supervise("run", "--", "true").status == 0
    blocker = tmp_path / "pyseccomp.py"
    blocker.write_text("raise RuntimeError('libseccomp was asked for')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert supervise("run", "--", "true").status == 0
    done = supervise("run", "--cap-add", "NET_BROADCAST", "--", "true")
    if done.status:
        assert "libseccomp was asked for" in done.stderr


# What a job with the host's root does not see.


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A directory in /home with a file in it."""
    place = Path(tempfile.mkdtemp(prefix="supervise-test-", dir="/home"))
    place.chmod(0o755)
    (place / "file").write_text("private\n")
    yield place
    shutil.rmtree(place)


@pytest.fixture
def others_state() -> Iterator[None]:
    """/var/lib/supervise is there, whether or not an instance has ever kept anything in it."""
    place = Path("/var/lib/supervise")
    made = not place.exists()
    place.mkdir(mode=0o700, exist_ok=True)
    yield
    if made:
        with suppress(OSError):  # another supervisor keeps something there by now
            place.rmdir()


SEE = "cat /etc/shadow || :; ls /root /home /var/lib/supervise; cat {home}/file"


@pytest.mark.usefixtures("others_state")
@pytest.mark.parametrize(
    "settings", [{}, {"write": "overlay"}, {"user_namespace": "self"}, {"user": "nobody"}],
    ids=["root", "overlay", "userns", "nobody"],
)  # fmt: skip
def test_others_data_and_secrets_are_hidden(
    tmp_state: State, home: Path, settings: dict[str, str]
) -> None:
    job = {"script": SEE.format(home=home), **settings}
    found = run_jobs(tmp_state, {"one": job})["one"]
    assert found.out.split() == ["/home:", "/root:", "/var/lib/supervise:"]
    assert f"{home}/file: No such file or directory" in found.err


def test_the_state_of_the_supervisor_is_hidden_wherever_it_is(supervise: Supervise) -> None:
    state = Path(tempfile.mkdtemp(prefix="supervise-test-", dir="/var/tmp"))
    try:
        config = state / "x.toml"
        config.write_text(
            f'[supervisor]\nstate_dir = "{state}/s"\nruntime_dir = "{supervise.where.runtime}"\n'
            f'[jobs.one]\nscript = "ls {state}/s/x"\n'
        )
        done = supervise(config)
        (log,) = (state / "s/x/logs").glob("one.*.out")
        assert (done.status, log.read_text()) == (0, "")
    finally:
        shutil.rmtree(state)


def test_what_is_mounted_is_seen_and_nothing_beside_it(tmp_state: State, home: Path) -> None:
    script = f"cat {home}/file; ls /home; ! touch /home/x; ! touch {home}/x"
    job = {"script": script, "mounts": [f"{home}:{home}:ro"]}
    found = run_jobs(tmp_state, {
        "root": job, "userns": job | {"user_namespace": "self"},
        "file": job | {"mounts": [f"{home}/file:{home}/file:ro"]},
        "all": {"script": f"cat {home}/file; grep -q ^root: /etc/shadow", "hide": "nothing"},
    })  # fmt: skip
    for name in ("root", "userns", "file"):
        assert found[name].out == f"private\n{home.name}\n", (name, found[name].err)
    assert found["all"].out == "private\n", found["all"].err


def test_more_can_be_hidden(tmp_state: State) -> None:
    job = {"script": "ls /usr/share /var/tmp", "hide": ["/usr/share"]}
    found = run_jobs(tmp_state, {"one": job})["one"]
    assert found.out.startswith("/usr/share:\n\n/var/tmp:"), found.out


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["--", "{home}/run"], "exec: {home}/run: /home is hidden from jobs"),
        (["--working-dir", "{home}", "--", "true"], "working_dir: {home}: /home is hidden"),
    ],
)
def test_a_command_that_is_hidden_is_told_with_the_way_out(
    supervise: Supervise, home: Path, settings: list[str], said: str
) -> None:
    program = home / "run"
    program.write_text("#!/bin/sh\necho seen\n")
    program.chmod(0o755)
    arguments = [word.format(home=home) for word in settings]
    done = supervise("run", *arguments)
    assert said.format(home=home) in done.stderr
    assert f'mounts = ["{home}:{home}:ro"]' in done.stderr
    done = supervise("run", "--mount", f"{home}:{home}:ro", *arguments)
    assert done.status == 0, done.stderr


def test_a_capability_that_the_supervisor_lacks_is_refused(tmp_state: State) -> None:
    """Else the job would run without it, and nobody would know why it fails."""
    wrapper = ["setpriv", "--bounding-set=-net_raw", "--"]
    done = after(tmp_state, wrapper, "run", "--cap-add", "NET_RAW", "--", "true")
    assert done.status == 125
    assert "capabilities: the supervisor has no NET_RAW itself" in done.stderr
    done = after(tmp_state, wrapper, "run", "--cap-add", "ALL", "--seccomp", "unconfined",
                 "--", "grep", "CapBnd", "/proc/self/status")  # fmt: skip
    assert done.status == 0
    assert "NET_RAW" not in numbers(done.stdout.split()[1])


def test_check_warns_of_holes(supervise: Supervise, tmp_path: Path) -> None:
    config = tmp_path / "x.toml"
    config.write_text('[jobs.a]\ncommand = "true"\nseccomp = "unconfined"\n')
    done = supervise("check", config)
    assert done.status == 0
    assert done.stderr.startswith('supervise: risk: a: seccomp = "unconfined"')


@pytest.mark.parametrize("settings", [{}, {"write": "overlay"}], ids=["read-only", "overlay"])
def test_a_hidden_file_stays_hidden_when_the_host_replaces_it(
    tmp_state: State, tmp_path: Path, settings: dict[str, str]
) -> None:
    """passwd(1) renames a new /etc/shadow over the old one: a mount over the old one would go."""
    directory = Path(tempfile.mkdtemp(prefix="supervise-test-", dir="/var/tmp"))
    directory.chmod(0o755)
    secret = directory / "secret"
    secret.write_text("old\n")
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    script = f"cat {secret}; echo r >/tmp/ready; read x </tmp/ready; cat {secret}; ls {directory}"
    job = {
        "script": f"set +e; {script}", "hide": [str(secret)],
        "mounts": [f"{ready}:/tmp/ready"], **settings,
    }  # fmt: skip
    config = write_config(tmp_state, {"one": job})
    try:
        with within(tmp_state, [], config, "--json") as process:
            with ready.open() as told:
                assert told.readline() == "r\n"
            (directory / "new").write_text("new\n")
            (directory / "new").rename(secret)
            with ready.open("w") as go:
                go.write("g\n")
            out, err = process.communicate(timeout=60)
        assert json.loads(out)["exit_code"] == 0, err
        assert ended(tmp_state, out)["one"].out == ""
    finally:
        shutil.rmtree(directory)


def test_a_logged_call_is_evidence(tmp_state: State) -> None:
    job = {"command": "unshare -n true", "seccomp": "log"}
    found = run_jobs(tmp_state, {"one": job})["one"].record
    told = [one["what"] for one in found["evidence"] if one["source"] == "/dev/kmsg"]
    if "audit=0" in Path("/proc/cmdline").read_text().split():
        assert told == []  # as in the test guests: nothing is logged, and nothing invented
        return
    (line,) = [text for text in told if "system call unshare" in text]
    assert line.startswith("system call unshare of process ")
    assert line.endswith("('unshare'): let through, though refused by default")
