"""Jobs of somebody who is not root: what works, what does not, and that it says so."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import host
from tests.support.containers import private_mounts
from tests.support.nobody import NOBODY, Nobody, nobody

pytestmark = pytest.mark.kernel

GIVEN = 3_000_000


@pytest.fixture(scope="module")
def user() -> Iterator[Nobody]:
    able = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
    if subprocess.run([*able, "unshare", "-Ur", "true"], check=False).returncode:
        pytest.skip("this kernel gives no user namespace to ordinary users")
    with nobody() as found:
        yield found


@pytest.fixture
def bare(tmp_path: Path) -> list[str]:
    """Before the command: nobody has no subordinate ids."""
    return _subordinate(tmp_path, "")


@pytest.fixture
def given(tmp_path: Path) -> list[str]:
    """Before the command: nobody has some."""
    if shutil.which("newuidmap") is None:
        host.miss("tools", "needs newuidmap: apt-get install uidmap")
    return _subordinate(tmp_path, f"{NOBODY}:{GIVEN}:65536\n")


def _subordinate(where: Path, text: str) -> list[str]:
    """In a mount namespace of its own with other /etc/subuid and /etc/subgid."""
    file = where / "subordinate"
    file.write_text(text)
    file.chmod(0o644)
    names = ("/etc/subuid", "/etc/subgid")
    lines = [f"test -e {name} || touch {name}; mount --bind {file} {name}" for name in names]
    return private_mounts("\n".join(lines))


def test_one_is_root_and_the_only_one(user: Nobody, bare: list[str]) -> None:
    run, _own = user
    script = "id -u; cat /proc/self/uid_map; stat -c %u /etc; touch /tmp/x; stat -c %u /tmp/x"
    done = run("run", "--", "sh", "-c", script, wrapper=bare)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "0", str(NOBODY), "1", "65534", "0"]
    other = run("run", "--user", "nobody", "--", "true", wrapper=bare)
    assert other.returncode == 125
    assert "outside of its 1 mapped ids" in other.stderr and "newuidmap" in other.stderr


def test_with_subordinate_ids_there_are_others(user: Nobody, given: list[str]) -> None:
    run, _own = user
    script = "cat /proc/self/uid_map /proc/self/gid_map; touch /tmp/x; chown 33:33 /tmp/x"
    done = run("run", "--", "sh", "-ec", script, wrapper=given)
    assert done.returncode == 0, done.stderr
    one = ["0", str(NOBODY), "1", "1", str(GIVEN), "65536"]
    assert done.stdout.split() == [*one, *one]
    other = run("run", "--user", "nobody", "--", "id", "-u", wrapper=given)
    assert (other.stdout, other.returncode) == ("65534\n", 0), other.stderr


def test_ids_that_were_not_given_are_refused(user: Nobody, given: list[str]) -> None:
    """`host` as well, and in words."""
    run, _own = user
    for words in (["--user-namespace", "host"], ["--user-namespace", "0:65536"]):
        done = run("run", *words, "--", "true", wrapper=given)
        assert done.returncode == 125 and "Traceback" not in done.stderr, done
    assert 'user_namespace = "auto"' in run("run", "--user-namespace", "host", "--", "true").stderr


def test_a_batch(user: Nobody, bare: list[str]) -> None:
    run, own = user
    config = own / "batch.toml"
    config.write_text(
        '[jobs.good]\ncommand = "id -u"\n[jobs.bad]\nscript = "touch /etc/x"\n'
        '[jobs.after]\ncommand = "true"\nafter = ["good"]\n'
    )
    done = run(config, "--json", "--plain", wrapper=bare)
    assert done.returncode == 1, done.stderr
    records = {one["job"]: one for one in map(json.loads, done.stdout.splitlines())}
    assert {name: record["reason"] for name, record in records.items()} == {
        "good": "succeeded", "bad": "failed", "after": "succeeded"
    }  # fmt: skip
    assert records["good"]["user_namespace"] is None  # no range of its own
    (log,) = own.glob(".local/state/supervise/batch/logs/good.*.out")
    assert log.read_text() == "0\n"
    assert 'user_namespace = "auto"' in run("check", "--show", config).stdout


@pytest.fixture
def root(user: Nobody) -> Iterator[Path]:
    """A root of nobody's own."""
    _run, own = user
    path = own / "root"
    (path / "bin").mkdir(parents=True)
    busybox = shutil.which("busybox")
    if busybox is None:
        host.miss("tools", "needs a static busybox: apt-get install busybox-static")
    assert busybox is not None
    shutil.copy(busybox, path / "bin/sh")
    subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(path)], check=True)
    yield path
    shutil.rmtree(path)


def test_a_layer_over_a_root_of_ones_own(user: Nobody, root: Path, bare: list[str]) -> None:
    """What is written stays out of it; the layer is on the disk where that can hold one."""
    run, own = user
    config = own / "layer.toml"
    script = "echo 1 >/new; mkdir /bin/more; read x </new; test $x = 1"
    config.write_text(
        f"[jobs.layer]\nroot = {json.dumps(str(root))}\n"
        f'command = ["/bin/sh", "-ec", {json.dumps(script)}]\n'
    )
    done = run(config, "--json", "--plain", wrapper=bare)
    record = json.loads(done.stdout)
    assert record["reason"] == "succeeded", (record, done.stderr)
    assert sorted(path.name for path in root.rglob("*")) == ["bin", "sh"]
    kept = own / ".local/state/supervise/layer/runs" / record["run"]
    assert sorted(path.name for path in kept.iterdir()) == ["exit", "spec.json"]


@pytest.mark.parametrize("words", [["--write", "overlay"], ["--mount", "/usr:/nowhere-at-all"]])
def test_what_cannot_be_laid_over_the_hosts_root_says_so(
    user: Nobody, bare: list[str], words: list[str]
) -> None:
    run, own = user
    done = run("run", *words, "--", "true", wrapper=bare)
    assert done.returncode == 125
    assert "without root nothing can be laid over the host's root" in done.stderr
    assert "/DIRECTORY" in done.stderr
    assert not list(own.glob("supervise/*"))


def _doctor(user: Nobody, wrapper: list[str]) -> dict[str, dict[str, str]]:
    run, _own = user
    return {row["name"]: row for row in json.loads(run("doctor", "--json", wrapper=wrapper).stdout)}


def test_the_doctor_says_what_does_not_hold(user: Nobody, bare: list[str]) -> None:
    found = _doctor(user, bare)
    assert found["user numbers for jobs"]["verdict"] == "unavailable"
    assert "uidmap" in found["user numbers for jobs"]["fix"]
    assert found["idmapped mounts"]["verdict"] == "unavailable"


def test_the_doctor_tries_the_helpers(user: Nobody, given: list[str]) -> None:
    row = _doctor(user, given)["user numbers for jobs"]
    assert row["verdict"] == "enforced" and "65537" in row["detail"]


def test_a_disk_limit_is_held_in_memory(user: Nobody, bare: list[str], busybox: Path) -> None:
    run, own = user
    (own / "root/bin").mkdir(parents=True)
    shutil.copy(busybox, own / "root/bin/busybox")
    shutil.chown(own / "root", NOBODY)
    record = own / "record.json"
    common = ["run", "--root", own / "root", "--disk", "4M", "--record", record]
    script = "busybox dd if=/dev/zero of=/x bs=4k; busybox stat -c %s /x; exit 3"
    for more in ((), ("--on-disk-limit", "raise:8M")):
        words = [*common, *more, "--", "/bin/busybox", "sh", "-c", script]
        done = run(*words, wrapper=bare)
        assert (done.returncode, done.stdout) == (3, f"{4 << 20}\n"), done.stderr
        told = json.loads(record.read_text())
        assert told["reason"] == "disk", done.stderr
        assert (told["disk"]["by"], told["disk"]["full"]) == ("tmpfs", True)
        assert told["disk"]["used"] == 4 << 20
        assert ("nothing tells of the job's full disk" in done.stderr) is bool(more)
    refused = run(*common, "--disk-by", "loop", "--", "/bin/busybox", "true", wrapper=bare)
    assert refused.returncode == 125
    assert 'loop: it needs root (fix: disk_by = "tmpfs")' in refused.stderr


IN_A_JOB = """
import os, pathlib, subprocess, sys
me = [sys.executable, "-m", "supervisor"]
own = pathlib.Path("entered")
own.mkdir()
(own / "jobs.toml").write_text(f'''
[supervisor]
name = "entered"
state_dir = "{own.absolute()}"
runtime_dir = "{own.absolute()}"
[jobs.one]
command = ["sleep", "1000"]
user_namespace = "{sys.argv[1]}"
''')
up = subprocess.Popen(
    [*me, str(own / "jobs.toml"), "--plain"],
    stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
)
heard = []
for line in up.stderr:
    heard.append(line)
    if "one started" in line:
        break
    if "one ended" in line:
        sys.exit("".join(heard))
os.environ["SUPERVISE_SOCKET"] = str(own / "entered" / "socket")
look = "id -u; head -1 /proc/self/uid_map; cat /proc/1/comm; tty; exit 3"
done = subprocess.run([*me, "exec", "one", "--", "sh", "-c", look], text=True, capture_output=True)
print(done.stdout, done.stderr, done.returncode)
subprocess.run([*me, "stop"], check=True)
up.communicate()
"""


@pytest.mark.parametrize("whose", ["self", "auto"])
def test_a_command_comes_into_a_running_job(
    user: Nobody, bare: list[str], whose: str, request: pytest.FixtureRequest
) -> None:
    """By the namespaces that its init has handed over: nobody may look at that process."""
    run, own = user
    wrapper = request.getfixturevalue("given") if whose == "auto" else bare
    done = run(whose, wrapper=wrapper, python=("-c", IN_A_JOB))
    shutil.rmtree(own / "entered", ignore_errors=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    words = done.stdout.split()
    assert (words[0], words[1]) == ("0", "0"), done.stdout
    assert "supervise:init" in words
    assert words[-1] == "3"
