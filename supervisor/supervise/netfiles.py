"""What both ways to a network share: the files of a job in /etc, and how a failure is told.

May import: everything above `front`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from attrs import evolve

from supervisor.container import view
from supervisor.errors import SpawnError, SupervisorError
from supervisor.model.job import JobSpec


class EtcFiles:
    """A run's /etc/hosts and /etc/resolv.conf, in `directory`."""

    def __init__(self, directory: Path, run: str) -> None:
        self._directory = directory
        self._run = run

    def write(self, job: JobSpec, own: Iterable[str], others: Mapping[str, Iterable[str]]) -> None:
        """`own` are the job's addresses, `others` those of the jobs that it may reach.

        Raises OSError.
        """
        from supervisor.container import network as plans

        names = dict.fromkeys((job.hostname or job.name[:64], job.name))
        texts = {
            "hosts": plans.hosts_text(" ".join(names), own, others),
            "resolv": plans.resolv_text(job.dns),
        }
        self._directory.mkdir(mode=0o711, exist_ok=True)
        for name, text in texts.items():
            path = self._directory / f"{self._run}.{name}"
            path.write_text(text)
            path.chmod(0o644)

    def seen_by(self, job: JobSpec) -> JobSpec:
        """The job with these files in its root.  Raises SpawnError where that cannot be."""
        from supervisor.container import network as plans

        root = view.of(job)
        resolved = {path: root.resolve(path) for path in plans.FILES.values()}
        mounts = plans.mounts(job, self._directory, self._run, resolved)
        return evolve(job, mounts=(*job.mounts, *mounts))

    def remove(self) -> None:
        for name in ("hosts", "resolv"):
            (self._directory / f"{self._run}.{name}").unlink(missing_ok=True)


@contextmanager
def as_spawn_error() -> Iterator[None]:
    """Whatever fails while a network is made is a failed start, at the stage `network`."""
    try:
        yield
    except SpawnError:
        raise
    except OSError as error:  # a KernelError too
        path = getattr(error, "path", None) or error.filename or ""
        text = getattr(error, "operation", "")
        raise SpawnError("network", error.errno or 0, str(path), text) from error
    except SupervisorError as error:
        raise SpawnError("network", 0, "", error.message, hint=error.hint) from error
