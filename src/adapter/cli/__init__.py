"""The ``pyllama`` command: one module for each group of commands, and app for all of them.

Heavy packages are imported where they are used, so that --help answers at once.
"""

import signal
import sys


def main() -> None:
    """Run the command. Ctrl-C ends it quietly, even while its modules are imported."""
    try:
        from adapter.cli import app

        app.main()
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
