"""Progress bars that fit the terminal: what cannot be missed is always whole, the rest is shown where there is room."""

from collections.abc import Iterable, Sequence
from typing import Any

import rich.table  # a grid without texts of its own; `Terminal` escapes what it draws
from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress import Progress, Task
from rich.progress_bar import ProgressBar
from rich.text import Text

from recycledb.cli.printing import Terminal

ORDER = ("name", "bar", "count", "left", "cost", "failed", "rate", "in flight", "tokens")
NEEDED = ("name", "count", "left", "cost")
OPTIONAL = ("failed", "bar", "rate", "in flight", "tokens")  # the most important first
STYLES = {"count": "progress.download", "left": "progress.remaining"}
SHORTEST_BAR, LONGEST_BAR = 8, 24
INDENT = 2  # of the numbers below a name


class Bars(Progress):
    """One line for each task; two where its name leaves no room for the numbers. A task's `facts` are texts by column."""

    def __init__(self, console: Terminal) -> None:
        self._terminal = console  # the base class draws before it knows its own
        super().__init__(console=console)

    def get_renderables(self) -> Iterable[RenderableType]:
        """Draw the tasks for the terminal's present width."""
        width = self._terminal.width
        rows = [(task, {"name": task.description, **_counts(task), **task.fields["facts"]}) for task in self.tasks]
        widths = {name: max([cell_len(facts.get(name, "")) for _, facts in rows] or [0]) for name in ORDER}
        apart = _total(NEEDED, widths) > width
        chosen, bar = _choose(widths, width, apart)
        if not apart:
            yield _table([_cells(task, facts, chosen, bar) for task, facts in rows], chosen)
            return
        for task, facts in rows:
            numbers = _table([_cells(task, facts, chosen, bar)], chosen)
            yield Group(Text(facts["name"], overflow="fold"), Padding(numbers, (0, 0, 0, INDENT)))


def _choose(widths: dict[str, int], width: int, apart: bool) -> tuple[list[str], int]:
    """Return the columns to show, in their order, and the length of the bar; `apart`: names have lines of their own."""
    shown = [name for name in NEEDED if not (apart and name == "name")]
    room = width - (INDENT if apart else 0)
    least = {**widths, "bar": SHORTEST_BAR}
    for name in OPTIONAL:
        if least[name] and _total([*shown, name], least) <= room:
            shown.append(name)
    bar = min(LONGEST_BAR, SHORTEST_BAR + room - _total(shown, least))
    return [name for name in ORDER if name in shown and least[name]], bar


def _total(names: Sequence[str], widths: dict[str, int]) -> int:
    """Return the width of a line of these columns; empty ones are left out."""
    found = [widths[name] for name in names if widths[name]]
    return sum(found) + len(found) - 1


def _table(rows: Sequence[Sequence[RenderableType]], chosen: Sequence[str]) -> rich.table.Table:
    table = rich.table.Table.grid(padding=(0, 1, 0, 0), pad_edge=False)
    for name in chosen:
        table.add_column(no_wrap=True, justify="left" if name in ("name", "bar") else "right")
    for row in rows:
        table.add_row(*row)
    return table


def _cells(task: Task, facts: dict[str, str], chosen: Sequence[str], bar: int) -> list[RenderableType]:
    drawn = ProgressBar(total=task.total, completed=task.completed, width=bar, pulse=not task.started)
    return [drawn if name == "bar" else Text(facts.get(name, ""), style=STYLES.get(name, "")) for name in chosen]


def _counts(task: Task) -> dict[str, Any]:
    return {"count": f"{int(task.completed):,}/{int(task.total or 0):,}", "left": _clock(task.time_remaining)}


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes:02d}:{rest:02d}"
