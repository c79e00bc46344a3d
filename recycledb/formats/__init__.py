"""File formats: files to samples, rows to files, and published statistics.

Invariant: nothing here opens a store; `read` yields rows and `write` consumes them, one at a time. See `containers` for
what is a bad row and what is a bad file, and `readers` for the shapes of rows.
"""

from recycledb.formats.readers import FORMATS, Reading, Row, read
from recycledb.formats.scores import PublishedScores, read_scores
from recycledb.formats.shapes import is_placeholder, mapping_of
from recycledb.formats.turns import CONTEXTS, LEFT_OUT, TURNS, How
from recycledb.formats.values import MAX_ROW
from recycledb.formats.writers import OUT_FORMATS, dumps_alpaca, write

__all__ = [
    "CONTEXTS",
    "FORMATS",
    "LEFT_OUT",
    "MAX_ROW",
    "OUT_FORMATS",
    "TURNS",
    "How",
    "PublishedScores",
    "Reading",
    "Row",
    "dumps_alpaca",
    "is_placeholder",
    "mapping_of",
    "read",
    "read_scores",
    "write",
]
