"""What several tests need: what this host can do, the check for leaks, running the command.

May import: pytest and the standard library; of the project only `supervisor.linux.netlink`.
"""
