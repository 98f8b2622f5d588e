"""Every route there is.

May import: the modules of `control` that have some.
"""

from __future__ import annotations

from supervisor.control import (
    about,
    attach,
    events,
    exec,
    history,
    jobs,
    logs,
    openapi,
    stats,
    steering,
    submitting,
    waiting,
)
from supervisor.control.routes import Route

ROUTES: tuple[Route, ...] = (
    *about.ROUTES,
    *openapi.ROUTES,
    *jobs.ROUTES,
    *waiting.ROUTES,
    *events.ROUTES,
    *steering.ROUTES,
    *submitting.ROUTES,
    *history.ROUTES,
    *logs.ROUTES,
    *stats.ROUTES,
    *exec.ROUTES,
    *attach.ROUTES,
)
