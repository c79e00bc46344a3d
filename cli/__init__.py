"""The command line, installed as `recycledb.cli`: a shell round the library."""

import os
import sys

INTERRUPTED = 130  # by Ctrl-C: 128 and the signal's number, as shells have it


def main() -> None:
    """Run a command; say an error in one line and leave with the contract's exit code."""
    _leave(_run())


def _run() -> int:
    from recycledb.cli import commands
    from recycledb.errors import RecycledbError

    try:
        commands.app()
    except RecycledbError as error:
        if commands.session.debug:
            raise
        print(f"recycledb: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as left:  # how Typer ends every command
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    else:
        code = 0
    if code == INTERRUPTED:
        print("recycledb: stopped; what was committed is kept", file=sys.stderr)
    return code


def _leave(code: int) -> None:
    """End the process.

    DuckDB 2.0's binding, once it has read an Arrow table in a process with SQLModel, fills stderr with reports of leaked
    functions while the interpreter is taken down. All files are closed by then, so the taking down is left out.
    """
    if "duckdb" not in sys.modules:
        sys.exit(code)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        pass
    os._exit(code)
