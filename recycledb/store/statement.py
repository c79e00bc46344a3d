"""Users' SQL text: find its named parameters and split its statements; and token counts that can be summed.

Invariant: the content of strings, quoted names and comments is never read as a parameter.
This module parses no more of SQL than that; the databases do the rest.
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


MOST_TOKENS = 1_000_000_000  # of one request; a higher count is a server's error


def tokens(column: str) -> str:
    """Return SQL for a token count that can be summed: NULL if it is outside the possible range.

    In SQLite a sum of integers that exceeds 64 bits is an error, so one impossible count would make every sum fail.
    """
    return f"(CASE WHEN {column} BETWEEN 0 AND {MOST_TOKENS} THEN {column} END)"


def parameters_in(sql: str) -> list[str]:
    """Return the names of a statement's parameters (`:name` or `$name`), each once, in the order of their first use."""
    return list(dict.fromkeys(found["name"] for found in _TOKEN.finditer(sql) if found["name"]))


def with_dollars(sql: str, names: Collection[str]) -> str:
    """Return `sql` with `:name` replaced by `$name` for these names; other colons (slices, structs) stay."""

    def write(found: re.Match[str]) -> str:
        name = found["name"]
        return f"${name}" if name and name in names else found[0]

    return _TOKEN.sub(write, sql)


def with_percents(sql: str, names: Collection[str]) -> str:
    """Return `sql` with `:name` and `$name` replaced by `%(name)s` for these names, and each other percent sign doubled."""
    parts, last = [], 0
    for found in _TOKEN.finditer(sql):
        parts.append(sql[last : found.start()].replace("%", "%%"))
        name = found["name"]
        parts.append(f"%({name})s" if name and name in names else found[0].replace("%", "%%"))
        last = found.end()
    return "".join([*parts, sql[last:].replace("%", "%%")])


def with_percentiles(sql: str) -> str:
    """Return `sql` with `quantile(x, share)`, which PostgreSQL has not, as `percentile_disc(share) WITHIN GROUP (ORDER BY x)`.

    No aggregate of our own: those that are not written in C copy what they have gathered at each row.
    """
    while (found := _call(sql)) is not None:
        start, comma, end = found
        value, share = sql[sql.index("(", start) + 1 : comma], sql[comma + 1 : end]
        sql = f"{sql[:start]}percentile_disc({share.strip()}) WITHIN GROUP (ORDER BY {value.strip()}){sql[end + 1 :]}"
    return sql


def _call(sql: str) -> tuple[int, int, int] | None:
    """Return where the first call of `quantile` with two arguments begins, has its comma, and its closing parenthesis."""
    shown = _TOKEN.sub(lambda found: found[0] if found["name"] else " " * len(found[0]), sql)
    for found in re.finditer(r"\bquantile\s*\(", shown, re.IGNORECASE):
        depth, commas = 1, []
        for at in range(found.end(), len(shown)):
            depth += (shown[at] in "([") - (shown[at] in ")]")
            commas += [at] if shown[at] == "," and depth == 1 else []
            if depth == 0:
                if len(commas) == 1:
                    return found.start(), commas[0], at
                break
    return None


def statements_in(sql: str) -> list[str]:
    """Return the statements of a text, which semicolons separate; parts that are only comments are left out."""
    parts, start = [], 0
    ends = [found.start() for found in _TOKEN.finditer(sql) if found[0] == ";"]
    for end in [*ends, len(sql)]:
        parts.append(sql[start:end])
        start = end + 1
    return [part.strip() for part in parts if without_comments(part).strip()]


def without_comments(sql: str) -> str:
    """Return `sql` with each comment replaced by a space."""
    return _TOKEN.sub(lambda found: " " if found[0].startswith(("--", "/*")) else found[0], sql)
