"""A sync that is running in another process: what it has done since it began, from the rows that it adds.

Invariant: only rows that are new since the last look are read, by their numbers, on one connection that is outside of transactions between
looks: it neither holds back the writer's checkpoints nor costs the opening of a file. Statistics have no numbers; they are counted,
which reads an index, and therefore at most so often that it takes 1 % of the time.
"""

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, text

from recycledb.schema import utc_now
from recycledb.store import Store
from recycledb.store.workers import Running, running

COUNTING_SHARE = 0.01  # of the time, for counting statistics
CHUNK = 2_000  # rows that are read in one transaction
LAST = 12  # replies that are shown
BEGINNING = 240  # characters of a reply that are shown
WINDOW_S = 120.0  # that rates are of
REASONS = 20  # of failures, the most frequent

_REPLIES = """
    SELECT r.rowid AS number, r.step, r.status, substr(r.error, 1, 300) AS error, r.cost_usd, r.prompt_tokens, r.completion_tokens,
        r.created_at, a.worker_id
    FROM reply r LEFT JOIN attempt a ON a.attempt_id = r.attempt_id WHERE r.rowid > :last ORDER BY r.rowid LIMIT :most
"""
_SHOWN = f"""
    SELECT r.rowid AS number, v.sample_id, r.step, t.name AS teacher, r.status, substr(coalesce(r.text, r.error), 1, {BEGINNING}) AS text,
        r.cost_usd, r.duration_ms, r.created_at
    FROM reply r JOIN variant v ON v.variant_id = r.variant_id JOIN teacher t ON t.teacher_id = r.teacher_id
    WHERE r.rowid > :last ORDER BY r.rowid DESC LIMIT {LAST}
"""
_ATTEMPTS = "SELECT rowid AS number, worker_id FROM attempt WHERE rowid > :last ORDER BY rowid LIMIT :most"
_UNUSABLE = "SELECT rowid AS number, reason FROM extraction WHERE rowid > :last AND reason IS NOT NULL ORDER BY rowid LIMIT :most"


@dataclass
class Run:
    """What the processes that are running now have done since the first of them began."""

    since: str
    processes: set[tuple[str, int, str]]
    reply: int  # the number of the last row that was read
    attempt: int
    extraction: int
    workers: list[Running] = field(default_factory=list)
    ended_at: str | None = None  # of the last worker, if none is left
    sent: Counter[str] = field(default_factory=Counter)  # by worker
    answered: Counter[str] = field(default_factory=Counter)
    steps: dict[str, Counter[str]] = field(default_factory=dict)  # statuses by step
    failures: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)
    tokens: int = 0
    cost_usd: float = 0.0
    cost_unknown: int = 0
    moments: deque[float] = field(default_factory=lambda: deque(maxlen=100_000))  # of replies
    last: list[dict[str, Any]] = field(default_factory=list)  # newest first

    def add(self, row: Any) -> None:
        """Count a reply."""
        self.reply = row.number
        self.steps.setdefault(row.step, Counter())[row.status] += 1
        self.answered[row.worker_id or ""] += 1
        self.tokens += (row.prompt_tokens or 0) + (row.completion_tokens or 0)
        if row.cost_usd is not None:
            self.cost_usd += row.cost_usd
        elif row.status == "ok":
            self.cost_unknown += 1
        if row.status != "ok":
            self.fail((row.error or row.status).partition(":")[0], row.error or row.status)
        self.moments.append(_seconds(row.created_at))

    def fail(self, reason: str, example: str) -> None:
        """Count a failure."""
        self.failures[reason] += 1
        self.examples.setdefault(reason, example)

    def mean_usd(self) -> float | None:
        """Return what a reply of this run has cost, if all costs are known."""
        replies = sum(counts["ok"] for counts in self.steps.values())
        return self.cost_usd / replies if replies and not self.cost_unknown else None

    def rate(self, now: float) -> float:
        """Return replies a second, of the last minutes."""
        while self.moments and self.moments[0] < now - 2 * WINDOW_S:
            self.moments.popleft()
        recent = sum(moment >= now - WINDOW_S for moment in self.moments)
        return recent / min(WINDOW_S, max(1.0, now - _seconds(self.since)))


class Statistics:
    """The number of statistics, counted now and then."""

    def __init__(self) -> None:
        self.counts: deque[tuple[float, int]] = deque(maxlen=500)
        self._due = 0.0

    @property
    def number(self) -> int | None:
        """The last count."""
        return self.counts[-1][1] if self.counts else None

    def count(self, conn: Connection) -> bool:
        """Count again if that is due; return whether it was."""
        began = time.monotonic()
        if began < self._due:
            return False
        self.counts.append((began, int(conn.execute(text("SELECT count(*) FROM loss")).scalar() or 0)))
        took = time.monotonic() - began
        self._due = began + max(2.0, took / COUNTING_SHARE)
        return True

    def rate(self) -> float | None:
        """Return statistics a second, over the last minutes; None before the second count."""
        if len(self.counts) < 2:
            return None
        last, number = self.counts[-1]
        earlier = [each for each in self.counts if each[0] >= last - WINDOW_S and each[0] < last] or [self.counts[-2]]
        at, before = earlier[0]
        return max(0, number - before) / (last - at)


class Reader:
    """Looks at a store that other processes write to. One thread uses it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.run: Run | None = None
        self.statistics = Statistics()
        self._conn: Connection | None = None
        self._commits: int | None = None

    def close(self) -> None:
        """Close the connection; the next look opens another one."""
        if self._conn is not None:
            self._conn.close()
        self._conn = self._commits = None

    def look(self, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Read what is new; return whether there was anything. `stopped` ends a long first look early."""
        if self._conn is None:
            self._conn = self.store.backend.reader.connect()
        conn = self._conn
        commits = self.store.backend.commits(conn)
        active = self.run is not None and bool(self.run.workers)
        if commits is None or commits == self._commits:
            return active and self._look_at_workers(conn)
        changed = self._look_at_workers(conn)
        if self.run is not None and (active or self.run.workers):
            self._read_rows(conn, self.run, stopped)
            changed = True
        self._commits = None if stopped() else commits
        return changed

    def _look_at_workers(self, conn: Connection) -> bool:
        """Find out who is alive; return whether that has changed."""
        alive = running(self.store, conn)
        conn.rollback()
        before = self.run.workers if self.run else []
        processes = {(each.machine, each.pid, each.process_started) for each in alive}
        if alive and (self.run is None or not processes & self.run.processes):
            self.run = self._begin(conn, alive, processes)
        if self.run is not None:
            self.run.processes |= processes
            self.run.ended_at = None if alive else self.run.ended_at or utc_now()
            self.run.workers = alive
        return alive != before

    def _begin(self, conn: Connection, alive: list[Running], processes: set[tuple[str, int, str]]) -> Run:
        """Return the run of these workers; one process may have had others before, one for each step."""
        names = {(each.pid, each.process_started) for each in alive}
        rows = conn.execute(text("SELECT pid, process_started, started_at FROM worker")).fetchall()
        since = min(row.started_at for row in rows if (row.pid, row.process_started) in names)
        found = Run(
            since,
            processes,
            reply=_last_before(conn, "reply", "created_at", since),
            attempt=_last_before(conn, "attempt", "sent_at", since),
            extraction=_last_before(conn, "extraction", "created_at", since),
        )
        conn.rollback()
        return found

    def _read_rows(self, conn: Connection, run: Run, stopped: Callable[[], bool]) -> None:
        before, most = run.reply, {"most": CHUNK}
        while rows := conn.execute(text(_ATTEMPTS), {"last": run.attempt, **most}).fetchall():
            run.sent.update(row.worker_id for row in rows)
            run.attempt = rows[-1].number
        while rows := conn.execute(text(_REPLIES), {"last": run.reply, **most}).fetchall():
            for row in rows:
                run.add(row)
            conn.rollback()
            if stopped():
                return
        while rows := conn.execute(text(_UNUSABLE), {"last": run.extraction, **most}).fetchall():
            for row in rows:
                run.extraction = row.number
                run.fail(f"unusable, {row.reason.partition(':')[0]}", row.reason)
        if run.reply > before:
            new = [dict(row._mapping) for row in conn.execute(text(_SHOWN), {"last": before}).fetchall()]
            run.last = [*new, *run.last][:LAST]
        self.statistics.count(conn)
        conn.rollback()


def _last_before(conn: Connection, table: str, column: str, moment: str) -> int:
    """Return the number of the last row before a moment, by bisection: rows are in the order in which they were written."""
    low, high = 0, int(conn.execute(text(f"SELECT coalesce(max(rowid), 0) FROM {table}")).scalar() or 0)
    sql = text(f"SELECT {column} FROM {table} WHERE rowid > :n ORDER BY rowid LIMIT 1")
    while low < high:
        middle = (low + high) // 2
        if str(conn.execute(sql, {"n": middle}).scalar()) < moment:
            low = middle + 1
        else:
            high = middle
    return low


def _seconds(moment: str) -> float:
    """Return a stored moment as seconds since 1970; now for a damaged one."""
    try:
        return datetime.fromisoformat(moment).timestamp()
    except ValueError:
        return datetime.now(UTC).timestamp()
