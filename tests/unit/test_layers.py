"""The layers, enforced: who may import whom, read from the source and from a lean interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.command import ROOT

# What each package may import of ours, beside itself.  A longer name takes precedence.
ABOVE_FRONT = (
    "supervisor.errors",
    "supervisor.model",
    "supervisor.linux",
    "supervisor.cgroup",
    "supervisor.image",
    "supervisor.rootfs",
    "supervisor.container",
    "supervisor.watch",
    "supervisor.policy",
    "supervisor.record",
    "supervisor.supervise",
)
# The modules that run in the launcher's interpreter.
LAUNCHED = (
    "supervisor.container.protocol",
    "supervisor.container.mounts",
    "supervisor.container.overlays",
    "supervisor.container.steps",
    "supervisor.container.launcher",
    "supervisor.container.child",
    "supervisor.container.init",
    "supervisor.container.entrant",
    "supervisor.container.terminals",
)
LEAN = ("supervisor.errors", "supervisor.linux", *LAUNCHED)
# Those of the extraction's.
EXTRACTING = (
    "supervisor.image.extractor",
    "supervisor.image.extract",
    "supervisor.image.fields",
    "supervisor.image.names",
    "supervisor.image.removal",
    "supervisor.image.tar",
)
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "supervisor.errors": (),
    "supervisor.model": ("supervisor.errors",),
    "supervisor.linux": ("supervisor.errors",),
    "supervisor.cgroup": ABOVE_FRONT[:3],
    "supervisor.image": ABOVE_FRONT[:4],
    "supervisor.rootfs": (*ABOVE_FRONT[:3], "supervisor.image"),
    "supervisor.container": (*ABOVE_FRONT[:3], "supervisor.cgroup.api", "supervisor.image"),
    **dict.fromkeys(LAUNCHED, LEAN),
    **dict.fromkeys(EXTRACTING, ("supervisor.errors", "supervisor.linux", *EXTRACTING)),
    "supervisor.watch": ABOVE_FRONT[:4],
    "supervisor.policy": ABOVE_FRONT[:2],
    "supervisor.record": ABOVE_FRONT[:2],
    "supervisor.supervise": ABOVE_FRONT,
    "supervisor.control": ABOVE_FRONT,
    "supervisor.front": (*ABOVE_FRONT, "supervisor.control", "supervisor.__version__"),
    "supervisor.front.verbs": (
        *("supervisor.errors", "supervisor.model", "supervisor.front"),
        *("supervisor.linux.filewatch", "supervisor.record"),
    ),
    "supervisor.__main__": (*ABOVE_FRONT, "supervisor.front"),
    "supervisor": (),
    "plugins": ("supervisor.model", "supervisor.policy.hookspec"),
}

# Who alone may import a library; and who may not.
ONLY_IN = {
    "pyroute2": ("supervisor.linux.netlink",),
    "pyinotify": ("supervisor.linux.inotify",),
    "h11": ("supervisor.control.http",),
    "rich": ("supervisor.front",),
    "httpx": ("supervisor.image.transport",),
    "elftools": ("supervisor.rootfs.elf",),
}
WITHOUT_TRIO = (
    *(*LEAN, *EXTRACTING),
    *("supervisor.model", "supervisor.cgroup", "supervisor.policy", "supervisor.rootfs"),
)

# What must not be in an interpreter that clones containers: each is paid for in every clone.
HEAVY = frozenset(
    {
        *("argparse", "asyncio", "attr", "attrs", "cattrs", "collections", "contextlib", "copy"),
        *("dataclasses", "datetime", "enum", "functools", "importlib.util", "inspect", "json"),
        *("logging", "pathlib", "pickle", "re", "shutil", "socket", "sqlite3", "subprocess"),
        *("tempfile", "threading", "trio", "typing"),
    }
)


@dataclass(frozen=True)
class Import:
    """`importer` (a module) names `imported` (a module, or a name in one) in line `line`."""

    importer: str
    imported: str
    line: int


def module_name(path: Path, root: Path) -> str:
    """The dotted name of a file; a package's is that of its directory."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(root: Path) -> Iterator[Import]:
    """Every import below supervisor/ and plugins/, wherever in a file it stands."""
    for directory in ("supervisor", "plugins"):
        for path in sorted((root / directory).rglob("*.py")):
            importer = module_name(path, root)
            package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
            for node in ast.walk(ast.parse(path.read_text(), str(path))):
                for imported in named(node, package):
                    yield Import(importer, imported, node.lineno)  # type: ignore[attr-defined]


def named(node: ast.AST, package: str) -> list[str]:
    """What one statement imports; `from a import b` gives a.b, be b a module or a name."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        above = package.split(".")[: len(package.split(".")) - node.level + 1]
        base = ".".join([*above, *([base] if base else [])])
    return [f"{base}.{alias.name}" for alias in node.names]


def within(name: str, packages: tuple[str, ...]) -> bool:
    """Whether a name is one of the packages or in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def rule_of(module: str) -> str:
    """The longest entry of MAY_IMPORT that holds the module."""
    return max((name for name in MAY_IMPORT if within(module, (name,))), key=len)


def layer_violations(root: Path) -> list[str]:
    """Imports of ours that the layers forbid."""
    found = []
    for one in imports(root):
        if not within(one.imported, ("supervisor", "plugins")):
            continue
        rule = rule_of(one.importer)
        # A package imports itself; but its lean modules do not import the rest of it.
        alone = rule in ("supervisor", *LAUNCHED, *EXTRACTING)
        itself = () if alone else (rule,)
        allowed = (*MAY_IMPORT[rule], *itself)
        if not within(one.imported, allowed):
            found.append(f"{one.importer}:{one.line} imports {one.imported}")
    return found


def library_violations(root: Path) -> list[str]:
    """Imports of libraries where they have no business."""
    found = []
    for one in imports(root):
        library = one.imported.partition(".")[0]
        alone = ONLY_IN.get(library)
        if alone is not None and not within(one.importer, alone):
            found.append(f"{one.importer}:{one.line} imports {library}")
        if library == "trio" and within(one.importer, WITHOUT_TRIO):
            found.append(f"{one.importer}:{one.line} imports trio")
    return found


def loaded_by(module: str, root: Path) -> frozenset[str]:
    """The modules in an interpreter as the launcher's (-I -S) once it has imported `module`."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "__import__(sys.argv[2]); print(*sys.modules, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, str(root), module],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return frozenset(done.stdout.split())


def test_packages_import_only_what_is_above_them() -> None:
    assert layer_violations(ROOT) == []


def test_libraries_are_imported_only_where_they_belong() -> None:
    assert library_violations(ROOT) == []


def test_every_package_has_a_rule() -> None:
    packages = {f"supervisor.{path.parent.name}" for path in ROOT.glob("supervisor/*/__init__.py")}
    assert packages <= set(MAY_IMPORT)


def test_what_the_launcher_loads_is_lean() -> None:
    assert loaded_by("supervisor.container.launcher", ROOT) & HEAVY == frozenset()


def test_what_the_extraction_loads_is_as_lean() -> None:
    assert loaded_by("supervisor.image.extractor", ROOT) & HEAVY == frozenset()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small project that keeps every rule."""
    for name in ("supervisor", "supervisor/model", "supervisor/container", "supervisor/watch"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    (tmp_path / "plugins").mkdir()
    (tmp_path / "supervisor/errors.py").write_text("import os\n")
    assert layer_violations(tmp_path) == library_violations(tmp_path) == []
    return tmp_path


@pytest.mark.parametrize(
    ("file", "text", "imported"),
    [
        ("supervisor/model/a.py", "import supervisor.watch", "supervisor.watch"),
        ("supervisor/model/a.py", "from supervisor import watch", "supervisor.watch"),
        ("supervisor/model/a.py", "from ..watch import exit", "supervisor.watch.exit"),
        ("supervisor/model/__init__.py", "from ..front import cli", "supervisor.front.cli"),
        (
            "supervisor/watch/a.py",
            "def f():\n    import supervisor.front.cli",
            "supervisor.front.cli",
        ),
        (
            "supervisor/watch/a.py",
            "if TYPE_CHECKING:\n    import supervisor.front",
            "supervisor.front",
        ),
        ("supervisor/container/child.py", "from supervisor import model", "supervisor.model"),
        (
            "supervisor/container/child.py",
            "import supervisor.container.spawn",
            "supervisor.container.spawn",
        ),
        ("supervisor/container/a.py", "from supervisor.cgroup import v1", "supervisor.cgroup.v1"),
        ("supervisor/__init__.py", "from supervisor import errors", "supervisor.errors"),
        ("plugins/a.py", "from supervisor.linux import proc", "supervisor.linux.proc"),
    ],
)
def test_a_forbidden_import_is_found(tree: Path, file: str, text: str, imported: str) -> None:
    (tree / file).write_text(text)
    (found,) = layer_violations(tree)
    assert found.endswith(f"imports {imported}")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("supervisor/watch/a.py", "import pyroute2.netlink"),
        ("supervisor/watch/a.py", "def f():\n    from pyinotify import WatchManager"),
        ("supervisor/model/a.py", "import trio"),
        ("supervisor/container/child.py", "from trio import run"),
        ("supervisor/watch/a.py", "from rich.table import Table"),
    ],
)
def test_a_library_in_the_wrong_place_is_found(tree: Path, file: str, text: str) -> None:
    (tree / file).write_text(text)
    assert len(library_violations(tree)) == 1


@pytest.mark.parametrize("heavy", ["enum", "typing", "dataclasses", "json", "re", "socket"])
def test_a_heavy_module_is_found_however_deep(tree: Path, heavy: str) -> None:
    (tree / "supervisor/container/launcher.py").write_text("import supervisor.container.deep")
    (tree / "supervisor/container/deep.py").write_text(f"import {heavy}")
    assert heavy in loaded_by("supervisor.container.launcher", tree) & HEAVY
