"""The check for leaks and the meaning of SUPERVISE_TEST_REQUIRE prove themselves."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.support import host, leaks, procs
from tests.support.command import ROOT

INNER = """
from tests.support.leaks import no_leaks
from tests.support import leaks
leaks.GRACE = 0.2
"""


@pytest.fixture
def inner(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A test session within this one, with the check in force and nobody else to blame."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("SUPERVISE_TEST_REQUIRE", raising=False)
    pytester.makeconftest(
        INNER + "from tests.support import procs\nprocs.other_supervisors = lambda: ()"
    )
    return pytester


def test_a_clean_session_passes(inner: pytest.Pytester) -> None:
    inner.makepyfile(
        """
        import os, subprocess
        def test_nothing_left():
            subprocess.run(["true"], check=True)
            with open("/dev/null"): pass
        """
    )
    inner.runpytest_subprocess().assert_outcomes(passed=1)


def test_a_leaked_descriptor_fails_the_session(inner: pytest.Pytester) -> None:
    inner.makepyfile(
        """
        import os
        def test_leak():
            os.open("/etc/hostname", os.O_RDONLY)
        """
    )
    result = inner.runpytest_subprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*the tests left behind:*", "*descriptor: * -> /etc/hostname*"])
    assert result.ret == 1


@pytest.mark.parametrize("detach", [False, True])
def test_a_leaked_process_fails_the_session(inner: pytest.Pytester, detach: bool) -> None:
    """A child, and one that has left the family but carries the session's mark."""
    inner.makepyfile(
        f"""
        import os, subprocess
        reader, writer = os.pipe()
        def test_leak():
            # It reads a pipe that the session holds, so it ends when the session has.
            script = "exec 3<&0; cat <&3 &" if {detach} else "exec cat"
            child = subprocess.Popen(
                ["sh", "-c", script], stdin=reader,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if {detach}:
                child.wait()
            else:
                child.returncode = 0  # no warning of Popen's own
        """
    )
    result = inner.runpytest_subprocess()
    result.stdout.fnmatch_lines(["*the tests left behind:*", "*process: * cat*"])
    assert result.ret == 1


@pytest.mark.kernel
def test_a_leaked_cgroup_fails_the_session(inner: pytest.Pytester) -> None:
    point = host.hierarchies()[0].point
    made = point / f"supervise-leak.{os.getpid()}"
    inner.makepyfile(f"import os\ndef test_leak():\n    os.mkdir({str(made)!r})")
    try:
        result = inner.runpytest_subprocess()
    finally:
        if made.exists():
            made.rmdir()
    result.stdout.fnmatch_lines(["*the tests left behind:*", f"*cgroup: {made}"])
    assert result.ret == 1


def test_what_another_supervisor_may_have_made_is_told_not_failed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stash = pytest.Stash()
    before, after = leaks.Snapshot(), leaks.Snapshot({"mount": {"7": "/made"}})
    monkeypatch.setattr(procs, "other_supervisors", lambda: ())
    with pytest.raises(pytest.fail.Exception, match="mount: /made"):
        leaks.judge(stash, before, after)
    monkeypatch.setattr(procs, "other_supervisors", lambda: (4711,))
    leaks.judge(stash, before, after)
    assert stash[leaks.told] == ("mount: /made (or by pid 4711)",)


def test_new_things_of_every_kind_are_listed() -> None:
    before = leaks.Snapshot({kind: {"a": "old"} for kind in leaks.SHARED + leaks.OWN})
    after = leaks.Snapshot({kind: {"a": "old", "b": "new"} for kind in leaks.SHARED + leaks.OWN})
    found = after.new_since(before, leaks.SHARED + leaks.OWN)
    assert found == tuple(f"{kind}: new" for kind in leaks.SHARED + leaks.OWN)
    assert before.new_since(before, leaks.SHARED + leaks.OWN) == ()


def test_a_snapshot_covers_every_kind() -> None:
    assert set(leaks.take("none").things) == set(leaks.SHARED + leaks.OWN)


def test_a_want_skips_or_fails_as_the_variable_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERVISE_TEST_REQUIRE", "vm")
    with pytest.raises(pytest.skip.Exception):
        host.miss("privilege", "needs root")
    monkeypatch.setenv("SUPERVISE_TEST_REQUIRE", "vm,privilege")
    with pytest.raises(pytest.fail.Exception, match="needs root"):
        host.miss("privilege", "needs root")
    monkeypatch.setenv("SUPERVISE_TEST_REQUIRE", "privileges")
    with pytest.raises(pytest.UsageError, match="unknown privileges"):
        host.required()


def test_a_kernel_test_without_root_skips_or_fails(pytester: pytest.Pytester) -> None:
    """The marker itself, by the real conftest, on a host that lacks root."""
    conftest = (ROOT / "tests/conftest.py").read_text()
    pytester.makeconftest(
        conftest + "\nhost.lacks_privilege = lambda: 'needs root'\nleaks.take = None\n"
        "@pytest.fixture(scope='session', autouse=True)\ndef no_leaks(): pass\n"
    )
    pytester.makepyfile("import pytest\n@pytest.mark.kernel\ndef test_one(): assert False")
    pytester.makeini("[pytest]\nmarkers =\n    kernel: x\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("SUPERVISE_TEST_REQUIRE", "")
        pytester.runpytest_subprocess().assert_outcomes(skipped=1)
        patch.setenv("SUPERVISE_TEST_REQUIRE", "privilege")
        result = pytester.runpytest_subprocess()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*needs root (SUPERVISE_TEST_REQUIRE has privilege)*"])


def test_what_is_started_in_the_background_hears_ctrl_c(pytester: pytest.Pytester) -> None:
    conftest = (ROOT / "tests/conftest.py").read_text()
    pytester.makeconftest(
        conftest + "\nleaks.take = None\n"
        "@pytest.fixture(scope='session', autouse=True)\ndef no_leaks(): pass\n"
    )
    pytester.makepyfile(
        """
        import signal, subprocess
        def test_one():
            for number in (signal.SIGINT, signal.SIGQUIT):
                done = subprocess.run(["sh", "-c", f"kill -{int(number)} $$"])
                assert done.returncode == -number
        """
    )
    deaf = ["sh", "-c", 'trap "" INT QUIT; exec "$@"', "sh", sys.executable, "-m", "pytest", "-q"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        result = pytester.run(*deaf)
    assert result.ret == 0, result.outlines


def test_static_is_told_from_dynamic(tmp_path: Path, busybox: Path) -> None:
    script = tmp_path / "busybox"
    script.write_text("#!/bin/sh\n")
    assert not host.is_static(script)
    assert host.is_static(busybox)
    assert not host.is_static(Path("/bin/sh").resolve())
