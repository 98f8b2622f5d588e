"""The look-ups of the planning against the kernel's own: layers at random, mounted and compared."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command import ROOT

pytestmark = pytest.mark.kernel

NAMES = ("a", "b", "c")
DEPTH = 3

COMPARE = """
import itertools, json, os, stat, sys
from supervisor.container.view import View
from supervisor.linux import syscalls

layers, merged, names, depth = json.loads(sys.argv[1])
syscalls.mount("overlay", merged, "overlay", 0, "lowerdir=" + ":".join(layers))
paths = ["/" + "/".join(parts) for length in range(1, depth + 1)
         for parts in itertools.product((*names, ".."), repeat=length)]
view = View(tuple(layers), united=True)
ours = {}
for path in paths:
    try:
        found = view.find(path)
        ours[path] = (found.kind, found.path if found.kind else "",
                      view.read(path, 99) if found.kind == "other" else None)
    except OSError as error:
        ours[path] = (error.errno,)
os.chroot(merged)
os.chdir("/")
wrong = []
for path in paths:
    try:
        status = os.stat(path)
        kind = "directory" if stat.S_ISDIR(status.st_mode) else "other"
        text = open(path, "rb").read() if kind == "other" else None
        theirs = (kind, os.path.realpath(path), text)
    except OSError as error:
        theirs = (40,) if error.errno == 40 else ("", "", None)
    if ours[path] != theirs:
        wrong.append((path, repr(ours[path]), repr(theirs)))
seen = [kind for kind, *_ in ours.values()]
print(json.dumps([wrong, {str(kind): seen.count(kind) for kind in set(seen)}]))
"""


def grow(chance: random.Random, directory: Path, depth: int) -> None:
    """Anything a layer can have, at random."""
    for name in NAMES:
        path = directory / name
        match chance.choice(("none", "directory", "directory", "file", "link", "white")):
            case "directory":
                path.mkdir()
                if chance.random() < 0.2:
                    os.setxattr(path, "trusted.overlay.opaque", b"y")
                if depth > 1:
                    grow(chance, path, depth - 1)
            case "file":
                path.write_text(str(path))
            case "link":
                path.symlink_to(chance.choice(("/a", "b", "../c", "../../a/b", "/c/../b", "..")))
            case "white":
                os.mknod(path, 0o20000, 0)


@pytest.mark.parametrize("seed", range(8))
def test_what_is_looked_up_is_what_the_kernel_shows(tmp_path: Path, seed: int):
    chance = random.Random(seed)
    layers = [tmp_path / str(number) for number in range(chance.randrange(2, 6))]
    for layer in layers:
        layer.mkdir()
        grow(chance, layer, DEPTH)
    (tmp_path / "merged").mkdir()
    asked = [list(map(str, layers)), str(tmp_path / "merged"), NAMES, DEPTH]
    done = subprocess.run(
        ["unshare", "--mount", sys.executable, "-c", COMPARE, json.dumps(asked)],
        capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    wrong, seen = json.loads(done.stdout)
    assert wrong == []
    assert {"", "directory"} <= set(seen)
