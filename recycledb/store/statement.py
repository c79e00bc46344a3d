"""SQL text that we did not write: where its named parameters stand, and where its statements end; and counts that can be summed.

Invariant: what stands in strings, quoted names and comments is never taken for a parameter.
This module refuses to understand SQL beyond that; databases parse it.
"""

import re
from collections.abc import Collection

_TOKEN = re.compile(
    r"""
      --[^\n]*                          # comment
    | /\*.*?(?:\*/|\Z)                  # comment
    | '(?:[^']|'')*'                    # string
    | "(?:[^"]|"")*"                    # quoted name
    | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$   # dollar-quoted string
    | ::                                # cast
    | ;                                 # end of a statement
    | [:$](?P<name>[A-Za-z_]\w*)        # parameter
    """,
    re.DOTALL | re.VERBOSE,
)


MOST_TOKENS = 1_000_000_000  # of one request; a count beyond is a server's mistake


def tokens(column: str) -> str:
    """Return SQL for a count of tokens that can be summed: NULL where it is no count that a request could have.

    A sum of whole numbers that passes 64 bits is an error in SQLite, so one impossible count would keep every sum from being told.
    """
    return f"(CASE WHEN {column} BETWEEN 0 AND {MOST_TOKENS} THEN {column} END)"


def parameters_in(sql: str) -> list[str]:
    """Return the names of a statement's parameters (`:name` or `$name`), each once, in the order of their first use."""
    return list(dict.fromkeys(found["name"] for found in _TOKEN.finditer(sql) if found["name"]))


def with_dollars(sql: str, names: Collection[str]) -> str:
    """Return `sql` with `:name` written as `$name` for these names; other colons (slices, structs) stay."""

    def write(found: re.Match[str]) -> str:
        name = found["name"]
        return f"${name}" if name and name in names else found[0]

    return _TOKEN.sub(write, sql)


def statements_in(sql: str) -> list[str]:
    """Return the statements of a text, which are separated by semicolons; comments that stand alone are left out."""
    parts, start = [], 0
    ends = [found.start() for found in _TOKEN.finditer(sql) if found[0] == ";"]
    for end in [*ends, len(sql)]:
        parts.append(sql[start:end])
        start = end + 1
    return [part.strip() for part in parts if without_comments(part).strip()]


def without_comments(sql: str) -> str:
    """Return `sql` with each comment as a space."""
    return _TOKEN.sub(lambda found: " " if found[0].startswith(("--", "/*")) else found[0], sql)
