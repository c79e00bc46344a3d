"""Workers: which processes ask or score, on record.

Invariant: a worker's claims count while it lives (`recycledb.store.liveness` says whether it does). Whoever was taken for dead and goes
on all the same is on record as living before it claims anew. A worker's row is the only one in a store that changes.
"""

import os

from sqlalchemy import Connection, text

from recycledb.schema import random_id, utc_now
from recycledb.store import Store
from recycledb.store.liveness import Host, find_process, is_alive, process_start, this_host
from recycledb.store.rows import WorkerRow


def start_worker(store: Store) -> str:
    """Record this process as a worker, end those that died, and return the new worker's id."""
    worker, now = random_id(), utc_now()
    row = WorkerRow(worker, str(this_host()), os.getpid(), process_start("self") or "", now, now)
    with store.write() as conn:
        _end_dead(store, conn, now)
        store.insert(conn, [row])
    return worker


def beat(store: Store, worker: str) -> None:
    """Say that a worker lives, whatever others took it for; end those that do not."""
    now = utc_now()
    sql = "UPDATE worker SET heartbeat_at = :now, ended_at = NULL WHERE worker_id = :w"
    with store.write() as conn:
        conn.execute(text(sql), {"now": now, "w": worker})
        _end_dead(store, conn, now)


def revive(conn: Connection, worker: str) -> None:
    """Let a worker's claims count again if others took it for dead: it was stopped, or its machine asleep."""
    sql = "UPDATE worker SET heartbeat_at = :now, ended_at = NULL WHERE worker_id = :w AND ended_at IS NOT NULL"
    conn.execute(text(sql), {"now": utc_now(), "w": worker})


def end_worker(store: Store, worker: str) -> None:
    """Say that a worker is done: what it asked and did not hear of is lost."""
    with store.write() as conn:
        _end(conn, worker, utc_now())


def _end(conn: Connection, worker: str, now: str) -> None:
    conn.execute(text("UPDATE worker SET ended_at = :now WHERE worker_id = :w"), {"now": now, "w": worker})


def _end_dead(store: Store, conn: Connection, now: str) -> None:
    """End every worker that does not live any more."""
    here = this_host()
    sql = "SELECT worker_id, host, pid, process_started, heartbeat_at FROM worker WHERE ended_at IS NULL"
    for row in conn.execute(text(sql)).fetchall():
        host, silence = Host.parse(row.host), store.watch.silence(row.worker_id, row.heartbeat_at)
        found = find_process(row.pid) if host == here and here.known else ""
        if not is_alive(host, row.process_started, here, found, silence):
            _end(conn, row.worker_id, now)
