"""The errors of this project, from the general to the particular.

Imported by every layer, the launcher included: no import here but `os`.  Library code raises
these; only `front` reports them, once, as `what failed: on which path: why (the way out)`.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class SupervisorError(Exception):
    """What went wrong, and (in `hint`) the way out of it."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    exit_status = 125
    """Of the command that it ends (docs/verdicts.md); 2 where the caller asked wrongly."""

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(SupervisorError):
    """Every problem of a configuration at once; each is one readable line."""

    def __init__(self, problems: Iterable[str], *, hint: str = "") -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems), hint=hint)


class RootError(SupervisorError):
    """A root file system that cannot be built from what was asked for; one line each."""

    def __init__(self, problems: Iterable[str], *, hint: str = "") -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems), hint=hint)


class KernelError(SupervisorError, OSError):
    """A system call or a kernel file that refused: the operation, the path, the errno.

    `errno` is the attribute of `OSError`, so `except OSError` and `err.errno == ENOENT` work.
    """

    def __init__(self, operation: str, path: str | None, errno: int, *, hint: str = "") -> None:
        where = f"{operation} {path}" if path else operation
        SupervisorError.__init__(self, f"{where}: {os.strerror(errno)}", hint=hint)
        OSError.__init__(self, errno, os.strerror(errno))
        self.operation = operation
        self.path = path
        self.args = (operation, path, errno)


class LimitError(SupervisorError):
    """Limits that this host cannot enforce; one line each, with the fix."""

    def __init__(self, missing: Iterable[str], *, hint: str = "") -> None:
        self.missing = tuple(missing)
        super().__init__("\n  ".join(self.missing), hint=hint)


class StateError(SupervisorError):
    """What was asked for does not fit what a job, or the instance, is doing now."""


class SpawnError(SupervisorError):
    """A container could not be made: at which stage, on which path, for which errno.

    `stage` is one of `container.protocol.STAGES`; `errno` is 0 where no system call failed.
    """

    def __init__(self, stage: str, errno: int, path: str, text: str, *, hint: str = "") -> None:
        self.why = os.strerror(errno) if errno else text
        where = f"{path}: " if path else ""
        extra = f" ({text})" if errno and text else ""
        super().__init__(f"{stage}: {where}{self.why}{extra}", hint=hint)
        self.stage = stage
        self.errno = errno
        self.path = path
        self.text = text


class PolicyError(SupervisorError):
    """A policy plugin that cannot be loaded, or whose arguments or hooks are wrong."""


class ImageError(SupervisorError):
    """An image that cannot be had or is not what it claims: what failed, and where.

    `where` is the reference, file, blob or address that was looked at.
    """

    def __init__(self, what: str, where: str = "", *, hint: str = "") -> None:
        super().__init__(f"{where}: {what}" if where else what, hint=hint)
        self.what = what
        self.where = where
