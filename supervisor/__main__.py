"""The command `supervise` (also `python -m supervisor`)."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the console script; exits with the status the documentation gives."""
    from supervisor.front.cli import command

    sys.exit(command(sys.argv[1:]))


if __name__ == "__main__":
    main()
