"""The nouns of the project, pure and frozen; policies import from here.

May import: `errors`, attrs.  Nothing here touches the kernel, a file or the clock.
"""

from supervisor.model.action import (
    Action,
    Freeze,
    Ignore,
    KillJob,
    Notify,
    RaiseLimit,
    Retry,
    SignalJob,
    StopAll,
    Thaw,
)
from supervisor.model.event import (
    CgroupGone,
    DiskLimit,
    Event,
    Exited,
    MemoryLimit,
    OomKill,
    PidsLimit,
    Populated,
    Pressure,
    Started,
    Tick,
    Timeout,
)
from supervisor.model.image import Image, ImageConfig
from supervisor.model.job import (
    HOOKS,
    Device,
    Egress,
    InlineAction,
    JobSpec,
    Mount,
    PolicyName,
    Port,
    PressureAt,
    Restart,
    Stop,
    Tmpfs,
    UserNamespace,
    Volume,
)
from supervisor.model.limits import IoLimit, Limits
from supervisor.model.record import Reason, RunRecord
from supervisor.model.state import State
from supervisor.model.view import JobView

__all__ = [
    "JobSpec", "JobView", "Limits", "IoLimit", "Mount", "Volume", "Tmpfs", "Device", "Restart",
    "Stop", "UserNamespace", "InlineAction", "PolicyName", "PressureAt", "HOOKS", "Port", "Egress",
    "Image", "ImageConfig",
    "Event", "Started", "MemoryLimit", "OomKill", "PidsLimit", "DiskLimit", "Pressure",
    "Timeout", "Exited",
    "Populated", "CgroupGone", "Tick",
    "Action", "RaiseLimit", "KillJob", "SignalJob", "Freeze", "Thaw", "Retry", "StopAll",
    "Notify", "Ignore",
    "State", "Reason", "RunRecord",
]  # fmt: skip
