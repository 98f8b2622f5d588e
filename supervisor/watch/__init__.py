"""From the kernel's many ways to notify to one stream of `model.event`.

May import: `errors`, `model`, `linux`, `cgroup`.  A wake-up is a hint; the state is re-read.
"""
