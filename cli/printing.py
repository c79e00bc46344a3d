"""All terminal output: consoles, tables and lines that escape control characters and read no markup.

Other libraries' warnings and logs are for their programmers: `hide_libraries` keeps them from the terminal, `--debug` shows them.

Invariant: in text printed by a command, an error, a warning or a library's log, control characters are escaped and brackets are
not read as markup. Styles are passed as `style=`, never inside a text.
"""

import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table as RichTable
from rich.text import Text

from recycledb.terminal import visible, visible_line

PIPED_WIDTH = 200  # columns when the output is not a terminal


class Terminal(Console):
    """rich's console for untrusted text: `print` prints a string as one line, `text` keeps its lines."""

    def __init__(self, *, stderr: bool = False) -> None:
        width = None if (sys.stderr if stderr else sys.stdout).isatty() else PIPED_WIDTH
        super().__init__(stderr=stderr, width=width, highlight=False, markup=False, emoji=False)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print on one line; a newline within a string is shown escaped."""
        super().print(*(visible_line(each) if isinstance(each, str) else each for each in objects), **options)

    def text(self, text: str, **options: Any) -> None:
        """Print a text of several lines, without wrapping."""
        super().print(text, **{"soft_wrap": True, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape a string before rich measures its width."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escape the drawn segments too: some, like the columns of a progress bar, do not pass through `render_str`."""
        for segment in super().render(renderable, options):
            shown = segment.text if segment.control else visible(segment.text)
            yield segment if shown == segment.text else Segment(shown, segment.style)


class Table(RichTable):
    """rich's table without borders; a string in a cell is one line."""

    def __init__(self, *headers: Any, box: None = None, **options: Any) -> None:
        super().__init__(*headers, box=box, **options)

    def add_column(self, header: RenderableType = "", *more: Any, **options: Any) -> None:
        """Add a column."""
        super().add_column(visible_line(header) if isinstance(header, str) else header, *more, **options)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row."""
        super().add_row(*(visible_line(cell) if isinstance(cell, str) else cell for cell in cells), **options)


def tell(text: str) -> None:
    """Print one line to stderr."""
    print(f"recycledb: {visible_line(text)}", file=sys.stderr)


def show_usage_error(error: Any) -> None:
    """Print a usage error; arguments that it quotes are escaped."""
    from typer.rich_utils import rich_format_error

    for name, value in list(vars(error).items()):
        if isinstance(value, str):
            setattr(error, name, visible_line(value))
    rich_format_error(error)


def show_traceback(error: BaseException) -> None:
    """Print an error with its traceback."""
    sys.stderr.write(visible("".join(traceback.format_exception(error))))


class _VisibleRecord(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802 - logging's name
        return visible(super().getMessage())


def make_safe() -> None:
    """Escape libraries' logs and warnings as well, and characters that the terminal's encoding lacks."""
    logging.setLogRecordFactory(_VisibleRecord)
    plain = warnings.formatwarning
    warnings.formatwarning = lambda *args, **more: visible(plain(*args, **more))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


# Libraries that print their logs themselves, and the variables and values that keep them from it. What a user has set stays.
_OWN_HANDLERS = {
    "transformers": ("TRANSFORMERS_VERBOSITY", "critical"),
    "huggingface_hub": ("HF_HUB_VERBOSITY", "critical"),
    "datasets": ("DATASETS_VERBOSITY", "critical"),
    "torch": ("TORCH_LOGS", "-all"),
}


class _Log(logging.Handler):
    """Prints our own warnings as one line each, and the errors that asyncio alone hears of; nothing else."""

    def emit(self, record: logging.LogRecord) -> None:
        library = record.name.partition(".")[0]
        if library == "recycledb" or (library == "asyncio" and record.levelno >= logging.ERROR):
            error = record.exc_info[1] if record.exc_info else None
            tell(record.getMessage() + (f": {type(error).__name__}: {error}" if error else ""))


def hide_libraries() -> None:
    """Keep warnings and logs of other libraries from the terminal; their errors are raised, and told in one line of ours."""
    if not sys.warnoptions:  # set by -W or PYTHONWARNINGS
        warnings.simplefilter("ignore")
    root = logging.getLogger()
    if not any(isinstance(handler, _Log) for handler in root.handlers):
        root.addHandler(_Log())
    for library, (variable, value) in _OWN_HANDLERS.items():
        if library in sys.modules and variable not in os.environ:
            logging.getLogger(library).setLevel(logging.CRITICAL)
        os.environ.setdefault(variable, value)


def show_libraries() -> None:
    """Print the warnings of other libraries, and all of our log."""
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("recycledb").setLevel(logging.DEBUG)
