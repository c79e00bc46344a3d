"""Word diffs of two texts, bounded: a megabyte of text is compared by lines, or not at all.

Invariant: the parts that are not deleted, joined, are the later text; those that are not inserted, the earlier one.
"""

import re
from collections import Counter
from collections.abc import Sequence
from difflib import SequenceMatcher
from itertools import takewhile

SAME, DELETED, INSERTED = "same", "del", "ins"
MOST_PAIRS = 60_000  # equal words of both texts that are compared: some milliseconds
FEWEST = 3  # one or two equal words between changes are a coincidence
_WORD = re.compile(r"\w+\s*|[^\w\s]\s*|\s+")  # a word with the space after it, so that spaces alone never match

Part = tuple[str, str]  # how it differs, and the text


def diff(before: str, after: str) -> list[Part]:
    """Return the parts of both texts, in order: words that are the same, deleted or inserted."""
    if before == after:
        return [(SAME, after)] if after else []
    for split in (_WORD.findall, _lines):
        if len(before) + len(after) < 1_000_000 or split is _lines:
            a, b = split(before), split(after)
            if (found := _compare(a, b)) is not None:
                return found
    return _changed(before, after)


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)


def _compare(a: Sequence[str], b: Sequence[str]) -> list[Part] | None:
    """Return the diff of two lists of pieces; None if comparing them would take long."""
    start = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
    rest = min(len(a), len(b)) - start
    end = sum(1 for _ in takewhile(lambda i: a[-1 - i] == b[-1 - i], range(rest)))
    middle_a, middle_b = a[start : len(a) - end], b[start : len(b) - end]
    counts = Counter(middle_b)
    if sum(counts[piece] for piece in middle_a) > MOST_PAIRS or len(middle_a) + len(middle_b) > MOST_PAIRS:
        return None
    runs = [(True, a[:start], b[:start])] if start else []
    for tag, i, j, k, m in SequenceMatcher(None, middle_a, middle_b, autojunk=False).get_opcodes():
        same = tag == "equal" and j - i >= FEWEST
        runs.append((same, middle_a[i:j], middle_b[k:m]))
    if end:
        runs.append((True, a[len(a) - end :], b[len(b) - end :]))
    return _joined(runs)


def _joined(runs: Sequence[tuple[bool, Sequence[str], Sequence[str]]]) -> list[Part]:
    """Return runs as parts; adjacent changes are one."""
    found: list[Part] = []
    gone, new = "", ""
    for same, a, b in runs:
        if same:
            found += _changed(gone, new)
            gone, new = "", ""
            found.append((SAME, "".join(b)))
        else:
            gone, new = gone + "".join(a), new + "".join(b)
    return found + _changed(gone, new)


def _changed(gone: str, new: str) -> list[Part]:
    return [(kind, text) for kind, text in ((DELETED, gone), (INSERTED, new)) if text]
