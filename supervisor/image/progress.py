"""How far the getting of an image has come, told to whoever shows it.

Pure; may import attrs only.  Bytes are counted as they are stored (compressed).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from attrs import frozen

Step = Literal["waiting", "downloading", "copying", "unpacking", "done", "present", "retrying"]
"""`waiting`: another process is at it.  `present`: it was there.  `retrying`: after a failure."""


@frozen
class Progress:
    """One blob or layer of an image being got.

    digest   of the blob, which names the bar or line
    done     bytes so far, of `total` (0: not known)
    note     for people: why it is tried again, what is waited for
    """

    digest: str
    step: Step
    done: int = 0
    total: int = 0
    note: str = ""


Listener = Callable[[Progress], None]
"""Called from any thread, often; it returns at once."""


def silent(_progress: Progress) -> None:
    """Shows nothing."""
