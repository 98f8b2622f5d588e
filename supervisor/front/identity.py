"""Which process is an instance's supervisor: told in its event log, and found again by others.

May import: `errors`, `linux.proc`.  A number alone may be another's one day.  When a process has
begun, in ticks after which boot, never changes; the time of an entry does not tell, as clocks are
set.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from supervisor.errors import KernelError
from supervisor.linux import proc


def own() -> dict[str, Any]:
    """What `supervisor_started` says of this process: proc_pid_stat(5), random(4)."""
    pid = os.getpid()
    return {"pid": pid, "start": proc.stat(pid).start_ticks, "boot": proc.boot_id()}


def find(pid: int, start: int, boot: str) -> int:
    """A pidfd of the process that said this of itself; -1: it is gone."""
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return -1
    with suppress(KernelError):  # it has just ended
        if (proc.stat(pid).start_ticks, proc.boot_id()) == (start, boot):
            return pidfd
    os.close(pidfd)
    return -1
