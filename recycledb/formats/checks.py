"""Checks of the values of a row: which texts every store can hold, and metadata as plain JSON."""

import base64
import math
from typing import Any

MAX_DEPTH = 64  # of the extra fields; enough for any metadata, and far below Python's recursion limit


class Unusable(Exception):  # noqa: N818 - internal: it ends the reading of a bad row
    """A row that cannot be a sample; the message is the reason."""


def sound(value: Any, where: str) -> str:
    """Return `value` if it is text that every store can hold; raise Unusable if not."""
    if value is None:
        raise Unusable(f"no text in {where}")
    if not isinstance(value, str):
        raise Unusable(f"no text in {where} but {kind(value)}")
    if "\0" in value:
        raise Unusable(f"NUL in {where}")
    require_no_surrogate(value, where)
    return value


def require_no_surrogate(text: str, where: str) -> None:
    """Raise Unusable if the text has a lone surrogate, which UTF-8 cannot encode."""
    try:
        _ = text.isascii() or text.encode()
    except UnicodeEncodeError:
        raise Unusable(f"lone surrogate in {where}") from None


def kind(value: Any) -> str:
    """Return what a value is, in words."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return "null" if value is None else names.get(type(value), f"a {type(value).__name__}")


def plain_fields(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a row's other fields as plain JSON: NaN and infinities are null, bytes are base64, times and decimals are text."""
    for name in fields:
        require_no_surrogate(name, "the name of a field")
    return {name: _plain(value, f"'{name}'") for name, value in fields.items()}


def _plain(value: Any, where: str, depth: int = 0) -> Any:
    if isinstance(value, str):
        require_no_surrogate(value, where)
    if value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth >= MAX_DEPTH:
        raise Unusable(f"nested too deeply in {where}")
    if isinstance(value, dict):
        return {_plain(str(name), where): _plain(inner, where, depth + 1) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, where, depth + 1) for inner in value]
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)
