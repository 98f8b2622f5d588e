"""The guest with systemd as PID 1, in a small Debian of its own (`python -m tests.vm --systemd`).

    root.py      the Debian root: made by mmdebstrap once, then taken from the cache
    stage2.sh    goes before systemd: the few units that this guest needs
    install.py   on the host: `supervise` as an installer would lay it out, with what it needs
    checks.py    the tests that run inside, under systemd; ../test_systemd.py boots and runs them

The command runs as a service, vm-command.service, once the system is up.

May import: `tests.vm`, the standard library; `checks` also pytest.
"""
