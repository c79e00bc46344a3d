"""Workers: the processes that send questions or score.

Invariant: a worker's claims count while it is alive (see `recycledb.store.liveness`). A worker that was recorded as dead but still runs
is recorded as alive before it claims again. Rows of `worker` are the only ones in a store that change.
"""

import os
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from recycledb.schema import random_id, utc_now
from recycledb.store import Store
from recycledb.store.liveness import Host, find_process, is_alive, process_start, this_host
from recycledb.store.rows import WorkerRow


class Running(NamedTuple):
    """A worker that is alive."""

    worker_id: str
    machine: str
    pid: int
    process_started: str
    started_at: str
    heartbeat_at: str


def start_worker(store: Store) -> str:
    """Record this process as a worker, record dead workers as ended, and return the new worker's id."""
    worker, now = random_id(), utc_now()
    row = WorkerRow(worker, str(this_host()), os.getpid(), process_start("self") or "", now, now)
    with store.write() as conn:
        _end_dead(store, conn, now)
        store.insert(conn, [row])
    return worker


def beat(store: Store, worker: str) -> None:
    """Record that a worker is alive, even if another process recorded it as dead; record dead workers as ended."""
    now = utc_now()
    sql = "UPDATE worker SET heartbeat_at = :now, ended_at = NULL WHERE worker_id = :w"
    with store.write() as conn:
        conn.execute(text(sql), {"now": now, "w": worker})
        _end_dead(store, conn, now)


def revive(conn: Connection, worker: str) -> None:
    """Make a worker's claims count again if another process recorded it as dead: it was suspended, or its machine was asleep."""
    sql = "UPDATE worker SET heartbeat_at = :now, ended_at = NULL WHERE worker_id = :w AND ended_at IS NOT NULL"
    conn.execute(text(sql), {"now": utc_now(), "w": worker})


def end_worker(store: Store, worker: str) -> None:
    """Record that a worker has ended: its attempts without a reply are lost."""
    with store.write() as conn:
        _end(conn, worker, utc_now())


def _end(conn: Connection, worker: str, now: str) -> None:
    conn.execute(text("UPDATE worker SET ended_at = :now WHERE worker_id = :w"), {"now": now, "w": worker})


def running(store: Store, conn: Connection) -> list[Running]:
    """Return the workers that are alive, oldest first; nothing is recorded."""
    rows = conn.execute(text(f"{_OPEN} ORDER BY started_at, worker_id")).fetchall()
    return [
        Running(
            row.worker_id, Host.parse(row.host).name, row.pid, row.process_started, row.started_at, row.heartbeat_at
        )
        for row in rows
        if _is_alive(store, row)
    ]


_OPEN = "SELECT worker_id, host, pid, process_started, started_at, heartbeat_at FROM worker WHERE ended_at IS NULL"


def _is_alive(store: Store, row: Any) -> bool:
    here, host = this_host(), Host.parse(row.host)
    silence = store.watch.silence(row.worker_id, row.heartbeat_at)
    found = find_process(row.pid) if host == here and here.known else ""
    return is_alive(host, row.process_started, here, found, silence)


def _end_dead(store: Store, conn: Connection, now: str) -> None:
    """Record every worker that is no longer alive as ended."""
    for row in conn.execute(text(_OPEN)).fetchall():
        if not _is_alive(store, row):
            _end(conn, row.worker_id, now)
