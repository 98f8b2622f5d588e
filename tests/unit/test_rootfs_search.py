"""Which library a loader takes, told by synthetic programs; real loaders: tests/kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from supervisor.errors import RootError
from supervisor.rootfs import search
from supervisor.rootfs.closure import Closure, Reader, closure, fits_host
from supervisor.rootfs.elf import Arch, ElfError
from supervisor.rootfs.search import Object, configured, musl_directories
from tests.support import elves


@pytest.fixture(autouse=True)
def no_directories(monkeypatch, tmp_path: Path) -> Path:
    """Of this host's libraries none is found: the system's directories are `tmp_path`/sys."""
    conf = tmp_path / "ld.so.conf"
    monkeypatch.setattr(search, "CONF", str(conf))
    monkeypatch.setattr(search.Search, "_system", lambda _: iter([f"{tmp_path}/sys"]))
    return conf


def loaded(program: Path, target: str | None = None) -> Closure:
    reader = Reader()
    main = Object(reader(str(program)), str(program), target or str(program))
    return closure(main, None, reader)


def paths(found: Closure, top: Path) -> list[str]:
    assert [str(one) for one in found.missing] == []
    return [os.path.relpath(one.source, top) for one in found.objects[1:]]


def lib(path: Path, **tags) -> Path:
    return elves.write(path, elves.elf(**tags))


def test_breadth_first_and_each_once(tmp_path: Path) -> None:
    top = tmp_path / "sys"
    lib(top / "liba.so", needed=["libc.so", "libd.so"])
    lib(top / "libb.so", needed=["libc.so"])
    lib(top / "libc.so", needed=["liba.so"])
    lib(top / "libd.so")
    program = lib(tmp_path / "p", needed=["liba.so", "libb.so"])
    assert paths(loaded(program), top) == ["liba.so", "libb.so", "libc.so", "libd.so"]


def test_an_rpath_is_inherited_and_a_runpath_is_not(tmp_path: Path) -> None:
    own = tmp_path / "own"
    lib(own / "liba.so", needed=["libb.so"])
    lib(own / "libb.so")
    rpath = lib(tmp_path / "p", needed=["liba.so"], rpath=str(own))
    assert paths(loaded(rpath), own) == ["liba.so", "libb.so"]
    runpath = lib(tmp_path / "q", needed=["liba.so"], runpath=str(own))
    (missing,) = loaded(runpath).missing
    assert (missing.name, missing.by) == ("libb.so", f"{own}/liba.so")


def test_a_library_with_a_runpath_sees_no_rpath_of_others(tmp_path: Path) -> None:
    own = tmp_path / "own"
    lib(own / "liba.so", needed=["libb.so"], runpath="/nowhere")
    lib(own / "libb.so")
    program = lib(tmp_path / "p", needed=["liba.so"], rpath=str(own))
    assert [one.name for one in loaded(program).missing] == ["libb.so"]


def test_the_order_is_rpath_configuration_system(tmp_path: Path, no_directories: Path) -> None:
    for name in ("own", "conf", "sys"):
        lib(tmp_path / name / "liba.so")
    no_directories.write_text(f"{tmp_path}/conf\n")
    with_runpath = lib(tmp_path / "p", needed=["liba.so"], runpath=f"{tmp_path}/own")
    assert paths(loaded(with_runpath), tmp_path) == ["own/liba.so"]
    assert paths(loaded(lib(tmp_path / "q", needed=["liba.so"])), tmp_path) == ["conf/liba.so"]
    no_directories.write_text("")
    assert paths(loaded(lib(tmp_path / "q", needed=["liba.so"])), tmp_path) == ["sys/liba.so"]
    nowhere = lib(tmp_path / "r", needed=["liba.so"], flags_1=0x800)  # DF_1_NODEFLIB
    assert [one.name for one in loaded(nowhere).missing] == ["liba.so"]


@pytest.mark.parametrize("token", ["$ORIGIN", "${ORIGIN}"])
def test_origin_is_where_the_object_lies_here_and_in_the_root(tmp_path: Path, token: str) -> None:
    lib(tmp_path / "app/lib/liba.so", needed=["libb.so"], runpath=token)
    lib(tmp_path / "app/lib/libb.so")
    program = lib(tmp_path / "app/bin/p", needed=["liba.so"], runpath=f"{token}/../lib")
    found = loaded(program, "/opt/x/bin/p")
    assert paths(found, tmp_path) == ["app/lib/liba.so", "app/lib/libb.so"]
    assert [one.target for one in found.objects[1:]] == [
        "/opt/x/lib/liba.so", "/opt/x/lib/libb.so",
    ]  # fmt: skip


def test_lib_and_platform_stand_for_what_they_can(tmp_path: Path) -> None:
    lib(tmp_path / "lib/x86_64-linux-gnu/liba.so")
    lib(tmp_path / "lib64/haswell/libb.so")
    templates = f"{tmp_path}/$LIB:{tmp_path}/${{LIB}}/$PLATFORM:{tmp_path}/$LIBRARY"
    program = lib(tmp_path / "p", needed=["liba.so", "libb.so"], runpath=templates)
    assert paths(loaded(program), tmp_path) == [
        "lib/x86_64-linux-gnu/liba.so", "lib64/haswell/libb.so",
    ]  # fmt: skip


def test_one_for_another_processor_is_passed_over(tmp_path: Path) -> None:
    other = lib(tmp_path / "other/liba.so", bits=32, machine=elves.I386)
    program = lib(tmp_path / "p", needed=["liba.so"], runpath=f"{tmp_path}/other")
    (missing,) = loaded(program).missing
    assert str(missing) == (
        f"liba.so: no such library, wanted by {program}; there is {other} (386, 32 bits)"
    )
    lib(tmp_path / "sys/liba.so")
    assert paths(loaded(program), tmp_path) == ["sys/liba.so"]


def test_a_corrupt_library_in_the_way_is_an_error(tmp_path: Path) -> None:
    elves.write(tmp_path / "sys/liba.so", b"INPUT(libreal.so)")
    with pytest.raises(ElfError, match=r"liba\.so: not a valid ELF file"):
        loaded(lib(tmp_path / "p", needed=["liba.so"]))


def test_variants_for_newer_processors_come_along(tmp_path: Path) -> None:
    lib(tmp_path / "sys/liba.so")
    lib(tmp_path / "sys/glibc-hwcaps/x86-64-v3/liba.so", needed=["libfast.so"])
    lib(tmp_path / "sys/libfast.so")
    program = lib(tmp_path / "p", needed=["liba.so"])
    assert paths(loaded(program), tmp_path / "sys") == [
        "liba.so", "glibc-hwcaps/x86-64-v3/liba.so", "libfast.so",
    ]  # fmt: skip


def test_a_name_that_is_a_path_is_that_file(tmp_path: Path) -> None:
    lib(tmp_path / "d/liba.so")
    program = lib(tmp_path / "p", needed=[f"{tmp_path}/d/liba.so"])
    assert paths(loaded(program), tmp_path) == ["d/liba.so"]
    relative = lib(tmp_path / "q", needed=["./d/liba.so"])
    assert [one.name for one in loaded(relative).missing] == ["./d/liba.so"]


def test_filters_are_wanted_and_auxiliaries_may_be_missing(tmp_path: Path) -> None:
    lib(tmp_path / "sys/libx.so")
    program = lib(tmp_path / "p", filter=["libx.so", "liby.so"], auxiliary="libz.so")
    found = loaded(program)
    assert [one.name for one in found.missing] == ["liby.so"]
    assert [one.source for one in found.objects[1:]] == [f"{tmp_path}/sys/libx.so"]


def test_a_library_is_known_by_its_soname(tmp_path: Path) -> None:
    lib(tmp_path / "sys/liba.so", soname="libtrue.so.1")
    program = lib(tmp_path / "p", needed=["liba.so", "libtrue.so.1"])
    assert paths(loaded(program), tmp_path / "sys") == ["liba.so"]


def test_musl_inherits_a_runpath_and_has_libc_in_itself(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(search, "musl_directories", lambda _arch: ())
    lib(tmp_path / "own/liba.so", needed=["libb.so", "libpthread.so.0"])
    lib(tmp_path / "own/libb.so")
    program = lib(
        tmp_path / "p", interpreter="/lib/ld-musl-x86_64.so.1", runpath=f"{tmp_path}/own",
        needed=["liba.so", "libc.musl-x86_64.so.1"],
    )  # fmt: skip
    assert paths(loaded(program), tmp_path / "own") == ["liba.so", "libb.so"]


def test_musl_without_a_file_of_paths_has_three() -> None:
    assert musl_directories("none") == ("/lib", "/usr/local/lib", "/usr/lib")


def test_a_configuration_with_includes(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d/b.conf").write_text("/b\n")
    (tmp_path / "conf.d/a.conf").write_text("# /no\n/a/ , /a2:/a3 # no\nhwcap 1 nosegneg\n")
    (tmp_path / "top").write_text("/first\ninclude conf.d/*.conf\nrelative\n/last=libc6\n")
    assert list(configured(str(tmp_path / "top"))) == [
        "/first", "/a", "/a2", "/a3", "/b", "/last",
    ]  # fmt: skip


def test_a_configuration_that_includes_itself_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "top").write_text("include top\n")
    with pytest.raises(RootError, match="includes itself"):
        list(configured(str(tmp_path / "top")))


def test_what_a_kernel_executes() -> None:
    assert fits_host(Arch("EM_386", 32, True), "x86_64")
    assert not fits_host(Arch("EM_AARCH64", 64, True), "x86_64")
    assert not fits_host(Arch("EM_X86_64", 64, True), "somewhat else")
