"""Containers: the plan of mounts, the launcher, the clone, the job's init, and the handshake.

May import: `errors`, `model`, `linux`, `cgroup.api`.  `launcher`, `child`, `init`, `mounts` and
`protocol` run in an interpreter without site-packages: they import `errors` and `linux` only.
"""
