"""Control groups, v1, v2 and both at once, behind the one interface of `cgroup.api`.

May import: `errors`, `model`, `linux`.  Nothing outside this package asks which version it is.
"""
