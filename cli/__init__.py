"""The command line, installed as `recycledb.cli`: a shell round the library.

Importing it loads next to nothing: what takes time is loaded by `main`, where Ctrl-C is told in one line.
"""

import os
import sys
from contextlib import suppress

INTERRUPTED = 130  # by Ctrl-C: 128 and the signal's number, as shells have it


def main() -> None:
    """Run a command; say an error in one line and leave with the contract's exit code."""
    try:
        code = run()
    except KeyboardInterrupt:  # before the command had begun, or while its end was told
        code = INTERRUPTED
    if code == INTERRUPTED:
        print("recycledb: stopped; what was committed is kept", file=sys.stderr)
    _leave(code)


def run() -> int:
    """Run a command; return the exit code, having said what went wrong."""
    import typer

    from recycledb.cli import commands
    from recycledb.cli.printing import make_safe, show_traceback, show_usage_error, tell
    from recycledb.errors import RecycledbError

    wrong_use = typer.BadParameter.__mro__[1]  # UsageError, which Typer does not export
    make_safe()
    try:
        _require_utf8(sys.argv[1:])
        left = commands.app(standalone_mode=False)  # in which Typer returns the code of its Exit
        code = left if isinstance(left, int) else 0
    except RecycledbError as error:
        if commands.session.debug:
            show_traceback(error)
        else:
            tell("; ".join([str(error), *getattr(error, "__notes__", [])]))
        return 1
    except SystemExit as exit_:  # of a library, or of a pipe whose reader is gone
        code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
    except (
        Exception
    ) as error:  # a wrong use of a command; anything else is a defect, whose traceback is printed harmless too
        if not isinstance(error, wrong_use):
            show_traceback(error)
            return 1
        show_usage_error(error)
        code = getattr(error, "exit_code", 2)
    return code


def _require_utf8(arguments: list[str]) -> None:
    """Refuse what no store can hold and no terminal shows: bytes that are no text."""
    import typer

    for argument in arguments:
        if not argument.isascii() and any("\ud800" <= character <= "\udfff" for character in argument):
            raise typer.BadParameter(f"an argument is not UTF-8: {argument}; rename the file, or link to it")


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
