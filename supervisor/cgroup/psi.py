"""Which file tells of a job's pressure, and how much there is.

For this package only.  PSI is kept by the unified hierarchy for every resource, with controllers
or without: on a hybrid host it tells of what v1 limits.  Only where there is none is v1's
memory.pressure_level left, which knows memory alone, and three levels.
"""

from __future__ import annotations

from supervisor.cgroup import files
from supervisor.cgroup.api import WINDOW, Missing, PressureSource
from supervisor.errors import KernelError
from supervisor.model.job import Resource

CRITICAL = 0.5
"""A share from which v1's "critical" stands for it; below, "medium" (mm/vmpressure.c)."""


class Psi:
    """What the host's PSI tells, looked for once; `directory`: a cgroup of the unified hierarchy.

    With psi=0 the files may be there, and reading them fails (EOPNOTSUPP).
    """

    def __init__(self, directory: str | None, proc: str) -> None:
        self._directory = directory
        self._proc = proc
        self._lacks: dict[Resource, str] = {}

    def lacks(self, resource: Resource) -> str:
        """Why it tells nothing of `resource`; "" where it does."""
        if resource not in self._lacks:
            self._lacks[resource] = self._look(resource)
        return self._lacks[resource]

    def missing(self, resource: Resource) -> Missing | None:
        why = self.lacks(resource)
        fix = "boot with psi=1, on a kernel with CONFIG_PSI"
        if self._directory is None:
            fix = "mkdir -p {0} && mount -t cgroup2 none {0}".format("/sys/fs/cgroup/unified")
        return Missing(f"pressure.{resource}", why, fix) if why else None

    def _look(self, resource: Resource) -> str:
        if self._directory is None:
            return "there is no unified hierarchy, and v1 tells of memory alone"
        path = f"{self._directory}/{resource}.pressure"
        try:
            files.read(path if files.exists(path) else f"{self._proc}/pressure/{resource}")
        except KernelError as error:
            return str(error)
        return ""


def trigger(resource: Resource, share: float, payload: str) -> PressureSource:
    """A trigger for `share` of a window: "some STALL WINDOW", in microseconds."""
    window = round(WINDOW * 1e6)
    text = f"some {round(share * window)} {window}"
    return PressureSource(resource, "psi", f"{payload}/{resource}.pressure", text)


def level(share: float, payload: str) -> PressureSource:
    """v1's memory controller (cgroup-v1/memory.rst, "Memory Pressure")."""
    word = "critical" if share >= CRITICAL else "medium"
    path, control = f"{payload}/memory.pressure_level", f"{payload}/cgroup.event_control"
    return PressureSource("memory", "level", path, word, control)


def stalled(path: str) -> tuple[float, float]:
    """The share of the last ten seconds (0 to 1), and all seconds, that some task stood still.

    "some avg10=0.12 avg60=... avg300=... total=MICROSECONDS".  Raises KernelError.
    """
    line = files.read(path).split("\n")[0]
    found = dict(pair.partition("=")[::2] for pair in line.split(" ")[1:])
    return float(found["avg10"]) / 100, int(found["total"]) / 1e6
