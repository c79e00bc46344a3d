"""Replies of teachers, and what was read in them.

Invariant: an attempt that was answered has a row in `reply`, or in `repeated_reply` where the same answer was there already, whichever
store it was asked from. A reply's id is the hash of its question, its number and its content, so an equal answer to another attempt (of
a store that was merged in) has the same id: one row of `reply`, and one of `repeated_reply` for each further payment.
"""

from collections.abc import Mapping, Sequence

from recycledb.store import SQLRow, Store, pending
from recycledb.store.rows import ExtractionRow, RatingRow, RepeatedReplyRow, ReplyRow, VariantRow
from recycledb.store.statement import MOST_TOKENS, tokens

IDS = 500  # of one IN list


def add_replies(store: Store, replies: Sequence[ReplyRow]) -> None:
    """Commit what came back from teachers; what is there already, for another attempt, becomes rows of `repeated_reply`."""
    with store.write() as conn:
        if store.insert(conn, replies) == len(replies):
            return
        there: dict[str, str] = {}
        for start in range(0, len(replies), IDS):
            ids = tuple(reply.text_id for reply in replies[start : start + IDS])
            sql = f"SELECT text_id, attempt_id FROM reply WHERE text_id IN ({', '.join('?' * len(ids))})"
            there.update((row.text_id, row.attempt_id) for row in conn.exec_driver_sql(sql, ids))
        again = [reply for reply in replies if there[reply.text_id] != reply.attempt_id]
        store.insert(conn, [repeated(reply) for reply in again])


def repeated(reply: ReplyRow) -> RepeatedReplyRow:
    """Return the payment for an answer that is there already."""
    return RepeatedReplyRow(*(getattr(reply, name) for name in RepeatedReplyRow._fields))


def add_readings(
    store: Store,
    extractions: Sequence[ExtractionRow],
    variants: Sequence[VariantRow],
    ratings: Sequence[RatingRow] = (),
) -> None:
    """Commit what was read in replies: results, one a reply, the variants and the ratings."""
    with store.write() as conn:
        store.insert(conn, [*variants, *extractions, *ratings])


def pending_readings(store: Store, versions: Mapping[str, int], page: int = 500) -> Sequence[SQLRow]:
    """Return some of the complete replies that these versions have not read, with the texts that they are about."""
    return store.rows(pending.unread_page(versions), page=page)


def count_unread(store: Store, versions: Mapping[str, int]) -> int:
    """Return how many complete replies these versions have not read; `versions` is by step."""
    return int(store.rows(f"SELECT count(*) FROM ({pending.unread(versions)}) u")[0][0])


def reply_history(store: Store, teacher: str) -> dict[str, SQLRow]:
    """Return, by step, the mean completion tokens and cost of a teacher's complete replies, where they are known."""
    counted = tokens("completion_tokens")
    sql = f"""
        SELECT step, avg({counted}) AS completion_tokens, avg(cost_usd) AS cost_usd
        FROM reply WHERE teacher_id = :teacher AND status = 'ok' AND {counted} IS NOT NULL GROUP BY step
    """
    return {row.step: row for row in store.rows(sql, teacher=teacher)}


def prompt_tokens_seen(store: Store, teacher: str) -> Sequence[SQLRow]:
    """Return, by step, the prompt tokens that a teacher's server counted in up to 2,000 replies, and what they read.

    Columns: step, replies, tokens, and the characters of the texts read, without the prompt's own.
    """
    sql = f"""
        SELECT r.step, count(*) AS replies, sum(r.prompt_tokens) AS tokens,
            sum(length(v.instruction) + length(v.input) + length(v.output)) AS characters
        FROM (
            SELECT step, variant_id, prompt_tokens FROM reply
            WHERE teacher_id = :teacher AND prompt_tokens BETWEEN 1 AND {MOST_TOKENS} ORDER BY text_id LIMIT 2000
        ) r JOIN variant v ON v.variant_id = r.variant_id GROUP BY r.step
    """
    return store.rows(sql, teacher=teacher)
