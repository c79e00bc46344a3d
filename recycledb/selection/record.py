"""Record a selection: its row, its picks and its name.

Invariant: a selection's id is the content address of its recipe, its parameters and its picks; recording it again changes nothing.
"""

import json
from collections.abc import Sequence
from typing import Any

from recycledb.errors import ReadOnlyError
from recycledb.schema import content_id
from recycledb.store import Sandbox, Store
from recycledb.store.rows import SelectionItemRow, SelectionRow

Item = tuple[str, float | None, str | None]  # a pick's variant, rank and reason

# What `store_revision` counts: the append-only tables that determine what a recipe can read.
REVISION_TABLES = {
    **{table: table for table in ("sample", "place", "closing", "variant", "extraction", "loss")},
    "name": "name WHERE kind <> 'selection'",
}
MARK_TABLE = "mark"  # counted where it has rows: a store without marks is described as before there were any


def selection_id_of(sql: str, parameters: dict[str, Any], picks: list[Item]) -> str:
    """Return the content address of a selection: its recipe, its parameters, and each pick's variant, rank and reason."""
    return content_id("selection", sql, parameters, picks)


def store_revision(sandbox: Sandbox) -> str:
    """Return the row counts of the append-only tables: rows never change, so equal counts in one store mean equal content."""
    sql = " UNION ALL ".join(f"SELECT '{table}', count(*) FROM {rows}" for table, rows in REVISION_TABLES.items())
    counts = dict(sandbox.execute(f"{sql} UNION ALL SELECT '{MARK_TABLE}', count(*) FROM {MARK_TABLE}")[1])
    counted = [table for table in (*REVISION_TABLES, MARK_TABLE) if table != MARK_TABLE or counts[table]]
    return " ".join(f"{table}:{counts[table]}" for table in counted)


def record(store: Store, row: SelectionRow, picks: Sequence[Item]) -> str | None:
    """Record a selection under its name; return why it cannot be, where the store may only be read."""
    items = (
        SelectionItemRow(row.selection_id, position, variant, rank, reason)
        for position, (variant, rank, reason) in enumerate(picks)
    )
    try:
        with store.write() as conn:
            if store.insert(conn, [row]):
                store.insert(conn, items)
            store.ensure_name(conn, "selection", row.name, row.selection_id)
    except ReadOnlyError as error:
        return str(error)
    return None


def list_selections(store: Store) -> list[dict[str, Any]]:
    """Return the recorded selections, oldest first."""
    rows = store.rows("""
        SELECT selection, recipe, rows, counts, parameters, created_at, output_sha256, store_revision, selection_id
        FROM selections ORDER BY created_at, selection_id
    """)
    found: list[dict[str, Any]] = [dict(row._mapping) for row in rows]
    return [{**row, "counts": json.loads(row["counts"]), "parameters": json.loads(row["parameters"])} for row in found]
