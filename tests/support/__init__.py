"""What several tests need: what this host can do, the check for leaks, running the command.

May import: pytest, the standard library and, of the project, `supervisor.linux`.
"""
