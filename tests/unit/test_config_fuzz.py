"""Whatever a file says: a configuration or a ConfigError, and soon.  Never a traceback."""

from __future__ import annotations

import argparse
import time

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor.errors import ConfigError
from supervisor.front import example
from supervisor.front.config import Config, add_job_flags, from_flags, parse, show
from supervisor.front.schema import BOOLEAN, JOB, SUPERVISOR, TOP
from supervisor.front.show import toml
from supervisor.model import HOOKS
from tests.unit.test_config_parse import CONTEXT

EXAMPLE = example.text()
SECONDS = 5.0
"""Far above what any of these takes (some milliseconds), far below a hang."""

calmly = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def attempt(text):
    """Parse; a result must be showable and read back, a failure must name the file."""
    began = time.monotonic()
    try:
        config = parse(text, "fuzz.toml", CONTEXT)
    except ConfigError as err:
        assert err.problems
        assert all(problem.startswith("fuzz.toml:") for problem in err.problems)
        assert all("\n" not in problem for problem in err.problems)
    else:
        assert isinstance(config, Config)
        assert parse(show(config), "again.toml", CONTEXT).jobs == config.jobs
    assert time.monotonic() - began < SECONDS


KEYS = sorted(
    {part for one in (*JOB.settings, *SUPERVISOR.settings) for part in one.path}
    | {*TOP, *HOOKS, "action", "to", "limits", "source", "target", "one", "two"}
)
WORDS = [
    "max", "50%", "1G", "10s", "-1s", "host", "none", "/a", "../b", "/..", "", "{a}", "one", "two",
    "TERM", "raise", "retry", "kill", "signal", "a:b", "/a:/b:ro", "/s:size=1M", "\0",
    "on-oom", "0-3", "nobody", "succeeded", "é", "\ud7ff", "x" * 300,
]  # fmt: skip
leaves = (
    st.sampled_from(WORDS)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
    | st.integers()
    | st.floats()
    | st.booleans()
    | st.dates()
)
keys = st.sampled_from(KEYS) | st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=20,
)
examples = {one.key: one.example for one in JOB.settings}
settings_of_a_job = st.dictionaries(st.sampled_from([one.path[0] for one in JOB.settings]), trees)


def document(tables):
    return "".join(f"{toml(key)} = {toml(value)}\n" for key, value in tables.items())


@calmly
@given(st.dictionaries(keys, trees, max_size=5))
def test_random_documents(tables):
    attempt(document(tables))


@calmly
@given(
    st.dictionaries(st.sampled_from(["one", "two", "a@b=c"]), settings_of_a_job, max_size=3),
    settings_of_a_job,
    st.dictionaries(st.sampled_from([one.path[0] for one in SUPERVISOR.settings]), trees),
)
def test_random_jobs(jobs, defaults, supervisor):
    for job in jobs.values():
        job.setdefault("command", ["true"])
    attempt(document({"supervisor": supervisor, "defaults": defaults, "jobs": jobs}))


@calmly
@given(st.text(alphabet="[]{}=.,\"'#\\ \n\rabjosu01-:T\u2028", max_size=60))
def test_random_text(text):
    attempt(text)


@calmly
@given(
    st.lists(
        st.tuples(
            st.integers(0, len(EXAMPLE)),
            st.integers(0, 40),
            st.sampled_from([*WORDS[:-1], "[", "]", "{", "}", '"', '"""', "\n", "=", ".", "#", "0"])
            | st.text(max_size=3),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_mutations_of_the_example(edits):
    text = EXAMPLE
    for at, removed, added in edits:
        text = text[:at] + added + text[at + removed :]
    attempt(text)


@calmly
@given(st.permutations(EXAMPLE.splitlines(keepends=True)[:110]), st.integers(0, 110))
def test_lines_of_the_example_in_any_order(lines, count):
    attempt("".join(lines[:count]))


@calmly
@given(
    st.lists(
        st.tuples(
            st.sampled_from(
                [one.flag for one in JOB.settings if one.flag and one.kind is not BOOLEAN]
            ),
            st.sampled_from(WORDS) | st.text(max_size=8),
        ),
        max_size=6,
    ),
    st.lists(st.text(max_size=5), max_size=2),
)
def test_random_flags(pairs, command):
    parser = argparse.ArgumentParser(exit_on_error=False)
    add_job_flags(parser)
    args = parser.parse_args([f"--{flag}={value}" for flag, value in pairs])
    args.command = command
    try:
        from_flags(args, CONTEXT)
    except ConfigError as err:
        assert err.problems
