"""What an instance asks of the configuration while it runs; `front.reader` answers.

May import: `model`, `policy.registry`, `supervise.admission`.  Every method may take a while and
raises ConfigError with all that is wrong: call it in a thread, and before anything is changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Protocol

from attrs import field, frozen

from supervisor.model.job import JobSpec
from supervisor.policy.registry import Policy
from supervisor.supervise.admission import Room


@frozen
class Read:
    """The configuration as it stands now.

    `policies_id` differs where the policies do, their code or their arguments.  `fixed` has the
    settings that no reload changes, by their keys, as text.
    """

    filename: str
    jobs: tuple[JobSpec, ...]
    policies: tuple[Policy, ...] = ()
    policies_id: str = ""
    room: Room = Room()  # noqa: RUF009 - frozen
    on_missing: Literal["refuse", "warn"] = "refuse"
    stays: bool = False
    fixed: Mapping[str, str] = field(factory=dict)


@frozen
class Submitted:
    """Jobs that somebody hands in, and the policies that their hooks name."""

    jobs: tuple[JobSpec, ...]
    policies: tuple[Policy, ...] = ()


class Reader(Protocol):
    """The configuration's parsers, which stand below.  `first` is what the instance began with."""

    first: Read

    def reload(self) -> Read:
        """Read the file again."""

    def accept(self) -> None:
        """What `reload` has read holds now: `submitted` goes by its defaults."""

    def submitted(
        self, name: str, table: Mapping[str, Any], base: str, present: Sequence[JobSpec]
    ) -> Submitted:
        """What the table of a job comes to, with the defaults of the file under it.

        Relative paths start at `base`; `present` are the jobs it may name.
        """

    def limits(self, table: Mapping[str, Any]) -> dict[str, Any]:
        """Limits as the configuration has them ("512M", "max"), in the units of `Limits`."""
