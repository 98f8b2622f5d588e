"""The device program, run by an interpreter of its few instructions."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.cgroup.api import DeviceRule
from supervisor.cgroup.devices import merged
from supervisor.container.devices import STANDARD
from supervisor.linux import bpf

WORD = 0xFFFFFFFF


def verdict(program: bytes, kind: str, major: int, minor: int, access: str) -> int:
    """What the program returns: Documentation/bpf/standardization/instruction-set.rst, so far."""
    asked = sum(bpf.ACCESS[letter] for letter in access)
    context = struct.pack("=III", asked << 16 | bpf.KIND[kind], major, minor)
    registers = [0] * 11
    code = list(struct.iter_unpack("=BBhi", program))
    at = 0
    while True:
        operation, both, offset, value = code[at]
        to, source = both & 15, both >> 4
        at += 1
        match operation:
            case bpf.LDX_WORD:
                assert source == 1
                (registers[to],) = struct.unpack_from("=I", context, offset)
            case bpf.MOV_REG:
                registers[to] = registers[source]
            case bpf.MOV:
                registers[to] = value
            case bpf.AND:
                registers[to] &= value
            case bpf.RSH:
                registers[to] >>= value
            case bpf.JNE:
                at += offset if registers[to] != value % 2**64 else 0
            case bpf.EXIT:
                return registers[0]
            case _:
                raise AssertionError(f"{operation:#x} is none of ours")


def program(rules: tuple[DeviceRule, ...]) -> bytes:
    return bpf.device_program((r.kind, r.major, r.minor, r.access) for r in merged(rules))


accesses = st.sets(st.sampled_from("rwm"), min_size=1).map(
    lambda letters: "".join(one for one in "rwm" if one in letters)
)
kinds = st.sampled_from(["b", "c"])
numbers = st.integers(0, 3) | st.sampled_from([255, 4095, 2**20 - 1])
rule_lists = st.lists(
    st.builds(DeviceRule, kinds, numbers, st.none() | numbers, accesses), max_size=5
).map(tuple)


@given(rule_lists, kinds, numbers, numbers, accesses)
def test_it_says_what_the_rules_say(rules, kind, major, minor, access):
    allowed = any(
        (rule.kind, rule.major) == (kind, major)
        and rule.minor in (None, minor)
        and set(access) <= set(rule.access)
        for rule in merged(rules)
    )
    assert verdict(program(rules), kind, major, minor, access) == int(allowed)


@pytest.mark.parametrize(
    ("device", "access", "allowed"),
    [
        (("c", 1, 3), "rw", 1), (("c", 1, 3), "m", 1), (("c", 1, 9), "r", 1),
        (("c", 5, 2), "rw", 1), (("c", 136, 7), "rw", 1), (("c", 136, 7), "m", 0),
        (("c", 1, 1), "r", 0),
        (("c", 1, 11), "r", 0), (("b", 1, 3), "r", 0), (("b", 8, 0), "r", 0),
        (("b", 8, 0), "m", 0), (("c", 10, 229), "rw", 0), (("c", 5, 1), "w", 0),
    ],
)  # fmt: skip
def test_what_every_job_may_use(device, access, allowed):
    assert verdict(program(STANDARD), *device, access) == allowed


def test_two_rules_for_one_device_are_one():
    read, write = DeviceRule("b", 7, 1, "r"), DeviceRule("b", 7, 1, "w")
    assert merged((write, read)) == (DeviceRule("b", 7, 1, "rw"),)
    assert verdict(program((read, write)), "b", 7, 1, "rw") == 1


def test_a_refused_load_says_what_refused():
    with pytest.raises(OSError, match="bpf BPF_PROG_LOAD"):
        bpf.load_device_program(b"")
    with pytest.raises(OSError, match="/no/such"):
        bpf.attach_device_program(0, "/no/such")
