"""`check --show`: what it prints reads back as the same configuration."""

from __future__ import annotations

import tomllib
from datetime import UTC, date, datetime, time
from pathlib import Path

from attrs import evolve
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor.front import example
from supervisor.front.config import Config, Context, SupervisorSettings, parse, show
from supervisor.front.matrix import group_of
from supervisor.front.show import toml
from supervisor.model import (
    HOOKS,
    Device,
    Egress,
    InlineAction,
    IoLimit,
    JobSpec,
    Limits,
    Mount,
    PolicyName,
    Port,
    Reason,
    Restart,
    Stop,
    Tmpfs,
    UserNamespace,
)
from supervisor.model.job import HIDDEN, Capabilities, Rlimits
from supervisor.model.units import LARGEST_SIZE, LONGEST
from tests.unit.test_config_flags import IN_A_FILE
from tests.unit.test_config_parse import CONTEXT, read

ELSEWHERE = Context(Path("/elsewhere"), memory=lambda: 1, uid=7, environment={})
SETTINGS = SupervisorSettings("x", Path("/s"), Path("/r"), ("p", "/q.py"), pool="10.80.0.0/24")

text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
sizes = st.integers(4096, LARGEST_SIZE)
times = st.floats(0.001, LONGEST)
names = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}", fullmatch=True)
paths = st.lists(st.from_regex(r"[a-z\" \\{}é]{1,5}", fullmatch=True), min_size=1, max_size=3).map(
    lambda parts: "/" + "/".join(parts)
)


def maybe(strategy):
    return st.none() | strategy


def hooks():
    changed = st.fixed_dictionaries({"memory": sizes}, optional={"pids": st.integers(1, 999)})
    retry = st.fixed_dictionaries({"limits": changed, "after": times})
    action = st.one_of(
        st.builds(InlineAction, st.just("retry"), retry),
        st.builds(InlineAction, st.just("notify"), st.fixed_dictionaries({"message": text})),
        st.just(InlineAction("ignore", {})),
        st.sampled_from([PolicyName("p"), PolicyName("/x/q.py")]),
    )
    return st.dictionaries(st.sampled_from(HOOKS), action)


io_limits = st.builds(IoLimit, path=paths, read_bps=sizes, write_iops=maybe(st.integers(1, 9)))
limits = st.builds(
    Limits,
    memory=sizes,
    swap=maybe(sizes),
    memory_low=maybe(st.just(4096)),
    pids=maybe(st.integers(1, 4194304)),
    cpus=maybe(st.floats(0.01, 8192)),
    cpu_weight=maybe(st.integers(1, 10000)),
    cpuset=maybe(st.just("0-2,4")),
    io=st.lists(io_limits, max_size=2).map(tuple),
    open_files=maybe(st.integers(3, 9999)),
    output=maybe(sizes),
)
published = st.builds(
    Port, st.integers(1, 65535), st.integers(1, 65535), maybe(st.sampled_from(["10.1.2.3", "::1"]))
)
destinations = st.sampled_from(
    [Egress("10.0.0.0/8"), Egress("2001:db8::/32", 53, "udp"), Egress("192.0.2.1/32", None, "tcp")]
)
jobs = st.builds(
    JobSpec,
    name=names | names.map(lambda name: f"{name}@a=1+b=x.y"),
    command=st.lists(text, max_size=3).map(lambda rest: ("run", *rest)),
    root=st.just("host") | paths,
    write=st.just("overlay"),
    keep=st.sampled_from(["never", "on-failure", "always"]),
    copy_out=st.lists(paths, max_size=2).map(tuple),
    hide=st.sampled_from([HIDDEN, (), (*HIDDEN, "/srv/x y")]),
    capabilities=st.sampled_from([Capabilities(), Capabilities(("NET_RAW",), ("ALL",))]),
    seccomp=st.just("log") | paths,
    landlock=st.sampled_from(["auto", "require", "off"]),
    rlimits=st.builds(Rlimits, core=maybe(sizes), nproc=maybe(st.integers(1, 9))),
    oom_score_adj=st.integers(-1000, 1000),
    mounts=st.lists(st.builds(Mount, paths, paths, st.booleans()), max_size=1).map(tuple),
    tmpfs=st.tuples(maybe(sizes), maybe(st.integers(1, 99))).map(
        lambda both: (Tmpfs("/tmpfs of mine", *both),)
    ),
    devices=maybe(st.sampled_from(["r", "rw", "rwm"])).map(
        lambda access: (Device("/dev/a:b", "/dev/c", access),) if access else ()
    ),
    network=st.just("bridge"),
    ports=st.lists(published, max_size=2).map(tuple),
    egress=maybe(st.lists(destinations, max_size=2).map(tuple)),
    dns=maybe(st.lists(st.just("192.0.2.1"), max_size=1).map(tuple)),
    bandwidth=maybe(st.integers(4096, 2**32 - 1)),
    user=maybe(names),
    user_group=maybe(names),
    user_namespace=st.sampled_from(
        [UserNamespace(), UserNamespace("self"), UserNamespace("map", 0, 9)]
    ),
    time_offset=maybe(st.floats(-LONGEST, LONGEST)),
    proc=st.sampled_from(["host", "limits"]),
    hostname=maybe(st.just("h-1")),
    environment=st.dictionaries(text.filter(lambda key: key and "=" not in key), text, max_size=3),
    working_dir=paths,
    limits=limits,
    timeout=maybe(times),
    cpu_time=maybe(times),
    stop=st.builds(Stop, st.just("HUP"), times),
    restart=st.builds(
        Restart, st.just("on-oom"), maybe(st.integers(1, 9)), st.floats(0, 60), st.just(LONGEST)
    ),
    priority=st.integers(-1000000, 1000000),
    hooks=hooks(),
    oom=st.sampled_from(["kill", "continue"]),
    expect=st.sampled_from([str(reason) for reason in Reason]),
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # a job has many settings
@given(st.lists(jobs, min_size=1, max_size=3, unique_by=lambda job: job.name))
def test_any_job_reads_back_as_itself(specs):
    specs = [evolve(spec, group=group_of(spec.name)) for spec in specs]
    specs[-1] = evolve(specs[-1], after=tuple(
        spec.name for spec in specs[:-1] if spec.group != specs[-1].group
    ))  # fmt: skip
    shown = show(Config("x", SETTINGS, tuple(specs)))
    again = parse(shown, "elsewhere.toml", ELSEWHERE)
    assert again.jobs == tuple(specs)
    assert again.supervisor == SETTINGS


def test_a_whole_configuration_reads_back_elsewhere():
    config = read(
        IN_A_FILE
        + """
[jobs.m]
matrix = { a = [1, 2] }
script = '''
echo "{a}" \\ \t'''
limits.memory = "50%"
[jobs.after]
command = "x"
after = ["m"]
limits.memory = "1M"
on_exit = "./mine.py"
[supervisor.capacity]
memory = "60%"
jobs = 3
[policies.p]
deep = [{ a = 1979-05-27T07:32:00Z, "b c" = [inf, -1.5, {}] }]
"""
    )
    again = parse(show(config), "/else/where.toml", ELSEWHERE)
    assert again.jobs == config.jobs
    assert again.supervisor == config.supervisor
    assert again.policies == config.policies
    assert show(again) == show(config)


def test_what_is_said_of_registries_reads_back():
    top = """images.ca = "certificates/ca.pem"
        images.insecure = ["10.0.0.9:5000"]
        images.mirrors."docker.io" = ["http://127.0.0.1:5001", "m.example/hub"]
        """
    config = read(top + "[jobs.one]\ncommand = 'x'")
    registries = config.images.registries
    assert registries.insecure == ("10.0.0.9:5000",)
    assert registries.ca == CONTEXT.base / "certificates/ca.pem"
    assert registries.mirrors == {"docker.io": ("http://127.0.0.1:5001", "m.example/hub")}
    assert parse(show(config), "y.toml", ELSEWHERE).images == config.images


def test_what_an_image_says_is_left_to_it():
    config = read(
        """
[jobs.plain]
root = "debian:12"
[jobs.said]
root = "docker://localhost:5000/a/b@sha256:%s"
entrypoint = []
command = "x"
working_dir = "/"
user = "root"
stop = { signal = "TERM", grace = "3s" }
[jobs.script]
root = "oci:./layout:tag"
script = "true"
[jobs.begun]
root = "tar:x.tar"
entrypoint = "/bin/sh -c"
"""
        % ("0" * 64)
    )
    assert [job.root for job in config.jobs] == [
        "debian:12", f"docker://localhost:5000/a/b@sha256:{'0' * 64}",
        f"oci:{CONTEXT.base}/layout:tag", f"tar:{CONTEXT.base}/x.tar",
    ]  # fmt: skip
    plain, said, script, begun = config.jobs
    assert (plain.command, plain.entrypoint, plain.working_dir, plain.stop.signal, plain.user,
            plain.write) == ((), None, "", "", None, "overlay")  # fmt: skip
    assert (said.entrypoint, said.working_dir, said.stop.signal) == ((), "/", "TERM")
    assert script.entrypoint == ()
    assert begun.entrypoint == ("/bin/sh", "-c")
    shown = show(config)
    assert parse(shown, "/else/where.toml", ELSEWHERE).jobs == config.jobs
    assert "layers" not in shown and "places" not in shown


def test_the_example_reads_back():
    config = parse(example.text(), "config.toml.example", CONTEXT)
    assert parse(show(config), "x.toml", ELSEWHERE).jobs == config.jobs


values = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | text
    | st.dates(min_value=date(1, 1, 1))
    | st.times()
    | st.datetimes()
    | st.datetimes(timezones=st.just(UTC)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_any_value_of_toml_reads_back(value):
    assert tomllib.loads(f"x = {toml(value)}") == {"x": value}


def test_dates_are_written_as_toml_has_them():
    assert toml([date(2020, 1, 2), time(3, 4), datetime(2020, 1, 2, tzinfo=UTC)]) == (
        "[2020-01-02, 03:04:00, 2020-01-02T00:00:00+00:00]"
    )
