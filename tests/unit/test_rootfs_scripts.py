"""The first line of a script, as the kernel and env(1) read it."""

from __future__ import annotations

import pytest

from supervisor.errors import RootError
from supervisor.rootfs.scripts import Shebang, shebang


@pytest.mark.parametrize(
    ("head", "interpreter", "name"),
    [
        (b"#!/bin/sh\n", "/bin/sh", None),
        (b"#! \t/bin/sh -eu \nx", "/bin/sh", None),
        (b"#!/bin/sh", "/bin/sh", None),
        (b"#!/usr/bin/env python3\n", "/usr/bin/env", "python3"),
        (b"#!/usr/bin/env -S python3 -u\n", "/usr/bin/env", "python3"),
        (b"#!/usr/bin/env -S -i A=1 'perl'\n", "/usr/bin/env", "perl"),
        (b"#!/usr/bin/env --split-string=bash -e\n", "/usr/bin/env", "bash"),
        (b"#!/usr/bin/env\n", "/usr/bin/env", None),
        (b"#!/usr/bin/env -S\n", "/usr/bin/env", None),
    ],
)
def test_an_interpreter_is_named(head: bytes, interpreter: str, name: str | None) -> None:
    assert shebang("f", head) == Shebang(interpreter, name)


def test_what_is_no_script() -> None:
    assert shebang("f", b"") is None
    assert shebang("f", b"\x7fELF") is None
    assert shebang("f", b" #!/bin/sh") is None


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"#!\n", "names no interpreter"),
        (b"#!   \n", "names no interpreter"),
        (b"#!/bin/sh\r\n", "carriage return"),
        (b"#!python3\n", "python3 is not an absolute path"),
        (b"#!/" + b"x" * 300, "longer than the 256 bytes"),
        (b"#!/usr/bin/env -S 'x\n", "its first line: No closing quotation"),
    ],
)
def test_what_no_kernel_executes_is_told(head: bytes, told: str) -> None:
    with pytest.raises(RootError, match=told):
        shebang("f", head[:256])
