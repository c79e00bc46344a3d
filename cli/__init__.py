"""The command line, installed as `recycledb.cli`: a shell round the library."""

import os
import sys
from contextlib import suppress

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
        _say("; ".join([f"recycledb: {error}", *getattr(error, "__notes__", [])]))
        return 1
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SystemExit as left:  # how Typer ends every command
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    else:
        code = 0
    if code == INTERRUPTED:
        _say("recycledb: stopped; what was committed is kept")
    return code


def _say(line: str) -> None:
    with suppress(OSError):  # a closed terminal or pipe: the exit code says it all the same
        print(line, file=sys.stderr, flush=True)


def _leave(code: int) -> None:
    """End the process; where it is to end at once, without waiting for threads that still compute or read.

    DuckDB 2.0's binding, once it has read an Arrow table in a process with SQLModel, fills stderr with reports of leaked
    functions while the interpreter is taken down. All files are closed by then, so the taking down is left out.
    """
    if "duckdb" not in sys.modules and code != INTERRUPTED:
        sys.exit(code)
    with suppress(OSError):  # a closed pipe or terminal
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
