"""Self-contained HTML pages: their parts, escaped, and their Content-Security-Policy.

Invariant: text from the store reaches a page only through `escape`, `data_block` or `packed_block`, so that no sample can become markup or
script; should that fail, the Content-Security-Policy allows only our own scripts, by hash, and no requests.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from string import Template
from typing import Any

from recycledb.markup import Link, escape, number, share, table

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
