"""Configurations that are right, and the complaints about those that are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from supervisor.errors import ConfigError
from supervisor.front import example
from supervisor.front.config import Context, default_name, load, parse
from supervisor.model import (
    Device,
    InlineAction,
    IoLimit,
    JobSpec,
    Limits,
    Mount,
    PolicyName,
    Reason,
    Restart,
    Stop,
    Tmpfs,
    UserNamespace,
    Volume,
)

CONTEXT = Context(Path("/etc/batch"), memory=lambda: 8 * 2**30, uid=0, environment={})
JOB = '[jobs.one]\ncommand = ["true"]\n'


def read(text, context=CONTEXT):
    return parse(text, "x.toml", context)


def job(text, name="one"):
    return next(one for one in read(text).jobs if one.name == name)


def wrong(text, context=CONTEXT):
    with pytest.raises(ConfigError) as caught:
        read(text, context)
    return list(caught.value.problems)


def only(text):
    problems = wrong(text)
    assert len(problems) == 1, problems
    return problems[0]


def test_a_job_that_says_nothing_has_the_defaults_of_the_model():
    assert read(JOB).jobs == (JobSpec("one", ("true",), group="one"),)


def test_everything_a_job_can_say():
    spec = job("""
[supervisor]
plugins = ["grow-memory", "./mine.py"]
[jobs.one]
command = "xz -9 'a file'"
root = "./root"
keep = true
volumes = ["cache:/c:ro", { name = "more", target = "/m/" }]
copy_out = ["/out/r.csv", "/tmp//x"]
mounts = [{ source = "data", target = "/data/", read_only = false }, "/a:/b:ro", "/c:/d"]
tmpfs = ["/scratch:size=64M", "/other", "/tmp:inodes=9", "/dev/shm:size=4K,inodes=9"]
network = "host"
user = "nobody:nogroup"
user_namespace = { host_id = 100000, size = 65536 }
time_offset = "-1h"
proc = "limits"
hostname = "worker-1"
environment = { LANG = "C", "A.B" = "=" }
working_dir = "/data"
limits = { memory = "25%", swap = 0, swappiness = 5, pids = 9, cpus = 1.5, cpu_weight = 7 }
timeout = "10m"
cpu_time = 30
stop = { signal = "SIGint", grace = "0s" }
restart = { when = "always", attempts = "max", backoff = "2s", max_backoff = "3s" }
priority = -4
on_memory_limit = { action = "raise", to = "4G" }
on_pids_limit = { action = "raise", to = 20 }
on_oom_kill = { action = "retry", limits = { memory = "50%", cpus = 2 }, after = "1s" }
on_exit = "mine"
oom = "continue"
expect = "oom"
""")
    gib = 2**30
    assert spec == JobSpec(
        name="one",
        command=("xz", "-9", "a file"),
        group="one",
        root="/etc/batch/root",
        write="overlay",
        keep="always",
        volumes=(Volume("cache", "/c", True), Volume("more", "/m", False)),
        copy_out=("/out/r.csv", "/tmp/x"),
        mounts=(
            Mount("/etc/batch/data", "/data", False),
            Mount("/a", "/b", True),
            Mount("/c", "/d", False),
        ),
        tmpfs=(
            Tmpfs("/scratch", 64 * 2**20),
            Tmpfs("/other"),
            Tmpfs("/tmp", None, 9),
            Tmpfs("/dev/shm", 4096, 9),
        ),
        network="host",
        user="nobody",
        user_group="nogroup",
        user_namespace=UserNamespace("map", 100000, 65536),
        time_offset=-3600.0,
        proc="limits",
        hostname="worker-1",
        environment={"LANG": "C", "A.B": "="},
        working_dir="/data",
        limits=Limits(2 * gib, 0, 5, 9, 1.5, 7),
        timeout=600.0,
        cpu_time=30.0,
        stop=Stop("INT", 0.0),
        restart=Restart("always", None, 2.0, 3.0),
        priority=-4,
        hooks={
            "on_memory_limit": InlineAction("raise", {"limit": "memory", "to": 4 * gib}),
            "on_pids_limit": InlineAction("raise", {"limit": "pids", "to": 20}),
            "on_oom_kill": InlineAction(
                "retry", {"limits": {"memory": 4 * gib, "cpus": 2.0}, "after": 1.0}
            ),
            "on_exit": PolicyName("mine"),
        },
        oom="continue",
        expect="oom",
    )


@pytest.mark.parametrize(
    ("written", "device"),
    [
        ("'/dev/fuse'", Device("/dev/fuse", "/dev/fuse", "rw")),
        ("'/dev/sr0:r'", Device("/dev/sr0", "/dev/sr0", "r")),
        ("'/dev/sr0:mr'", Device("/dev/sr0", "/dev/sr0", "rm")),
        ("'/dev/sda1:/dev/disk'", Device("/dev/sda1", "/dev/disk", "rw")),
        ("'/dev/sda1:/data/disk:r'", Device("/dev/sda1", "/data/disk", "r")),
        ("{ path = '/dev/a:b' }", Device("/dev/a:b", "/dev/a:b", "rw")),
        ("{ path = '/dev/a', target = '/dev/b', access = 'rwm' }",
         Device("/dev/a", "/dev/b", "rwm")),
    ],
)  # fmt: skip
def test_devices(written, device):
    assert job(JOB + f"devices = [{written}]").devices == (device,)


def test_io_cpuset_and_open_files():
    limits = job(
        JOB + 'limits = { cpuset = "0-1, 3", open_files = 64, io = [{ path = "/srv", '
        'read_bps = "1M", write_iops = 5 }] }'
    ).limits
    assert limits == Limits(
        cpuset="0-1,3", open_files=64, io=(IoLimit("/srv", read_bps=2**20, write_iops=5),)
    )


def test_the_supervisor():
    config = read(
        """
[supervisor]
name = "nightly"
state_dir = "state"
plugins = ["grow-memory", "./policies/mine.py"]
on_missing = "warn"
cgroup_parent = "/batch.slice"
capacity = { memory = "50%", cpus = 4, jobs = 16 }
[policies.mine]
max = "8G"
"""
        + JOB
        + "limits = { memory = '1G', cpus = 1 }"
    )
    supervisor = config.supervisor
    assert supervisor.name == "nightly"
    assert supervisor.state_dir == Path("/etc/batch/state")
    assert supervisor.runtime_dir == Path("/run/supervise")
    assert supervisor.plugins == ("grow-memory", "/etc/batch/policies/mine.py")
    assert supervisor.on_missing == "warn"
    assert supervisor.cgroup_parent == "/batch.slice"
    assert supervisor.capacity.memory == 4 * 2**30
    assert (supervisor.capacity.cpus, supervisor.capacity.jobs) == (4.0, 16)
    assert config.policies == {"mine": {"max": "8G"}}
    assert config.where("policies", "mine", "max") == "x.toml:10"


@pytest.mark.parametrize(
    ("environment", "state", "runtime"),
    [
        (
            {"HOME": "/home/a", "XDG_RUNTIME_DIR": "/run/user/1"},
            "/home/a/.local/state/supervise",
            "/run/user/1/supervise",
        ),
        (
            {"XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "relative"},
            "/s/supervise",
            "/s/supervise/run",
        ),
    ],
)
def test_where_an_ordinary_user_keeps_state(environment, state, runtime):
    settings = read(JOB, Context(Path("/"), uid=1000, environment=environment)).supervisor
    assert (str(settings.state_dir), str(settings.runtime_dir)) == (state, runtime)


@pytest.mark.parametrize(
    ("filename", "name"),
    [("nightly.toml", "nightly"), ("/a/config.toml.example", "config"), ("my jobs.toml", "my-jobs"),
     (".toml", "supervise"), ("plain", "plain")],
)  # fmt: skip
def test_an_instance_is_named_after_its_file(filename, name):
    assert default_name(filename) == name


def test_defaults_are_merged_key_by_key_and_lists_and_hooks_replaced():
    text = """
[defaults]
script = "exit 1"
limits = { memory = "1G", pids = 5 }
environment = { A = "1", B = "1" }
tmpfs = ["/a"]
timeout = "1m"
on_exit = { action = "notify", message = "x" }
[jobs.one]
command = ["true"]
limits.pids = 7
environment.B = "2"
tmpfs = ["/b"]
timeout = "max"
on_exit = { action = "ignore" }
[jobs.two]
limits.memory = "max"
"""
    one, two = job(text), job(text, "two")
    assert one.command == ("true",)
    assert one.limits == Limits(memory=2**30, pids=7)
    assert one.environment == {"A": "1", "B": "2"}
    assert one.tmpfs == (Tmpfs("/b"),)
    assert one.timeout is None
    assert one.hooks == {"on_exit": InlineAction("ignore", {})}
    assert two.command == ("/bin/sh", "-eu", "-c", "exit 1")
    assert two.limits == Limits(pids=5)
    assert two.timeout == 60


def test_all_problems_come_at_once_with_their_lines_and_in_their_order():
    problems = wrong("""
[supervisor]
nmae = "x"
[defaults]
limits = { memory = "lots" }
[jobs.one]
command = ["true"]
limits.memroy = "1G"
[jobs.two]
timeout = "soon"
""")
    assert problems == [
        'x.toml:3: supervisor.nmae: unknown key; did you mean "name"?',
        'x.toml:5: defaults.limits.memory: must be a size like "512M", "50%", "max", not "lots": '
        "not a number with one of the units K, M, G, T",
        'x.toml:8: jobs.one.limits.memroy: unknown key; did you mean "memory"?',
        "x.toml:9: jobs.two: has neither a command nor a script",
        'x.toml:10: jobs.two.timeout: must be a duration like "500ms", "10s", "1h30m" or "max", '
        'not "soon": not a number with one of the units ms, s, m, h, d',
    ]


@pytest.mark.parametrize(
    ("line", "place", "part"),
    [
        ("comand = 1", "comand", 'did you mean "command"?'),
        ("memory = 1", "memory", 'did you mean "limits.memory"?'),
        ("limits = 1", "limits", "must be a table, not 1 (an integer)"),
        ("limits.disk = '2G'", "limits.disk", 'unless write = "overlay"'),
        ("write = 'overlay'\nlimits.disk = 1", "limits.disk", "at least 1M"),
        ("limits.disk_inodes = 99", "limits.disk_inodes", "needs limits.disk"),
        ("disk_by = 'loop'", "disk_by", "needs limits.disk"),
        ("disk_by = 'zfs'", "disk_by", '"quota" or "loop"'),
        (
            "write = 'overlay'\nlimits.disk = '9M'\ndisk_by = 'tmpfs'\nkeep = true",
            "keep",
            "cannot be kept",
        ),
        ("limits.output = '-1'", "limits.output", 'a size like "512M"'),
        ("schedule = ''", "schedule", "not available in this version"),
        ("seccomp = ''", "seccomp", 'not ""'),
        ("landlock = true", "landlock", '"auto" or "require" or "off"'),
        ("seccomp = 'strict'", "seccomp", '"default", "log", "unconfined", or a path'),
        ("capabilities.add = ['NET_ROW']", "capabilities.add[0]", 'did you mean "NET_RAW"?'),
        (
            "capabilities = { add = ['ALL'], drop = ['CAP_all'] }",
            "capabilities.drop",
            "ALL is added",
        ),
        ("rlimits.cores = 0", "rlimits.cores", "unknown key"),
        ("rlimits.nproc = 0", "rlimits.nproc", "an integer from 1"),
        ("oom_score_adj = 1001", "oom_score_adj", "an integer from -1000 to 1000"),
        ("pressure = '10%'", "pressure", "a table"),
        ("pressure.memory = '0.5%'", "pressure.memory", "at least 1%"),
        ("pressure.io = 0.5", "pressure.io", 'a share like "15%"'),
        ("pressure.cpu = '101%'", "pressure.cpu", "at most at 100%"),
        ("network = 'nnoe'", "network", '"none" or "host" or "bridge"'),
        ("ports = ['80:80']", "ports", 'needs network = "bridge"'),
        ("egress = []", "egress", 'needs network = "bridge"'),
        ("network = 'host'\nbandwidth = '1M'", "bandwidth", 'needs network = "bridge"'),
        ("network = 'bridge'\nreach = ['two']", "reach", '"two" is no job'),
        ("network = 'bridge'\nports = ['80']", "ports[0]", "a port like"),
        ("network = 'bridge'\negress = ['10.0.0.1/8']", "egress[0]", "bits must be zero"),
        ("network = 'bridge'\ndns = ['localhost']", "dns[0]", "an IP address"),
        ("network = 'bridge'\nbandwidth = 1", "bandwidth", "at least 4K"),
        ("root = 'ftp://x/y'", "root", 'a root is "host", a directory'),
        ("root = 'docker://Debian'", "root", "no name of an image"),
        ("root = 'oci:'", "root", "names no path"),
        ("root = ''", "root", "is empty"),
        ("root = '/dir'\nentrypoint = 'x'", "entrypoint", "only an image has one"),
        ("root = 'debian'\nentrypoint = 5", "entrypoint", "an array of strings"),
        ("limits.memory = 0", "limits.memory", "at least 4K"),
        ("limits.memory = -1", "limits.memory", "at least 4K"),
        ("limits.memory = '0%'", "limits.memory", "above 0%"),
        ("limits.memory = true", "limits.memory", "not true (a boolean)"),
        ("limits.memory = 1.5", "limits.memory", "not 1.5 (a float)"),
        ("limits.memory = '1GB'", "limits.memory", 'write "1G"'),
        (f"limits.memory = {2**63}", "limits.memory", "at most"),
        ("limits.swap = 0", "limits.swap", "needs limits.memory"),
        ("limits.memory = '8M'\nlimits.memory_high = '8M'", "limits.memory_high", "not below"),
        ("limits.memory = '8M'\nlimits.memory_low = '9M'", "limits.memory_low", "limits.memory:"),
        ("limits.memory_high = '8M'\nlimits.memory_low = '9M'", "limits.memory_low", "_high:"),
        ("limits.cpu_idle = 1", "limits.cpu_idle", "true or false"),
        ("limits.cpu_weight = 9\nlimits.cpu_idle = true", "limits.cpu_idle", "only the idle"),
        ("limits.swappiness = 101", "limits.swappiness", "from 0 to 100"),
        ("limits.pids = 0", "limits.pids", "from 1 to"),
        ("limits.pids = '9'", "limits.pids", "an integer"),
        ("limits.cpus = 0", "limits.cpus", "from 0.01"),
        ("limits.cpus = nan", "limits.cpus", "from 0.01"),
        ("limits.cpus = -inf", "limits.cpus", "from 0.01"),
        ("limits.cpu_weight = 10001", "limits.cpu_weight", "from 1 to 10000"),
        ("limits.cpuset = '1-'", "limits.cpuset", '"0-2,4"'),
        ("limits.cpuset = '3-1'", "limits.cpuset", '"0-2,4"'),
        ("limits.cpuset = ''", "limits.cpuset", '"0-2,4"'),
        ("limits.open_files = 2", "limits.open_files", "from 3"),
        ("limits.io = [{ path = '/' }]", "limits.io[0]", "limits nothing"),
        ("limits.io = [{ read_bps = 1 }]", "limits.io[0]", 'lacks "path"'),
        ("limits.io = [{ path = '/', read_ips = 1 }]", "limits.io[0].read_ips", "read_iops"),
        ("limits.io = {}", "limits.io", "an array of tables"),
        ("timeout = 0", "timeout", "at least 1ms"),
        ("timeout = inf", "timeout", "a hundred years"),
        ("timeout = '-1s'", "timeout", "at least 1ms"),
        ("stop.signal = 'TREM'", "stop.signal", 'did you mean "TERM"?'),
        ("stop.signal = 0", "stop.signal", "a signal like"),
        ("stop.grace = -1", "stop.grace", "at least 0"),
        ("restart.when = 'oom'", "restart.when", '"on-oom"'),
        ("restart.attempts = 0", "restart.attempts", "from 1"),
        ("restart.backoff = '2m'", "restart.backoff", "longer than restart.max_backoff"),
        ("environment = { 'a=b' = '' }", 'environment."a=b"', 'has no "="'),
        ("environment = { '' = '' }", 'environment.""', "not empty"),
        ("environment = { A = 1 }", "environment.A", 'write "1"'),
        ('environment = { A = "\\u0000" }', "environment.A", "NUL"),
        ('environment = { "\\u0000" = "" }', "environment", "NUL"),
        ("mounts = [{ source = 'a', target = 'b' }]", "mounts[0].target", "an absolute path"),
        ("mounts = ['/a:/b/../../c']", "mounts[0]", 'without ".."'),
        ("mounts = ['/a:/b', '/c']", "mounts[1]", "SOURCE:TARGET"),
        ("mounts = ['/a:/b:wr']", "mounts[0]", "SOURCE:TARGET"),
        ("mounts = ['/a:/']", "mounts[0]", "cannot be mounted over"),
        ("mounts = ['/a://proc/sys']", "mounts[0]", "cannot be mounted over"),
        ("mounts = [{ source = '/a' }]", "mounts[0]", 'lacks "target"'),
        ("mounts = [{ source = '/a', target = '/b', ro = true }]", "mounts[0].ro", "unknown key"),
        ("mounts = ['/a:/b', '/c:/b/']", "mounts", "two mounts at /b"),
        ("mounts = '/a:/b'", "mounts", "an array"),
        ("tmpfs = ['/a:mode=1']", "tmpfs[0]", "size=64M"),
        ("tmpfs = ['/a:size=0']", "tmpfs[0]", "at least 4K"),
        ("tmpfs = ['/a:inodes=0']", "tmpfs[0]", "an integer from 1"),
        ("tmpfs = ['/a:size=1M,size=2M']", "tmpfs[0]", "size=64M"),
        ("tmpfs = ['/a:']", "tmpfs[0]", "size=64M"),
        ("devices = ['/dev/sr0:x']", "devices[0]", 'the letters "r", "w" and "m"'),
        ("devices = ['/dev/sr0:']", "devices[0]", 'the letters "r", "w" and "m"'),
        ("devices = ['/dev/sr0:rr']", "devices[0]", 'the letters "r", "w" and "m"'),
        ("devices = ['/dev/sr0:/a:r:w']", "devices[0]", '"PATH:TARGET:ACCESS"'),
        ("devices = ['/dev/sr0:/proc/x']", "devices[0]", "cannot be mounted over"),
        ("devices = ['/dev/pts']", "devices[0]", "a directory of the job's own"),
        ("devices = [{ target = '/dev/x' }]", "devices[0]", 'lacks "path"'),
        ("devices = ['/dev/x', '/dev/y:/dev/x']", "devices", "two mounts at /dev/x"),
        ("keep = true", "keep", "nothing to keep"),
        ("user = ''", "user", "no name or number"),
        ("user = 'a b'", "user", "no name or number"),
        ("user = 'a:'", "user", "no name or number"),
        ("user = -1", "user", "no name or number"),
        ("user = 4294967295", "user", "larger than any"),
        ("user = 'a:b'\ngroup = 'c'", "group", "already in user"),
        ("user_namespace = 'map'", "user_namespace", '"self"'),
        ("user_namespace = { host_id = 1 }", "user_namespace", 'lacks "size"'),
        ("user_namespace = { host_id = 4294967294, size = 2 }", "user_namespace", "beyond"),
        ("hostname = '-x'", "hostname", "a host name"),
        ("working_dir = 'x'", "working_dir", "an absolute path"),
        ("after = ['noe']", "after", 'did you mean "one"?'),
        ("after = 'one'", "after", "an array"),
        ("matrix = { 'a b' = [1] }", "matrix", "cannot stand in a placeholder"),
        ("matrix = { a = [] }", "matrix.a", "an empty array"),
        ("matrix = { a = [[1]] }", "matrix.a[0]", "a string or a number"),
        ("matrix = { a = [inf] }", "matrix.a[0]", "a string or a number"),
        ("priority = 1.0", "priority", "an integer"),
        ("oom = 'ignore'", "oom", '"kill" or "continue"'),
        ("expect = 'succeded'", "expect", 'did you mean "succeeded"?'),
        ("script = 'true'", "script", "not both"),
        ("on_exit = 'a b'", "on_exit", "letters, digits"),
        ("on_exit = './mine'", "on_exit", "the path of a .py file"),
        ("on_exit = 'ignore'", "on_exit", '{ action = "ignore" }'),
        ("on_exit = { action = 'raise' }", "on_exit.action", "too late"),
        ("on_exit = { }", "on_exit", 'lacks "action"'),
        ("on_tick = { action = 'rise' }", "on_tick.action", 'did you mean "raise"?'),
        ("on_tick = { action = 'kill', noww = 1 }", "on_tick.noww", 'did you mean "now"?'),
        ("on_tick = { action = 'kill', now = 1 }", "on_tick.now", "true or false"),
        ("on_tick = { action = 'signal' }", "on_tick", 'lacks "signal"'),
        ("on_tick = { action = 'retry', limits = {} }", "on_tick.limits", "changes nothing"),
        ("on_tick = { action = 'retry', limits = { io = 1 } }", "on_tick.limits.io", "unknown"),
        ("on_memory_limit = { action = 'raise' }", "on_memory_limit", 'lacks "to"'),
        ("on_memory_limit = { action = 'raise', to = 'x' }", "on_memory_limit.to", "a size"),
        ("on_memory_limit = { action = 'raise', to = '1G' }", "on_memory_limit", "does not have"),
        ("on_tick = { action = 'raise', to = 1, limit = 'io' }", "on_tick", "cannot be raised"),
    ],
)
def test_what_a_job_may_not_say(line, place, part):
    problem = only(JOB + line)
    number = 2 + len(line.split("\n"))
    assert problem.startswith(f"x.toml:{number}: jobs.one.{place}: ")
    assert part in problem


def test_a_raise_must_raise():
    text = JOB + "limits.memory = '1G'\non_memory_limit = { action = 'raise', to = '1024M' }"
    assert "would not raise limits.memory" in only(text)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "x.toml:1: jobs: no job is configured"),
        ("jobs = 1", "x.toml:1: jobs: must be a table, not 1"),
        ("[jobs]\none = 1", "x.toml:2: jobs.one: must be a table"),
        ("jbos = 1\n" + JOB, 'x.toml:1: jbos: unknown key; did you mean "jobs"?'),
        ("images = 1\n" + JOB, "x.toml:1: images: must be a table"),
        ("images.insecure = ['x/y']\n" + JOB, "images.insecure[0]: must be a host like"),
        ("images.insecure = ['u@x']\n" + JOB, "it has a user's name in it"),
        ("images.mirrors.'hub.docker.com' = []\n" + JOB, 'is "docker.io" in references'),
        ("images.mirrors.'Q.io' = []\n" + JOB, "is written in lower case"),
        ("images.mirrors.'a/b' = []\n" + JOB, "is no registry: it has more in it than a host"),
        ("images.mirrors.q = ['http://m']\n" + JOB, 'images.mirrors.q[0]: is plain HTTP: put "m"'),
        ("images.mirrors.q = ['ftp://m']\n" + JOB, "is no address of a mirror"),
        ("images.mirrors.q = 'm'\n" + JOB, "images.mirrors.q: must be an array of mirrors"),
        ("images.mirors.q = ['m']\n" + JOB, "images.mirors: unknown key"),
        ("images.ca = 1\n" + JOB, "images.ca: must be a string"),
        ("supervisor = 1\n" + JOB, "x.toml:1: supervisor: must be a table"),
        ("policies.a = 1\n" + JOB, "x.toml:1: policies.a: must be a table"),
        ("defaults = []\n" + JOB, "x.toml:1: defaults: must be a table, not an empty array"),
        ("policies.a = {}\n" + JOB, 'x.toml:1: policies.a: "a" is not in use'),
        ("supervisor.name = 'a/b'\n" + JOB, "supervisor.name: must be a name"),
        ("supervisor.name = '..'\n" + JOB, "supervisor.name: must be a name"),
        ("supervisor.plugins = ['a', 1]\n" + JOB, "supervisor.plugins[1]: must be a string"),
        ("supervisor.plugins = ['a', './a.py']\n" + JOB, "plugins[1]: the policy"),
        ("supervisor.plugins = ['./a']\n" + JOB, "the path of a .py file"),
        ("supervisor.capacity.jobs = 0\n" + JOB, "capacity.jobs: must be an integer"),
        ("supervisor.cgroup_parent = 'a'\n" + JOB, "cgroup_parent: must be an absolute path"),
        ("supervisor.on_missing = 'skip'\n" + JOB, '"refuse" or "warn"'),
        ('[jobs."a b"]\ncommand = "x"', "is no job's name"),
        ('[jobs."../a"]\ncommand = "x"', "is no job's name"),
        ('[jobs.".a"]\ncommand = "x"', "is no job's name"),
        ('[jobs."a@b"]\ncommand = "x"', "is no job's name"),
        ("[jobs.a]\ncommand = []", "it names no program"),
        ("[jobs.a]\ncommand = ' '", "it names no program"),
        ("[jobs.a]\ncommand = ['a', 1]", "jobs.a.command[1]: must be a string"),
        ('[jobs.a]\ncommand = "a \'b"', "no closing quotation"),
        ("[jobs.a]\nscript = ' '", "jobs.a.script: is empty"),
        ("x = " + "[" * 40 + "]" * 40, "nested more than 32 levels"),
        ("x = " + "[" * 9000, "x.toml: is nested too deep"),
        ("x = " + "9" * 5000, "out of range"),
        ("x = [\n1", "x.toml:2:2: "),
        ("x = 1\nx = 2", "x.toml:2:"),
        ("x = \x01", "x.toml:1:5: "),
    ],
)
def test_what_a_file_may_not_say(text, part):
    assert any(part in problem for problem in wrong(text)), wrong(text)


def test_a_job_larger_than_the_capacity_could_never_start():
    text = "[supervisor]\ncapacity = { memory = '50%', cpus = 2 }\n"
    problems = wrong(text + JOB + "limits = { memory = '5G', cpus = 3 }")
    assert len(problems) == 2
    assert "5G is more than capacity.memory, 4G; it could never start" in problems[0]


@pytest.mark.parametrize("limit", ["memory", "cpus"])
@pytest.mark.parametrize("said", ["", "limits = { memory = 'max', cpus = 'max' }"])
def test_a_job_that_the_capacity_could_not_count_is_refused(limit, said):
    text = f"[supervisor]\ncapacity.{limit} = 2\n".replace("memory = 2", "memory = '2G'")
    problem = only(text + JOB + said)
    assert problem.startswith(f"x.toml:{5 if said else 3}: jobs.one.limits.{limit}: is not set")
    assert f"set it here or in [defaults], or leave capacity.{limit} out" in problem
    value = "'9M'" if limit == "memory" else "1"
    assert read(text + JOB + f"[defaults.limits]\n{limit} = {value}")


@pytest.mark.parametrize("where", ["jobs.one", "defaults"])
@pytest.mark.parametrize("said", ["limits.memory = 'x'", "limits = 'x'"])
def test_a_wrong_limit_is_not_told_as_a_missing_one_too(where, said):
    text = "[supervisor]\ncapacity.memory = '2G'\n"
    text += (JOB if where == "defaults" else "") + f"[{where}]\n{said}\n"
    text += "" if where == "defaults" else 'command = "x"\n'
    assert f"{where}.limits" in only(text)


def test_capacity_in_jobs_alone_asks_for_no_limits():
    assert read("supervisor.capacity.jobs = 2\n" + JOB).supervisor.capacity.jobs == 2


def test_a_hook_may_name_a_policy_that_no_plugin_lists():
    config = read(
        JOB + "on_exit = 'grow-memory'\non_tick = './mine.py'\n"
        "[policies.grow-memory]\nmax = '1G'\n[policies.mine]\nx = 1\n"
    )
    hooks = config.jobs[0].hooks
    assert hooks == {
        "on_exit": PolicyName("grow-memory"),
        "on_tick": PolicyName("/etc/batch/mine.py"),
    }
    assert [*config.policies] == ["grow-memory", "mine"]


def test_arguments_of_a_policy_that_nobody_uses():
    text = JOB + "on_exit = 'grow-memory'\n[policies.grow-memori]\n"
    assert 'did you mean "grow-memory"?' in only(text)
    assert "name it in supervisor.plugins, or in a job's hook" in only(JOB + "[policies.p]\n")


def test_a_mount_is_writable_unless_it_says_otherwise():
    tables = "{ source = '/a', target = '/1' }, { source = '/a', target = '/2', read_only = true }"
    spec = job(JOB + f"mounts = [{tables}, '/a:/3', '/a:/4:ro', '/a:/5:rw']")
    assert [mount.read_only for mount in spec.mounts] == [False, True, False, True, False]
    assert spec.mounts[0] == Mount("/a", "/1")


def test_a_cycle_is_printed():
    problem = only("""
[jobs.a]
command = "x"
after = ["c"]
[jobs.b]
command = "x"
after = ["a"]
[jobs.c]
command = "x"
matrix.n = [1, 2]
after = ["b"]
""")
    assert "these wait for each other: a -> c -> c@n=1 -> b -> a" in problem


def test_a_job_that_waits_for_itself():
    assert "one -> one" in only(JOB + "after = ['one']")


def test_a_long_chain_is_no_cycle_and_no_recursion():
    chain = [f'[jobs.j{n}]\ncommand = "x"\nafter = ["j{n + 1}"]\n' for n in range(3000)]
    assert len(read("".join(chain) + '[jobs.j3000]\ncommand = "x"').jobs) == 3001


def test_every_reason_can_be_expected():
    for reason in Reason:
        assert job(JOB + f"expect = '{reason}'").expect == reason


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda path: None, "cannot read the configuration: no such file or directory"),
        (lambda path: path.mkdir(), "cannot read the configuration: is a directory"),
        (lambda path: path.write_bytes(b"a = 1\nb = '\xff'\n"), ":2: is not UTF-8"),
        (lambda path: path.write_bytes(b"#" * (4 * 2**20 + 1)), "is larger than 4 MiB"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path, make, part):
    path = tmp_path / "c.toml"
    make(path)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert caught.value.problems[0].startswith(str(path))
    assert part in caught.value.problems[0]


def test_a_path_with_a_nul():
    with pytest.raises(ConfigError, match="cannot read"):
        load(Path("a\0b"))


def test_relative_paths_start_at_the_files_directory(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(JOB + "root = './r'\nmounts = ['../a:/a']", encoding="utf-8")
    spec = load(path).jobs[0]
    assert spec.root == str(tmp_path / "r")
    assert spec.mounts[0].source == str(tmp_path.parent / "a")


def test_the_example_is_right_and_each_of_its_jobs_is_limited():
    config = load(example.path())
    assert len(config.jobs) >= 8
    for spec in config.jobs:
        assert spec.timeout is not None
        assert None not in (spec.limits.memory, spec.limits.pids, spec.limits.cpus)
    assert {one.expect for one in config.jobs} >= {"succeeded", "timeout", "policy"}
    assert example.text() == example.path().read_text(encoding="utf-8")


def test_of_an_image_a_script_has_no_entrypoint():
    problems = wrong("[jobs.one]\nroot = 'debian'\nentrypoint = 'x'\nscript = 'y'\n")
    assert problems == [
        "x.toml:3: jobs.one.entrypoint: a script is run by /bin/sh, and by nothing else"
    ]
    problems = wrong("[jobs.one]\nroot = 'debian'\nentrypoint = []\n")
    assert problems == ["x.toml:1: jobs.one: has neither a command nor a script"]
