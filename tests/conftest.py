"""What every test gets: the markers' meaning, the check for leaks, and the common fixtures."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import host, leaks
from tests.support.command import State, Supervise
from tests.support.leaks import no_leaks

__all__ = ["no_leaks"]


def pytest_configure(config: pytest.Config) -> None:
    host.required()  # a wrong word is reported before any test runs
    heed_interrupts()


def heed_interrupts() -> None:
    """A shell starts a background job with these ignored; who is started by it inherits that."""
    for number in (signal.SIGINT, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            own = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, own)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip, or fail where SUPERVISE_TEST_REQUIRE says so, what cannot run on this host."""
    if item.get_closest_marker("kernel") and (why := host.lacks_privilege()):
        host.miss("privilege", why)
    if item.get_closest_marker("vm"):
        if host.in_guest():
            pytest.skip("runs in the guest already")
        if why := host.lacks_vm():
            host.miss("vm", why)
    if item.get_closest_marker("qemu") and (why := host.lacks_full_kernel()):
        pytest.skip(why)
    if item.get_closest_marker("v1") and (why := host.lacks_version("v1")):
        pytest.skip(why)
    if item.get_closest_marker("v2") and (why := host.lacks_version("v2")):
        pytest.skip(why)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for line in config.stash.get(leaks.told, ()):
        terminalreporter.write_line(f"left behind, ignoring: {line}", yellow=True)


@pytest.fixture
def tmp_state(tmp_path: Path) -> Iterator[State]:
    """A state directory and a run-time directory of this test's own."""
    (tmp_path / "state").mkdir()
    runtime = Path(tempfile.mkdtemp(prefix="sv-"))
    runtime.chmod(0o711)  # as /run is: the root of a job's user namespace walks through it
    yield State(state=tmp_path / "state", runtime=runtime)
    shutil.rmtree(runtime)


@pytest.fixture
def busybox() -> Path:
    """A static busybox, fit for an empty root."""
    found = host.static_busybox()
    if found is None:
        host.miss("tools", "needs a static busybox: apt-get install busybox-static")
    return found


@pytest.fixture
def supervise(tmp_state: State) -> Supervise:
    """The command: `supervise("run", "--", "true").status == 0`."""
    return Supervise(tmp_state)
