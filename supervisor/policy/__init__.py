"""Policies: hook specifications, loading, and the engine that turns verdicts into one action.

May import: `errors`, `model`, pluggy, cattrs.  It sees no process, no cgroup and no file but
the plugins' own.
"""
