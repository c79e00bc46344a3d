"""Workers: which processes ask, and which of them still live.

Invariant: a worker's claims count while it lives: on this machine by process id and start time, on others by heartbeat.
Its row is the only one in a store that changes.
"""

import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Connection, text

from recycledb.schema import random_id, utc_now
from recycledb.store.places import Inserting

HEARTBEAT_TIMEOUT_S = 120.0


def start(store: Inserting, conn: Connection) -> str:
    """Record this process as a worker, end those that died, and return the new worker's id."""
    worker, now = random_id(), utc_now()
    end_dead(conn, now)
    row = (worker, socket.gethostname(), os.getpid(), process_started(os.getpid()), now, now, None)
    store.insert(conn, "worker", [row])
    return worker


def beat(conn: Connection, worker: str) -> None:
    """Say that a worker lives; end those that do not."""
    now = utc_now()
    conn.execute(text("UPDATE worker SET heartbeat_at = :now WHERE worker_id = :w"), {"now": now, "w": worker})
    end_dead(conn, now)


def end(conn: Connection, worker: str, now: str) -> None:
    """Say that a worker is done."""
    conn.execute(text("UPDATE worker SET ended_at = :now WHERE worker_id = :w"), {"now": now, "w": worker})


def end_dead(conn: Connection, now: str) -> None:
    """End every worker that does not live any more."""
    sql = "SELECT worker_id, host, pid, process_started, heartbeat_at FROM worker WHERE ended_at IS NULL"
    for row in conn.execute(text(sql)).fetchall():
        if not is_alive(row.host, row.pid, row.process_started, row.heartbeat_at):
            end(conn, row.worker_id, now)


def process_started(pid: int) -> str:
    """Return when a process started, in the kernel's ticks; '' where that cannot be told (no /proc)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]  # field 22, counted after the command's closing bracket


def is_alive(host: str, pid: int, started: str, heartbeat_at: str) -> bool:
    """Say whether a worker lives. A process id alone is not enough: ids are used again."""
    if host == socket.gethostname():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass  # someone else's process: it lives
        if started:
            return process_started(pid) == started
    age = datetime.now(UTC) - datetime.fromisoformat(heartbeat_at)
    return age.total_seconds() < HEARTBEAT_TIMEOUT_S
