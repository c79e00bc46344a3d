"""The command line, installed as `recycledb.cli`: a shell round the library."""

import sys


def main() -> None:
    """Run a command; say an error in one line and leave with the contract's exit code."""
    from recycledb.cli import commands
    from recycledb.errors import RecycledbError

    try:
        commands.app()
    except RecycledbError as error:
        if commands.session.debug:
            raise
        print(f"recycledb: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("recycledb: stopped", file=sys.stderr)
        sys.exit(130)
