"""Progress of a sync: bars on a terminal, or JSON lines on stderr; of other commands: a line on a terminal."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from recycledb.cli.app import stderr
from recycledb.terminal import visible_line

if TYPE_CHECKING:
    from recycledb.sync import Listener
    from recycledb.sync import Progress as Event


@contextmanager
def drawn(as_json: bool) -> Iterator["Listener"]:
    """Yield a listener: bars on a terminal, lines in a notebook, JSON lines with --json, otherwise nothing."""
    if as_json:
        yield _while_read(_events())
        return
    console = stderr()
    if console.is_terminal and "JPY_PARENT_PID" in os.environ:  # a notebook's `!`: a terminal that cannot go up a line
        yield _while_read(_lines())
        return
    if not console.is_terminal:
        yield lambda progress: None
        return
    from recycledb.cli.bars import Bars

    tasks: dict[tuple[str, str], Any] = {}
    bars = Bars(console)

    def draw(progress: "Event") -> None:
        key = (progress.step, progress.who)
        done = progress.done + progress.failed
        now: dict[str, Any] = {"completed": done, "total": max(progress.total, done), "facts": _facts(progress)}
        if key in tasks:
            bars.update(tasks[key], **now)
        else:
            tasks[key] = bars.add_task(visible_line(f"{progress.step} · {progress.who}"), **now)

    bars.start()
    try:
        yield _while_read(draw)
    finally:
        with suppress(OSError):  # the terminal may have been closed
            bars.stop()


@contextmanager
def counted() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function to call with what is being done, how much is done and the total: a line on a terminal until all is done."""
    status = stderr().status("")  # draws nothing where stderr is no terminal

    def tell(what: str, done: int, total: int) -> None:
        with suppress(OSError):  # the terminal may have been closed
            if done < total:
                status.update(f"{what}: {done:,} of {total:,}")
                status.start()
            else:  # so that it is gone when the result is printed
                status.stop()

    try:
        yield tell
    finally:
        with suppress(OSError):
            status.stop()


def _while_read(listener: "Listener") -> "Listener":
    """Stop reporting once the pipe or terminal is closed; the run continues."""
    gone = False

    def listen(progress: "Event") -> None:
        nonlocal gone
        if not gone:
            try:
                listener(progress)
            except OSError:
                gone = True

    return listen


def _facts(progress: "Event") -> dict[str, str]:
    """Return what is said of a step, by the column of `bars`."""
    facts = {"rate": f"{progress.rate:,.1f}/s"}
    if progress.failed:
        facts["failed"] = f"{progress.failed:,} failed"
    if progress.in_flight:
        facts["in flight"] = f"{progress.in_flight:,} in flight"
    if progress.tokens and progress.seconds:
        per_minute = progress.step != "score"
        rate = progress.tokens / progress.seconds * (60 if per_minute else 1)
        facts["tokens"] = f"{rate:,.0f} tokens/{'min' if per_minute else 's'}"
    known = f"${progress.cost_usd:,.4f}" if progress.cost_usd else ""
    lacking = f"{progress.cost_unknown:,} of unknown cost" if progress.cost_unknown else ""
    facts["cost"] = " + ".join(part for part in (known, lacking) if part)
    return facts


def _events() -> "Listener":
    """Return a listener that prints at most one event per step and second to stderr."""
    return _now_and_then(1.0, lambda progress: json.dumps(progress.as_dict()))


def _lines() -> "Listener":
    """Return a listener that prints a line per step every ten seconds, and one at its end."""
    from recycledb.sync.notebook import line

    return _now_and_then(10.0, lambda progress: visible_line(line(progress)))


def _now_and_then(every_s: float, written: "Callable[[Event], str]") -> "Listener":
    import time

    last: dict[tuple[str, str], float] = {}

    def listen(progress: "Event") -> None:
        key, now = (progress.step, progress.who), time.monotonic()
        if progress.ended or now - last.get(key, 0.0) >= every_s:
            last[key] = now
            print(written(progress), file=sys.stderr, flush=True)

    return listen
