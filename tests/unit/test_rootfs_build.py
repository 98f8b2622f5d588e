"""From wishes to a root, without root and without a container; what goes wrong leaves nothing."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from supervisor.container.build import PATH
from supervisor.container.host import OWN
from supervisor.errors import ConfigError, RootError
from supervisor.front import cli
from supervisor.front import rootfs as verb
from supervisor.rootfs import build as building
from supervisor.rootfs import packages, settings, tree
from supervisor.rootfs.build import Built, Wishes, build
from supervisor.rootfs.companions import companions
from supervisor.rootfs.gather import SEARCH, Copy, Gatherer
from tests.support import elves


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return Path(os.path.realpath(tmp_path))


def same(*paths: Path | str) -> Wishes:
    return Wishes(tuple(Copy(str(path), str(path)) for path in paths))


def nothing(_built: Built) -> None:
    """No check."""


def test_what_a_job_has_of_its_own_is_known() -> None:
    assert ":".join(SEARCH) == PATH
    assert set(tree.OWN) == set(OWN) <= set(settings.MOUNT_POINTS)


def script(path: Path, line: str, mode: int = 0o755) -> Path:
    return elves.write(path, f"{line}\necho\n".encode(), mode)


def test_a_program_with_its_libraries(top: Path) -> None:
    built = build(top / "new", same("/bin/sh"), nothing)
    assert [one.kind for one in built.programs] == ["dynamic"]
    assert os.path.realpath(top / "new/bin/sh").startswith(str(top))
    for path, mode in settings.MOUNT_POINTS.items():
        assert stat.S_IMODE(os.stat(f"{top}/new{path}").st_mode) == mode, path
    assert "nobody" in (top / "new/etc/passwd").read_text()
    assert os.listdir(top) == ["new"]


def test_the_interpreters_of_scripts_come_along(top: Path) -> None:
    inner = script(top / "inner", "#!/bin/sh")
    outer = script(top / "outer", f"#!{inner} -x")
    gatherer = Gatherer()
    gatherer.copy(Copy(str(outer), "/run.sh"))
    kinds = {path: one.kind for path, one in gatherer.done.programs.items()}
    assert kinds.pop("/run.sh") == kinds.pop(str(inner)) == "script"
    assert list(kinds) == [os.path.realpath("/bin/sh")]


def test_env_is_followed_to_what_it_runs(top: Path) -> None:
    gatherer = Gatherer()
    gatherer.copy(Copy(str(script(top / "s", "#!/usr/bin/env sh")), "/s"))
    assert {os.path.realpath("/usr/bin/env"), os.path.realpath("/bin/sh")} <= {
        *gatherer.done.programs
    }


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("#!/no/such/thing", "its interpreter /no/such/thing is not there"),
        ("#!/usr/bin/env no-such-thing", "env finds no no-such-thing in /usr/local/sbin:"),
        ("#!/etc/passwd", "its interpreter /etc/passwd may not be executed"),
        ("#!SELF", "more than 5 interpreters are scripts themselves"),
    ],
)
def test_an_interpreter_that_cannot_be(top: Path, line: str, told: str) -> None:
    path = script(top / "s", line.replace("SELF", str(top / "s")))
    with pytest.raises(RootError, match=told):
        build(top / "new", same(path), nothing)
    assert os.listdir(top) == ["s"]


def test_every_problem_is_told_at_once_and_nothing_is_left(top: Path) -> None:
    program = elves.write(top / "p", elves.elf(interpreter="/lib/ld-none.so.1"))
    wants = elves.write(top / "q", elves.elf(needed=["libnone.so.1"]))
    corrupt = elves.write(top / "r", b"\x7fELF and no more")
    with pytest.raises(RootError) as caught:
        build(top / "new", same("/none", program, "/dev/null", wants, corrupt), nothing)
    told = "\n".join(caught.value.problems)
    for text in (
        "/none: No such file",
        f"{program}: its interpreter /lib/ld-none.so.1 is not there",
        "/dev/null",
        f"libnone.so.1: no such library, wanted by {wants}",
        f"{corrupt}: not a valid ELF file",
    ):
        assert text in told
    assert "--no-check" in caught.value.hint
    assert sorted(os.listdir(top)) == ["p", "q", "r"]


def test_what_is_missing_is_a_remark_without_a_check(top: Path) -> None:
    wants = elves.write(top / "q", elves.elf(needed=["libnone.so.1"]))
    wishes = Wishes((Copy(str(wants), "/q"),), lenient=True)
    built = build(top / "new", wishes, nothing)
    assert any("libnone.so.1: no such library" in text for text in built.remarks)
    assert (top / "new/q").exists()


def test_an_interpreter_for_another_processor_is_told(top: Path) -> None:
    loader = elves.write(top / "ld.so", elves.elf(bits=32, machine=elves.I386))
    program = elves.write(top / "p", elves.elf(interpreter=str(loader)))
    with pytest.raises(RootError, match=r"ld\.so is for 386, 32 bits"):
        build(top / "new", same(program), nothing)


def test_a_directory_comes_whole_and_its_defects_are_remarks(top: Path) -> None:
    app = top / "app"
    elves.write(app / "plugins/x.so", elves.elf(needed=["libnone.so.1"]), 0o644)
    elves.write(app / "broken.so", b"\x7fELF", 0o644)
    script(app / "run", "#!/no/such/thing")
    (app / "data").write_text("data")
    (app / "data").chmod(0o600)
    os.mkfifo(app / "fifo")
    (top / "outside").write_text("outside")
    (top / "dir").mkdir()
    (app / "out").symlink_to("../outside")
    (app / "dir").symlink_to(top / "dir")
    (app / "loop").symlink_to("loop")
    (app / "self").symlink_to(".")
    built = build(top / "new", same(app), nothing)
    new = Path(f"{top}/new{top}")
    assert sorted(os.listdir(new / "app")) == [
        "broken.so", "data", "dir", "loop", "out", "plugins", "run", "self",
    ]  # fmt: skip
    assert (new / "outside").read_text() == "outside"
    told = "\n".join(built.remarks)
    for text in (
        "libnone.so.1: no such library",
        "broken.so: not a valid ELF",
        "/no/such/thing is not there",
        "fifo: a device, socket or pipe",
        f"leads to the directory {top}/dir",
    ):
        assert text in told
    assert built.programs == ()


def test_a_root_is_not_copied_into_itself(top: Path) -> None:
    (top / "d").mkdir()
    for path in (top, "/"):
        with pytest.raises(RootError, match="would be a part of what is copied"):
            build(top / "d/new", same(path), nothing)
    assert os.listdir(top / "d") == []


def test_a_failing_check_leaves_what_was_there(top: Path) -> None:
    (top / "new").mkdir()
    (top / "new/old").write_text("old")

    def fail(built: Built) -> None:
        assert (built.path / "bin/sh").exists()
        raise RootError(["no good"])

    with pytest.raises(RootError, match="no good"):
        build(top / "new", same("/bin/sh"), fail, force=True)
    assert (top / "new/old").read_text() == "old" and os.listdir(top) == ["new"]


def test_an_interrupt_leaves_nothing(top: Path) -> None:
    def interrupted(_built: Built) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(top / "new", same("/bin/sh"), interrupted)
    assert os.listdir(top) == []


def test_force_replaces_a_directory_and_nothing_else(top: Path, monkeypatch) -> None:
    (top / "new/closed").mkdir(parents=True)
    (top / "new/closed/f").write_text("")
    (top / "new/closed").chmod(0)
    with pytest.raises(RootError, match="is there already") as caught:
        build(top / "new", same("/bin/sh"), nothing)
    assert "--force" in caught.value.hint
    build(top / "new", same("/bin/sh"), nothing, force=True)
    assert not (top / "new/closed").exists() and os.listdir(top) == ["new"]
    (top / "link").symlink_to("new")
    (top / "file").write_text("")
    monkeypatch.chdir(top)
    for path, told in {
        "link": "not a plain",
        "file": "not a plain",
        ".": "directory you are in",
    }.items():
        with pytest.raises(RootError, match=told):
            build(top / path, same("/bin/sh"), nothing, force=True)
    with pytest.raises(RootError, match="not a plain"):
        build(Path("/"), same("/bin/sh"), nothing, force=True)
    with pytest.raises(RootError, match=f"{top}/none: no such directory"):
        build(top / "none/new", same("/bin/sh"), nothing)


def test_python_has_its_library_and_not_what_is_beside_it(top: Path) -> None:
    python = elves.write(top / "bin/python3.99", elves.elf())
    library = top / "lib/python3.99"
    for name in ("os.py", "test/t.py", "site-packages/x.py", "json/__init__.py"):
        elves.write(library / name, b"")
    built = build(top / "new", same(python), nothing)
    new = Path(f"{top}/new{library}")
    assert sorted(os.listdir(new)) == ["json", "os.py"]
    assert companions("/usr/bin/true") is None
    moved = Gatherer()
    moved.copy(Copy(str(python), "/python3.99"))
    assert "copy it to the same path" in moved.done.remarks[0]
    assert built.files > 4


def test_a_locale_is_found_by_any_of_its_names(top: Path, monkeypatch) -> None:
    (top / "locale/en_GB.utf8").mkdir(parents=True)
    (top / "locale/en_GB.utf8/LC_CTYPE").write_text("")
    archive = top / "locale/locale-archive"
    archive.write_bytes(b"\0de_DE.iso88591\0")
    monkeypatch.setattr(settings, "LOCALES", f"{top}/locale")
    monkeypatch.setattr(settings, "ARCHIVE", str(archive))
    gatherer = Gatherer()
    settings.with_locale(gatherer, "en_GB.UTF-8")
    assert f"{top}/locale/en_GB.utf8/LC_CTYPE" in gatherer.done.tree
    assert str(archive) not in gatherer.done.tree
    settings.with_locale(gatherer, "de_DE.ISO-8859-1")
    assert str(archive) in gatherer.done.tree
    with pytest.raises(RootError, match="fr_FR: no such locale") as caught:
        settings.with_locale(gatherer, "fr_FR")
    assert "there is en_GB.utf8" in caught.value.hint


def test_a_host_without_certificates_says_which_package(top: Path, monkeypatch) -> None:
    monkeypatch.setattr(settings, "CERTIFICATES", (f"{top}/certs",))
    with pytest.raises(RootError, match="no bundle of certificates") as caught:
        settings.with_ca(Gatherer())
    assert "ca-certificates" in caught.value.hint
    elves.write(top / "certs/ca-certificates.crt", b"PEM", 0o644)
    gatherer = Gatherer()
    settings.with_ca(gatherer)
    assert f"{top}/certs/ca-certificates.crt" in gatherer.done.tree


def test_without_ldconfig_it_is_told(top: Path, monkeypatch) -> None:
    monkeypatch.setattr(building, "LDCONFIG", ())
    built = build(top / "new", same("/bin/sh"), nothing)
    assert any("no ldconfig here" in text for text in built.remarks)
    assert not (top / "new/etc/ld.so.cache").exists()


# Packages.


def tool(top: Path, monkeypatch, text: str, name: str = "mmdebstrap") -> None:
    script(top / "tools" / name, f"#!/bin/sh\n{text}")
    monkeypatch.setenv("PATH", f"{top}/tools")


def test_packages_come_by_mmdebstrap(top: Path, monkeypatch) -> None:
    put = 'for last; do case $last in */root) r=$last;; esac; done; /bin/mkdir -p "$r/bin" "$r/etc"'
    put += f'; echo "$@" > {top}/args; echo x > "$r/bin/theirs"; echo y > "$r/etc/hostname"'
    tool(top, monkeypatch, put)
    monkeypatch.setattr(packages, "is_root", lambda: True)
    wishes = Wishes((Copy(str(script(top / "s", "#!/bin/sh")), "/s"),), packages=("bash", "jq"))
    build(top / "new", wishes, nothing)
    assert (top / "new/bin/theirs").exists() and (top / "new/s").exists()
    assert not (top / "new/etc/hostname").exists()
    given = (top / "args").read_text()
    assert "--variant=extract" in given and "--include=bash,jq" in given


def test_a_tool_that_fails_is_quoted(top: Path, monkeypatch) -> None:
    tool(top, monkeypatch, "echo no such package >&2; exit 1")
    monkeypatch.setattr(packages, "is_root", lambda: True)
    with pytest.raises(RootError, match=r"mmdebstrap failed:\nno such package"):
        build(top / "new", Wishes(packages=("bash",)), nothing)
    assert not (top / "new").exists()


def test_without_a_tool_the_package_is_named(top: Path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(top))
    monkeypatch.setattr(packages, "is_root", lambda: True)
    with pytest.raises(RootError, match="needs mmdebstrap or debootstrap") as caught:
        packages.bootstrap(top, ("bash",))
    assert "apt-get install mmdebstrap" in caught.value.hint
    with pytest.raises(RootError, match="not the name of a Debian package"):
        packages.bootstrap(top, ("--hook=x", "a b"))
    monkeypatch.setattr(packages, "is_root", lambda: False)
    with pytest.raises(RootError, match="needs root"):
        packages.bootstrap(top, ("bash",))


# The verb.


def test_a_copy_s_text_is_a_path_and_a_target(top: Path, monkeypatch) -> None:
    monkeypatch.chdir(top)
    (top / "a:/b").mkdir(parents=True)
    problems: list[str] = []
    read = [verb.copy_of(text, problems) for text in ("x", "/x:/y/", "x:/y//z/.", "a:/b", "a:b")]
    assert read == [
        Copy(f"{top}/x", f"{top}/x"),
        Copy("/x", "/y/x"),
        Copy(f"{top}/x", "/y/z"),
        Copy(f"{top}/a:/b", f"{top}/a:/b"),
        Copy(f"{top}/a:b", f"{top}/a:b"),
    ]
    assert not problems
    assert verb.copy_of("/x:/../y", problems) is verb.copy_of("", problems) is None
    assert len(problems) == 2


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ([], "--copy PATH or --from-packages"),
        (["--from-packages", ","], "--from-packages: names no package"),
        (["--copy", "/x:/../y"], '--copy /x:/../y: the target must be a path without ".."'),
        (["--copy", "/bin/sh", "--save", "docker://x"], "saved as oci:PATH"),
        (["--copy", "/bin/sh", "--save", "oci:"], "--save oci:: names no path"),
    ],
)
def test_a_wrong_usage_builds_nothing(top: Path, capsys, flags: list[str], told: str) -> None:
    assert cli.command(["rootfs", "build", str(top / "new"), *flags]) == 2
    assert told in capsys.readouterr().err and os.listdir(top) == []


def test_the_result_as_json(top: Path, capsys) -> None:
    given = ["rootfs", "build", str(top / "new"), "--copy", "/bin/sh", "--no-check", "--json"]
    assert cli.command(given) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == f"{top}/new" and found["bytes"] > 10000 and found["saved"] is None
    (program,) = found["programs"]
    assert program["kind"] == "dynamic" and program["checked"] is False
    assert cli.command([*given]) == 1
    assert "is there already" in capsys.readouterr().err


def test_an_image_is_saved_with_one_layer(top: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    given = ["rootfs", "build", "--copy", "/bin/sh", "--no-check", "--json"]
    digests = []
    for name in ("one", "two"):
        layout = top / f"{name}.oci"
        assert cli.command([*given, str(top / name), "--save", f"oci:{layout}:v1"]) == 0
        digests.append(json.loads(capsys.readouterr().out)["saved"]["digest"])
        config = verb.config_of((), "2023-11-14T22:13:20Z")
        assert config["created"] == "2023-11-14T22:13:20Z"
    assert digests[0] == digests[1]
    manifest = json.loads((top / "one.oci/blobs/sha256" / digests[0][7:]).read_bytes())
    assert len(manifest["layers"]) == 1
    blob = json.loads(
        (top / "one.oci/blobs/sha256" / manifest["config"]["digest"][7:]).read_bytes()
    )
    assert blob["created"] == "2023-11-14T22:13:20Z" and blob["config"]["Cmd"]


def test_flags_become_wishes() -> None:
    args = cli.parser().parse_args(
        ["rootfs", "build", "d", "--copy", "/bin/sh", "--with-nss", "--with-ca", "--with-locale",
         "C.UTF-8", "--setuid", "--no-check"]
    )  # fmt: skip
    assert verb.wishes_of(args) == Wishes(
        (Copy("/bin/sh", "/bin/sh"),), nss=True, ca=True, locales=("C.UTF-8",), privileged=True,
        lenient=True,
    )  # fmt: skip
    with pytest.raises(ConfigError):
        verb.save_of("tar:/x")
