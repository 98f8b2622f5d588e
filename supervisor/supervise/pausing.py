"""Who wants a run frozen, a policy or a person, and how long it has gone on meanwhile.

May import: `errors`, `model`, `supervise.run` (for its type only), trio.  It is frozen while
anybody wants it to be: neither undoes what the other has asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from supervisor.errors import KernelError, StateError
from supervisor.model.state import State

if TYPE_CHECKING:
    from supervisor.supervise.run import Run


class Freezing:
    """Of one run: `paused` names the person who has paused it, "" for nobody."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._by_policy = False
        self.paused = ""
        self._began: float | None = None
        self._paused_at = 0.0
        self._paused_for = 0.0

    @property
    def frozen(self) -> bool:
        return self._by_policy or bool(self.paused)

    def begin(self) -> None:
        """The command runs: from now on time counts."""
        self._began = trio.current_time()

    def elapsed(self) -> float:
        """Seconds since the command began, those in which a person had it paused left out."""
        if self._began is None:
            return 0.0
        now = self._paused_at if self.paused else trio.current_time()
        return now - self._began - self._paused_for

    def freeze(self) -> None:
        """For a policy.  A failure is told in a warning."""
        self._for_policy(True)

    def thaw(self) -> None:
        self._for_policy(False)

    def _for_policy(self, frozen: bool) -> None:
        try:
            self._apply(by_policy=frozen, paused=self.paused)
        except KernelError as error:
            self._run.warn(f"cannot {'freeze' if frozen else 'thaw'}: {error}")

    def pause(self, by: str) -> None:
        """For a person.  Raises StateError where the job cannot be paused (now)."""
        if self.paused:
            raise StateError(f"it is paused already, by {self.paused}")
        self._for_person(by)
        self._paused_at = trio.current_time()
        self._run.pulse()

    def resume(self) -> None:
        """Raises StateError where nobody has paused it."""
        if not self.paused:
            why = "a policy has frozen it" if self._by_policy else f"it is {self._run.state}"
            raise StateError(f"it is not paused: {why}")
        self._for_person("")
        self._paused_for += trio.current_time() - self._paused_at
        self._run.pulse()

    def _for_person(self, by: str) -> None:
        try:
            self._apply(by_policy=self._by_policy, paused=by)
        except KernelError as error:
            raise StateError(f"cannot {'pause' if by else 'resume'} it: {error}") from error

    def _apply(self, *, by_policy: bool, paused: str) -> None:
        wanted = by_policy or bool(paused)
        if wanted != self.frozen:
            cgroup = self._run.cgroup
            (cgroup.freeze if wanted else cgroup.thaw)()
        self._by_policy, self.paused = by_policy, paused
        held = not wanted and self._run.is_held()
        self._run.set_state(State.FROZEN if wanted else State.HELD if held else State.RUNNING)
