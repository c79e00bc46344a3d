"""All terminal output: consoles, tables and lines that escape control characters and read no markup.

Other libraries' warnings and logs are for their programmers: `hide_libraries` keeps them from the terminal, `--debug` shows them.

Invariant: in text printed by a command, an error, a warning or a library's log, control characters are escaped and brackets are
not read as markup. Styles are passed as `style=`, never inside a text.
"""

import errno
import logging
import os
import re
import select
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Column
from rich.table import Table as RichTable
from rich.text import Text

from recycledb.terminal import visible, visible_line

PIPED_WIDTH = 200  # columns when the output is not a terminal
SHORTEST = 16  # the fewest columns to which a long text in a table is wrapped


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

    def heading(self, title: Text, characters: str = "─") -> None:
        """Print a title followed by a line; a title that is too long for that is wrapped, not cut."""
        if title.cell_len + 2 <= self.width:
            self.rule(title, align="left", characters=characters)
        else:
            super().print(title, overflow="fold")

    def render_str(self, text: str, **options: Any) -> Text:
        """Escape a string before rich measures its width."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Escape the drawn segments too: some, like the columns of a progress bar, do not pass through `render_str`."""
        for segment in super().render(renderable, options):
            shown = segment.text if segment.control else visible(segment.text)
            yield segment if shown == segment.text else Segment(shown, segment.style)


class Table(RichTable):
    """rich's table without borders, in which no name and no number is ever cut; a string in a cell is one line.

    Where it is too wide, in this order: headings are wrapped, columns with overflow="fold" are wrapped, columns stand closer,
    and at last those that do not fit follow in another table, which begins with the same names.
    """

    def __init__(self, *headers: Any, box: None = None, **options: Any) -> None:
        super().__init__(*headers, box=box, **options)

    def add_column(self, header: RenderableType = "", *more: Any, **options: Any) -> None:
        """Add a column."""
        super().add_column(visible_line(header) if isinstance(header, str) else header, *more, **options)

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """Add a row."""
        super().add_row(*(visible_line(cell) if isinstance(cell, str) else cell for cell in cells), **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Any]:
        """Draw it at its own width if there is room, else as said above."""
        room, columns = options.max_width, self.columns
        if sum(_width(each, _heading(each)) for each in columns) + 2 * len(columns) <= room:
            return super().__rich_console__(console, options)
        names = next((i for i, each in enumerate(columns) if each.justify == "right"), len(columns))
        widths = [_width(each, *_words(_heading(each))) for each in columns]
        folds = {i for i, each in enumerate(columns) if each.overflow == "fold"}
        if (
            sum(widths[:names]) + 2 * names + max(widths[names:], default=0) > room
        ):  # else names stay whole on their line
            folds |= set(range(names))
        least = [min(width, SHORTEST) if i in folds else width for i, width in enumerate(widths)]
        every = list(range(len(columns)))
        for each, gap in ((widths, 2), (least, 2), (widths, 1), (least, 1)):
            if sum(each) + gap * (len(columns) - 1) <= room:
                return [self._part(every, _filled(each, widths, room - gap * (len(columns) - 1)), gap)]
        return self._parts(names, least, widths, room)

    def _parts(self, names: int, least: list[int], widths: list[int], room: int) -> Iterable[RenderableType]:
        """Yield tables that fit one above the other, each with the columns of names."""
        left = list(range(names, len(least)))
        while left:
            part, used = list(range(names)), sum(least[:names]) + 2 * names
            while left and (len(part) == names or used + least[left[0]] <= room):
                used += least[left[0]] + 2
                part.append(left.pop(0))
            inner = room - 2 * (len(part) - 1)
            fitting = _filled([least[i] for i in part], [widths[i] for i in part], inner)
            fitting[-1] = max(
                1, min(fitting[-1], inner - sum(fitting[:-1]))
            )  # one column may be wider than the terminal
            yield self._part(part, fitting, 2)
            if left:
                yield Text("")

    def _part(self, chosen: Sequence[int], widths: Sequence[int], gap: int) -> RichTable:
        """Return some of the columns at the given widths."""
        part = RichTable(box=None, header_style=self.header_style, pad_edge=False, padding=(0, gap, 0, 0))
        for i, width in zip(chosen, widths, strict=True):
            column = self.columns[i]
            heading = _wrapped(_heading(column), width)
            part.add_column(heading, justify=column.justify, style=column.style, width=width, overflow="fold")
        for cells in zip(*(self.columns[i].cells for i in chosen), strict=True):
            part.add_row(*cells)
        return part


def _heading(column: Column) -> str:
    return str(column.header)


def _words(heading: str) -> list[str]:
    """Split a heading where it may be wrapped: at spaces, and after underscores."""
    return re.findall(r"[^\s_]+_*|_+", heading)


def _width(column: Column, *headings: str) -> int:
    return max(map(cell_len, (*headings, *map(str, column.cells), "")))


def _wrapped(heading: str, width: int) -> str:
    lines = [""]
    for word in _words(heading):
        glue = "" if not lines[-1] or lines[-1].endswith("_") else " "
        if lines[-1] and cell_len(lines[-1] + glue + word) > width:
            lines.append(word)
        else:
            lines[-1] += glue + word
    return "\n".join(lines)


def _filled(least: Sequence[int], widths: Sequence[int], room: int) -> list[int]:
    """Share out what is left of the room to the columns that are narrower than their texts."""
    found, left = list(least), room - sum(least)
    for i, width in enumerate(widths):
        more = max(0, min(width - found[i], left))
        found[i] += more
        left -= more
    return found


def is_closed(error: BaseException) -> bool:
    """Tell whether an error comes from writing to a pipe that nobody reads any more, as `recycledb … | head` leaves it."""
    # rich and typer end the process for it, with an exit code of their own.
    return isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError)


def discard() -> None:
    """Send what is still to be printed nowhere, also what Python prints when it ends."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            if not _takes_text(descriptor):
                os.dup2(nowhere, descriptor)


def _takes_text(descriptor: int) -> bool:
    """Tell whether a descriptor still has a reader: a closed pipe reports an error."""
    if not hasattr(select, "poll"):  # Windows
        return descriptor != 1
    poll = select.poll()
    poll.register(descriptor, select.POLLOUT)
    return not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def is_full(error: BaseException) -> bool:
    """Tell whether an error comes from a standard output that takes no more text, such as a file on a full disk.

    What it could not take is dropped, so that Python does not try again, and fail again, when it ends.
    """
    if not isinstance(error, OSError) or error.errno not in _FULL or error.filename is not None:
        return False
    try:
        sys.stdout.flush()  # what could not be written is still in its buffer, if it has one
        os.write(sys.stdout.fileno(), b"\n")  # a blank line does no harm where the error came from elsewhere
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.stdout.flush()
        return True
    return False


@contextmanager
def unread() -> Iterator[None]:
    """Let a command go on when nobody reads its output any more: it has work to do, or an exit code to give."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        if not is_closed(error):
            raise
        discard()


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
        # Read when a library is imported; one that is imported already is told directly, unless a user has chosen otherwise.
        if os.environ.setdefault(variable, value) == value and library in sys.modules:
            logging.getLogger(library).setLevel(logging.CRITICAL)


def show_libraries() -> None:
    """Print the warnings of other libraries, and all of our log."""
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("recycledb").setLevel(logging.DEBUG)
