"""Places: which sample stands where in which dataset, through every change of the file that it came from.

Invariant: a place is opened and closed, never changed or removed. Each time that a position gets another sample than it
had, its turn goes up by one, so a file that goes from A to B and back to A leaves three places there, the last of them open.
"""

from collections.abc import Iterable
from itertools import islice
from typing import Protocol

from sqlalchemy import Connection, text

from recycledb.schema import ORIGIN, Texts, sample_id, utc_now, variant_id
from recycledb.store.backend import Backend, Row

BATCH_ROWS = 5_000

Place = tuple[int, Texts, str]  # position, texts, extra as JSON


class Inserting(Protocol):
    """What is needed of a store here."""

    backend: Backend

    def insert(self, conn: Connection, table: str, rows: Iterable[Row]) -> int:
        """Insert rows unless they are there; return how many were new."""


def replace(store: Inserting, conn: Connection, dataset: str, rows: Iterable[Place]) -> dict[str, int]:
    """Make a dataset's open places exactly `rows`, which come in order of position; return the counts."""
    now = utc_now()
    store.insert(conn, "dataset", [(dataset, now)])
    conn.execute(text("CREATE TEMPORARY TABLE IF NOT EXISTS kept_place (position INTEGER PRIMARY KEY, turn INTEGER)"))
    conn.execute(text("DELETE FROM kept_place"))
    counts = {"added": 0, "present": 0, "places_new": 0, "places_closed": 0}
    rows = iter(rows)
    while chunk := list(islice(rows, BATCH_ROWS)):
        new, opened = _add(store, conn, dataset, chunk)
        counts["added"] += new
        counts["present"] += len(chunk) - new
        counts["places_new"] += opened
    counts["places_closed"] = _close_others(store, conn, dataset, now)
    return counts


def _add(store: Inserting, conn: Connection, dataset: str, chunk: list[Place]) -> tuple[int, int]:
    """Insert samples and open their places where they are not there yet; return how many of both were new."""
    ids = [sample_id(texts) for _, texts, _ in chunk]
    new = _add_samples(store, conn, {key: texts for key, (_, texts, _) in zip(ids, chunk, strict=True)})
    there = _turns(conn, dataset, chunk[0][0], chunk[-1][0])
    kept, opened = [], []
    for key, (position, _, extra) in zip(ids, chunk, strict=True):
        turn, sample, is_open = there.get(position, (0, None, False))
        if not (is_open and sample == key):
            turn += 1
            opened.append((dataset, position, turn, key, extra))
        kept.append((position, turn))
    store.insert(conn, "place", opened)
    store.backend.insert(conn, "kept_place", ["position", "turn"], kept)
    return new, len(opened)


def _add_samples(store: Inserting, conn: Connection, samples: dict[str, Texts]) -> int:
    """Insert samples and their origins; return how many were new."""
    now = utc_now()
    new = store.insert(conn, "sample", [(key, *texts, now) for key, texts in samples.items()])
    variants = [
        (variant_id(key, ORIGIN, texts), key, ORIGIN, *[None] * 4, *texts, now) for key, texts in samples.items()
    ]
    store.insert(conn, "variant", variants)
    return new


def _turns(conn: Connection, dataset: str, first: int, last: int) -> dict[int, tuple[int, str, bool]]:
    """Return, by position, the latest turn, its sample, and whether it is open."""
    found = conn.execute(
        text("""
            SELECT p.position, p.turn, p.sample_id, c.turn IS NULL
            FROM place p LEFT JOIN closing c
            ON c.dataset = p.dataset AND c.position = p.position AND c.turn = p.turn
            WHERE p.dataset = :dataset AND p.position BETWEEN :first AND :last
            ORDER BY p.position, p.turn
        """),
        {"dataset": dataset, "first": first, "last": last},
    )
    return {position: (turn, sample, bool(is_open)) for position, turn, sample, is_open in found}


def _close_others(store: Inserting, conn: Connection, dataset: str, now: str) -> int:
    """Close the open places that were not kept; return how many."""
    gone = """
        FROM place p
        WHERE p.dataset = :dataset
        AND NOT EXISTS (SELECT 1 FROM kept_place k WHERE k.position = p.position AND k.turn = p.turn)
        AND NOT EXISTS (
            SELECT 1 FROM closing c WHERE c.dataset = p.dataset AND c.position = p.position AND c.turn = p.turn
        )
    """
    found = conn.execute(text(f"SELECT p.position, p.turn {gone}"), {"dataset": dataset}).fetchall()
    store.insert(conn, "closing", [(dataset, position, turn, now) for position, turn in found])
    return len(found)
