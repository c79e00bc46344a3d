"""File formats: files to samples, rows to files, and published statistics.

Invariant: nothing here opens a store; `read` yields rows and `write` consumes them, one at a time. See `containers` for
what is a bad row and what is a bad file, and `reading` for the formats.
"""

from recycledb.formats.readers import FORMATS, Reading, Row, is_placeholder, read
from recycledb.formats.scores import PublishedScores, read_scores
from recycledb.formats.values import MAX_ROW
from recycledb.formats.writers import OUT_FORMATS, dumps_alpaca, write

__all__ = [
    "FORMATS",
    "MAX_ROW",
    "OUT_FORMATS",
    "PublishedScores",
    "Reading",
    "Row",
    "dumps_alpaca",
    "is_placeholder",
    "read",
    "read_scores",
    "write",
]
