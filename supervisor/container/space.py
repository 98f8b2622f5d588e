"""How large a job's file systems in memory are: /tmp, /run, /dev/shm, those of `tmpfs`.

What is in them counts against the job's memory, whoever of the job wrote it, and goes when the job
ends.  The sizes are for the rest: that `df` tells the truth, that a job without a memory limit
cannot fill the host's memory with files that no kill would free, and that inodes run out before
the kernel's memory does.

May import: `model`.
"""

from __future__ import annotations

from supervisor.model.job import JobSpec, Tmpfs

EVERY_JOBS = ("/tmp", "/run", "/dev/shm")
"""What every job has; one of these in `tmpfs` says how large."""
PAGE = 4096
SHARE = "25%"
"""Of the host's memory; the kernel's own default is the half, for each of several."""
FEWEST_INODES = 1024


def options(spec: JobSpec, target: str, mode: str) -> str:
    """The options of tmpfs(5): by the entry for `target` in `tmpfs`, else by the memory limit.

    An inode takes about a KiB of kernel memory.  There is one for each page, as in the kernel's
    own default; without a size, that default itself.
    """
    asked = next((one for one in spec.tmpfs if one.target == target), Tmpfs(target))
    size = asked.size if asked.size is not None else spec.limits.memory
    found = [f"mode={mode}", f"size={SHARE if size is None else max(size, PAGE)}"]
    inodes = asked.inodes
    if inodes is None and size is not None:
        inodes = max(size // PAGE, FEWEST_INODES)
    return ",".join(found + ([f"nr_inodes={inodes}"] if inodes is not None else []))
