"""Leases: who works on what at present, so that processes on one or many hosts share the work of a store.

Invariant: at most one worker holds a lease at a time, by the store's clock alone; a lease that is not renewed can be taken by others once
it is over. A holder that was suspended and writes after that does no harm: it writes the same rows. All functions take a connection of a
write transaction, or of a read for `held` and `expired`.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import Connection, text

LEASE_S = 90.0

SCORE, ASK, AUGMENT = "score", "ask", "augment"


class Lease(NamedTuple):
    """What is leased: work of a kind for a target (a student, a teacher, an augmentation), on the samples of a bucket or on all."""

    kind: str
    target: str
    bucket: str = ""


class Held(NamedTuple):
    """A lease with its holder."""

    lease: Lease
    worker_id: str
    taken_at: str
    expires_at: str


_TAKE = """
    INSERT INTO lease (kind, target, bucket, worker_id, taken_at, expires_at)
    VALUES (:kind, :target, :bucket, :worker, :now, :until)
    ON CONFLICT (kind, target, bucket) DO UPDATE
    SET worker_id = excluded.worker_id, taken_at = excluded.taken_at, expires_at = excluded.expires_at
    WHERE lease.expires_at < :now OR lease.worker_id = excluded.worker_id RETURNING worker_id
"""


def take(conn: Connection, worker: str, leases: Iterable[Lease], now: str, lease_s: float = LEASE_S) -> list[Lease]:
    """Take those of these leases that nobody else holds at `now`; return them.

    Also those that the worker holds: it may have taken them by a transaction whose COMMIT was not acknowledged.
    """
    values = {"worker": worker, "now": now, "until": _after(now, lease_s)}
    # In one order in every process: two that take the same leases in other orders would wait for each other.
    return [lease for lease in sorted(leases) if conn.execute(text(_TAKE), {**lease._asdict(), **values}).fetchall()]


def renew(conn: Connection, worker: str, now: str, lease_s: float = LEASE_S) -> None:
    """Extend every lease that a worker still holds: also those that are over, where nobody has taken them."""
    sql = "UPDATE lease SET expires_at = :until WHERE worker_id = :worker"
    conn.execute(text(sql), {"worker": worker, "until": _after(now, lease_s)})


def give(conn: Connection, worker: str, leases: Sequence[Lease]) -> None:
    """Give these leases back, those of them that the worker still holds."""
    sql = "DELETE FROM lease WHERE kind = :kind AND target = :target AND bucket = :bucket AND worker_id = :worker"
    for lease in sorted(leases):
        conn.execute(text(sql), {**lease._asdict(), "worker": worker})


def give_all(conn: Connection, worker: str) -> None:
    """Give back every lease of a worker."""
    conn.execute(text("DELETE FROM lease WHERE worker_id = :worker"), {"worker": worker})


def hand_over(conn: Connection, worker: str, successor: str) -> None:
    """Make the leases of a worker those of another."""
    conn.execute(
        text("UPDATE lease SET worker_id = :successor WHERE worker_id = :worker"),
        {"worker": worker, "successor": successor},
    )


def held(conn: Connection, now: str) -> list[Held]:
    """Return the leases that are not over at `now`."""
    return _found(conn, "expires_at >= :now", now)


def expired(conn: Connection, now: str) -> list[Held]:
    """Return the leases that are over at `now` and that nobody has given back: their holders died, or do not run."""
    return _found(conn, "expires_at < :now", now)


def _found(conn: Connection, condition: str, now: str) -> list[Held]:
    sql = f"SELECT * FROM lease WHERE {condition} ORDER BY kind, target, bucket"
    return [
        Held(Lease(row.kind, row.target, row.bucket), row.worker_id, row.taken_at, row.expires_at)
        for row in conn.execute(text(sql), {"now": now})
    ]


def is_free(conn: Connection, lease: Lease, worker: str, now: str) -> bool:
    """Return whether nobody holds a lease but `worker`, which may also be a batch of that worker."""
    sql = """
        SELECT count(*) FROM lease WHERE kind = :kind AND target = :target AND bucket = :bucket AND expires_at >= :now
        AND worker_id <> :worker AND worker_id NOT IN (SELECT b.worker_id FROM batch b WHERE b.batch_id = :worker)
    """
    return not conn.execute(text(sql), {**lease._asdict(), "worker": worker, "now": now}).scalar()


def _after(now: str, seconds: float) -> str:
    """Return a time some seconds after `now`, in the same form, so that times compare as texts."""
    return (datetime.fromisoformat(now) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
