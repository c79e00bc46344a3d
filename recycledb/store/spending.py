"""Money that the store's requests have cost: what is recorded, and what is charged where no cost is.

Invariant: a request counts with its recorded cost; where that is unknown with what was set aside for it when it was claimed; and where
nothing was (a claim older than that column, or one without known prices) it is counted apart, for the caller to price. Only requests of a
batch that was never handed over, and of teachers in this process or from a file, count nothing. So the total is not below the bill.
This module refuses to know a price.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import Connection, text

# No request costs that much. A recorded cost beyond it, or a negative one, is an error of its time and counts as unknown.
MOST_USD = 1e9
MOST_TOKENS = 10**9  # likewise of a count of tokens

ROUNDING = 1e-12  # what the sum of many doubles may be wrong by, as a share


def known(alias: str) -> str:
    """Return the condition that a row's cost is recorded and can be one (DuckDB holds NaN for the greatest number)."""
    return f"({alias}.cost_usd >= 0 AND {alias}.cost_usd < {MOST_USD})"


def unknown(alias: str) -> str:
    """Return 1 where a row of `teacher_texts` stands for a request that cost something, nobody knows what, else 0."""
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

# How often the cost was above what had been set aside, at most: a server that does not keep to the bound on its answers.
_OVERRUN = f"""
    SELECT max(r.cost_usd / a.reserved_usd) FROM attempt a JOIN reply r ON r.attempt_id = a.attempt_id
    WHERE a.teacher_id = ? AND a.reserved_usd > 0 AND {known("r")}
"""

# A rejection before anything was generated has a recorded cost of 0 by now; older rows are known by their kind.
_COUNTED = f"r.prompt_tokens BETWEEN 1 AND {MOST_TOKENS} AND r.completion_tokens BETWEEN 1 AND {MOST_TOKENS}"
_UNPRICED = f"""
    SELECT u.model, u.parameters, count(*) AS requests, sum(u.counted) AS counted,
        sum(CASE WHEN u.counted = 1 THEN CAST(u.prompt_tokens AS DOUBLE) ELSE 0 END) AS prompt_tokens,
        sum(CASE WHEN u.counted = 1 THEN CAST(u.completion_tokens AS DOUBLE) ELSE 0 END) AS completion_tokens,
        sum(CASE WHEN u.counted = 1 THEN 0 ELSE u.characters END) AS characters
    FROM (
        SELECT t.model, t.parameters, r.prompt_tokens, r.completion_tokens,
            CASE WHEN {_COUNTED} THEN 1 ELSE 0 END AS counted,
            length(p.text) + length(v.instruction) + length(v.input) + length(v.output) AS characters
        FROM attempt a
        JOIN teacher t ON t.teacher_id = a.teacher_id
        JOIN variant v ON v.variant_id = a.variant_id
        JOIN prompt p ON p.prompt_id = a.prompt_id
        LEFT JOIN reply r ON r.text_id = (SELECT max(x.text_id) FROM reply x WHERE x.attempt_id = a.attempt_id)
        WHERE a.reserved_usd IS NULL AND t.provider = 'openai' AND NOT {_NEVER_HANDED_OVER} AND NOT {_PAID}
        AND (r.error IS NULL OR NOT (r.error LIKE 'rate_limited:%' OR r.error LIKE 'stopped:%'))
    ) u GROUP BY u.model, u.parameters ORDER BY u.model, u.parameters
"""

# What has come since: claims, and replies whose cost is recorded along with what had been set aside for them (once an attempt).
_NEW_CLAIMS = """
    SELECT coalesce(sum(a.reserved_usd), 0), coalesce(sum(CASE WHEN a.reserved_usd > 0 THEN 1 ELSE 0 END), 0),
        coalesce(sum(CASE WHEN a.reserved_usd IS NULL THEN 1 ELSE 0 END), 0)
    FROM attempt a WHERE a.rowid > ?
"""
_NEW_COSTS = f"""
    SELECT coalesce(sum(n.cost_usd), 0), coalesce(sum(n.reserved_usd), 0),
        coalesce(sum(CASE WHEN n.reserved_usd > 0 THEN 1 ELSE 0 END), 0)
    FROM (
        SELECT r.cost_usd, CASE WHEN EXISTS (
            SELECT 1 FROM reply q WHERE q.attempt_id = r.attempt_id AND q.rowid < r.rowid AND {known("q")}
        ) OR {_NEVER_HANDED_OVER} THEN 0 ELSE a.reserved_usd END AS reserved_usd
        FROM reply r LEFT JOIN attempt a ON a.attempt_id = r.attempt_id
        WHERE r.rowid > ? AND {known("r")}
    ) n
"""


class Unpriced(NamedTuple):
    """Requests to one teacher that have neither a recorded cost nor anything set aside."""

    model: str
    parameters: str  # the teacher's identity, as JSON
    requests: int
    counted: int  # those whose tokens are known; the sums of tokens are theirs
    prompt_tokens: int
    completion_tokens: int
    characters: int  # of what the others read, the prompts' own included


@dataclass
class Spending:
    """What the requests of a store have cost, kept up to date by looking only at rows that are new since the last look."""

    limit_usd: float | None = None
    recorded_usd: float = 0.0
    charged_usd: float = 0.0  # for requests whose cost is unknown
    unknown: int = 0  # how many those are
    unpriced: list[Unpriced] = field(default_factory=list)  # those among them that `charge` has no price for
    refused: set[tuple[str, str, str]] = field(
        default_factory=set
    )  # questions (variant, step) of the last claim that did not fit
    charge: Callable[[Unpriced], float | None] = lambda requests: None
    _marks: tuple[int, int, int] = (-1, -1, -1)

    @property
    def total_usd(self) -> float:
        """What counts against the limit."""
        return self.recorded_usd + self.charged_usd

    @property
    def left_usd(self) -> float | None:
        """What may still be spent; None without a limit."""
        return None if self.limit_usd is None else max(0.0, self.limit_usd - self.total_usd)

    def fits(self, amount: float) -> bool:
        """Say whether so much more stays within the limit; it does not as long as there are requests that nobody can price."""
        if self.limit_usd is None:
            return True
        return not self.unpriced and self.total_usd + amount <= self.limit_usd * (1 - ROUNDING)

    def measure(self, conn: Connection) -> None:
        """Count everything, in one transaction that sees one state."""
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
        """Take in what claims and replies of any process have brought since the last look."""
        marks = _marks(conn)
        if marks == self._marks:
            return
        if any(new < old for new, old in zip(marks, self._marks, strict=True)) or marks[2] != self._marks[2]:
            self.measure(conn)  # rows were removed by hand, or merged in
            return
        reserved, claims, without = conn.exec_driver_sql(_NEW_CLAIMS, (self._marks[0],)).one()
        cost, settled, replies = conn.exec_driver_sql(_NEW_COSTS, (self._marks[1],)).one()
        if without:  # a process without prices writes here too
            self.measure(conn)
            return
        self._marks = marks
        self.recorded_usd += float(cost)
        self.charged_usd += float(reserved) - float(settled)
        self.unknown += int(claims) - int(replies)

    def affordable(self, conn: Connection, amounts: Sequence[float | None]) -> int:
        """Return how many of these amounts, from the first, fit together now. To be asked in the transaction that writes the claims."""
        self.follow(conn)
        total = 0.0
        for count, amount in enumerate(amounts):
            total += amount or 0.0
            if not self.fits(total):
                return count
        return len(amounts)


def overrun(conn: Connection, teacher_id: str) -> float:
    """Return by how many times a teacher's dearest reply exceeded what had been set aside for it; 1 where none did."""
    return max(1.0, float(conn.exec_driver_sql(_OVERRUN, (teacher_id,)).scalar() or 1.0))


def _marks(conn: Connection) -> tuple[int, int, int]:
    attempt, reply, repeated = conn.exec_driver_sql(_MARKS).one()
    return int(attempt), int(reply), int(repeated)
