"""A throw-away guest with the unified hierarchy (cgroup v2), in which one command runs as root.

The cast, from the host inwards:

    python -m tests.vm      reads the options, prepares, waits, gives back the exit status (session)
     ├─ virtiofsd           qemu only: serves the host's root, mounted read-only in a namespace of
     │                      its own                                                      (engines)
     └─ the machine         qemu-system-x86_64, or linux.uml in a pid namespace of its own (engines)
         └─ init.sh         the guest's first PID 1: mounts the host's root under a tmpfs overlay
             └─ stage2.sh   its second: devices and cgroups (systemd/stage2.sh: systemd)
             └─ report.sh   starts the command; reports its status
                 └─ run.sh  changes to the caller's directory and environment; the command (guest)

stdout and stderr of the command and the status ("begin UPTIME", then "exit STATUS") come back by
three serial ports, each a pipe.  Kernels are downloaded from the distribution's archive and
unpacked, never installed (kernel).

May import: the standard library only, so that any Python 3.11 runs it.
"""
