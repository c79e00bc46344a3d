"""What the store's requests have cost: the recorded costs, and an upper bound for requests without one.

Invariant: a request counts with its recorded cost; if that is unknown, with the amount reserved when it was claimed; and if nothing was
reserved (an attempt older than that column, or one without known prices), it is counted separately, for the caller to price. Requests
count nothing only if their batch was never submitted, or if the teacher runs in this process or replays a file. So the total is never
below the bill. This module knows no prices.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import Connection, text

# No request costs that much: a recorded cost above it, or a negative one, is an error and counts as unknown.
MOST_USD = 1e9
MOST_TOKENS = 10**9  # the same for a token count

ROUNDING = 1e-12  # relative error of a sum of many doubles


def known(alias: str) -> str:
    """Return the condition that a row's cost is recorded and possible (DuckDB sorts NaN above all numbers)."""
    return f"({alias}.cost_usd >= 0 AND {alias}.cost_usd < {MOST_USD})"


def unknown(alias: str) -> str:
    """Return 1 for rows of `teacher_texts` whose request had a cost that is unknown, else 0."""
    return f"""CASE
        WHEN {known(alias)} THEN 0
        WHEN (SELECT i.provider FROM teacher i WHERE i.teacher_id = {alias}.teacher_id) <> 'openai' THEN 0
        WHEN (SELECT s.reserved_usd FROM attempt s WHERE s.attempt_id = {alias}.attempt_id) = 0 THEN 0
        ELSE 1
    END"""


_NEVER_HANDED_OVER = "a.worker_id IN (SELECT x.batch_id FROM batch_event x WHERE x.status = 'abandoned')"

_PAID = f"""(
    EXISTS (SELECT 1 FROM reply r WHERE r.attempt_id = a.attempt_id AND {known("r")})
    OR EXISTS (SELECT 1 FROM repeated_reply e WHERE e.attempt_id = a.attempt_id AND {known("e")})
)"""

_MARKS = """
    SELECT (SELECT coalesce(max(rowid), -1) FROM attempt), (SELECT coalesce(max(rowid), -1) FROM reply),
        (SELECT coalesce(max(rowid), -1) FROM repeated_reply)
"""

_RECORDED = f"""
    SELECT sum(c.cost_usd) FROM (
        SELECT r.cost_usd FROM reply r WHERE {known("r")}
        UNION ALL SELECT e.cost_usd FROM repeated_reply e WHERE {known("e")}
    ) c
"""

_OPEN = f"""
    SELECT coalesce(sum(a.reserved_usd), 0), count(*) FROM attempt a
    WHERE a.reserved_usd > 0 AND NOT {_NEVER_HANDED_OVER} AND NOT {_PAID}
"""

# The largest ratio of cost to reserved amount: a server may not respect the limit on a reply's length.
_OVERRUN = f"""
    SELECT max(r.cost_usd / a.reserved_usd) FROM attempt a JOIN reply r ON r.attempt_id = a.attempt_id
    WHERE a.reserved_usd > 0 AND {known("r")} AND a.teacher_id IN
"""

# A request rejected before anything was generated now has a recorded cost of 0; in older rows its error shows it.
_COUNTED = f"r.prompt_tokens BETWEEN 1 AND {MOST_TOKENS} AND r.completion_tokens BETWEEN 1 AND {MOST_TOKENS}"
_UNPRICED = f"""
    SELECT u.model, u.parameters, count(*) AS requests, sum(u.counted) AS counted,
        sum(CASE WHEN u.counted = 1 THEN CAST(u.prompt_tokens AS DOUBLE PRECISION) ELSE 0 END) AS prompt_tokens,
        sum(CASE WHEN u.counted = 1 THEN CAST(u.completion_tokens AS DOUBLE PRECISION) ELSE 0 END) AS completion_tokens,
        sum(CASE WHEN u.counted = 1 THEN 0 ELSE u.characters END) AS characters, coalesce(max(u.max_tokens), 0) AS longest
    FROM (
        SELECT t.model, t.parameters, a.max_tokens, r.prompt_tokens, r.completion_tokens,
            CASE WHEN {_COUNTED} THEN 1 ELSE 0 END AS counted,
            length(p.text) + length(v.instruction) + length(v.input) + length(v.output) + coalesce(length(s.context), 0) AS characters
        FROM attempt a
        JOIN teacher t ON t.teacher_id = a.teacher_id
        JOIN variant v ON v.variant_id = a.variant_id
        JOIN sample s ON s.sample_id = v.sample_id
        JOIN prompt p ON p.prompt_id = a.prompt_id
        LEFT JOIN reply r ON r.text_id = (SELECT max(x.text_id) FROM reply x WHERE x.attempt_id = a.attempt_id)
        WHERE a.reserved_usd IS NULL AND t.provider = 'openai' AND NOT {_NEVER_HANDED_OVER} AND NOT {_PAID}
        AND (r.error IS NULL OR NOT (r.error LIKE 'rate_limited:%' OR r.error LIKE 'stopped:%'))
    ) u GROUP BY u.model, u.parameters ORDER BY u.model, u.parameters
"""

# New rows since the last update: attempts, and replies with a recorded cost and the amount reserved for them (once per attempt).
_NEW_CLAIMS = """
    SELECT coalesce(sum(a.reserved_usd), 0), coalesce(sum(CASE WHEN a.reserved_usd > 0 THEN 1 ELSE 0 END), 0),
        coalesce(sum(CASE WHEN a.reserved_usd IS NULL THEN 1 ELSE 0 END), 0)
    FROM attempt a WHERE a.rowid > ? AND a.rowid <= ?
"""
_NEW_COSTS = f"""
    SELECT coalesce(sum(n.cost_usd), 0), coalesce(sum(n.reserved_usd), 0),
        coalesce(sum(CASE WHEN n.reserved_usd > 0 THEN 1 ELSE 0 END), 0)
    FROM (
        SELECT r.cost_usd, CASE WHEN EXISTS (
            SELECT 1 FROM reply q WHERE q.attempt_id = r.attempt_id AND q.rowid < r.rowid AND {known("q")}
        ) OR {_NEVER_HANDED_OVER} THEN 0 ELSE a.reserved_usd END AS reserved_usd
        FROM reply r LEFT JOIN attempt a ON a.attempt_id = r.attempt_id
        WHERE r.rowid > ? AND r.rowid <= ? AND {known("r")}
    ) n
"""


class Unpriced(NamedTuple):
    """Requests to one teacher that have neither a recorded cost nor a reserved amount."""

    model: str
    parameters: str  # the teacher's identity, as JSON
    requests: int
    counted: int  # those with known token counts, which the sums of tokens below add up
    prompt_tokens: int
    completion_tokens: int
    characters: int  # in the input of the others, including the prompts' own
    longest: int = 0  # the highest limit on a reply's length that a request was made with; 0 where none is recorded


@dataclass
class Spending:
    """The cost of a store's requests, updated by reading only the rows added since the last update."""

    limit_usd: float | None = None
    recorded_usd: float = 0.0
    charged_usd: float = 0.0  # for requests whose cost is unknown
    unknown: int = 0  # the number of those requests
    unpriced: list[Unpriced] = field(default_factory=list)  # those of them that `charge` has no price for
    refused: set[tuple[str, str, str]] = field(
        default_factory=set
    )  # questions (variant, step, others) of the last claim that did not fit the limit
    charge: Callable[[Unpriced], float | None] = lambda requests: None
    _marks: tuple[int, int, int] = (-1, -1, -1)

    @property
    def total_usd(self) -> float:
        """The amount that counts against the limit."""
        return self.recorded_usd + self.charged_usd

    @property
    def left_usd(self) -> float | None:
        """The amount that may still be spent; None without a limit."""
        return None if self.limit_usd is None else max(0.0, self.limit_usd - self.total_usd)

    def fits(self, amount: float) -> bool:
        """Return whether `amount` more stays within the limit; never if there are requests without a price."""
        if self.limit_usd is None:
            return True
        return not self.unpriced and self.total_usd + amount <= self.limit_usd * (1 - ROUNDING)

    def measure(self, conn: Connection) -> None:
        """Count everything, in one transaction with a consistent snapshot."""
        self._marks = _marks(conn)
        self.recorded_usd = float(conn.execute(text(_RECORDED)).scalar() or 0.0)
        usd, unknown = conn.execute(text(_OPEN)).one()
        self.charged_usd, self.unknown, self.unpriced = float(usd), int(unknown), []
        for row in conn.execute(text(_UNPRICED)):
            requests = Unpriced(row[0], row[1], *(int(number) for number in row[2:]))
            self.unknown += requests.requests
            amount = self.charge(requests)
            if amount is None:
                self.unpriced.append(requests)
            else:
                self.charged_usd += amount

    def follow(self, conn: Connection) -> None:
        """Add the attempts and replies that any process has written since the last update."""
        marks = _marks(conn)
        if marks == self._marks:
            return
        if any(new < old for new, old in zip(marks, self._marks, strict=True)) or marks[2] != self._marks[2]:
            self.measure(conn)  # rows were deleted by hand, or merged from another store
            return
        reserved, claims, without = conn.exec_driver_sql(_NEW_CLAIMS, (self._marks[0], marks[0])).one()
        cost, settled, replies = conn.exec_driver_sql(_NEW_COSTS, (self._marks[1], marks[1])).one()
        if without:  # another process claims without knowing prices
            self.measure(conn)
            return
        self._marks = marks
        self.recorded_usd += float(cost)
        self.charged_usd += float(reserved) - float(settled)
        self.unknown += int(claims) - int(replies)

    def affordable(self, conn: Connection, amounts: Sequence[float | None]) -> int:
        """Return how many of these amounts, from the first, fit the limit together. Call it in the transaction that writes the claims."""
        self.follow(conn)
        total = 0.0
        for count, amount in enumerate(amounts):
            total += amount or 0.0
            if not self.fits(total):
                return count
        return len(amounts)


def overrun(conn: Connection, teacher_ids: Sequence[str]) -> float:
    """Return the largest ratio of a reply's cost to its reserved amount for a teacher; 1 if no reply cost more than reserved."""
    sql = f"{_OVERRUN} ({', '.join('?' * len(teacher_ids))})"
    return max(1.0, float(conn.exec_driver_sql(sql, tuple(teacher_ids)).scalar() or 1.0))


def _marks(conn: Connection) -> tuple[int, int, int]:
    attempt, reply, repeated = conn.exec_driver_sql(_MARKS).one()
    return int(attempt), int(reply), int(repeated)


# A run is one or several workers of a process with one start. Two overlap if neither had ended when the other started.
_SAME_TIME = """
    WITH mine AS (SELECT host, pid, process_started, started_at FROM worker WHERE worker_id = :worker),
    overlapping AS (
        SELECT DISTINCT w.host, w.pid, w.process_started, w.started_at FROM worker w JOIN mine m
        ON (w.ended_at IS NULL OR w.ended_at > m.started_at)
        AND NOT (w.host = m.host AND w.pid = m.pid AND w.process_started = m.process_started AND w.started_at = m.started_at)
    ),
    workers AS (
        SELECT w.worker_id FROM worker w JOIN overlapping o
        ON w.host = o.host AND w.pid = o.pid AND w.process_started = o.process_started AND w.started_at = o.started_at
    )
    SELECT sum(coalesce(r.cost_usd, t.reserved_usd)) FROM attempt t LEFT JOIN reply r ON r.attempt_id = t.attempt_id
    WHERE t.worker_id IN (
        SELECT worker_id FROM workers
        UNION ALL SELECT b.batch_id FROM batch b WHERE b.worker_id IN (SELECT worker_id FROM workers)
    )
"""


def spent_at_the_same_time(conn: Connection, worker: str) -> float:
    """Return what the runs that overlap with a worker's have spent: costs, and reservations where no cost is on record."""
    return float(conn.execute(text(_SAME_TIME), {"worker": worker}).scalar() or 0.0)
