"""`supervise plan` on imagined kernels: everything in its order, nothing done, nobody refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from attrs import evolve

from supervisor.cgroup.detect import detect
from supervisor.container import host
from supervisor.errors import ConfigError
from supervisor.front import planning
from tests.support.cgroup_tree import Hierarchies
from tests.support.policies import plugin
from tests.unit.test_cgroup_contract import KINDS

CONFIG = """
[supervisor]
name = "night"
state_dir = "{top}/state"
runtime_dir = "{top}/run"
{more}
[jobs.one]
{job}
[jobs.pair]
command = "true"
matrix.n = [1, 2]
"""
LIMITED = 'command = ["sort", "a b"]\nlimits = { memory = "64M", pids = 7 }\n'
HOLDS = ("/payload/memory.high", "/payload/memory.oom_control")
"""Where the hold is written."""

Plan = Callable[..., list[str]]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    """Plans a job on a kernel of some kind; `privileged` or not."""

    def run(
        job: str,
        more: str = "",
        *,
        kind: str = "hybrid",
        wanted: str | None = "one",
        privileged: bool = True,
    ) -> list[str]:
        v1, v2 = KINDS[kind] if kind != "none" else ((), None)
        tree = Hierarchies(tmp_path / kind, v1=v1, v2=v2)
        tree.install(monkeypatch)
        monkeypatch.setattr(
            planning, "detect", lambda name, _parent: detect(name, root=tree.root, proc=tree.proc)
        )
        look = host.look
        monkeypatch.setattr(
            planning.host, "look", lambda *at: evolve(look(*at), privileged=privileged)
        )
        path = tmp_path / "c.toml"
        path.write_text(CONFIG.format(top=tmp_path, more=more, job=job))
        before = sorted(tmp_path.rglob("*"))
        lines = list(planning.plan(path, wanted))
        assert sorted(tmp_path.rglob("*")) == before  # it only looks
        assert not any("\n" in line for line in lines)
        return lines

    return run


def is_hold(line: str) -> bool:
    """The eventfd's line names memory.oom_control too."""
    return "write " in line and line.endswith(HOLDS) and "EVENTFD" not in line


def at(lines: list[str], *parts: str) -> int:
    """Where the one line is that has all of `parts`."""
    (found,) = (n for n, line in enumerate(lines) if all(part in line for part in parts))
    return found


@pytest.mark.parametrize("kind", ["v1", "hybrid", "v2"])
def test_a_start_is_told_in_its_order(plan: Plan, kind: str) -> None:
    lines = plan(LIMITED, kind=kind)
    limit = "memory.max" if kind == "v2" else "memory.limit_in_bytes"
    order = [
        at(lines, "night (the instance):"),
        at(lines, "mkdir -p -m 0711 ", "/run/night"),
        at(lines, "mkdir -m 0711 ", "/run/night/work"),
        at(lines, "one:"),
        at(lines, "mkdir ", "/state/night/runs/RUN-one"),
        at(lines, "fallocate 512 bytes of ", "/state/night/runs/RUN-one/exit"),
        at(lines, f"write {64 << 20} > ", f"/RUN-one/payload/{limit}"),
        at(lines, "write 7 > ", "/payload/pids.max"),
        at(lines, "clone3 ", "CLONE_NEWPID", "CLONE_NEWNET", "CLONE_PIDFD"),
        at(lines, "pivot_root"),
        at(lines, "clone3 the payload"),
        at(lines, "payload: unshare CLONE_NEWCGROUP"),
        at(lines, "payload: PR_SET_NO_NEW_PRIVS"),
        at(lines, "payload: execve sort 'a b'"),
    ]
    assert order == sorted(order)
    assert "found along " in lines[-1]
    assert not any("lacking" in line for line in lines)
    for line in lines:  # the instance's own cgroup is told once, before the job
        assert lines.count(line) == 1 or not line.strip()


@pytest.mark.parametrize("kind", ["v1", "v2"])
def test_a_job_that_nobody_asked_about_is_not_held(plan: Plan, kind: str) -> None:
    lines = plan(LIMITED, kind=kind)
    assert not any(is_hold(line) for line in lines)


@pytest.mark.parametrize("kind", ["v1", "v2"])
@pytest.mark.parametrize(
    ("job", "more"),
    [
        ('on_memory_limit = { action = "raise", to = "1G" }', ""),
        ('on_memory_limit = "grow-memory"', ""),
        ("", 'plugins = ["grow-memory"]'),
    ],
)
def test_whoever_wants_it_has_the_job_held(plan: Plan, kind: str, job: str, more: str) -> None:
    lines = plan(LIMITED + job, more, kind=kind)
    (held,) = (n for n, line in enumerate(lines) if is_hold(line))
    assert at(lines, "write 7 > ", "pids.max") < held < at(lines, "CLONE_NEWPID")


def test_no_limit_no_hold(plan: Plan) -> None:
    lines = plan('command = "x"\nlimits.pids = 3', 'plugins = ["grow-memory"]')
    assert not any(is_hold(line) for line in lines)


def test_without_privilege_and_cgroups_it_tells_what_is_lacking_first(plan: Plan) -> None:
    lines = plan(LIMITED, kind="none", privileged=False)
    job = lines[lines.index("one:") + 1 :]
    lacking = [line for line in job if line.startswith("# lacking: ")]
    assert job[: len(lacking)] == lacking
    assert [line for line in lacking if "limits.memory: " in line and "(fix: " in line]
    assert [line for line in lacking if "limits.pids: " in line]
    assert "run as root" in lacking[-1] and "user_namespace" in lacking[-1]
    at(lines, "payload: execve sort")
    assert not any("memory.limit_in_bytes" in line for line in lines)


def test_a_user_namespace_needs_no_privilege(plan: Plan) -> None:
    lines = plan('command = "x"\nuser_namespace = "self"', kind="none", privileged=False)
    at(lines, "clone3 ", "CLONE_NEWUSER")
    assert at(lines, "uid_map") < at(lines, "init: setresgid 0") < at(lines, "pivot_root")
    assert not any("lacking" in line or "setgroups" in line for line in lines)


def test_what_no_privilege_would_mend_is_told_and_the_rest_goes_on(plan: Plan) -> None:
    lines = plan('command = "x"\nuser = "no-such-user"')
    at(lines, "# lacking: user: ", "no-such-user")
    at(lines, "mkdir ", "RUN-one/payload", "memory")
    assert not any("execve" in line for line in lines)
    assert any(line.startswith("# lacking: mounts: /no/root") for line in
               plan('command = "x"\nroot = "/no/root"', kind="v2"))  # fmt: skip


def test_what_a_policy_prepares_is_in_the_plan(plan: Plan, tmp_path: Path) -> None:
    mine = plugin(
        tmp_path,
        "mine",
        "import attrs\n@hookimpl\ndef prepare(spec):\n"
        "    limits = attrs.evolve(spec.limits, pids=23)\n"
        '    return attrs.evolve(spec, hostname="prepared", limits=limits)\n',
    )
    lines = plan('command = "x"', f'plugins = ["{mine}"]')
    at(lines, "# policy mine at prepare: changed the job")
    at(lines, "init: hostname prepared")
    at(lines, "write 23 > ", "pids.max")


def test_an_overlay_has_its_directories(plan: Plan, tmp_path: Path) -> None:
    overlay = plan('command = "x"\nwrite = "overlay"')
    if host.on_overlay(str(tmp_path)):
        at(overlay, "mount -t overlay", "/work/layers/upper")
    else:
        runs = f"{tmp_path}/state/night/runs/RUN-one"
        at(overlay, f"mkdir {runs}/upper {runs}/work")


def test_a_bridge_is_told_of_and_what_the_job_waits_for(plan: Plan) -> None:
    lines = plan('command = "true"\nnetwork = "bridge"\nports = ["8080:80"]\n')
    at = [
        next(n for n, line in enumerate(lines) if part in line)
        for part in ("type bridge, nft table inet supervise_", "listen on *:8080",
                     ".hosts, to be bound over /etc/hosts", "type veth peer eth0", "clone3 ",
                     "init: wait until the supervisor has connected its network")
    ]  # fmt: skip
    assert at == sorted(at)


def test_a_script_stays_one_line(plan: Plan) -> None:
    at(plan('script = "a\\nb"'), "payload: execve /bin/sh -eu", "⏎")


@pytest.mark.parametrize(
    ("wanted", "jobs"),
    [
        (None, ["one:", "pair@n=1:", "pair@n=2:"]),
        ("pair", ["pair@n=1:", "pair@n=2:"]),
        ("pair@n=2", ["pair@n=2:"]),
    ],
)
def test_one_job_a_group_or_all(plan: Plan, wanted: str | None, jobs: list[str]) -> None:
    lines = plan('command = "x"', wanted=wanted)
    heads = [line for line in lines if line[:1] not in ("", " ", "#")]
    assert heads == ["night (the instance):", *jobs]


def test_a_job_that_is_not_there(plan: Plan) -> None:
    with pytest.raises(ConfigError, match=r'no job is called "two"; there are: one, pair@n=1'):
        plan('command = "x"', wanted="two")


def test_what_shows_a_job_its_share_is_written_and_laid_over_the_kernels(plan: Plan) -> None:
    lines = plan(LIMITED + 'proc = "limits"\n')
    written = next(n for n, line in enumerate(lines) if line.startswith("  write its share > "))
    limited = next(n for n, line in enumerate(lines) if "67108864 > " in line)
    laid = next(n for n, line in enumerate(lines) if line.endswith(" /proc/meminfo"))
    assert limited < written < laid
    assert not any("its share" in line for line in plan(LIMITED, kind="v2"))
