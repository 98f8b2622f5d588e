"""The flags of `supervise run`: one for each setting, the same values as in a file."""

from __future__ import annotations

import argparse

import pytest

from supervisor.errors import ConfigError
from supervisor.front.config import add_job_flags, config_from_flags, from_flags
from supervisor.front.flags import where
from supervisor.front.schema import JOB
from supervisor.policy import registry
from tests.unit.test_config_parse import CONTEXT, job

WITHOUT = {"command", "script", "after", "matrix.*", "priority", "reach", "stdin", "terminal"} | {
    f"log.{key}" for key in ("max_size", "keep", "sink", "on_full")
}
"""What stands on the command line itself, or means nothing for a single job."""


IN_A_FILE = """
[supervisor]
plugins = ["./p.py"]
[jobs.true]
command = ["true", "-x"]
limits.memory = "64M"
limits.memory_high = "48M"
limits.memory_low = "16M"
limits.swap = 0
limits.swappiness = 3
limits.pids = 32
limits.cpus = 1.5
limits.cpu_weight = 7
limits.cpuset = "0"
limits.open_files = 9
limits.io = [{ path = "/srv", read_bps = "50M", write_iops = 3 }]
root = "./r"
write = "overlay"
keep = "always"
volumes = ["a:/v:ro"]
copy_out = ["/a/b", "/c"]
mounts = ["/a:/b:ro", "x:/c"]
tmpfs = ["/s:size=1M"]
network = "bridge"
ports = ["80:8080", "[::1]:53:53"]
egress = ["10.0.0.0/8:443"]
dns = ["9.9.9.9"]
bandwidth = "1M"
user = 65534
group = "nogroup"
user_namespace = { host_id = 100, size = 200 }
time_offset = "-1h"
proc = "limits"
hostname = "h"
environment = { K = "V=W", "A.B" = "" }
working_dir = "/w"
timeout = "10s"
cpu_time = 3
stop = { signal = "INT", grace = "1s" }
restart = { when = "on-oom", attempts = "max", backoff = "2s", max_backoff = "5s" }
on_start = { action = "notify", message = "a:b" }
on_memory_limit = { action = "raise", to = "1G" }
on_oom_kill = { action = "retry", limits = { memory = "1G" }, after = "3s" }
on_pids_limit = { action = "kill" }
on_pressure = { action = "freeze" }
pressure = { memory = "max", io = "50%" }
on_timeout = { action = "signal", signal = "HUP" }
on_exit = { action = "ignore" }
on_tick = "p"
oom = "continue"
expect = "oom"
"""


def parsed(*argv):
    parser = argparse.ArgumentParser(allow_abbrev=False, exit_on_error=False)
    add_job_flags(parser)
    parser.add_argument("command", nargs="*")
    return parser.parse_args([*argv, "--", "true", "-x"])


def flags(*argv):
    return from_flags(parsed(*argv), CONTEXT)


def wrong(*argv):
    with pytest.raises(ConfigError) as caught:
        flags(*argv)
    return list(caught.value.problems)


def test_each_setting_has_a_flag_or_a_reason_for_none():
    assert {one.key for one in JOB.settings if not one.flag} == WITHOUT
    names = [one.flag for one in JOB.settings if one.flag]
    assert len(set(names)) == len(names)


def test_flags_say_what_a_file_says():
    spec = flags(
        "--memory", "64M", "--memory-high", "48M", "--memory-low", "16M", "--swap", "0",
        "--swappiness", "3", "--pids", "32", "--cpus", "1.5",
        "--cpu-weight", "7", "--cpuset", "0", "--open-files", "9",
        "--io", "/srv:read_bps=50M,write_iops=3", "--root", "./r", "--write", "overlay", "--keep",
        "--copy-out", "/a/b", "--copy-out", "/c", "--volume", "a:/v:ro",
        "--mount", "/a:/b:ro", "--mount", "x:/c", "--tmpfs", "/s:size=1M", "--network", "bridge",
        "--port", "80:8080", "--port", "[::1]:53:53/tcp", "--egress", "10.0.0.0/8:443", "--dns",
        "9.9.9.9", "--bandwidth", "1M",
        "--user", "65534", "--group", "nogroup", "--user-namespace", "100:200",
        "--time-offset=-1h", "--proc", "limits", "--hostname", "h", "--env", "K=V=W",
        "--env", "A.B=", "--working-dir", "/w", "--timeout", "10s", "--cpu-time", "3",
        "--stop-signal", "2", "--stop-grace", "1s",
        "--restart-when", "on-oom", "--restart-attempts", "max", "--restart-backoff", "2s",
        "--restart-max-backoff", "5s", "--on-start", "notify:a:b", "--on-memory-limit", "raise:1G",
        "--on-oom-kill", "retry:memory=1G,after=3s", "--on-pids-limit", "kill",
        "--on-pressure", "freeze", "--pressure-memory", "max", "--pressure-io", "50%",
        "--on-timeout", "signal:HUP", "--on-exit", "ignore", "--on-tick", "p", "--oom", "continue",
        "--expect", "oom", "--plugin", "./p.py",
    )  # fmt: skip
    assert spec == job(IN_A_FILE, "true")


def test_an_instance_for_the_job_and_its_policies():
    parser = argparse.ArgumentParser()
    add_job_flags(parser)
    args = parser.parse_args(["--plugin", "grow-memory", "--plugin", "./p.py"])
    args.command = ["./dir/my prog"]
    config = config_from_flags(args, "run-1", CONTEXT)
    assert config.supervisor.name == "run-1"
    assert config.supervisor.plugins == ("grow-memory", "/etc/batch/p.py")
    assert str(config.supervisor.state_dir) == "/var/lib/supervise"
    assert [one.name for one in config.jobs] == ["my-prog"]


def test_no_flags_at_all():
    assert flags() == job("[jobs.true]\ncommand = ['true', '-x']", "true")


def test_all_wrong_flags_are_told_at_once_by_their_names():
    problems = wrong(
        "--memory", "64Q", "--env", "KV", "--env", "=x", "--mount", "a", "--io", "/x:foo=3",
        "--on-timeout", "b/oo", "--plugin", "a/b", "--timeout=-3s", "--on-exit", "raise:3",
        "--user-namespace", "1", "--keep",
    )  # fmt: skip
    assert {problem.partition(":")[0] for problem in problems} == {
        "--memory", "--env", "--mount", "--io", "--on-timeout", "--plugin", "--timeout",
        "--on-exit", "--user-namespace", "--keep",
    }  # fmt: skip
    assert len(problems) == 11


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--hostname", "a\0b"], "--hostname: contains a NUL character"),
        (["--swap", "0"], "--swap: a swap limit needs limits.memory beside it"),
        (["--pids", "1e3"], "--pids: must be an integer from 1 to 4194304"),
        (["--pids", "9" * 5000], "--pids: must be an integer from 1 to 4194304"),
        (["--cpus", "inf"], "--cpus: must be a number"),
        (["--on-memory-limit", "raise:1G"], "--on-memory-limit: raises limits.memory"),
        (["--on-memory-limit", "raise"], '--on-memory-limit: lacks "to"'),
        (["--on-memory-limit", "freeze:1"], "--on-memory-limit: unknown key"),
        (["--on-memory-limit", "retry:memory"], "--on-memory-limit: must be a size"),
        (["--io", "/srv"], "--io: limits nothing"),
        (["--network", "bridges"], '--network: must be "none" or "host" or "bridge"'),
        (["--port", "80:80"], '--port: needs network = "bridge"'),
        (["--mount", "/a:/b", "--tmpfs", "/b"], "--tmpfs: two mounts at /b"),
    ],
)
def test_a_wrong_flag(argv, problem):
    assert len(wrong(*argv)) == 1
    assert wrong(*argv)[0].startswith(problem)


def test_the_help_can_be_printed():
    parser = argparse.ArgumentParser()
    add_job_flags(parser)
    text = parser.format_help()
    assert all(f"--{one.flag}" in text for one in JOB.settings if one.flag)
    assert "`" not in text


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--on-timeout", "grow-mem"], '--on-timeout: no policy is called "grow-mem"'),
        (["--on-timeout", "/no/mine.py"], "--on-timeout: policy /no/mine.py: no such file"),
        (["--plugin", "grow-mem"], '--plugin: no policy is called "grow-mem"'),
    ],
)
def test_a_policy_that_cannot_be_loaded_is_told_by_its_flag(argv, problem):
    config = config_from_flags(parsed(*argv), context=CONTEXT)
    with pytest.raises(ConfigError) as caught:
        registry.load(config.supervisor.plugins, config.policies, config.jobs, where=where)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(problem)


def test_a_mount_is_writable_unless_it_says_ro():
    spec = flags("--mount", "/a:/b", "--mount", "/c:/d:ro")
    assert [mount.read_only for mount in spec.mounts] == [False, True]
