"""supervise: batch jobs and services in containers made straight from the kernel.

The layers, top to bottom (a package imports only packages above it, plus `errors` and `model`):
linux, cgroup, image, container, watch, policy, record, supervise, front.  Nothing is imported
here: the launcher (`supervisor.container.launcher`) starts an interpreter that holds only what a
container needs, and every import in this file would be paid for in each container.
"""

__version__ = "0.1.0"
