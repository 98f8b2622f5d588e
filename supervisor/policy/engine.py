"""From an event to one action: who is asked, in which order, and what becomes of their answers.

May import: `errors`, `model`, the rest of `policy`.  The job's own hook comes first, then the
policies as configured; the first answer that can be performed decides.  pluggy verified the
hooks at registration; they are not called through it, because each call needs a deadline, a
thread and a record of its own.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from attrs import evolve, frozen

from supervisor.model import Action, Event, InlineAction, JobSpec, JobView, PolicyName
from supervisor.model.event import HOOK_OF
from supervisor.policy import verdicts
from supervisor.policy.asking import Caller, Hung, Question, Reply
from supervisor.policy.inline import action_of
from supervisor.policy.registry import Policy, name_of

DEADLINE = 5.0
"""Seconds a policy may think about one event."""

PATIENCE = 3
"""Faults in a row after which a policy is asked no more."""


@frozen
class Answer:
    """What one policy said: `verdict` in words ("" where it abstained or failed), or `error`.

    `seconds` is how long it took.
    """

    policy: str
    verdict: str
    seconds: float
    error: str = ""


@frozen
class Decision:
    """The action to perform, or None; `by` the policy's name, or the hook's of the job itself."""

    action: Action | None = None
    by: str = ""
    answers: tuple[Answer, ...] = ()


@frozen
class Prepared:
    """A job as the policies' `prepare` hooks left it, and what each of them did."""

    spec: JobSpec
    answers: tuple[Answer, ...] = ()


NOBODY = Decision()
"""What becomes of an event that no policy wants."""


class Engine:
    """The policies of one instance, in the order of the configuration."""

    def __init__(
        self, policies: Iterable[Policy], call: Caller, *, deadline: float = DEADLINE
    ) -> None:
        self._call = call
        self._deadline = deadline
        self._general: dict[str, tuple[Policy, ...]] = {}
        self._added: dict[str, Policy] = {}
        self.replace(policies)

    def replace(self, policies: Iterable[Policy]) -> None:
        """Ask these from now on; questions that are under way are answered by those of before."""
        self._policies = self._added | {policy.name: policy for policy in policies}
        self._faults = dict.fromkeys(self._policies, 0)
        self._sort()

    def add(self, policies: Iterable[Policy]) -> None:
        """Those that are not known yet, to be asked by the jobs that name them."""
        new = {each.name: each for each in policies if each.name not in self._policies}
        self._added |= new
        self._policies |= new
        self._faults |= dict.fromkeys(new, 0)
        self._sort()

    @property
    def disabled(self) -> tuple[str, ...]:
        """The policies that failed too often and are asked no more."""
        return tuple(name for name, faults in self._faults.items() if faults >= PATIENCE)

    def wants(self, hook: str, spec: JobSpec) -> bool:
        """Whether anybody would be asked at `hook` for this job: if not, watch for nothing."""
        return isinstance(spec.hooks.get(hook), InlineAction) or bool(self._asked(hook, spec))

    async def decide(self, event: Event, job: JobView) -> Decision:
        """Ask until somebody decides.  Nothing that a policy raises gets out of here."""
        hook = HOOK_OF.get(type(event))
        if hook is None or not self.wants(hook, job.spec):
            return NOBODY
        answers: list[Answer] = []
        own = job.spec.hooks.get(hook)
        if isinstance(own, InlineAction):
            reply = _inline(own, hook, job, event)
            answers.append(_answer(hook, reply))
            if reply.value is not None:
                return Decision(reply.value, hook, tuple(answers))
        view = sealed(job)
        check = partial(verdicts.checked, hook=hook, job=view)
        for policy in self._asked(hook, job.spec):
            reply = await self._ask(policy, hook, {"job": view, "event": event}, check, answers)
            if reply.value is not None:
                return Decision(reply.value, policy.name, tuple(answers))
        return Decision(answers=tuple(answers))

    async def prepare(self, spec: JobSpec) -> Prepared:
        """`spec` as changed by every policy that has something to change, one after the other."""
        answers: list[Answer] = []
        for policy in self._general.get("prepare", ()):
            given = _copied(spec)
            check = partial(verdicts.checked_spec, spec=spec)
            reply = await self._ask(policy, "prepare", {"spec": given}, check, answers)
            if reply.value is not None:
                spec = _copied(reply.value)
        return Prepared(spec, tuple(answers))

    def _asked(self, hook: str, spec: JobSpec) -> tuple[Policy, ...]:
        own = spec.hooks.get(hook)
        if not isinstance(own, PolicyName):
            return self._general.get(hook, ())
        policy = self._policies.get(name_of(own.name))
        wanted = policy is not None and hook in policy.hooks and policy.name not in self.disabled
        return (policy,) if policy is not None and wanted else ()

    async def _ask(
        self,
        policy: Policy,
        hook: str,
        offered: Mapping[str, object],
        check: Callable[[object], Any],
        answers: list[Answer],
    ) -> Reply:
        """Ask one policy and note its answer and its faults."""
        implementation = policy.hooks[hook]
        arguments = {name: offered[name] for name in implementation.takes}
        question = Question(implementation.function, arguments, check, policy.source)
        began = time.monotonic()
        try:
            reply = await self._call(policy.name, question, self._deadline)
        except Hung:
            reply = Reply(error=f"no answer within {self._deadline:g} s", fault=True)
        except Exception as err:  # no thread could be had: not the policy's fault
            reply = Reply(error=f"could not be asked: {err}")
        reply = self._count(policy.name, reply)
        answers.append(_answer(policy.name, reply, time.monotonic() - began))
        return reply

    def _count(self, name: str, reply: Reply) -> Reply:
        if name not in self._faults:
            return reply  # it has been replaced meanwhile
        if not reply.fault:
            # One that was disabled meanwhile stays so: its other calls were under way already.
            if self._faults[name] < PATIENCE:
                self._faults[name] = 0
            return reply
        self._faults[name] += 1
        if self._faults[name] != PATIENCE:
            return reply
        self._sort()
        return evolve(reply, error=f"{reply.error}; disabled after {PATIENCE} faults in a row")

    def _sort(self) -> None:
        """Which policies hear of each hook, worked out ahead: an event costs one look-up."""
        self._general = {}
        for name, policy in self._policies.items():
            if policy.general and name not in self.disabled:
                for hook in policy.hooks:
                    self._general[hook] = (*self._general.get(hook, ()), policy)


def sealed(job: JobView) -> JobView:
    """A copy for plugins' eyes: to write into its mappings raises TypeError."""
    spec = evolve(job.spec, environment=_proxy(job.spec.environment), hooks=_proxy(job.spec.hooks))
    return evolve(job, spec=spec, raised=_proxy(job.raised))


def _proxy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return MappingProxyType({key: _proxy(each) for key, each in value.items()})
    if isinstance(value, InlineAction):
        return evolve(value, arguments=_proxy(value.arguments))
    return value


def _copied(spec: JobSpec) -> JobSpec:
    """The same job with dicts of its own: what a plugin does to them later changes nothing."""
    return evolve(spec, environment=dict(spec.environment), hooks=copy.deepcopy(dict(spec.hooks)))


def _inline(own: InlineAction, hook: str, job: JobView, event: Event) -> Reply:
    try:
        return Reply(verdicts.checked(action_of(own, job, event), hook, job))
    except (verdicts.Refused, verdicts.Nonsense) as err:
        return Reply(error=f"refused: {err}")
    except (LookupError, TypeError) as err:  # only a plugin's `prepare` can have written it
        return Reply(error=f'"{own.action}" cannot be read: {err}')


def _answer(name: str, reply: Reply, seconds: float = 0.0) -> Answer:
    verdict = "" if reply.value is None else _words(reply.value)
    return Answer(name, verdict, seconds, reply.error)


def _words(value: Action | JobSpec) -> str:
    return "changed the job" if isinstance(value, JobSpec) else str(value)
