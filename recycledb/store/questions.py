"""Questions for teachers: find and count the pending ones, get their texts, and claim them.

Invariant: a claim is checked and written in one transaction, so no two processes send the same question. The SQL comes from
`recycledb.store.pending`.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sqlalchemy import Connection, text

from recycledb.schema import Texts, random_id, utc_now
from recycledb.store import SQLRow, Store, clause, leases, pending, workers
from recycledb.store.leases import Lease
from recycledb.store.pending import Wanted
from recycledb.store.rows import AttemptRow
from recycledb.store.spending import Spending

CLAIM_ROWS = 256  # questions in one statement

QuestionKey = tuple[str, str, str]


def key_of(question: SQLRow) -> QuestionKey:
    """Return a question's key within a run: the variant that it is about, its step, and the other variants that it shows."""
    return question.variant_id, question.step, question.others


def pending_questions(store: Store, wanted: Wanted, samples: Sequence[str]) -> Sequence[SQLRow]:
    """Return the pending questions about these samples, in the samples' order."""
    if not samples:
        return []
    listed, parameters = pending.listed(samples)
    order = {sample: i for i, sample in enumerate(samples)}
    found = store.rows(pending.questions(wanted, listed), **wanted.parameters, **parameters)
    return sorted(found, key=lambda row: order[row.sample_id])


def count_questions(store: Store, wanted: Wanted) -> dict[str, tuple[int, int]]:
    """Return, by step, how many questions are pending and how many characters of variants they show."""
    sql = f"""
        SELECT q.step, count(*), sum(length(q.instruction) + length(q.input) + length(q.output) + coalesce(length(q.context), 0))
        FROM ({pending.questions(wanted, pending.samples_in(wanted.datasets))}) q GROUP BY q.step
    """
    counted = {row[0]: (int(row[1]), int(row[2])) for row in store.rows(sql, **wanted.parameters)}
    if any(step.shown > 1 for step in wanted.steps):
        sql = f"""
            SELECT q.step, sum(length(w.instruction) + length(w.input) + length(w.output))
            FROM ({pending.questions(wanted, pending.samples_in(wanted.datasets))}) q
            JOIN variant w ON w.sample_id = q.sample_id AND instr(q.others, w.variant_id) > 0
            WHERE q.others <> '' GROUP BY q.step
        """
        for step, characters in store.rows(sql, **wanted.parameters):
            counted[step] = (counted[step][0], counted[step][1] + int(characters))
    return counted


def count_failed(store: Store, wanted: Wanted) -> int:
    """Return how many wanted questions failed permanently."""
    return int(store.rows(pending.failed(wanted), **wanted.parameters)[0][0])


class CutOff(NamedTuple):
    """Pending questions whose reply was cut off, and the lowest and highest limit that cut one off."""

    questions: int = 0
    lowest: int = 0
    highest: int = 0


def count_cut_off(store: Store, wanted: Wanted) -> CutOff:
    """Count the pending questions whose reply was cut off at a lower limit than that of now."""
    cut_off = wanted.cut_off("r")
    if not cut_off or not store.rows(
        "SELECT 1 FROM reply r WHERE r.status = 'failed' AND r.finish_reason = 'length' LIMIT 1"
    ):
        return CutOff()
    sql = f"""
        SELECT count(*), min(c.asked), max(c.asked) FROM (
            SELECT (
                SELECT max({wanted.asked_limit}) FROM reply r JOIN attempt t ON t.attempt_id = r.attempt_id
                WHERE r.variant_id = q.variant_id AND r.step = q.step AND r.prompt_id = q.prompt_id AND r.status = 'failed'
                AND coalesce(r.others, '') = q.others AND r.teacher_id {wanted.is_teacher} AND {cut_off}
            ) AS asked FROM ({pending.questions(wanted, pending.samples_in(wanted.datasets))}) q
        ) c WHERE c.asked IS NOT NULL
    """
    found = store.rows(sql, **wanted.parameters)[0]
    return CutOff(int(found[0]), int(found[1] or 0), int(found[2] or 0))


def count_under_way(store: Store, wanted: Wanted) -> tuple[int, int]:
    """Return how many wanted questions are in flight: in batches, and in live processes."""
    row = store.rows(pending.under_way(wanted), **wanted.parameters)[0]
    return int(row.in_batches or 0), int(row.in_processes or 0)


def sample_questions(store: Store, wanted: Wanted, number: int) -> Sequence[SQLRow]:
    """Return the first `number` pending questions by variant id; ids are hashes, so this is a random sample."""
    questions = pending.questions(wanted, pending.samples_in(wanted.datasets))
    sql = f"SELECT * FROM ({questions}) q ORDER BY q.variant_id, q.step LIMIT {number}"
    return store.rows(sql, **wanted.parameters)


def texts_beside(store: Store, rows: Iterable[SQLRow]) -> dict[str, tuple[Texts, ...]]:
    """Return the texts of the further variants that questions show, by the questions' column `others`."""
    lists = {row.others for row in rows if row.others}
    ids = sorted({key for others in lists for key in others.split(",")})
    found: dict[str, Texts] = {}
    for start in range(0, len(ids), 500):
        names = {f"v{i}": key for i, key in enumerate(ids[start : start + 500])}
        sql = f"""
            SELECT v.variant_id, v.instruction, v.input, v.output, {pending.context_of("v")}
            FROM variant v WHERE v.variant_id IN ({", ".join(f":{n}" for n in names)})
        """
        found.update({row.variant_id: Texts.of(row) for row in store.rows(sql, **names)})
    return {"": (), **{others: tuple(found[key] for key in others.split(",")) for others in lists}}


def claim(
    store: Store,
    wanted: Wanted,
    worker: str,
    asked: Sequence[SQLRow],
    reserved: Sequence[float | None] = (),
    spending: Spending | None = None,
) -> list[tuple[AttemptRow, SQLRow]]:
    """Claim questions by writing their attempts; return (attempt, question) for those that were still open.

    `reserved` is the most that each question can cost, in dollars. With `spending`, questions that no longer fit its limit are left
    out and added to `spending.refused`. Checks and claim are one write transaction, so two processes can neither send the same
    question nor exceed the limit together.
    """
    if not asked:
        return []
    amounts = reserved or [None] * len(asked)
    ids = [random_id() for _ in asked]  # made once, so that a transaction that is run again is known by them
    claims: list[tuple[AttemptRow, SQLRow]] = []

    def work(conn: Connection) -> list[tuple[AttemptRow, SQLRow]]:
        if claims and _are_stored(conn, claims):  # by an earlier try, whose COMMIT was not acknowledged
            return claims
        now = store.backend.now(conn)
        workers.revive(conn, worker, now)  # before the check: its earlier claims must count as in flight
        if not leases.is_free(conn, Lease(leases.ASK, wanted.teacher_id), worker, now):
            return []  # another process asks this teacher: this one was suspended for longer than its lease
        attempts = _open_among(conn, wanted, asked)
        found = [(row, amount) for row, amount in zip(asked, amounts, strict=True) if key_of(row) in attempts]
        if spending is not None:
            fit = spending.affordable(conn, [amount for _, amount in found])
            spending.refused = {key_of(row) for row, _ in found[fit:]}
            found = found[:fit]
        sent_at = utc_now()
        claims[:] = [
            (_attempt(key, wanted, worker, row, attempts[key_of(row)] + 1, amount, sent_at), row)
            for key, (row, amount) in zip(ids, found, strict=False)
        ]
        store.insert(conn, [attempt for attempt, _ in claims])
        return claims

    return store.transact(work)


def _are_stored(conn: Connection, claims: Sequence[tuple[AttemptRow, SQLRow]]) -> bool:
    """Return whether these attempts are in the store; they were written in one transaction, so all are or none."""
    sql = text("SELECT 1 FROM attempt WHERE attempt_id = :key")
    return conn.execute(sql, {"key": claims[0][0].attempt_id}).first() is not None


def _attempt(
    key: str, wanted: Wanted, worker: str, row: SQLRow, number: int, reserved: float | None, sent_at: str
) -> AttemptRow:
    return AttemptRow(
        attempt_id=key,
        variant_id=row.variant_id,
        step=row.step,
        teacher_id=wanted.teacher_id,
        prompt_id=row.prompt_id,
        number=number,
        worker_id=worker,
        sent_at=sent_at,
        reserved_usd=reserved,
        others=row.others or None,
        max_tokens=wanted.limit,
    )


def _open_among(conn: Connection, wanted: Wanted, asked: Sequence[SQLRow]) -> dict[QuestionKey, int]:
    """Return the questions that are still open, with the number of their attempts so far."""
    found: dict[QuestionKey, int] = {}
    for start in range(0, len(asked), CLAIM_ROWS):
        part = asked[start : start + CLAIM_ROWS]
        size = pending.list_size(len(part))
        values: dict[str, object] = dict(wanted.parameters)
        for i in range(size):
            row = part[i] if i < len(part) else None
            question = (row.variant_id, row.step, row.prompt_id, row.others) if row else ("", "", "", "")
            values |= zip((f"variant_{i}", f"step_{i}", f"prompt_{i}", f"others_{i}"), question, strict=True)
        still = conn.execute(clause(pending.open_among(wanted, size)), values)
        found.update({key_of(row): row.attempts for row in still if row.variant_id})
    return found
