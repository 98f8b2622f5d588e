"""Roots built from this host's programs, and the programs run in them, as a user does."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from supervisor.rootfs import build as building
from supervisor.rootfs import search
from supervisor.rootfs.build import Wishes
from supervisor.rootfs.gather import Copy
from tests.support import elves, host
from tests.support.batch import PATIENCE
from tests.support.command import Done, Supervise
from tests.support.nobody import NOBODY, nobody

pytestmark = [pytest.mark.kernel, host.outside("building a root")]

PYTHON = "/usr/bin/python3"


def needed(*tools: str) -> None:
    for tool in tools:
        if not shutil.which(tool):
            host.miss("tools", f"needs {tool}")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Not in /tmp, of which a job has its own: programs keep their paths in a root."""
    path = Path(tempfile.mkdtemp(prefix="supervise-test-", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def cc(tmp_path: Path):
    """Compiles C: `cc("name", "int main(){}", "-lfoo")` is the path of what it made."""
    needed("gcc")

    def compile_it(name: str, text: str, *flags: str, compiler: str = "gcc") -> Path:
        source = tmp_path / "source.c"
        source.write_text(text)
        target = tmp_path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([compiler, "-o", target, source, *flags], check=True, cwd=tmp_path)
        return target

    return compile_it


def build(supervise: Supervise, root: Path, *flags: str | Path) -> dict:
    done = supervise("rootfs", "build", root, *flags, "--json", timeout=PATIENCE)
    assert done.status == 0, done.stderr
    return json.loads(done.stdout)


def inside(supervise: Supervise, root: Path, *command: str | Path, flags=()) -> Done:
    return supervise("run", "--root", root, "--write", "read-only", *flags, "--", *command)


def checked(result: dict) -> set[str]:
    return {one["path"] for one in result["programs"] if one["checked"]}


def test_bash_a_static_busybox_and_a_script(
    supervise: Supervise, tmp_path: Path, busybox: Path
) -> None:
    needed("bash")
    script = elves.write(tmp_path / "hello", b'#!/usr/bin/env -S bash -u\necho "hello $1"\n')
    root = tmp_path / "root"
    result = build(
        supervise, root, "--copy", "/bin/bash", "--copy", busybox, "--copy", f"{script}:/opt/hello"
    )
    kinds = {one["path"]: one["kind"] for one in result["programs"]}
    assert kinds["/opt/hello"] == "script" and kinds[os.path.realpath(busybox)] == "static"
    assert {os.path.realpath("/bin/bash"), os.path.realpath("/usr/bin/env")} <= checked(result)
    assert inside(supervise, root, "/opt/hello", "you").stdout == "hello you\n"
    assert (
        inside(supervise, root, busybox, "id", "-u", flags=("--user", "nobody")).stdout == "65534\n"
    )
    plan = inside(supervise, root, "/bin/bash", "-c", "echo /*; [[ -w /tmp ]] && echo tmp")
    assert "/etc" in plan.stdout and "tmp" in plan.stdout and plan.status == 0


def test_no_start_has_to_lay_a_skeleton_over_it(supervise: Supervise, tmp_path: Path) -> None:
    build(supervise, tmp_path / "root", "--copy", "/bin/sh")
    (tmp_path / "jobs.toml").write_text(
        f'[jobs.x]\ncommand = "sh"\nroot = "{tmp_path}/root"\nwrite = "read-only"\n'
    )
    done = supervise("plan", tmp_path / "jobs.toml")
    assert done.status == 0 and "overlay" not in done.stdout, done


@pytest.mark.parametrize("python", sorted({PYTHON, os.path.realpath(sys.executable)}))
def test_python_works(supervise: Supervise, tmp_path: Path, python: str) -> None:
    if not os.path.exists(python):
        host.miss("tools", f"needs {python}")
    root = tmp_path / "root"
    flags = ("--with-ca",) if os.path.exists("/etc/ssl/certs/ca-certificates.crt") else ()
    result = build(supervise, root, "--copy", python, "--with-nss", *flags)
    assert os.path.realpath(python) in checked(result)
    code = (
        "import ctypes, hashlib, json, pwd, socket, sqlite3, ssl, subprocess, zlib; "
        "print(pwd.getpwnam('nobody').pw_uid, socket.gethostbyname('localhost'), "
        "len(ssl.create_default_context().get_ca_certs()) > 0)"
    )
    done = inside(supervise, root, python, "-c", code)
    assert done.stdout == f"65534 127.0.0.1 {bool(flags)}\n", done.stderr
    assert not (root / "usr/bin/sh").exists()


@pytest.mark.parametrize(
    ("program", "arguments", "said"),
    [
        ("curl", ("--version",), "libcurl/"),
        ("perl", ("-MPOSIX", "-MData::Dumper", "-e", "print floor(2.5)"), "2"),
        ("tclsh", ("/dev/stdin",), ""),
        ("git", ("--version",), "git version"),
    ],
)
def test_a_program_with_much_to_load(supervise, tmp_path: Path, program, arguments, said) -> None:
    path = shutil.which(program, path="/usr/bin")
    if path is None:
        host.miss("tools", f"needs {program}")
    build(supervise, tmp_path / "root", "--copy", path)
    done = inside(supervise, tmp_path / "root", path, *arguments)
    assert done.status == 0 and said in done.stdout, done


def test_a_locale_is_there(supervise: Supervise, tmp_path: Path) -> None:
    if not os.path.isdir("/usr/lib/locale/C.utf8") or not os.path.exists(PYTHON):
        host.miss("tools", "needs the locale C.UTF-8 and python3")
    root = tmp_path / "root"
    build(supervise, root, "--copy", PYTHON, "--with-locale", "C.UTF-8")
    code = "import locale; print(locale.setlocale(locale.LC_ALL, 'C.UTF-8'))"
    assert inside(supervise, root, PYTHON, "-c", code).stdout == "C.UTF-8\n"
    for path in (root / "usr/lib/locale").glob("*"):
        shutil.rmtree(path)
    assert "unsupported locale" in inside(supervise, root, PYTHON, "-c", code).stderr


def test_libraries_are_where_the_loader_finds_them(supervise, tmp_path: Path, cc) -> None:
    """By an inherited RPATH, by $ORIGIN of a moved program, and never by the host's own."""
    cc("app/lib/libinner.so", "int inner(void){return 3;}", "-shared", "-fPIC")
    cc("app/lib/libouter.so", "int inner(void); int outer(void){return inner();}", "-shared",
       "-fPIC", "-Lapp/lib", "-linner")  # fmt: skip
    main = "int outer(void); int main(void){return outer();}"
    link = ("-Lapp/lib", "-louter", "-Wl,-rpath-link,app/lib", "-Wl,--disable-new-dtags")
    program = cc("app/bin/p", main, *link, "-Wl,-rpath,$ORIGIN/../lib")
    build(supervise, tmp_path / "same", "--copy", program)
    assert inside(supervise, tmp_path / "same", program).status == 3
    build(supervise, tmp_path / "moved", "--copy", f"{program}:/opt/a/p")
    assert (tmp_path / "moved/opt/lib/libouter.so").exists()
    assert inside(supervise, tmp_path / "moved", "/opt/a/p").status == 3
    runpath = cc("app/bin/q", main, "-Lapp/lib", "-louter", "-Wl,-rpath-link,app/lib",
                 "-Wl,--enable-new-dtags", "-Wl,-rpath,$ORIGIN/../lib")  # fmt: skip
    done = supervise("rootfs", "build", tmp_path / "none", "--copy", runpath)
    assert done.status == 1 and not (tmp_path / "none").exists()
    assert f"libinner.so: no such library, wanted by {tmp_path}/app/lib/libouter.so" in done.stderr


def test_a_directory_of_ld_so_conf(supervise: Supervise, tmp_path: Path, cc, monkeypatch) -> None:
    """glibc's loader knows it by the cache alone, which the root therefore has."""
    cc("own/libx.so", "int x(void){return 6;}", "-shared", "-fPIC", "-Wl,-soname,libx.so")
    program = cc("p", "int x(void); int main(void){return x();}", "-Lown", "-lx")
    conf = tmp_path / "ld.so.conf"
    conf.write_text(f"{tmp_path}/own\n")
    monkeypatch.setattr(search, "CONF", str(conf))
    wishes = Wishes((Copy(str(program), str(program)),))
    building.build(tmp_path / "root", wishes, lambda built: None)
    assert inside(supervise, tmp_path / "root", program).status == 6
    (tmp_path / "root/etc/ld.so.cache").unlink()
    assert inside(supervise, tmp_path / "root", program).status == 127


def test_without_root_it_is_the_caller_s(tmp_path: Path) -> None:
    with nobody() as (run, home):
        done = run("rootfs", "build", home / "root", "--copy", "/bin/bash", "--json")
        assert done.returncode == 0, done.stderr
        assert checked(json.loads(done.stdout)) == {os.path.realpath("/bin/bash")}
        assert os.stat(home / "root/bin/bash").st_uid == NOBODY
        done = run("run", "--root", home / "root", "--write", "read-only", "--", "bash", "-c",
                   "echo in")  # fmt: skip
        assert done.stdout == "in\n", done.stderr
        done = run("rootfs", "build", home / "no", "--copy", "/etc/shadow:/x")
        assert done.returncode == 1 and "/etc/shadow: Permission denied" in done.stderr
        assert not [name for name in os.listdir(home) if "no" in name]


def test_a_musl_program(supervise: Supervise, tmp_path: Path, cc) -> None:
    needed("musl-gcc")
    cc("lib/libx.so", "int x(void){return 4;}", "-shared", "-fPIC", compiler="musl-gcc")
    program = cc("p", "int x(void); int main(void){return x();}", "-Llib", "-lx",
                 f"-Wl,-rpath,{tmp_path}/lib", compiler="musl-gcc")  # fmt: skip
    root = tmp_path / "root"
    assert checked(build(supervise, root, "--copy", program)) == {str(program)}
    assert inside(supervise, root, program).status == 4
    assert not (root / "etc/ld.so.cache").exists()


def test_a_static_pie_has_no_loader(supervise: Supervise, tmp_path: Path, cc) -> None:
    program = cc("p", "int main(void){return 5;}", "-static-pie")
    (one,) = build(supervise, tmp_path / "root", "--copy", program)["programs"]
    assert (one["kind"], one["loader"]) == ("static", None)
    assert inside(supervise, tmp_path / "root", program).status == 5


def test_the_check_finds_what_reading_did_not(supervise: Supervise, tmp_path: Path, cc) -> None:
    """A library that its header does not give away: it is mapped, and refused, by the loader."""
    library = cc("lib/libx.so", "int x(void){return 4;}", "-shared", "-fPIC")
    program = cc("p", "int x(void); int main(void){return x();}", "-Llib", "-lx",
                 f"-Wl,-rpath,{tmp_path}/lib")  # fmt: skip
    whole = bytearray(library.read_bytes())
    whole[20] = 9  # e_version
    library.write_bytes(whole)
    done = supervise("rootfs", "build", tmp_path / "root", "--copy", program)
    assert done.status == 1, done
    assert f"{program}: cannot start in the root: " in done.stderr and "libx.so" in done.stderr
    assert "--no-check" in done.stderr
    assert not [name for name in os.listdir(tmp_path) if "root" in name]
    build(supervise, tmp_path / "root", "--copy", program, "--no-check")


def test_a_program_for_another_processor_is_refused(supervise: Supervise, tmp_path: Path) -> None:
    machine = elves.X86_64 if os.uname().machine == "aarch64" else elves.AARCH64
    program = elves.write(tmp_path / "p", elves.elf(machine=machine, kind=elves.EXECUTABLE))
    done = supervise("rootfs", "build", tmp_path / "root", "--copy", program)
    assert done.status == 1 and "not for this host" in done.stderr
    assert not (tmp_path / "root").exists()
    build(supervise, tmp_path / "root", "--copy", program, "--no-check")


def test_what_a_job_could_not_see_is_refused(supervise: Supervise, tmp_path: Path) -> None:
    done = supervise("rootfs", "build", tmp_path / "root", "--copy", "/bin/sh:/tmp/sh")
    assert done.status == 1 and "/tmp/sh: a job has a /tmp of its own" in done.stderr
    assert "PATH:TARGET" in done.stderr and not (tmp_path / "root").exists()


def test_a_set_user_id_program(supervise: Supervise, tmp_path: Path) -> None:
    program = shutil.copy("/bin/true", tmp_path / "su")
    os.chmod(program, 0o4755)
    told = build(supervise, tmp_path / "a", "--copy", f"{program}:/su")["remarks"]
    assert stat.S_IMODE(os.stat(tmp_path / "a/su").st_mode) == 0o755
    assert any("--setuid keeps them" in text and "/su" in text for text in told)
    build(supervise, tmp_path / "b", "--copy", f"{program}:/su", "--setuid")
    assert stat.S_IMODE(os.stat(tmp_path / "b/su").st_mode) == 0o4755
    assert inside(supervise, tmp_path / "b", "/su").status == 0


def test_nothing_of_what_is_copied_is_executed(supervise: Supervise, tmp_path: Path, cc) -> None:
    """Neither the program, nor its library's constructor, nor a loader of its own outside."""
    proof = tmp_path / "proof"
    touch = f'#include <fcntl.h>\nstatic void f(void){{open("{proof}", O_CREAT|O_WRONLY, 0600);}}'
    cc("lib/libx.so", f"{touch}\n__attribute__((constructor)) void g(void){{f();}}", "-shared",
       "-fPIC")  # fmt: skip
    program = cc("p", f"{touch}\nint main(void){{f();}}", "-Wl,--no-as-needed", "-Llib", "-lx",
                 f"-Wl,-rpath,{tmp_path}/lib")  # fmt: skip
    build(supervise, tmp_path / "root", "--copy", program)
    assert not proof.exists()
    loader = cc("loader", f"{touch}\nint main(void){{f(); return 1;}}", "-static")
    own = cc("own", "int main(void){return 0;}", f"-Wl,--dynamic-linker={loader}")
    build(supervise, tmp_path / "root2", "--copy", own)
    assert not proof.exists()


def test_sigterm_leaves_nothing(supervise: Supervise, tmp_path: Path) -> None:
    """While it waits for a tool, which has said that it runs."""
    os.mkfifo(tmp_path / "ready")
    script = f"#!/bin/sh\necho x > {tmp_path}/ready; exec sleep 60\n"
    tool = elves.write(tmp_path / "bin/mmdebstrap", script.encode())
    path = f"{tool.parent}:{os.environ['PATH']}"
    target = tmp_path / "d/root"
    target.parent.mkdir()
    process = supervise.start("rootfs", "build", target, "--from-packages", "bash",
                              environment={"PATH": path})  # fmt: skip
    with process:
        (tmp_path / "ready").read_text()
        assert os.listdir(target.parent) != []
        process.terminate()
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 130 and os.listdir(target.parent) == []


def test_an_image_that_other_tools_read(supervise: Supervise, tmp_path: Path) -> None:
    needed("skopeo", "umoci")
    layout = tmp_path / "layout"
    saved = build(supervise, tmp_path / "root", "--copy", "/bin/sh", "--save", f"oci:{layout}:v1")
    seen = json.loads(subprocess.check_output(["skopeo", "inspect", f"oci:{layout}:v1"]))
    assert seen["Digest"] == saved["saved"]["digest"] and len(seen["Layers"]) == 1
    subprocess.run(
        ["umoci", "unpack", "--image", f"{layout}:v1", tmp_path / "bundle"],
        check=True, capture_output=True,
    )  # fmt: skip
    unpacked = tmp_path / "bundle/rootfs"
    assert (unpacked / "etc/passwd").read_text() == (tmp_path / "root/etc/passwd").read_text()
    assert stat.S_IMODE(os.stat(unpacked / "tmp").st_mode) == 0o1777
    assert inside(supervise, unpacked, "/bin/sh", "-c", "echo in").stdout == "in\n"


def test_a_root_of_packages(supervise: Supervise, tmp_path: Path) -> None:
    needed("mmdebstrap")
    if host.in_guest():
        pytest.skip("the guest has no network to get packages by")
    root = tmp_path / "root"
    script = elves.write(tmp_path / "s", b"#!/bin/bash\nset -- *; echo $#; cat /proc/self/comm\n")
    done = supervise("rootfs", "build", root, "--from-packages", "bash,coreutils", "--copy",
                     f"{script}:/s", "--json", timeout=PATIENCE * 4)  # fmt: skip
    if "Could not resolve" in done.stderr or "Failed to fetch" in done.stderr:
        host.miss("tools", "needs the archive of the distribution")
    assert done.status == 0, done.stderr
    assert len(checked(json.loads(done.stdout))) > 50
    assert inside(supervise, root, "/s").stdout.splitlines()[-1] == "cat"
