"""The workers on record that are alive, judged on a connection: also for a store of an older schema, before it is upgraded.

Invariant: nothing is recorded here; `recycledb.store.workers` does that.
"""

import json
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from recycledb.store.backend import Backend
from recycledb.store.liveness import Host, Watch, find_process, is_alive, this_host


class Running(NamedTuple):
    """A worker that is alive."""

    worker_id: str
    machine: str
    pid: int
    process_started: str
    started_at: str
    heartbeat_at: str
    host: str = ""  # the machine with its boot and namespaces
    version: str = ""  # of recycledb; "" where it is not on record
    doing: str = ""
    names: str = "{}"

    @property
    def place(self) -> str:
        """Where it runs, for messages."""
        return f"host {self.machine} (pid {self.pid})"

    def stands_on(self, name: str) -> str | None:
        """Return the id that a name (KIND/NAME) has for it; None where it does not use it."""
        found = json.loads(self.names).get(name)
        return None if found is None else str(found)


_OPEN = "SELECT * FROM worker WHERE ended_at IS NULL ORDER BY started_at, worker_id"


def living(backend: Backend, watch: Watch, conn: Connection) -> list[Running]:
    """Return the workers that are alive, oldest first."""
    return [each for each, alive in _judged(backend, watch, conn) if alive]


def dead(backend: Backend, watch: Watch, conn: Connection) -> list[Running]:
    """Return the workers that are on record as living and are not."""
    return [each for each, alive in _judged(backend, watch, conn) if not alive]


def _judged(backend: Backend, watch: Watch, conn: Connection) -> list[tuple[Running, bool]]:
    rows = conn.execute(text(_OPEN)).fetchall()
    if not rows:
        return []
    clock = backend.now(conn)
    return [(_running(row), _is_alive(backend, watch, row, clock)) for row in rows]


def _running(row: Any) -> Running:
    known = row._mapping  # before schema 0009 without the last columns
    return Running(
        worker_id=row.worker_id,
        machine=Host.parse(row.host).name,
        pid=row.pid,
        process_started=row.process_started,
        started_at=row.started_at,
        heartbeat_at=row.heartbeat_at,
        host=row.host,
        version=known.get("version") or "",
        doing=known.get("doing") or "",
        names=known.get("names") or "{}",
    )


def _is_alive(backend: Backend, watch: Watch, row: Any, clock: str) -> bool:
    here, host = this_host(), Host.parse(row.host)
    silence = watch.silence(row.worker_id, row.heartbeat_at, clock=clock)
    found = find_process(row.pid) if host == here and here.known else ""
    return is_alive(host, row.process_started, here, found, silence, one_clock=backend.one_clock)


def who(workers: list[Running], most: int = 3) -> str:
    """Return where workers run, for messages: the first few by host and process id."""
    shown = ", ".join(each.place for each in workers[:most])
    return f"{shown} and {len(workers) - most} more" if len(workers) > most else shown


def counted(workers: list[Running]) -> str:
    """Return how many processes on how many hosts are at work."""
    # Two workers of one process are two syncs in it; a container counts as a host.
    processes = len({(each.host, each.pid, each.process_started) for each in workers})
    hosts = len({each.host for each in workers})
    return f"{processes} {'process' if processes == 1 else 'processes'} on {hosts} {'host' if hosts == 1 else 'hosts'}"
