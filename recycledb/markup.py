"""HTML tables, for pages and notebooks.

Invariant: every text is escaped.
"""

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, NamedTuple

__all__ = ["Link", "escape", "number", "paragraphs", "share", "table"]

LONG = 30  # characters of a text whose column must not become narrow


class Link(NamedTuple):
    """A cell of a table that leads to another page of ours."""

    text: str
    address: str


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], empty: str = "none") -> str:
    """Return a table; numbers are aligned to the right, and None is a dash."""
    rows = [list(row) for row in rows]
    if not rows:
        return f'<p class="empty">{escape(empty)}</p>'
    classes = [_class([row[i] for row in rows]) for i in range(len(columns))]
    head = "".join(f"<th{each}>{escape(name)}</th>" for name, each in zip(columns, classes, strict=True))
    lines = (
        "<tr>" + "".join(f"<td{c}>{_cell(v)}</td>" for v, c in zip(row, classes, strict=True)) + "</tr>" for row in rows
    )
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def number(value: float | None, digits: int = 0) -> str:
    """Return a number with thousands separators; a dash for None."""
    return "–" if value is None else f"{value:,.{digits}f}"


def share(part: float | None, whole: float | None) -> str:
    """Return a part of a whole in percent."""
    return "–" if part is None or not whole else f"{100 * part / whole:.1f}\u00a0%"


def _cell(value: Any) -> str:
    if isinstance(value, Link):
        return f'<a href="{escape(value.address)}">{escape(value.text)}</a>'
    return escape(_shown(value))


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _class(values: Sequence[Any]) -> str:
    """Return the class of a column: n for numbers, t for long texts, d for dates."""
    shown = [value.text if isinstance(value, Link) else value for value in values]
    texts = [value for value in shown if isinstance(value, str)]
    if all(re.fullmatch(r"–|-?\$?[\d,.]+(\u00a0%)?", text) for text in texts):
        return ' class="n"'
    if any(len(text) > LONG for text in texts):
        return ' class="t"'
    return ' class="d"' if all(re.fullmatch(r"[\d-]{10}\u00a0[\d:]{5}", text) for text in texts) else ""


def paragraphs(*texts: str) -> str:
    """Return the texts that are not empty, each a paragraph."""
    return "".join(f"<p>{escape(text)}</p>" for text in texts if text)
