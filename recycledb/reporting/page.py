"""Self-contained HTML pages: their parts, escaped, and their Content-Security-Policy.

Invariant: text from the store reaches a page only through `escape`, `data_block` or `packed_block`, so that no sample can become markup or
script; should that fail, the Content-Security-Policy allows only our own scripts, by hash, and no requests.
"""

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any, NamedTuple

__all__ = [
    "Link",
    "asset",
    "data_block",
    "escape",
    "figure",
    "number",
    "packed_block",
    "page",
    "section",
    "share",
    "table",
]


class Link(NamedTuple):
    """A cell of a table that leads to another page of ours."""

    text: str
    address: str


LONG = 30  # characters of a text whose column must not become narrow


def asset(name: str) -> str:
    """Return the text of a file in this package."""
    return files("recycledb.reporting").joinpath(name).read_text(encoding="utf-8")


def page(title: str, body: Iterable[str], scripts: Sequence[str]) -> Iterator[str]:
    """Yield a page in pieces (a report has tens of megabytes); only `scripts` are allowed to run."""
    head, tail = (
        Template(asset("page.html"))
        .substitute(
            title=escape(title),
            policy=_policy(scripts),
            style=asset("page.css"),
            scripts="\n".join(f"<script>{script}</script>" for script in scripts),
            body="\0",
        )
        .split("\0")
    )
    yield head
    yield from body
    yield tail


def _policy(scripts: Sequence[str]) -> str:
    sources = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts
    )
    allowed = sources or "'none'"
    return f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


def data_block(name: str, value: Any) -> str:
    """Return a block of JSON for the page's scripts, which the browser does not execute."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    safe = text.replace("<", "\\u003c")  # so that no text can close the block
    return f'<script type="application/json" id="{name}">{safe}</script>\n'


def packed_block(name: str, value: Any) -> str:
    """Return a block of compressed JSON, which the page's script decompresses when needed."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    packed = base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), 6, mtime=0)).decode()
    return f'<script type="text/plain" id="{name}">{packed}</script>\n'


def section(name: str, title: str, *parts: str, note: str = "") -> str:
    """Return a titled section; `name` is its anchor."""
    lead = f'<p class="note">{escape(note)}</p>' if note else ""
    return f'<section id="{name}"><h2>{escape(title)}</h2>{lead}{"".join(parts)}</section>\n'


def figure(caption: str, picture: str) -> str:
    """Return a chart with its caption."""
    return f'<figure><div class="wide">{picture}</div><figcaption>{escape(caption)}</figcaption></figure>'


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
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


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
