"""Entry point of the command, as `ompq-deploy` or `python -m ompq_deploy`."""

from __future__ import annotations

import sys

from ompq_deploy.errors import INTERRUPTED


def main() -> None:
    """Load the command line and run it. Ctrl-C while it loads ends as later: quietly, with its exit code."""
    try:
        from ompq_deploy import cli
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    cli.main()


if __name__ == "__main__":
    main()
