"""The command line, installed as `recycledb.cli`: a thin shell around the library.

Importing this package is cheap. `main` does the slow imports, so that Ctrl-C during startup prints one line, not a traceback.
"""

import os
import sys
from contextlib import suppress

INTERRUPTED = 130  # by Ctrl-C: 128 + SIGINT, the convention of shells


def main() -> None:
    """Run a command, print an error as one line, and exit with the documented code."""
    try:
        code = run()
    except KeyboardInterrupt:  # before the command started, or while its result was being printed
        code = INTERRUPTED
    if code == INTERRUPTED:
        print("recycledb: stopped; what was committed is kept", file=sys.stderr)
    _leave(code)


def run() -> int:
    """Run a command and return its exit code; errors have been printed."""
    import typer

    from recycledb.cli import commands
    from recycledb.cli.printing import discard, is_closed, is_full, make_safe, show_traceback, show_usage_error, tell
    from recycledb.errors import RecycledbError, is_interrupt

    wrong_use = typer.BadParameter.__mro__[1]  # UsageError, which Typer does not export
    make_safe()
    try:
        _require_utf8(sys.argv[1:])
        left = commands.app(standalone_mode=False)  # returns the code of typer.Exit
        code = left if isinstance(left, int) else 0
        sys.stdout.flush()
    except RecycledbError as error:
        if commands.session.debug:
            show_traceback(error)
        else:
            tell("; ".join([str(error), *getattr(error, "__notes__", [])]))
        return 1
    except (SystemExit, BrokenPipeError) as exit_:  # raised by a library, or for a closed pipe
        if is_closed(exit_):
            discard()
            return 0
        told = exit_.code if isinstance(exit_, SystemExit) else 1
        code = told if isinstance(told, int) else int(told is not None)
    except (
        Exception
    ) as error:  # wrong usage; anything else is a bug, and its traceback is printed with control characters escaped
        if is_interrupt(error):
            return INTERRUPTED
        if is_full(error):
            reason = getattr(error, "strerror", None) or error
            tell(
                f"the output cannot be written: {reason}; free some space or send it elsewhere, then run the command again"
            )
            return 1
        if not isinstance(error, wrong_use):
            show_traceback(error)
            return 1
        show_usage_error(error)
        code = getattr(error, "exit_code", 2)
    return code


def _require_utf8(arguments: list[str]) -> None:
    """Reject arguments that are not valid UTF-8: no store can hold them and no terminal can show them."""
    import typer

    for argument in arguments:
        if not argument.isascii() and any("\ud800" <= character <= "\udfff" for character in argument):
            raise typer.BadParameter(f"an argument is not UTF-8: {argument}; rename the file or link to it")


def _leave(code: int) -> None:
    """Exit the process; after Ctrl-C without waiting for threads that still compute or read.

    In a process that also imports SQLModel, DuckDB 2.0's binding prints reports of leaked functions to stderr while the
    interpreter shuts down, once it has read an Arrow table. All files are closed by then, so `os._exit` skips the shutdown.
    """
    if "duckdb" not in sys.modules and code != INTERRUPTED:
        sys.exit(code)
    with suppress(OSError):  # a closed pipe or terminal
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
