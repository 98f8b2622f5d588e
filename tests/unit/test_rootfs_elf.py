"""What is read of an ELF file: the true ones of this host, synthetic ones, and hostile ones."""

from __future__ import annotations

import os
import struct
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor.errors import RootError
from supervisor.rootfs import elf
from tests.support import elves


def read(tmp_path: Path, data: bytes) -> elf.Binary:
    return elf.read(str(elves.write(tmp_path / "file", data)))


def test_a_program_of_this_host() -> None:
    found = elf.read(os.path.realpath("/bin/sh"))
    assert found.interpreter and found.interpreter.startswith("/lib")
    assert any(name.startswith("libc.") for name in found.needed)
    assert found.arch.bits == (64 if sys.maxsize > 2**32 else 32)


@pytest.mark.parametrize("bits", [32, 64])
def test_every_tag_is_read(tmp_path: Path, bits: int) -> None:
    data = elves.elf(
        bits=bits, machine=elves.I386 if bits == 32 else elves.X86_64,
        interpreter=elves.INTERPRETER, needed=["libz.so.1", "libc.so.6"], soname="libx.so.3",
        runpath="$ORIGIN/../lib:/opt/lib", filter="libf.so", auxiliary="liba.so", flags_1=0x800,
        strings=["dlopen", "xgetaddrinfo"],
    )  # fmt: skip
    found = read(tmp_path, data)
    assert found == elf.Binary(
        arch=elf.Arch("EM_386" if bits == 32 else "EM_X86_64", bits, True),
        kind="ET_DYN",
        interpreter=elves.INTERPRETER,
        soname="libx.so.3",
        needed=("libz.so.1", "libc.so.6"),
        runpath=("$ORIGIN/../lib", "/opt/lib"),
        filters=("libf.so",),
        auxiliaries=("liba.so",),
        no_default=True,
        calls=frozenset({"dlopen"}),
    )


def test_an_rpath_counts_only_without_a_runpath(tmp_path: Path) -> None:
    assert read(tmp_path, elves.elf(rpath="/a:/b")).rpath == ("/a", "/b")
    both = read(tmp_path, elves.elf(rpath="/a", runpath="/b"))
    assert (both.rpath, both.runpath) == ((), ("/b",))


def test_names_are_bytes(tmp_path: Path) -> None:
    name = os.fsdecode(b"lib\xff.so")
    data = elves.elf(needed=["libQ.so"]).replace(b"libQ.so", b"lib\xff.so")
    assert read(tmp_path, data).needed == (name,)


def patched(offset: int, form: str, *values: int, data: bytes | None = None) -> bytes:
    data = data or elves.elf(interpreter=elves.INTERPRETER, needed=["libc.so.6"])
    new = bytearray(data)
    struct.pack_into(form, new, offset, *values)
    return bytes(new)


GOOD = elves.elf(interpreter=elves.INTERPRETER, needed=["libc.so.6"], runpath="/opt/lib")
HOSTILE = {
    "nothing but the magic": b"\x7fELF",
    "half a header": GOOD[:40],
    "no end": GOOD[:-40],
    "a class there is not": patched(4, "B", 9),
    "65535 segments": patched(56, "<H", 0xFFFF),
    "segments nowhere": patched(32, "<Q", 2**63),
    "an interpreter nowhere": patched(64 + 2 * 56 + 8, "<Q", 2**40),
    "an interpreter without an end": patched(64 + 2 * 56 + 8, "<Q", len(GOOD) - 1) + b"x" * 9000,
    "strings nowhere": GOOD.replace(
        struct.pack("<QQ", elves.STRTAB, 64 + 3 * 56 + len(elves.INTERPRETER) + 1),
        struct.pack("<QQ", elves.STRTAB, 2**50),
    ),
    "a dynamic section of all the file and more": patched(64 + 56 + 32, "<Q", 2**60),
    "an interpreter with a line break": GOOD.replace(b"/lib64/ld", b"/lib\n4/ld"),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_file_is_one_message(tmp_path: Path, data: bytes) -> None:
    try:
        read(tmp_path, data)
    except elf.ElfError as error:
        (problem,) = error.problems
        assert problem.startswith(f"{tmp_path}/file: not a valid ELF file: ")
        assert "\n" not in problem
    else:
        assert data is HOSTILE["a dynamic section of all the file and more"]  # it ends by DT_NULL


def test_a_dynamic_section_without_end_is_given_up(tmp_path: Path) -> None:
    """Forty megabytes of tags, none of which is the last."""
    data = patched(64 + 56 + 8, "<QQQQ", len(GOOD), 0, 0, 1 << 40)
    path = elves.write(tmp_path / "file", data)
    with path.open("ab") as file:
        file.write(struct.pack("<QQ", 1, 1) * (40 << 16))
    began = time.process_time()
    with pytest.raises(elf.ElfError, match="without end"):
        elf.read(str(path))
    assert time.process_time() - began < 20


def test_section_headers_are_not_looked_at(tmp_path: Path) -> None:
    """With entries of size 0, and 2**64 of them, pyelftools would never be done."""
    data = patched(40, "<Q", 64, data=GOOD)
    data = patched(58, "<HHH", 0, 0, 0, data=data)
    assert read(tmp_path, data).needed == ("libc.so.6",)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, Path("/dev/zero")):
        with pytest.raises(RootError, match="not a regular file"):
            elf.read(str(path))
    with pytest.raises(RootError, match="No such file"):
        elf.read(str(tmp_path / "none"))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_mutation_does_more_than_fail(tmp_path: Path, data: st.DataObject) -> None:
    new = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(new) - 1))
        new[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(new)))
    try:
        found = read(tmp_path, bytes(new[: cut or None]))
    except RootError:
        return
    assert all("\0" not in name for name in found.needed)
