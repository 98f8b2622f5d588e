"""Network interfaces, by rtnetlink(7).

The only user of pyroute2, which takes some 100 ms to import: callers import this module where
they need it, and it imports pyroute2 at the first call.  Its synchronous calls run an asyncio loop
of their own: call them from a thread in which none runs (`trio.to_thread`).
"""

from __future__ import annotations

from supervisor.errors import KernelError


def links() -> tuple[str, ...]:
    """The names of the interfaces of the caller's network namespace, sorted.

    Raises KernelError where the kernel refuses the socket or the dump.
    """
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as route:
            return tuple(sorted(link.get("ifname") for link in route.get_links()))
    except NetlinkError as error:  # not an OSError: it derives from Exception
        raise KernelError("list network interfaces", None, error.code) from error
    except OSError as error:
        raise KernelError("open a netlink socket", None, error.errno or 0) from error
