"""Text made safe for a terminal: characters that it would interpret instead of showing are escaped, as \\x1b or \\u202e.

Texts of samples, teachers, servers, files and the command line may contain anything: sequences that retitle the window, write to the
clipboard or hide text, marks that reverse the reading order, lone surrogates that cannot be encoded.

Invariant: what `visible` and `json_visible` return contains no character of `_OBEYED` except newlines and tabs.
Kept are letters of any script, combining marks, and the joiners (U+200C, U+200D) that emoji, Persian and Hindi are written with.
"""

import re

# Control characters (C0, DEL, C1), invisible characters, those that change the direction of text, line separators, lone surrogates,
# and the tag characters.
_OBEYED = (
    "\x00-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff"
    "\U000e0000-\U000e007f"
)
_ALL = re.compile(f"[{_OBEYED}]")
_BUT_LAYOUT = re.compile(f"(?![\n\t])[{_OBEYED}]")


def visible(text: str) -> str:
    """Return text that is safe for a terminal; newlines and tabs are kept."""
    return _BUT_LAYOUT.sub(_escape, text)


def visible_line(text: str) -> str:
    """Return text that is safe on one line of a terminal: newlines and tabs are escaped too."""
    return _ALL.sub(_escape, text)


def json_visible(text: str) -> str:
    """Return JSON of the same value that is safe for a terminal; newlines between its values are kept."""
    return _BUT_LAYOUT.sub(_json_escape, text)


def _escape(found: re.Match[str]) -> str:
    character = found[0]
    short = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}.get(character)
    if short:
        return short
    number = ord(character)
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _json_escape(found: re.Match[str]) -> str:
    """Return a character as a JSON escape; above U+FFFF (the tag characters) as a surrogate pair."""
    number = ord(found[0])
    if number < 0x10000:
        return f"\\u{number:04x}"
    return f"\\u{0xD800 + (number - 0x10000 >> 10):04x}\\u{0xDC00 + (number - 0x10000 & 0x3FF):04x}"


def shortened(text: str, most: int) -> str:
    """Return a text on one line, of at most `most` characters; one that was cut ends in an ellipsis."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1].rstrip()}…"
