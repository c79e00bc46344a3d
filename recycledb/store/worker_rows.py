"""The rows of processes and of what they work on, part of `recycledb.store.rows`."""

from typing import NamedTuple


class WorkerRow(NamedTuple):
    """A row of `worker`."""

    worker_id: str
    host: str
    pid: int
    process_started: str
    started_at: str
    heartbeat_at: str
    ended_at: str | None = None
    version: str | None = None
    doing: str | None = None
    names: str | None = None


class LeaseRow(NamedTuple):
    """A row of `lease`."""

    kind: str
    target: str
    bucket: str
    worker_id: str
    taken_at: str
    expires_at: str
