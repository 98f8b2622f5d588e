"""bpf(2) as far as device programs need it: a few instructions, loading, attaching to a cgroup.

May import: `errors`.  Not loaded by the launcher.  Numbers: include/uapi/linux/bpf.h; how the
instructions are encoded: Documentation/bpf/standardization/instruction-set.rst.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

from supervisor.errors import KernelError

_SYS_BPF = 321 if os.uname().machine == "x86_64" else 280

_PROG_LOAD = 5
_PROG_ATTACH = 8
_PROG_TYPE_CGROUP_DEVICE = 15
_CGROUP_DEVICE = 6
_ALLOW_MULTI = 2

ACCESS = {"m": 1, "r": 2, "w": 4}
"""BPF_DEVCG_ACC_*: what is asked for, in the upper half of the first word of the context."""
KIND = {"b": 1, "c": 2}
"""BPF_DEVCG_DEV_*: the lower half."""

LDX_WORD = 0x61
MOV_REG = 0xBF
MOV = 0xB7
AND = 0x57
RSH = 0x77
JNE = 0x55
EXIT = 0x95

_INSTRUCTION = struct.Struct("=BBhi")
INSTRUCTION_SIZE = _INSTRUCTION.size
_LICENSE = b"Apache-2.0"

_syscall = ctypes.PyDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


def instruction(code: int, to: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    """One instruction: `code` on register `to`, with register `source` or the number `value`."""
    signed = value - (1 << 32) if value >= 1 << 31 else value
    return _INSTRUCTION.pack(code, to | source << 4, offset, signed)


class _Load(ctypes.Structure):
    """The part of union bpf_attr that BPF_PROG_LOAD reads, up to the program's name."""

    _fields_ = [
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * 16),
    ]


class _Attach(ctypes.Structure):
    """The part that BPF_PROG_ATTACH reads."""

    _fields_ = [
        ("target_fd", ctypes.c_uint32),
        ("attach_bpf_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("attach_flags", ctypes.c_uint32),
    ]


def device_program(rules: Iterable[tuple[str, int, int | None, str]]) -> bytes:
    """A program that lets an access through if one of the rules does, and refuses all others.

    A rule is ("b" or "c", major, minor or None for any, of "rwm").  An access for reading and
    writing at once needs one rule that has both: callers merge those of one device.
    """
    code = [
        instruction(LDX_WORD, 2, 1, 0),  # r2: access << 16 | kind
        instruction(LDX_WORD, 4, 1, 4),  # r4: major
        instruction(LDX_WORD, 5, 1, 8),  # r5: minor
        instruction(MOV_REG, 3, 2),
        instruction(RSH, 3, value=16),  # r3: access
        instruction(AND, 2, value=0xFFFF),  # r2: kind
    ]
    for kind, major, minor, access in rules:
        code += _rule(KIND[kind], major, minor, sum(ACCESS[letter] for letter in access))
    code += [instruction(MOV, 0, value=0), instruction(EXIT)]
    return b"".join(code)


def _rule(kind: int, major: int, minor: int | None, allowed: int) -> list[bytes]:
    """Return 1 for what the rule allows, else fall through to what follows."""
    refused = 7 & ~allowed
    tests: list[tuple[bytes, int, int]] = [(b"", 2, kind), (b"", 4, major)]
    if minor is not None:
        tests.append((b"", 5, minor))
    if refused:
        ahead = instruction(MOV_REG, 6, 3) + instruction(AND, 6, value=refused)
        tests.append((ahead, 6, 0))
    code = [instruction(MOV, 0, value=1), instruction(EXIT)]
    for ahead, register, wanted in reversed(tests):
        past = len(b"".join(code)) // INSTRUCTION_SIZE
        code = [ahead + instruction(JNE, register, offset=past, value=wanted), *code]
    return code


def load_device_program(program: bytes) -> int:
    """BPF_PROG_LOAD; a descriptor of the program, close-on-exec.

    Raises KernelError: EPERM without CAP_BPF and CAP_NET_ADMIN (before 5.8 CAP_SYS_ADMIN), EINVAL
    for a kernel without CONFIG_CGROUP_BPF, ENOSYS for one without CONFIG_BPF_SYSCALL.
    """
    code = ctypes.create_string_buffer(program, len(program))
    text = ctypes.create_string_buffer(_LICENSE)
    load = _Load(
        prog_type=_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt=len(program) // INSTRUCTION_SIZE,
        insns=ctypes.addressof(code),
        license=ctypes.addressof(text),
        prog_name=b"supervise_dev",
    )
    fd: int = _syscall(_SYS_BPF, _PROG_LOAD, ctypes.byref(load), ctypes.sizeof(load))
    if fd < 0:
        raise KernelError("bpf BPF_PROG_LOAD", None, ctypes.get_errno())
    return fd


def attach_device_program(program: int, cgroup: str) -> None:
    """BPF_PROG_ATTACH, beside the programs that are there and those of the cgroups above.

    All of them must let an access through.  It goes with the cgroup: nothing is to be detached.
    Raises KernelError: EPERM also where one above was attached to be the only one.
    """
    try:
        directory = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise KernelError("open", cgroup, error.errno or 0) from error
    try:
        attach = _Attach(directory, program, _CGROUP_DEVICE, _ALLOW_MULTI)
        done = _syscall(_SYS_BPF, _PROG_ATTACH, ctypes.byref(attach), ctypes.sizeof(attach))
        if done < 0:
            raise KernelError("bpf BPF_PROG_ATTACH to", cgroup, ctypes.get_errno())
    finally:
        os.close(directory)
