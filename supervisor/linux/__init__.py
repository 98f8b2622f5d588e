"""The kernel, and nothing of ours: constants, structs, one small function per system call.

May import: `errors` and the standard library.  `syscalls`, `constants`, `proc` and `caps` are
loaded by the launcher, which has no site-packages: no enum, typing, re, dataclasses or json there.
`inotify` is the only user of pyinotify, `netlink` the only one of pyroute2.
"""
