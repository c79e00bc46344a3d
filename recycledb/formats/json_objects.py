"""Files that are JSON objects over several lines: one object that holds the list of rows, or one object after the other.

Invariant: an object that is itself a row is never opened. Memory is bounded by the longest value outside of the list of rows.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from recycledb.errors import FormatError
from recycledb.formats.json_values import BRACE, COMMA, Window, elements, parse, value_end
from recycledb.formats.values import Bad

OBJECTS = "objects"
_COLON, _CLOSE, _OPEN_LIST = b":}["

IsRow = Callable[[dict[str, Any]], bool]


def arrangement(path: Path, open_window: Callable[[], Window], is_row: IsRow) -> tuple[str, str | None]:
    """Return how a file that begins with a brace is arranged, as (container, key of the list of rows).

    The container is json for one object with a list of rows, `objects` for rows over several lines, else jsonl.
    FormatError if an object has several lists of rows.
    """
    window = open_window()
    window.skip_space()
    try:
        first = window.take(value_end)
    except FormatError:  # larger than a row may be
        return _of_large(path, open_window())
    value = _parsed(first)
    if first is None or not isinstance(value, dict):
        return "jsonl", None
    following = window.skip_space()
    if following < 0 and not is_row(value):
        key = _key_of_rows(path, [name for name, inner in value.items() if _is_rows(inner)])
        if key is not None:
            return "json", key
    over_lines = b"\n" in first and (following < 0 or following == BRACE)
    return (OBJECTS if over_lines else "jsonl"), None


def _parsed(text: bytes | None) -> Any:
    try:
        return None if text is None else parse(text)
    except ValueError:
        return None


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict | list)


def _key_of_rows(path: Path, keys: list[str]) -> str | None:
    if len(keys) > 1:
        named = ", ".join(repr(key[:40]) for key in keys[:8])
        raise FormatError(
            f"{path} is one JSON object with several lists of rows: {named}; save the one you mean as a file of its own, "
            f"as in `jq .{keys[0][:40]}`"
        )
    return keys[0] if keys else None


def _of_large(path: Path, window: Window) -> tuple[str, str | None]:
    """Return the arrangement of a file whose first object is larger than a row may be."""
    keys = []
    try:
        for key in _keys(path, window):
            if window.skip_space() != _OPEN_LIST:
                _skip(path, window)
                continue
            for number, value in enumerate(elements(path, window)):
                if number == 0 and isinstance(value, dict | list):
                    keys.append(key)
    except FormatError:
        return "jsonl", None
    found = _key_of_rows(path, keys)
    return ("jsonl", None) if found is None else ("json", found)


def rows_under(path: Path, window: Window, wanted: str) -> Iterator[Any]:
    """Yield the elements of the list under the key `wanted` of the one object that a file is."""
    for key in _keys(path, window):
        if key == wanted and window.skip_space() == _OPEN_LIST:
            yield from elements(path, window)
        else:
            _skip(path, window)
    if window.skip_space() >= 0:
        raise FormatError(f"{path} is not valid JSON: it continues after the end of its object")


def _keys(path: Path, window: Window) -> Iterator[str]:
    """Yield the keys of the object that begins here; after each, its value must be consumed."""
    window.skip_space()
    window.at += 1  # the opening brace
    while (mark := window.skip_space()) != _CLOSE:
        key = _parsed(window.take(value_end) if mark >= 0 else None)
        if not isinstance(key, str) or window.skip_space() != _COLON:
            raise FormatError(f"{path} is not valid JSON, or truncated: its object has no end")
        window.at += 1
        yield key
        mark = window.skip_space()
        if mark == COMMA:
            window.at += 1
        elif mark != _CLOSE:
            raise FormatError(f"{path} is not valid JSON, or truncated: after the value of {key[:40]!r}")
    window.at += 1


def _skip(path: Path, window: Window) -> None:
    if window.skip_space() < 0 or window.take(value_end) is None:
        raise FormatError(f"{path} is truncated: its object has no end")


def object_values(path: Path, window: Window) -> Iterator[Any]:
    """Yield JSON objects that follow each other, each over one line or several."""
    while window.skip_space() >= 0:
        text = window.take(value_end)
        if text is None:
            raise FormatError(f"{path} is truncated: it ends within object {window.row} (counted from 0)")
        value = _parsed(text)
        yield Bad(f"object {window.row} is not JSON") if value is None and text != b"null" else value
        window.row += 1
