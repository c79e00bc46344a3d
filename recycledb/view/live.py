"""Server-sent events: what a running sync does, as it does it.

Invariant: one thread reads for all clients, and only while there is one; clients that are slow skip states, they queue nothing.
"""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from recycledb.errors import RecycledbError
from recycledb.view.forecast import Forecast
from recycledb.view.running import REASONS, Reader, Run, Statistics
from recycledb.view.shared import shared_by
from recycledb.workspace import Workspace

TICK_S = 1.0
PING_S = 15.0
BROKEN = "the store could not be read just now"


class Live:
    """The state of the running sync, for any number of clients."""

    def __init__(self, workspace: Workspace) -> None:
        self._reader, self._forecast = Reader(workspace.store), Forecast(workspace)
        self._lock = threading.Lock()
        self._clients: dict[asyncio.Event, asyncio.AbstractEventLoop] = {}
        self._thread: threading.Thread | None = None
        self._wake, self._closed = threading.Event(), threading.Event()
        self._state = b""

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the state now and whenever it has changed, until the server ends."""
        told = asyncio.Event()
        sent = b""
        self._join(told)
        try:
            while not self._closed.is_set():
                state = self._state
                if state and state != sent:
                    yield b"event: sync\ndata: " + state + b"\n\n"
                    sent = state
                try:
                    await asyncio.wait_for(told.wait(), PING_S)
                except TimeoutError:
                    yield b": ping\n\n"  # shows that the other end has gone
                told.clear()
        finally:
            self._leave(told)

    def close(self) -> None:
        """End all streams and the reading."""
        self._closed.set()
        self._wake.set()
        self._tell()

    def _join(self, told: asyncio.Event) -> None:
        with self._lock:
            self._clients[told] = asyncio.get_running_loop()
            if self._thread is None and not self._closed.is_set():
                self._state = b""
                self._thread = threading.Thread(target=self._work, name="live", daemon=True)
                self._thread.start()

    def _leave(self, told: asyncio.Event) -> None:
        with self._lock:
            del self._clients[told]
            if not self._clients:
                self._wake.set()

    def _tell(self) -> None:
        with self._lock:
            for told, loop in self._clients.items():
                loop.call_soon_threadsafe(told.set)

    def _idle(self) -> bool:
        """Return whether nobody looks; then the thread has ended."""
        with self._lock:
            self._wake.clear()
            if self._clients and not self._closed.is_set():
                return False
            self._reader.close()
            self._thread = None
            return True

    def _work(self) -> None:
        while not self._idle():
            began = time.monotonic()
            self._look()
            self._wake.wait(max(0.0, TICK_S - (time.monotonic() - began)))

    def _look(self) -> None:
        try:
            self._reader.look(self._closed.is_set)
            run, statistics = self._reader.run, self._reader.statistics
            if run is not None and run.workers:
                self._forecast.update(run, statistics)
            found = state(run, statistics, self._forecast)
        except (RecycledbError, SQLAlchemyError):  # try again with another connection
            self._reader.close()
            found = {"problem": BROKEN}
        encoded = json.dumps(found, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
        if encoded != self._state:
            self._state = encoded
            self._tell()


def state(run: Run | None, statistics: Statistics, forecast: Forecast) -> dict[str, Any]:
    """Return what the page shows."""
    if run is None:
        return {"running": False, "workers": []}
    now = time.time()
    workers = [
        {
            **{name: getattr(each, name) for name in ("machine", "pid", "started_at", "heartbeat_at")},
            "sent": run.sent[each.worker_id],
            "answered": run.answered[each.worker_id],
        }
        for each in run.workers
    ]
    active = bool(run.workers)
    return {
        "running": active,
        "since": run.since,
        "ended_at": run.ended_at,
        "workers": workers,
        "steps": [[step, counts["ok"], counts["failed"], counts["error"]] for step, counts in run.steps.items()],
        "replies": sum(sum(counts.values()) for counts in run.steps.values()),
        "replies_per_minute": round(run.rate(now) * 60, 1) if active else None,
        "statistics": statistics.number,
        "statistics_per_second": statistics.rate() if active else None,
        "tokens": run.tokens,
        "cost_usd": run.cost_usd,
        "cost_unknown": run.cost_unknown,
        "left": forecast.left(run, statistics, now) if active else None,
        "failures": [[reason, n, run.examples[reason]] for reason, n in run.failures.most_common(REASONS)],
        "last": run.last,
    }


def events(request: Request) -> Response:
    """Stream the events."""
    live = shared_by(request).live
    if live is None:
        raise HTTPException(404, "no other process can write to this store")
    return StreamingResponse(live.events(), media_type="text/event-stream")


routes = [Route("/events", events)]
