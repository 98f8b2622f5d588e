"""The numbers of system calls on this machine, for those that the C library has no function of."""

from __future__ import annotations

import platform

_X86_64 = {
    "keyctl": 250, "add_key": 248, "request_key": 249, "bpf": 321, "perf_event_open": 298,
    "userfaultfd": 323, "kexec_load": 246, "kexec_file_load": 320, "init_module": 175,
    "finit_module": 313, "delete_module": 176, "mount": 165, "umount2": 166, "setns": 308,
    "unshare": 272, "clone": 56, "ioctl": 16, "swapon": 167, "swapoff": 168, "reboot": 169,
    "pivot_root": 155, "acct": 163, "settimeofday": 164, "clock_settime": 227,
    "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "open_by_handle_at": 304,
    "quotactl": 179, "syslog": 103, "iopl": 172, "vhangup": 153, "lookup_dcookie": 212,
    "move_pages": 279, "migrate_pages": 256, "fanotify_init": 300, "personality": 135,
    "socket": 41, "sethostname": 170, "setdomainname": 171, "ptrace": 101, "getpid": 39,
    "uselib": 134, "ustat": 136, "sysfs": 139, "nfsservctl": 180, "name_to_handle_at": 303,
}  # fmt: skip
_GENERIC = {
    "keyctl": 219, "add_key": 217, "request_key": 218, "bpf": 280, "perf_event_open": 241,
    "userfaultfd": 282, "kexec_load": 104, "kexec_file_load": 294, "init_module": 105,
    "finit_module": 273, "delete_module": 106, "mount": 40, "umount2": 39, "setns": 268,
    "unshare": 97, "clone": 220, "ioctl": 29, "swapon": 224, "swapoff": 225, "reboot": 142,
    "pivot_root": 41, "acct": 89, "settimeofday": 170, "clock_settime": 112,
    "process_vm_readv": 270, "process_vm_writev": 271, "kcmp": 272, "open_by_handle_at": 265,
    "quotactl": 60, "syslog": 116, "vhangup": 58, "lookup_dcookie": 18, "move_pages": 239,
    "migrate_pages": 238, "fanotify_init": 262, "personality": 92, "socket": 198,
    "sethostname": 161, "setdomainname": 162, "ptrace": 117, "getpid": 172,
    "nfsservctl": 42, "name_to_handle_at": 264,
}  # fmt: skip
_BOTH = {
    "clone3": 435, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsmount": 432,
    "fspick": 433, "pidfd_getfd": 438, "mount_setattr": 442, "quotactl_fd": 443,
    "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "unknown": 4000,
}  # fmt: skip
NUMBERS = _BOTH | (_X86_64 if platform.machine() == "x86_64" else _GENERIC)
