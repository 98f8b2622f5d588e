"""One question to one policy: call its hook, check its answer, and let nothing out but values.

May import: `policy.verdicts`.  Who exists: the engine prepares a `Question`; a `Caller` (the one
for trio is `supervise.hookcall`) runs it in a thread of its own, under a deadline, and gives it
`finish`, which runs an `async def` hook to its end there.  Whatever runs the plugin's code, even
the text of its exceptions, happens in that thread: a plugin can hang itself, not the supervisor.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from attrs import frozen

from supervisor.policy.verdicts import Nonsense, Refused

Finish = Callable[[Coroutine[Any, Any, object]], object]
"""Runs a coroutine to its end; raises Hung when the deadline comes first."""

Ask = Callable[[Finish], "Reply"]

_LONGEST = 300
"""Characters of an exception's text that are worth writing down."""


class Hung(Exception):
    """The deadline passed before the hook came back."""


class Caller(Protocol):
    """Runs `ask` where it can do no harm; raises Hung when `deadline` seconds are over.

    `who` is the policy's name: calls of one policy must not keep those of another waiting.
    """

    async def __call__(self, who: str, ask: Ask, deadline: float) -> Reply: ...


@frozen
class Reply:
    """What came back: a checked value (None: abstained), or an error, its own `fault` or not."""

    value: Any = None
    error: str = ""
    fault: bool = False


@frozen
class Question:
    """A call of one hook: `check` makes its answer fit to be performed, or raises."""

    function: Callable[..., object]
    arguments: dict[str, object]
    check: Callable[[object], Any]
    source: str

    def __call__(self, finish: Finish) -> Reply:
        try:
            answer = self.function(**self.arguments)
            if inspect.iscoroutine(answer):
                answer = finish(answer)
            return Reply(self.check(answer))
        except Refused as err:
            return Reply(error=f"refused: {err}")
        except Nonsense as err:
            return Reply(error=str(err), fault=True)
        except Hung:
            raise
        except BaseException as err:  # sys.exit() in a plugin ends its call, not the supervisor
            return Reply(error=described(err, self.source), fault=True)


def described(err: BaseException, source: str) -> str:
    """`raised KeyError: 'x' (mine.py:12 in on_exit)`: the last place within the plugin's file."""
    try:
        text = str(err)
    except BaseException:  # its __str__ is the plugin's code
        text = "its text cannot be had"
    text = " ".join(text.split())
    told = f"raised {type(err).__name__}" + (f": {text[:_LONGEST]}" if text else "")
    frames = traceback.extract_tb(err.__traceback__)
    inside = [frame for frame in frames if frame.filename == source] or frames[-1:]
    if not inside:
        return told
    place = inside[-1]
    return f"{told} ({place.filename.rpartition('/')[2]}:{place.lineno} in {place.name})"
