"""Unwrapping: take off a text what its reply's layout put around it, and nothing that belongs to the text.

A reply writes a section as an item of a list, as a quotation or in a fence; all lines of its text then have a prefix that is not the
text's. What is taken off follows from the section's marker and its `[End]`, not from the text alone, and relative indentation stays:

- `> `, if the marker is quoted and every line is;
- the column at which the marker's list item begins its content, if all lines are indented that far (as Markdown reads lists);
- further indentation of up to three columns, which Markdown ignores. Four or more that all lines share are a block of code and stay;
- a fence around the whole text.

Every function takes time linear in the text's length.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

CODE_COLUMNS = 4  # indentation from which Markdown reads a block of code
TAB = 4

_QUOTE = re.compile(r"[ \t]{0,16}> ?")
# The list item that a lead ends with: bold type around its number is not part of the column, but a bullet `*` is.
_ITEM = re.compile(
    r"(?P<indent>[ \t]*+)(?:[*_]{2,3}(?=\(?\d))?(?P<item>(?:(?:[-+*•]|\(?\d{1,2}[.):])[ \t]{1,8}+){0,3})"
)
_FENCE = re.compile(r"^[ ]{0,3}(`{3,16}|~{3,16})([^`\n]{0,40})$", re.MULTILINE)
_PLAIN_FENCES = {"", "text", "txt", "plain", "plaintext", "markdown", "md"}
_OPENS_A_BLOCK = (":", "{", "(", "[", ",", "\\")


class Place(NamedTuple):
    """Where on its line a marker stands."""

    quotes: int = 0  # signs of quotation before it
    column: int = 0  # width of the indentation and of the list item before it
    item: bool = False  # a bullet or a number is part of that


def place_of(lead: str) -> Place:
    """Return the place of a marker after `lead`, the beginning of its line."""
    inner = lead.rpartition(">")[2]
    quotes = lead.count(">")
    match = _ITEM.match(inner.removeprefix(" ") if quotes else inner)
    if match is None:
        return Place(quotes)
    return Place(quotes, len((match["indent"] + match["item"]).expandtabs(TAB)), bool(match["item"]))


def unquote(raw: str, quotes: int) -> str:
    """Remove the signs of quotation from all lines after the first, if each line that is not blank has them."""
    first, newline, rest = raw.partition("\n")
    for _ in range(quotes):
        lines = rest.split("\n")
        found = [_QUOTE.match(line) for line in lines]
        if any(match is None and line.strip() for match, line in zip(found, lines, strict=True)):
            break
        rest = "\n".join(line[match.end() :] if match else "" for match, line in zip(found, lines, strict=True))
    return f"{first}{newline}{rest}"


def outdent(raw: str, place: Place, end: int | None) -> str:
    """Remove the indentation of the marker's list item from the lines after the marker's; return the text without margins.

    `end` is the column of the `[End]` if it begins its line.
    """
    first, _, rest = raw.partition("\n")
    lines = rest.split("\n")
    margin = _margin(lines)
    if not first.strip():
        whole = margin < place.column + CODE_COLUMNS or (end is not None and end >= margin)
        return settle("\n".join(_cut(lines, margin if whole else place.column)))
    beside = first.removeprefix(" ")
    if min(margin, _margin([beside])) >= CODE_COLUMNS:  # a block of code from its first line on
        blanks = (" " * place.column, "\t" * (place.column // TAB) if place.column % TAB == 0 else " " * place.column)
        set_in = margin >= place.column + CODE_COLUMNS and all(
            line.startswith(blanks) for line in lines if line.strip()
        )
        of_item = place.column if set_in else 0
        return settle("\n".join([beside, *_cut(lines, of_item)]))
    if margin:
        lines = _cut(lines, _hanging(first, margin, place, end))
    return "\n".join([first.lstrip(), *lines]).rstrip()


def _hanging(first: str, margin: int, place: Place, end: int | None) -> int:
    """Return how much of the margin of the lines below a first line next to the marker is the list item's; the rest is the text's."""
    code = first.rstrip().endswith(_OPENS_A_BLOCK)  # `def f():`, and its body below
    column = place.column
    if end and end <= margin and (column or not code):
        return end
    if not column or margin <= column:
        return column if margin == column else 0
    if margin == column + 1 and place.item:  # some indent the content of numbered items by four
        return 0 if code else margin
    # The text's own by fours, with nothing before it
    own = margin % CODE_COLUMNS == 0 and column % CODE_COLUMNS != 0 and (code or end == 0)
    return 0 if own else column


def settle(text: str) -> str:
    """Return a text without white space around it; a text that is all a block of code keeps its indentation."""
    lines = text.rstrip().split("\n")
    start = next((at for at, line in enumerate(lines) if line.strip()), 0)
    lines = lines[start:]
    margin = _margin(lines)
    if len(lines) > 1 and margin >= CODE_COLUMNS:
        return "\n".join(lines)
    return "\n".join(_cut(lines, margin)).lstrip()


def _margin(lines: Sequence[str]) -> int:
    """Return the columns of white space that all lines but blank ones begin with."""
    return min((sum(map(_width, line[: len(line) - len(line.lstrip())])) for line in lines if line.strip()), default=0)


def _width(blank: str) -> int:
    """Return the columns of a blank; a tab is always four, so that it stays whole where a list item's blanks precede it."""
    return TAB if blank == "\t" else 1


def _cut(lines: Sequence[str], columns: int) -> list[str]:
    """Remove so many columns of white space from the beginning of each line; blank lines may have fewer."""
    return [_without(line, columns) for line in lines] if columns else list(lines)


def _without(line: str, columns: int) -> str:
    width = at = 0
    while width < columns and line[at : at + 1].isspace():
        width += _width(line[at])
        at += 1
    return " " * (width - columns) + line[at:]


def drop_loose_fence(raw: str, complete: bool) -> str:
    """Drop an unpaired fence line, whose other half is outside the section."""
    fences = list(_FENCE.finditer(raw))
    if len(fences) % 2 == 0:
        return raw
    first, last = fences[0], fences[-1]
    if not complete and not raw[last.end() :].strip() and not last[2].strip():
        return raw[: last.start()]
    if complete and not raw[: first.start()].strip() and first[2].strip().lower() in _PLAIN_FENCES:
        return raw[first.end() :]
    return raw


def unfence(body: str, original: str) -> str:
    """Remove a fence around the whole text, unless it names a language or the original text has fences too."""
    lines = body.split("\n")
    if len(lines) < 3 or _FENCE.search(original):
        return body
    opening, closing = _FENCE.fullmatch(lines[0]), _FENCE.fullmatch(lines[-1])
    if not opening or not closing or opening[2].strip().lower() not in _PLAIN_FENCES or closing[2].strip():
        return body
    inner = "\n".join(lines[1:-1])
    if closing[1] != opening[1] or _FENCE.search(inner):
        return body
    return settle(inner)
