"""The row of marks, part of `recycledb.store.rows`."""

from typing import NamedTuple


class MarkRow(NamedTuple):
    """A row of `mark`."""

    mark_id: str
    sample_id: str
    variant_id: str | None
    mark: str
    note: str
    marked_by: str
    created_at: str
    seen: str
