"""What the man page and docs/operations.md say beside verbs, flags and settings: prose, written once.

Markdown, as `manual_roff` knows it.  `make docs` puts it together with the rest.  May import: nothing.
"""

# ruff: noqa: E501  (a row of a Markdown table is one line)
from __future__ import annotations

HEAD = """\
# Operating it

<!-- Made by `make docs`, as docs/supervise.1 is; edit supervisor/front/manual_text.py. -->

For whoever keeps `supervise` going on a server: how it gets there, what is done every day, what to do
at night when a job is red, what to save. [config.md](config.md) has every setting,
[systemd.md](systemd.md) more about units, [verdicts.md](verdicts.md) what each reason means. The same
is in the man page, `supervise(1)`.
"""

NAME = "run batch jobs and services in containers, and say truly why each ended"

SYNOPSIS = """\
    supervise CONFIG
    supervise VERB [FLAG ...] [ARGUMENT ...]
    supervise run [FLAG ...] -- COMMAND [ARGUMENT ...]
"""

DESCRIPTION = """\
`supervise` runs the jobs of a TOML file, or one command, each in a container of its own that is made
straight from the kernel: namespaces, a root, control groups, a system call filter. It holds every job
to its limits, asks policies what to do when one is reached while the job is still alive, and writes
down for every run why it ended, with the evidence. There is no daemon: an *instance* is one
`supervise CONFIG`, named after its file, and lives as long as its jobs do.

`supervise CONFIG` is the same as `supervise up CONFIG`. Results go to stdout, all else to stderr.
"""

VERBS = """\
Those that speak to a running instance find it by themselves where one runs; `-n NAME` says which of
several, `--socket PATH` (or SUPERVISE_SOCKET) where else its socket is.
"""

INSTALL = """\
It needs Linux 5.12 or later, Python 3.11 or later and libseccomp; root, or a user for whom
`supervise doctor` says what holds. Into a virtual environment of its own, as the PyPI package
*supervisor* has the same import name:

    apt-get install python3-venv libseccomp2 nftables e2fsprogs
    python3 -m venv /opt/supervise
    /opt/supervise/bin/pip install '.[cli,images]'
    ln -s /opt/supervise/bin/supervise /usr/local/bin/supervise

The man page is installed with it, in `/opt/supervise/share/man/man1`. For `man supervise`:

    mkdir -p /usr/local/share/man/man1
    supervise init --man > /usr/local/share/man/man1/supervise.1

Then ask the host what it can enforce. Each row is tried; what is missing has its fix below it, to be
copied:

    supervise doctor
"""

DOCTOR = """\
`ok` is what holds, `partly` what is counted or set but could not be seen to hold, `no` what is not to
be had here. Red is what a job without any setting needs. The exit status is 0 when all of that holds,
1 when something of it does not, 125 when the doctor itself failed. It takes a few seconds, and at most
a minute; it makes control groups, mounts and processes of its own and leaves none.

`supervise doctor --json` prints an array with an object for each row:

| field | |
|---|---|
| `group` | the heading: `host`, `containers`, `walls`, `network`, `disk`, `control groups`, `limits` |
| `name` | of the row; the same on every host |
| `verdict` | `enforced` (ok), `accounted only` (partly) or `unavailable` (no) |
| `detail` | what was seen, for people |
| `fix` | the command or the setting that mends it; empty where nothing is to be mended |
| `needed` | whether a job without any setting cannot do without it |

To alert on what a default job lacks:

    supervise doctor --json | jq -e 'all(.[]; .verdict == "enforced" or (.needed | not))'
"""

FIRST = """\
A file says what is run, and within which limits:

<!-- file: night.toml -->
```toml
[defaults]
limits = { memory = "64M", swap = 0, pids = 32 }
timeout = "10m"

[jobs.sort]
command = "sort -o /dev/null /usr/share/common-licenses/GPL-3"

[jobs.report]
command = ["python3", "-c", "bytearray(200 << 20)"]
after = ["sort"]
```

<!-- transcript night -->
```console
# supervise check night.toml
night.toml: 2 jobs, no problem found
# supervise night.toml --plain
20:28:15 sort started (pid 4454)
20:28:15 sort ended: succeeded after 0.01s, peak 1.0M of 64.0M
20:28:15 report started (pid 4457)
…
20:28:15 report ended: oom after 0.11s, peak 64.0M of 64.0M
JOB     RUNS  REASON     EXPECTED   TIME    CPU  PEAK MEMORY  NOTE
sort       1  succeeded  yes       0.01s  0.00s         1.0M
report     1  oom        NO        0.11s  0.05s        64.0M
2 jobs in 2 runs: 1 as expected, 1 not (1 oom); wall 0.23s, CPU 0.06s
# echo $?
1
```

`supervise init` prints an example with most of what there is; `supervise plan night.toml` prints every
directory, write, mount and flag of the starts, and does none of it.
"""

SERVICE = """\
    supervise init --systemd > /etc/systemd/system/supervise@.service
    systemctl daemon-reload
    systemctl enable --now supervise@nightly      # runs /etc/supervise/nightly.toml

The unit delegates its control group, restarts a supervisor that failed, and leaves a batch alone that
ended with status 1. `journalctl -u supervise@nightly` has what happened, with fields
([systemd.md](systemd.md)). For a batch every night, a timer:

    # /etc/systemd/system/supervise@nightly.timer
    [Timer]
    OnCalendar=*-*-* 02:00
    Persistent=true
    [Install]
    WantedBy=timers.target
"""

DAILY = """\
While an instance runs, from any shell of its owner or of root:

<!-- file: web.toml -->
```toml
[jobs.web]
command = "sleep 1000"
limits = { memory = "64M" }
restart = { when = "always" }
```

<!-- transcript web
before: supervise web.toml --plain >log 2>&1 &
before: until supervise ps 2>/dev/null | grep -q running; do :; done
-->
```console
# supervise ps
JOB  STATE     TIME    CPU        MEMORY  PIDS  NOTE
web  running  0.56s  0.00s  …/64.0M     1
# supervise set web memory=128M
memory=128M
# supervise reload --dry-run
nothing has changed
# supervise restart web
web
# supervise stop
```

| wanted | by |
|---|---|
| what runs, and how it is | `supervise ps`, `supervise status JOB` |
| what they use | `supervise top`; `supervise stats --json` for programs |
| what happens, as it does | `supervise events -f` |
| what they print | `supervise logs -f JOB` |
| a look inside | `supervise exec JOB -- sh` |
| why it waits, or what has become of it | `supervise explain JOB` |
| more memory for a job that lives | `supervise set JOB memory=2G`; into the file, too, for the next run |
| the file was changed | `supervise reload --dry-run`, then `supervise reload` (or `systemctl reload`, SIGHUP) |
| a job once more | `supervise restart JOB` |
| quiet for the backup | `supervise pause JOB`, `supervise resume JOB` |
| wait for it in a script | `supervise wait JOB && next` |
| the end | `supervise stop JOB`, `supervise stop` |
"""

NIGHT = """\
A job is *red* when it did not end as expected: the status of the instance is 1, the unit `failed`.

1. **Which, and why?** The reason is one word of a closed list, and it is never guessed. `explain` tells
the chain that led to it, with the evidence, and what to do about it; whether the instance still runs
or not.

<!-- transcript night -->
```console
# supervise history --reason oom
RUN              JOB     REASON  STARTED               TIME    CPU   PEAK  NOTE
mx0v4a6x-report  report  oom     2026-11-28 20:28:15  0.11s  0.05s  64.0M
# supervise explain report
report, run mx0v4a6x-report, attempt 1: 2026-11-28 20:28:15
  limits: memory 64.0M, swap 0B, pids 32, timeout 10m00s
  20:28:15.021 waited for sort
  20:28:15.041 started (pid 4457)
…
  20:28:15.155 ended: oom: the kernel killed it at its memory limit of 64.0M (peak 64.0M, 1 kill) after 0.11s
…
    try limits.memory = "128M", or on_memory_limit = { action = "raise", to = "512M" } to raise it while it runs
```

2. **What did it say?** `supervise logs JOB --tail 50`, or of an earlier run `supervise logs RUN`. The
files are `logs/JOB.STAMP.out` and `.err` in the state directory of the instance.

3. **What to do**, by the reason:

| reason | first thing to do |
|---|---|
| `oom` | it needs more: `supervise set` while it runs, `limits.memory` in the file, or a policy that does so by itself (`grow-memory`) |
| `oom_host` | the machine is short, not the job: `capacity` in `[supervisor]`, or fewer jobs at once |
| `pids` | a fork bomb, or a limit that is too small: the record counts what was refused |
| `timeout`, `cpu_timeout` | look at its log for where it hung; `timeout`, `cpu_time` |
| `disk` | its layer was full: `limits.disk`; what stays in it is listed by `supervise diff RUN` |
| `failed` | it ended by itself with that code: its own log |
| `signal` | somebody or something else sent it; a SIGKILL without a limit's trace is somebody's `kill -9` |
| `start_failed` | the record says at which stage and path; `supervise check`, `supervise plan`, `supervise doctor` |
| `stopped`, `policy`, `skipped` | it was told to, decided to, or waited for one that was not well: the note says whom to ask |

4. **Once more**: `supervise restart JOB` where the instance still runs; else start it again. Jobs that
have succeeded run again, too: a batch is to be written so that it may.

5. **The supervisor itself is gone** (killed, a crash of the machine): start it again. It ends what is
left of the jobs of its name before it begins, says so, and catches up with the history.

6. **It does not answer**: every job goes on. `supervise stop` asks; SIGTERM to its process asks as
well, a second one kills all jobs; after `kill -9` the next start cleans up.
"""

UPGRADE = """\
    systemctl stop supervise@nightly        # jobs end in order, each within its stop.grace
    /opt/supervise/bin/pip install --upgrade '.[cli,images]'
    supervise check /etc/supervise/nightly.toml
    supervise doctor
    supervise init --systemd > /etc/systemd/system/supervise@.service && systemctl daemon-reload
    systemctl start supervise@nightly

Stop the instances first: modules are loaded when they are needed, and must not be of two versions.
Jobs do not outlive that. The history is brought to the present version by the first instance that
starts, and a version that is older than the file leaves it alone, with a warning: there is a way back.
`CHANGELOG.md` says what has changed.
"""

BACKUP = """\
What cannot be had again is the configuration (`/etc/supervise`), `volumes`, and as far as you want
them the history, the logs and what jobs kept. Below `/var/lib/supervise`:

| path | |
|---|---|
| `NAME/events.ndjson` | the event log; may be copied at any time |
| `NAME/history.sqlite3` | made anew from the event log where it is lost, as far as that goes back. While the instance runs copy it by `sqlite3 history.sqlite3 ".backup copy.sqlite3"` |
| `NAME/logs/`, `NAME/runs/` | what jobs printed; records, results (`copy_out`), layers that were kept |
| `.volumes/` | data of jobs; consistent when the jobs that have them are paused or stopped |
| `.images/` | need not be saved: `supervise image pull` gets them again |
| `.run/` | what `supervise run` kept |

`tar --xattrs --acls --numeric-owner` keeps what layers need. Nothing of `/run/supervise` is to be saved.
How much is kept is bounded by `history`, `events`, `runs` and `log.max_size`; run directories and logs
are without bound unless you say so ([history.md](history.md), [logs.md](logs.md)).
"""

BOUNDS = """\
- One instance is one process with an event loop. While nothing happens nothing wakes.
- It takes some 20 file descriptors for each job that runs; `LimitNOFILE=` of the unit bounds how many
  that may be (the row `descriptors` of the doctor).
- On cgroup v1, I/O limits hold for direct and synchronous writes only; `memory_high`, `memory_low` and
  limits by pressure of CPU and I/O are v2's.
- One host: there is no cluster, no scheduler by time, no image registry of its own.
- State belongs on a local disk: locks (flock), O_TMPFILE and overlayfs are used there, so NFS will not do.
"""

CONFIGURATION = """\
`supervise CONFIG` reads one TOML file. What is wrong with it is told at once, with lines, by
`supervise check`. Tables are `[supervisor]`, `[images]`, `[policies.NAME]`, `[defaults]` and
`[jobs.NAME]`; a setting of a job replaces that of the defaults, key by key. *Sizes* have a unit (`K M G
T`, base 1024), *durations* too (`ms s m h d`). docs/config.md has values and examples of each.
"""

OPERATIONS: tuple[tuple[str, str, bool], ...] = (
    ("Installing", INSTALL, False),
    ("The doctor", DOCTOR, True),
    ("The first file", FIRST, False),
    ("As a service", SERVICE, True),
    ("Every day", DAILY, False),
    ("At night, when a job is red", NIGHT, True),
    ("Upgrading", UPGRADE, True),
    ("Backing up the state directory", BACKUP, True),
    ("Its limits", BOUNDS, True),
)
"""Title, text, and whether the man page has it too."""

EXIT: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Of `supervise CONFIG`",
        (
            ("0", "all jobs ended as expected"),
            ("1", "some did not"),
            ("2", "the configuration or the command line is wrong; nothing was started"),
            ("125", "supervise itself failed, or the host cannot enforce a limit"),
            ("130", "it was interrupted, or told to stop, and stopped its jobs"),
        ),
    ),
    (
        "Of `supervise run`",
        (
            ("0-123", "that of the command"),
            ("124", "it was timed out"),
            ("125", "supervise failed, or the limit that ended the command is told on stderr"),
            ("126, 127", "the command cannot be executed; it was not found"),
            ("128+N", "it was ended by signal N"),
        ),
    ),
    (
        "Of the verbs that speak to an instance",
        (
            ("0", "done"),
            (
                "1",
                "the answer is no: a job that was waited for did not end as expected, a state that does not allow it",
            ),
            ("2", "no such job, or the command line is wrong"),
            ("125", "no instance runs, or the connection was lost"),
        ),
    ),
    (
        "Of `supervise doctor`",
        (
            ("0", "a job without any setting has all it needs"),
            ("1", "it lacks what the last line names"),
        ),
    ),
)

SIGNALS = (
    ("TERM, INT", "stop every job in order, each within its `stop.grace`; a second one kills them"),
    ("HUP", "read the configuration again, as `supervise reload`"),
)

FILES = (
    ("/etc/supervise/NAME.toml", "what the unit `supervise@NAME` runs"),
    (
        "/var/lib/supervise/NAME/",
        "state of an instance: `events.ndjson`, `history.sqlite3`, `logs/`, `runs/`",
    ),
    (
        "/var/lib/supervise/.images, .volumes, .run",
        "images, named volumes, what `supervise run --keep` left",
    ),
    ("/run/supervise/NAME/", "its lock and its socket; gone after a reboot"),
    ("~/.local/state/supervise, $XDG_RUNTIME_DIR/supervise", "the same of a user without root"),
    ("/etc/subuid, /etc/subgid", "user numbers that jobs may have (`user_namespace`)"),
)

ENVIRONMENT = (
    ("SUPERVISE_SOCKET", "the socket of the instance that is spoken to"),
    ("NO_COLOR", "if set and not empty: no colours"),
    ("XDG_STATE_HOME, XDG_RUNTIME_DIR", "where state and sockets are, without root"),
    (
        "NOTIFY_SOCKET, WATCHDOG_USEC, JOURNAL_STREAM",
        "of systemd: readiness, watchdog, the journal. No job sees them",
    ),
)

SEE_ALSO = "`systemd.exec`(5), `cgroups`(7), `namespaces`(7), `capabilities`(7), `seccomp`(2)"
