"""Datasets' contents: which sample has which position in which dataset, with the history of each position.

Invariant: rows of `place` are opened and closed, never changed or deleted. Each time that a position gets a different sample, its `turn`
goes up by one, so a file that changes from A to B and back to A leaves three rows at a position, of which the last is open.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import Connection, Row, text

from recycledb.schema import ORIGIN, Texts, sample_id, utc_now, variant_id
from recycledb.store import Store, pending
from recycledb.store.parts import REMOVED
from recycledb.store.rows import ClosingRow, DatasetRow, PlaceRow, SampleRow, VariantRow

BATCH_ROWS = 5_000


class Place(NamedTuple):
    """A sample at its position in a dataset; `extra` is a JSON object."""

    position: int
    texts: Texts
    extra: str = "{}"


class Kept(NamedTuple):
    """A section of a dataset as it is, `rows` positions from `first`; its new first position is `to`."""

    first: int
    rows: int
    to: int


def replace_places(store: Store, conn: Connection, dataset: str, rows: Iterable[Place]) -> dict[str, int]:
    """Make a dataset's contents exactly `rows`, which are in order of position; return the counts."""
    return arrange_places(store, conn, dataset, [rows])


def arrange_places(
    store: Store, conn: Connection, dataset: str, sections: Iterable[Iterable[Place] | Kept], *, moving: bool = False
) -> dict[str, int]:
    """Make a dataset's contents these sections, which are in order of position; return the counts.

    `moving` says that a kept section follows rows and so may get other positions than it has. `left` counts the samples that were in
    the dataset and no longer are.
    """
    store.insert(conn, [DatasetRow(dataset, utc_now())])
    conn.execute(text("CREATE TEMPORARY TABLE IF NOT EXISTS kept_place (position INTEGER PRIMARY KEY, turn INTEGER)"))
    conn.execute(text("DELETE FROM kept_place"))
    counts = {"added": 0, "present": 0, "places_new": 0, "places_closed": 0, "left": 0}
    if moving:  # before its old positions get other samples
        _copy_open(conn, dataset)
    for section in sections:
        if isinstance(section, Kept):
            counts["places_new"] += _keep(store, conn, dataset, section)
            continue
        rows = iter(section)
        while chunk := list(islice(rows, BATCH_ROWS)):
            new, opened = _add(store, conn, dataset, chunk)
            counts["added"] += new
            counts["present"] += len(chunk) - new
            counts["places_new"] += opened
    counts["left"] = _count_left(conn, dataset)
    counts["places_closed"] = _close_others(store, conn, dataset, utc_now())
    return counts


def close_places(store: Store, conn: Connection, dataset: str) -> int:
    """Close all positions of a dataset; return how many were open."""
    return arrange_places(store, conn, dataset, ())["places_closed"]


def _add(store: Store, conn: Connection, dataset: str, chunk: list[Place]) -> tuple[int, int]:
    """Insert samples and open their positions, unless they exist; return how many of each were new."""
    ids = [sample_id(place.texts) for place in chunk]
    new = _add_samples(store, conn, {key: place.texts for key, place in zip(ids, chunk, strict=True)})
    rows = [(place.position, key, place.extra) for key, place in zip(ids, chunk, strict=True)]
    return new, _open(store, conn, dataset, rows)


def _open(store: Store, conn: Connection, dataset: str, rows: Sequence[tuple[int, str, str]]) -> int:
    """Keep these positions (with sample and extra), opening those that have another sample or none; return how many were opened."""
    there = _turns(conn, dataset, rows[0][0], rows[-1][0])
    kept, opened = [], []
    for position, key, extra in rows:
        turn, sample, is_open = there.get(position, (0, None, False))
        if not (is_open and sample == key):
            turn += 1
            opened.append(PlaceRow(dataset, position, turn, key, extra))
        kept.append((position, turn))
    store.insert(conn, opened)
    store.backend.insert(conn, "kept_place", ["position", "turn"], kept)
    return len(opened)


_OPEN = """
    FROM place p WHERE p.dataset = :dataset AND NOT EXISTS (
        SELECT 1 FROM closing c WHERE c.dataset = p.dataset AND c.position = p.position AND c.turn = p.turn
    )
"""


def _copy_open(conn: Connection, dataset: str) -> None:
    """Copy the open positions of a dataset, as they are before anything changes."""
    columns = "position INTEGER PRIMARY KEY, sample_id VARCHAR, extra VARCHAR"
    conn.execute(text(f"CREATE TEMPORARY TABLE IF NOT EXISTS earlier_place ({columns})"))
    conn.execute(text("DELETE FROM earlier_place"))
    sql = f"INSERT INTO earlier_place SELECT p.position, p.sample_id, p.extra {_OPEN}"
    conn.execute(text(sql), {"dataset": dataset})


def _keep(store: Store, conn: Connection, dataset: str, section: Kept) -> int:
    """Keep a section, at the positions that it has or, from the copy, at others; return how many positions were opened."""
    first, end, shift = section.first, section.first + section.rows, section.to - section.first
    if not shift:
        sql = f"INSERT INTO kept_place SELECT p.position, p.turn {_OPEN} AND p.position >= :first AND p.position < :end"
        conn.execute(text(sql), {"dataset": dataset, "first": first, "end": end})
        return 0
    opened = 0
    sql = (
        f"SELECT * FROM earlier_place WHERE position >= :first AND position < :end ORDER BY position LIMIT {BATCH_ROWS}"
    )
    while page := conn.execute(text(sql), {"first": first, "end": end}).fetchall():
        opened += _open(store, conn, dataset, [(position + shift, key, extra) for position, key, extra in page])
        first = page[-1][0] + 1
    return opened


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


def _gone() -> str:
    """Return the end of a SELECT of the open rows of `place` that were not kept."""
    return f"{_OPEN} AND NOT EXISTS (SELECT 1 FROM kept_place k WHERE k.position = p.position AND k.turn = p.turn)"


def _count_left(conn: Connection, dataset: str) -> int:
    """Return how many samples have a row that was not kept and none that was."""
    sql = f"""
        SELECT count(DISTINCT p.sample_id) {_gone()} AND p.sample_id NOT IN (
            SELECT q.sample_id FROM kept_place k JOIN place q
            ON q.dataset = :dataset AND q.position = k.position AND q.turn = k.turn
        )
    """
    return int(conn.execute(text(sql), {"dataset": dataset}).scalar() or 0)


def _close_others(store: Store, conn: Connection, dataset: str, now: str) -> int:
    """Close the open rows of `place` that were not kept; return how many."""
    found = conn.execute(text(f"SELECT p.position, p.turn {_gone()}"), {"dataset": dataset}).fetchall()
    store.insert(conn, [ClosingRow(dataset, position, turn, now) for position, turn in found])
    return len(found)


def iter_places(store: Store, page: int = 500, datasets: Sequence[str] = ()) -> Iterator[list[str]]:
    """Yield the sample ids in datasets (in these, or in all), page by page in dataset order; each page is a new query."""
    after: tuple[str, int] = ("", -1)
    sql, named = pending.places_after(datasets), pending.named_datasets(datasets)
    while found := store.rows(sql, after_dataset=after[0], after_position=after[1], page=page, **named):
        after = (found[-1][0], found[-1][1])
        yield list(dict.fromkeys(row[2] for row in found))


def samples_of_bucket(store: Store, bucket: str, datasets: Sequence[str] = ()) -> list[str]:
    """Return the samples in datasets (in these, or in all) whose ids begin with `bucket`."""
    sql = f"SELECT s.sample_id FROM ({pending.samples_in(datasets)}) s WHERE s.sample_id >= :low AND s.sample_id < :high ORDER BY 1"
    # A range, which uses the index; "g" follows the hexadecimal digits.
    return [row[0] for row in store.rows(sql, low=bucket, high=f"{bucket}g", **pending.named_datasets(datasets))]


def last_import(conn: Connection, dataset: str) -> Row[Any] | None:
    """Return the row of `dataset_import` that a dataset was made by; None if there is none, or the dataset was removed."""
    found = conn.execute(
        text("""
            SELECT i.* FROM dataset_import i
            WHERE i.dataset IN (SELECT d.dataset FROM datasets d WHERE d.dataset = :dataset) AND i.format <> :removed
            ORDER BY i.added_at DESC, i.import_id DESC LIMIT 1
        """),
        {"dataset": dataset, "removed": REMOVED},
    )
    return found.first()
