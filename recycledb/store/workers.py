"""Workers: the processes that send questions or score.

Invariant: a worker's claims and leases count while it is alive (see `recycledb.store.liveness`). A worker that was recorded as dead but
still runs is recorded as alive before it claims again; its leases it has to take again. Times are those of the store (`Backend.now`).
"""

import json
import os
from collections.abc import Mapping
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from recycledb.schema import random_id
from recycledb.store import Store, leases
from recycledb.store.leases import LEASE_S, Lease
from recycledb.store.liveness import process_start, this_host
from recycledb.store.living import Running, dead, living
from recycledb.store.worker_rows import WorkerRow

__all__ = ["Beat", "Running", "beat", "end_dead", "end_worker", "listed", "revive", "running", "start_worker"]


class Beat(NamedTuple):
    """What a worker learns when it records its heartbeat: the store's schema, and the leases that it holds."""

    revision: str
    held: frozenset[Lease]


@cache
def _version() -> str:
    try:
        return version("recycledb")
    except PackageNotFoundError:  # run from a folder that is not installed
        return ""


def start_worker(store: Store, doing: str | None = None) -> str:
    """Record this process as a worker, record dead workers as ended, and return the new worker's id."""

    def start(conn: Connection) -> str:
        now = store.backend.now(conn)
        _end_dead(store, conn, now)
        return _start(store, conn, now, now, doing)

    return store.transact(start, locked=False)


def _start(
    store: Store, conn: Connection, started_at: str, now: str, doing: str | None, names: str | None = None
) -> str:
    worker, started = random_id(), process_start("self") or ""
    row = WorkerRow(worker, str(this_host()), os.getpid(), started, started_at, now, None, _version(), doing, names)
    store.insert(conn, [row])
    return worker


def succeed(store: Store, worker: str) -> str:
    """End a worker and let another of this process go on with its leases, so that requests that it gave up count as lost."""

    def go_on(conn: Connection) -> str:
        now = store.backend.now(conn)
        sql = "SELECT started_at, doing, names FROM worker WHERE worker_id = :w"
        before = conn.execute(text(sql), {"w": worker}).one()
        successor = _start(store, conn, before.started_at, now, before.doing, before.names)
        leases.hand_over(conn, worker, successor)
        _end(conn, worker, now)
        return successor

    return store.transact(go_on, locked=False)


def beat(store: Store, worker: str, lease_s: float = LEASE_S) -> Beat:
    """Record that a worker is alive, even if another process recorded it as dead, and renew its leases; record dead workers as ended."""

    def note(conn: Connection) -> Beat:
        now = store.backend.now(conn)
        sql = "UPDATE worker SET heartbeat_at = :now, ended_at = NULL WHERE worker_id = :w"
        conn.execute(text(sql), {"now": now, "w": worker})
        leases.renew(conn, worker, now, lease_s)
        _end_dead(store, conn, now)
        revision = str(conn.execute(text("SELECT version_num FROM alembic_version")).scalar())
        return Beat(revision, frozenset(each.lease for each in leases.held(conn, now) if each.worker_id == worker))

    return store.transact(note, locked=False)


def revive(conn: Connection, worker: str, now: str) -> None:
    """Make a worker's claims count again if another process recorded it as dead: it was suspended, or its machine was asleep."""
    sql = "UPDATE worker SET heartbeat_at = :now, ended_at = NULL WHERE worker_id = :w AND ended_at IS NOT NULL"
    conn.execute(text(sql), {"now": now, "w": worker})


def note_doing(store: Store, worker: str, doing: str) -> None:
    """Record what a worker does."""
    sql = text("UPDATE worker SET doing = :doing WHERE worker_id = :w")
    store.transact(lambda conn: conn.execute(sql, {"doing": doing, "w": worker}), locked=False)


def note_names(conn: Connection, worker: str, names: Mapping[str, str]) -> None:
    """Record the ids that names (KIND/NAME) have for a worker."""
    values = {"names": json.dumps(names, sort_keys=True), "w": worker}
    conn.execute(text("UPDATE worker SET names = :names WHERE worker_id = :w"), values)


def end_worker(store: Store, worker: str) -> None:
    """Record that a worker has ended: its attempts without a reply are lost, and its leases free."""
    store.transact(lambda conn: _end(conn, worker, store.backend.now(conn)), locked=False)


def _end(conn: Connection, worker: str, now: str) -> None:
    conn.execute(text("UPDATE worker SET ended_at = :now WHERE worker_id = :w"), {"now": now, "w": worker})
    leases.give_all(conn, worker)


def running(store: Store, conn: Connection) -> list[Running]:
    """Return the workers that are alive, oldest first; nothing is recorded."""
    return living(store.backend, store.watch, conn)


def end_dead(store: Store) -> None:
    """Record every worker that is no longer alive as ended; nothing is written where there is none."""
    if store.ask(lambda conn: dead(store.backend, store.watch, conn)):
        store.transact(lambda conn: _end_dead(store, conn, store.backend.now(conn)), locked=False)


def _end_dead(store: Store, conn: Connection, now: str) -> None:
    for each in dead(store.backend, store.watch, conn):
        _end(conn, each.worker_id, now)


def listed(store: Store) -> list[dict[str, Any]]:
    """Return the workers that are alive: where and since when, the last heartbeat, what each does, and its leases by kind."""
    with store.read() as conn:
        found = running(store, conn)
        now = store.backend.now(conn)
        current = leases.held(conn, now)
    return [
        {
            "worker_id": each.worker_id,
            "host": each.machine,
            "host_id": each.host,
            "pid": each.pid,
            "since": each.started_at,
            "last_beat": each.heartbeat_at,
            "doing": each.doing,
            "version": each.version,
            "leases": [h.lease._asdict() for h in current if h.worker_id == each.worker_id],
        }
        for each in found
    ]
