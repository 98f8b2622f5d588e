"""Asking the policies: who decides, and that a policy that misbehaves harms nobody.

The hooks run as they do in the supervisor, in threads under trio.  A hook that hangs here waits
for `release`, a file's appearance being too slow: an Event put into its module.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing
from attrs import evolve

from supervisor.model import (
    Ignore,
    InlineAction,
    KillJob,
    Notify,
    PolicyName,
    Populated,
    RaiseLimit,
    Retry,
    Tick,
)
from supervisor.policy.engine import NOBODY, PATIENCE, Engine
from supervisor.policy.registry import load
from supervisor.supervise.hookcall import HookCaller
from tests.support.policies import (
    AT_LIMIT,
    EXITED,
    HEADER,
    MIB,
    REFUSED,
    SPEC,
    engine,
    plugin,
    view,
)

SHORT = 0.2
"""Seconds of deadline where a hook never answers; where it must answer, five."""

DECIDES = """
@hookimpl
def on_memory_limit(job, event):
    return Ignore()
"""


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """What a hanging hook waits for (as `threading.release`); set when the test is over."""
    event = threading.Event()
    threading.release = event
    yield event
    event.set()
    del threading.release


def hook(body: str, *, name: str = "on_memory_limit", kind: str = "def") -> str:
    lines = "\n".join(f"    {line}" for line in body.splitlines())
    return f"@hookimpl\n{kind} {name}(job, event):\n{lines}\n"


async def test_the_first_verdict_in_configuration_order_decides(tmp_path: Path) -> None:
    abstains = plugin(tmp_path, "abstains", hook("return None"))
    kills = plugin(tmp_path, "kills", hook("return KillJob('enough')"))
    ignores = plugin(tmp_path, "ignores", DECIDES)
    decision = await engine(abstains, kills, ignores).decide(AT_LIMIT, view())
    assert (decision.action, decision.by) == (KillJob("enough"), "kills")
    assert [(each.policy, each.verdict) for each in decision.answers] == [
        ("abstains", ""), ("kills", "KillJob(why='enough', now=False)"),
    ]  # fmt: skip
    assert all(each.error == "" and 0 < each.seconds < 5 for each in decision.answers)
    decision = await engine(abstains, ignores, kills).decide(AT_LIMIT, view())
    assert (decision.action, decision.by) == (Ignore(), "ignores")


async def test_a_coroutine_has_trio_and_the_event(tmp_path: Path) -> None:
    body = "await trio.sleep(0)\nreturn RaiseLimit('memory', event.limit * 2)"
    asks = engine(plugin(tmp_path, "mine", hook(body, kind="async def")))
    decision = await asks.decide(AT_LIMIT, view())
    assert (decision.action, decision.by) == (RaiseLimit("memory", 128 * MIB), "mine")


HARMFUL = {
    "raises": ("raise KeyError('no')", "raised KeyError: 'no' (bad.py:7 in on_memory_limit)"),
    "exits": ("sys.exit(1)", "raised SystemExit: 1 (bad.py:7 in on_memory_limit)"),
    "interrupts": ("raise KeyboardInterrupt", "raised KeyboardInterrupt (bad.py:7"),
    "base": ("raise BaseException('x' * 9999)", "raised BaseException: xxx"),
    "lies": ("class E(Exception):\n  def __str__(self): sys.exit()\nraise E",
             "raised E: its text cannot be had (bad.py:9"),
    "recurses": ("on_memory_limit(job, event)", "raised RecursionError"),
    "word": ("return 'kill'", "returned str, which is no action"),
    "lower": ("return RaiseLimit('memory', 1024)", "refused: memory would be 1024, outside"),
    "nan": ("return RaiseLimit('memory', float('nan'))", "whose to is nan"),
    "generator": ("yield Ignore()", "returned generator, which is no action"),
    "writes": ("job.spec.environment['A'] = 'b'", "raised TypeError"),
    "hooks": ("del job.spec.hooks['on_exit']", "raised TypeError"),
    "counts": ("job.raised['memory'] = 0", "raised TypeError"),
    "view": ("job.reason = 'oom'", "raised FrozenInstanceError"),
    "spec": ("job.spec.name = 'x'", "raised FrozenInstanceError"),
    "event": ("event.usage = 0", "raised FrozenInstanceError"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["def", "async def"])
@pytest.mark.parametrize("harm", HARMFUL)
async def test_a_policy_that_misbehaves_is_recorded_and_the_next_decides(
    tmp_path: Path, harm: str, kind: str
) -> None:
    body, told = HARMFUL[harm]
    if kind == "async def":
        told = told.replace("returned generator", "returned async_generator")
        if harm == "recurses":
            body = "await " + body
    spec = evolve(SPEC, hooks={"on_exit": InlineAction("ignore")}, environment={"A": "a"})
    before = evolve(spec, hooks=dict(spec.hooks), environment=dict(spec.environment))
    asks = engine(plugin(tmp_path, "bad", hook(body, kind=kind)), plugin(tmp_path, "good", DECIDES))
    decision = await asks.decide(AT_LIMIT, view(spec, raised={"memory": 1}))
    assert (decision.action, decision.by) == (Ignore(), "good")
    assert decision.answers[0].policy == "bad"
    assert told in decision.answers[0].error
    assert len(decision.answers[0].error) < 500
    assert spec == before


HANGS = {
    "sync": ("def", "threading.release.wait()"),
    "async": ("async def", "await trio.sleep_forever()"),
    "blocks the loop": ("async def", "threading.release.wait()"),
    "shields itself": (
        "async def",
        "with trio.CancelScope(shield=True):\n"
        "  while not threading.release.is_set(): await trio.sleep(0.01)",
    ),
    "swallows its cancellation": (
        "async def",
        "while not threading.release.is_set():\n"
        "  try: await trio.sleep(1)\n"
        "  except BaseException: time.sleep(0.01)",
    ),
}


@pytest.mark.parametrize("how", HANGS)
async def test_a_policy_that_hangs_is_left_behind_and_the_next_decides(
    tmp_path: Path, how: str, release: threading.Event
) -> None:
    kind, body = HANGS[how]
    bad = plugin(tmp_path, "bad", hook(body, kind=kind))
    good = plugin(tmp_path, "good", DECIDES)
    asks = engine(bad, good, deadline=SHORT)
    # `good` has the same deadline: on a busy machine it may need more than one try.
    for _ in range(PATIENCE - 1):
        decision = await asks.decide(AT_LIMIT, view())
        assert decision.answers[0].error == f"no answer within {SHORT} s"
        if decision.by:
            break
    assert (decision.action, decision.by) == (Ignore(), "good")


async def test_cancellation_does_not_wait_for_a_hook_that_hangs(
    tmp_path: Path, release: threading.Event
) -> None:
    threading.entered = threading.Event()
    asks = engine(
        plugin(tmp_path, "bad", hook("threading.entered.set()\nthreading.release.wait()"))
    )
    with trio.fail_after(4):  # less than the hook's own deadline
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asks.decide, AT_LIMIT, view())
            await trio.to_thread.run_sync(threading.entered.wait)
            nursery.cancel_scope.cancel()
    del threading.entered


async def test_a_coroutine_is_cancelled_at_its_deadline_so_that_it_can_clean_up(
    tmp_path: Path,
) -> None:
    threading.cleaned = threading.Event()
    body = "try: await trio.sleep_forever()\nfinally: threading.cleaned.set()"
    asks = engine(plugin(tmp_path, "mine", hook(body, kind="async def")), deadline=SHORT)
    await asks.decide(AT_LIMIT, view())
    assert await trio.to_thread.run_sync(threading.cleaned.wait, 5)
    del threading.cleaned


async def test_one_that_hangs_does_not_take_the_threads_of_the_others(
    tmp_path: Path, release: threading.Event
) -> None:
    bad = plugin(tmp_path, "bad", hook("threading.release.wait()"))
    good = plugin(tmp_path, "good", hook("return Ignore()", name="on_pids_limit"))
    asks = engine(bad, good)
    async with trio.open_nursery() as nursery:
        for _ in range(60):  # more than trio has worker threads to give
            nursery.start_soon(asks.decide, AT_LIMIT, view())
        await trio.testing.wait_all_tasks_blocked()
        assert (await asks.decide(REFUSED, view())).action == Ignore()
        await trio.to_thread.run_sync(lambda: None)
        nursery.cancel_scope.cancel()


async def test_after_faults_in_a_row_a_policy_is_disabled_and_it_is_said(tmp_path: Path) -> None:
    asks = engine(plugin(tmp_path, "bad", hook("1/0")), plugin(tmp_path, "good", DECIDES))
    told = [(await asks.decide(AT_LIMIT, view())).answers for _ in range(PATIENCE + 1)]
    assert [answers[0].error.endswith(f"disabled after {PATIENCE} faults in a row")
            for answers in told] == [False, False, True, False]  # fmt: skip
    assert [[each.policy for each in answers] for answers in told[-2:]] == [
        ["bad", "good"],
        ["good"],
    ]
    assert asks.disabled == ("bad",)
    own = evolve(SPEC, hooks={"on_memory_limit": PolicyName("bad")})
    assert not asks.wants("on_memory_limit", own)
    assert await asks.decide(AT_LIMIT, view(own)) == NOBODY


async def test_a_good_answer_or_a_refused_one_ends_the_row(tmp_path: Path) -> None:
    body = "if job.attempt % 3: 1/0\nreturn RaiseLimit('memory', 1) if job.attempt == 3 else None"
    asks = engine(plugin(tmp_path, "moody", hook(body)))
    for attempt in range(1, 9):
        await asks.decide(AT_LIMIT, view(attempt=attempt))
    assert asks.disabled == ()


async def test_the_jobs_own_action_comes_first_and_once(tmp_path: Path) -> None:
    asks = engine(plugin(tmp_path, "good", DECIDES))
    to = 128 * MIB
    own = InlineAction("raise", {"limit": "memory", "to": to})
    spec = evolve(SPEC, hooks={"on_memory_limit": own})
    first = await asks.decide(AT_LIMIT, view(spec))
    assert (first.action, first.by) == (RaiseLimit("memory", to), "on_memory_limit")
    raised = view(spec, limits=evolve(SPEC.limits, memory=to), raised={"memory": 1})
    second = await asks.decide(AT_LIMIT, raised)
    assert (second.action, second.by) == (Ignore(), "good")
    assert [each.policy for each in second.answers] == ["on_memory_limit", "good"]


@pytest.mark.parametrize(
    "own",
    [
        InlineAction("explode"),
        InlineAction("raise", {"to": 5}),
        InlineAction("kill", {"who": "me"}),
        InlineAction("notify", {"message": 3}),
        InlineAction("thaw"),
    ],
)
async def test_an_action_that_cannot_be_read_is_recorded_and_the_policies_decide(
    tmp_path: Path, own: InlineAction
) -> None:
    asks = engine(plugin(tmp_path, "good", DECIDES))
    decision = await asks.decide(AT_LIMIT, view(evolve(SPEC, hooks={"on_memory_limit": own})))
    assert decision.by == "good"
    assert decision.answers[0].error


async def test_a_policy_named_by_its_path_is_asked(tmp_path: Path) -> None:
    spec = evolve(SPEC, hooks={"on_memory_limit": PolicyName(plugin(tmp_path, "own", DECIDES))})
    asks = Engine(load([], {}, [spec]), HookCaller())
    assert (await asks.decide(AT_LIMIT, view(spec))).by == "own"
    assert not asks.wants("on_memory_limit", SPEC)


async def test_a_policy_named_by_the_job_is_asked_alone(tmp_path: Path) -> None:
    good = plugin(tmp_path, "good", DECIDES)
    spec = evolve(SPEC, hooks={"on_memory_limit": PolicyName("grow-memory")})
    asks = Engine(load([good], {"grow-memory": {"max": "128M"}}, [spec]), HookCaller())
    decision = await asks.decide(AT_LIMIT, view(spec))
    assert (decision.action, decision.by) == (RaiseLimit("memory", 128 * MIB), "grow-memory")
    full = view(spec, limits=evolve(SPEC.limits, memory=128 * MIB))
    decision = await asks.decide(AT_LIMIT, full)
    assert decision.action is None
    assert [each.policy for each in decision.answers] == ["grow-memory"]
    other = await asks.decide(AT_LIMIT, view())  # nobody named it for this job
    assert [each.policy for each in other.answers] == ["good"]


async def test_what_nobody_wants_costs_no_call(tmp_path: Path) -> None:
    async def call(*_args: object) -> object:
        raise AssertionError("nobody is to be asked")

    policies = load([plugin(tmp_path, "good", DECIDES)])
    asks = Engine(policies, call)
    assert [asks.wants(name, SPEC) for name in ("on_memory_limit", "on_tick", "on_exit")] == [
        True, False, False,
    ]  # fmt: skip
    assert asks.wants("on_exit", evolve(SPEC, hooks={"on_exit": InlineAction("ignore")}))
    assert not asks.wants("on_exit", evolve(SPEC, hooks={"on_exit": PolicyName("good")}))
    assert not asks.wants(
        "on_memory_limit", evolve(SPEC, hooks={"on_memory_limit": PolicyName("x")})
    )
    for event in (Tick(1.0), EXITED, Populated(1.0, populated=False)):
        assert await asks.decide(event, view()) is NOBODY


async def test_no_thread_to_be_had_is_recorded_and_not_the_policys_fault(tmp_path: Path) -> None:
    async def call(*_args: object) -> object:
        raise RuntimeError("can't start new thread")

    asks = Engine(load([plugin(tmp_path, "good", DECIDES)]), call)
    for _ in range(PATIENCE + 1):
        decision = await asks.decide(AT_LIMIT, view())
        assert decision.action is None
        assert "can't start new thread" in decision.answers[0].error
    assert asks.disabled == ()


PREPARES = """
@hookimpl
def prepare(spec):
    return attrs.evolve(spec, environment={{**spec.environment, "{0}": str(len(spec.environment))}})
"""


async def test_the_changes_of_all_policies_add_up_before_a_job_starts(tmp_path: Path) -> None:
    paths = [plugin(tmp_path, name, PREPARES.format(name)) for name in ("a", "b")]
    prepared = await engine(*paths).prepare(SPEC)
    assert prepared.spec == evolve(SPEC, environment={"a": "0", "b": "1"})
    assert [(each.policy, each.verdict) for each in prepared.answers] == [
        ("a", "changed the job"), ("b", "changed the job"),
    ]  # fmt: skip
    assert SPEC.environment == {}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return attrs.evolve(spec, name='x')", "another name"),
        ("return attrs.evolve(spec, after=(spec.name,))", "another after"),
        ("return attrs.evolve(spec, limits=None)", "whose limits is NoneType"),
        ("return 3", "returned int"),
        ("spec.environment['X'] = 'y'; sys.exit()", "raised SystemExit"),
        ("spec.hooks['on_exit'].arguments['after'] = -1", ""),
    ],
)
async def test_a_bad_prepare_changes_nothing(tmp_path: Path, body: str, told: str) -> None:
    spec = evolve(SPEC, hooks={"on_exit": InlineAction("retry", {"after": 1.0})}, environment={})
    bad = plugin(tmp_path, "bad", f"@hookimpl\ndef prepare(spec):\n    {body}")
    prepared = await engine(bad).prepare(spec)
    assert prepared.spec == spec
    assert spec.hooks["on_exit"].arguments == {"after": 1.0}
    assert spec.environment == {}
    assert told in prepared.answers[0].error


async def test_what_a_policy_keeps_of_its_answer_changes_nothing_later(tmp_path: Path) -> None:
    body = "global kept\nkept = {'memory': 2**30}\nreturn Retry(kept)"
    asks = engine(plugin(tmp_path, "keeps", hook(body, name="on_exit")))
    decision = await asks.decide(EXITED, view(reason="oom"))
    importlib.import_module("supervise_policy_keeps").kept["memory"] = -1
    assert decision.action == Retry({"memory": 2**30})


async def test_notify_passes_through(tmp_path: Path) -> None:
    asks = engine(plugin(tmp_path, "tells", hook("return Notify(job.name)", name="on_exit")))
    assert (await asks.decide(EXITED, view())).action == Notify("sort")


def test_the_lines_of_the_plugins_here_are_as_counted() -> None:
    assert HEADER.count("\n") == 4


async def test_others_are_asked_once_they_have_taken_the_place(tmp_path: Path) -> None:
    """What a job handed in has brought along stays, whatever the configuration has now."""
    spec = evolve(SPEC, hooks={"on_memory_limit": PolicyName("grow-memory")})
    first, second = plugin(tmp_path, "first", DECIDES), plugin(tmp_path, "second", DECIDES)
    asks = Engine(load([first]), HookCaller())
    asks.add(load([], {"grow-memory": {"max": "128M"}}, [spec]))
    assert (await asks.decide(AT_LIMIT, view())).by == "first"
    assert (await asks.decide(AT_LIMIT, view(spec))).by == "grow-memory"
    asks.replace(load([second]))
    assert (await asks.decide(AT_LIMIT, view())).by == "second"
    assert (await asks.decide(AT_LIMIT, view(spec))).by == "grow-memory"
