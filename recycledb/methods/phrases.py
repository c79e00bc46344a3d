"""Files of phrases: sentences under headings, of which a transform draws one.

    # A comment: a line that begins with a number sign and a blank.
    = heading
    A sentence with a {placeholder}.
    Another sentence, drawn as often.

Empty lines are ignored. Under some headings a line is not a sentence: `one word | several words` gives both forms of a noun, and a single
hyphen stands for no sentence at all.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

Phrases = Mapping[str, Sequence[str]]

NONE = "-"  # a line that stands for no sentence
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


def parse(text: str) -> dict[str, list[str]]:
    """Return the lines under each heading; raise ValueError for a line before the first heading."""
    found: dict[str, list[str]] = {}
    lines: list[str] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("# "):
            continue
        if stripped.startswith("= "):
            lines = found.setdefault(stripped[2:].strip(), [])
        elif lines is None:
            raise ValueError(f"phrases: line {number} stands before the first heading (`= name`)")
        else:
            lines.append(stripped)
    return found


def require(phrases: Phrases, placeholders: Mapping[str, Sequence[str]]) -> None:
    """Raise ValueError unless there are exactly these headings, and the lines under each have its placeholders."""
    for heading in phrases:
        if heading not in placeholders:
            raise ValueError(f"phrases: unknown heading `= {heading}`; the headings are {', '.join(placeholders)}")
    for heading, needed in placeholders.items():
        if not phrases.get(heading):
            raise ValueError(f"phrases: no line under the heading `= {heading}`")
        for line in phrases[heading]:
            found = set(_PLACEHOLDER.findall(line))
            if line != NONE and found != set(needed):
                wanted = ", ".join(f"{{{name}}}" for name in needed) or "no placeholder"
                raise ValueError(f"phrases: `= {heading}` needs {wanted} in each line, but has {line!r}")


def check_marks(lines: Sequence[str]) -> None:
    """Raise ValueError unless each line is two marks: what is put before and after a text."""
    for line in lines:
        if len(line.split()) != 2:
            raise ValueError(f"phrases: `= marks` needs two marks with a blank between in each line, but has {line!r}")


def filled(phrase: str, **values: Any) -> str:
    """Return a phrase with its placeholders replaced; other braces stay."""
    return _PLACEHOLDER.sub(lambda match: str(values.get(match[1], match[0])), phrase)


def noun(phrases: Phrases, heading: str, n: int) -> str:
    """Return the form of a noun that goes with a number."""
    one, _, several = phrases[heading][0].partition("|")
    return (one if n == 1 or not several else several).strip()
