"""Progress in a notebook: one piece of output that is replaced, not one for each event."""

import sys
import time
from typing import Any

from recycledb.sync.progress import Listener, Progress, silent

EVERY_S = 0.5


def listener() -> Listener:
    """Return a listener that draws below the running cell of a notebook; anywhere else one that draws nothing."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if shell is None or not hasattr(shell, "kernel"):  # none, or IPython in a terminal
        return silent
    from IPython.display import display

    return Drawn(display)


class Drawn:
    """A line for each step, drawn as one output, at most every half second and whenever a step has ended."""

    def __init__(self, display: Any) -> None:
        self._display = display
        self._output: Any = None
        self._lines: dict[tuple[str, str], str] = {}
        self._last = 0.0

    def __call__(self, progress: Progress) -> None:
        self._lines[progress.step, progress.who] = line(progress)
        now = time.monotonic()
        if progress.ended or now - self._last >= EVERY_S:
            self._last = now
            self._draw()

    def _draw(self) -> None:
        shown = {"text/plain": "\n".join(self._lines.values())}
        if self._output is None:
            self._output = self._display(shown, raw=True, display_id=True)
        else:
            self._output.update(shown, raw=True)


def line(progress: Progress) -> str:
    """Return one line: the step, how far it is, and how long it will take."""
    done = progress.done + progress.failed
    parts = [f"{progress.step} · {progress.who}: {done:,}/{max(progress.total, done):,}"]
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if progress.ended:
        parts.append("done")
    elif progress.seconds_left is not None:
        minutes, seconds = divmod(round(progress.seconds_left), 60)
        parts.append(f"{minutes:,}:{seconds:02} left")
    if progress.cost_usd is not None:
        parts.append(f"${progress.cost_usd:,.2f}")
    return ", ".join(parts)
