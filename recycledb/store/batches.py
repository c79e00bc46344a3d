"""Batches: recorded before they are submitted; later changes of status are events, and no row changes.

A batch's attempts have its id as their worker_id, so they are found by it, and they claim their questions while the batch is alive.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import text

from recycledb.schema import random_id, utc_now
from recycledb.store import SQLRow, Store, workers
from recycledb.store.pending import LIVE_BATCH, unanswered
from recycledb.store.rows import AttemptRow, BatchEventRow, BatchRow

PAGE = 500

_LIVE = f"""
    SELECT b.batch_id, b.teacher_id, b.created_at, b.remote_id, b.status, b.requests,
        (SELECT count(*) FROM worker w WHERE w.worker_id = b.worker_id AND w.ended_at IS NULL) AS preparing
    FROM batches b WHERE b.batch_id IN ({LIVE_BATCH}) ORDER BY b.created_at
"""

_ATTEMPTS = f"""
    SELECT {", ".join(f"a.{name}" for name in AttemptRow._fields)} FROM attempt a
    WHERE a.worker_id = :batch AND {unanswered("a")}
"""


_GIVEN_UP = "SELECT count(*) FROM batch_event WHERE batch_id = :batch AND status = 'abandoned'"
_PREPARING = """
    SELECT count(*) FROM batch b JOIN worker w ON w.worker_id = b.worker_id
    WHERE b.batch_id = :batch AND w.ended_at IS NULL
"""


def start(store: Store, teacher_id: str, worker: str) -> str:
    """Record a batch that is about to be filled and submitted; return its id."""
    batch = random_id()
    with store.write() as conn:
        store.insert(conn, [BatchRow(batch, teacher_id, worker, utc_now())])
    return batch


def note(store: Store, batch: str, status: str, remote_id: str | None = None, detail: str | None = None) -> None:
    """Record a change of a batch's status."""
    with store.write() as conn:
        store.insert(conn, [BatchEventRow(batch, utc_now(), status, remote_id, detail)])


def first_noted(store: Store, batch: str, status: str) -> str | None:
    """Return when a batch was first recorded with a status; None if it never was."""
    sql = "SELECT min(noted_at) FROM batch_event WHERE batch_id = :batch AND status = :status"
    found = store.rows(sql, batch=batch, status=status)[0][0]
    return None if found is None else str(found)


def keep(store: Store, batch: str, worker: str) -> bool:
    """Record that the process that fills a batch is alive; return whether the batch has not been abandoned in the meantime."""
    with store.write() as conn:
        workers.revive(conn, worker, store.backend.now(conn))
        return not conn.execute(text(_GIVEN_UP), {"batch": batch}).scalar()


def give_up(store: Store, batch: str, detail: str) -> bool:
    """Abandon a batch that was never submitted, unless its process is alive; return whether it was abandoned."""
    with store.write() as conn:
        if conn.execute(text(_PREPARING), {"batch": batch}).scalar():
            return False
        store.insert(conn, [BatchEventRow(batch, utc_now(), "abandoned", detail=detail)])
    return True


def live(store: Store, teacher_ids: Sequence[str]) -> list[SQLRow]:
    """Return a teacher's batches that are neither taken nor abandoned, with whether their process is still alive."""
    return [row for row in store.rows(_LIVE) if row.teacher_id in teacher_ids]


def waiting(store: Store, batch: str, attempts: Sequence[str]) -> dict[str, AttemptRow]:
    """Return those of these attempts that belong to the batch and have no reply, by id."""
    names = ", ".join(f":a{i}" for i in range(len(attempts)))
    sql = f"{_ATTEMPTS} AND a.attempt_id IN ({names})"
    found = store.rows(sql, batch=batch, **{f"a{i}": attempt for i, attempt in enumerate(attempts)})
    return {row.attempt_id: AttemptRow(*row) for row in found}


def iter_unanswered(store: Store, batch: str) -> Iterator[list[AttemptRow]]:
    """Yield the batch's attempts without a reply, page by page; replies to a page must be stored before the next is requested."""
    while found := store.rows(f"{_ATTEMPTS} LIMIT {PAGE}", batch=batch):
        yield [AttemptRow(*row) for row in found]


def listed(store: Store) -> list[dict[str, Any]]:
    """Return every row of the view `batches`, oldest first."""
    return [dict(row._mapping) for row in store.rows("SELECT * FROM batches ORDER BY created_at")]
