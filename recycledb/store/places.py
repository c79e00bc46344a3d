"""Datasets' contents: which sample has which position in which dataset, with the history of each position.

Invariant: rows of `place` are opened and closed, never changed or deleted. Each time that a position gets a different sample, its `turn`
goes up by one, so a file that changes from A to B and back to A leaves three rows at a position, of which the last is open.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from sqlalchemy import Connection, text

from recycledb.schema import ORIGIN, Texts, sample_id, utc_now, variant_id
from recycledb.store import Store, pending
from recycledb.store.rows import ClosingRow, DatasetRow, PlaceRow, SampleRow, VariantRow

BATCH_ROWS = 5_000


class Place(NamedTuple):
    """A sample at its position in a dataset; `extra` is a JSON object."""

    position: int
    texts: Texts
    extra: str = "{}"


def replace_places(store: Store, conn: Connection, dataset: str, rows: Iterable[Place]) -> dict[str, int]:
    """Make a dataset's contents exactly `rows`, which are in order of position; return the counts."""
    now = utc_now()
    store.insert(conn, [DatasetRow(dataset, now)])
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


def _add(store: Store, conn: Connection, dataset: str, chunk: list[Place]) -> tuple[int, int]:
    """Insert samples and open their positions, unless they exist; return how many of each were new."""
    ids = [sample_id(place.texts) for place in chunk]
    new = _add_samples(store, conn, {key: place.texts for key, place in zip(ids, chunk, strict=True)})
    there = _turns(conn, dataset, chunk[0].position, chunk[-1].position)
    kept, opened = [], []
    for key, (position, _, extra) in zip(ids, chunk, strict=True):
        turn, sample, is_open = there.get(position, (0, None, False))
        if not (is_open and sample == key):
            turn += 1
            opened.append(PlaceRow(dataset, position, turn, key, extra))
        kept.append((position, turn))
    store.insert(conn, opened)
    store.backend.insert(conn, "kept_place", ["position", "turn"], kept)
    return new, len(opened)


def _add_samples(store: Store, conn: Connection, samples: dict[str, Texts]) -> int:
    """Insert samples and their origins; return how many were new."""
    now = utc_now()
    new = store.insert(conn, [SampleRow(key, *texts, now, texts.context) for key, texts in samples.items()])
    store.insert(conn, [origin_row(key, texts, now) for key, texts in samples.items()])
    return new


def origin_row(sample: str, texts: Texts, now: str) -> VariantRow:
    """Return the origin variant: the sample as imported."""
    return VariantRow(
        variant_id=variant_id(sample, ORIGIN, texts),
        sample_id=sample,
        kind=ORIGIN,
        parent_id=None,
        text_id=None,
        teacher_id=None,
        prompt_id=None,
        **texts._asdict(),
        created_at=now,
    )


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


def _close_others(store: Store, conn: Connection, dataset: str, now: str) -> int:
    """Close the open rows of `place` that were not kept; return how many."""
    gone = """
        FROM place p
        WHERE p.dataset = :dataset
        AND NOT EXISTS (SELECT 1 FROM kept_place k WHERE k.position = p.position AND k.turn = p.turn)
        AND NOT EXISTS (
            SELECT 1 FROM closing c WHERE c.dataset = p.dataset AND c.position = p.position AND c.turn = p.turn
        )
    """
    found = conn.execute(text(f"SELECT p.position, p.turn {gone}"), {"dataset": dataset}).fetchall()
    store.insert(conn, [ClosingRow(dataset, position, turn, now) for position, turn in found])
    return len(found)


def iter_places(store: Store, page: int = 500) -> Iterator[list[str]]:
    """Yield the sample ids in datasets, page by page in dataset order; each page is a new query."""
    after: tuple[str, int] = ("", -1)
    while found := store.rows(pending.PLACES_AFTER, after_dataset=after[0], after_position=after[1], page=page):
        after = (found[-1][0], found[-1][1])
        yield list(dict.fromkeys(row[2] for row in found))


def last_import(conn: Connection, dataset: str) -> str | None:
    """Return the SHA-256 of the files of a dataset's last import."""
    found = conn.execute(text("SELECT sha256 FROM datasets WHERE dataset = :dataset"), {"dataset": dataset}).scalar()
    return None if found is None else str(found)
