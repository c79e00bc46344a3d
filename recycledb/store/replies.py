"""Teachers' replies and their extractions.

Invariant: an attempt with a reply has a row in `reply`, or in `repeated_reply` if an equal reply was there already, also after a merge
of stores. A reply's id is the hash of its question, its number and its content, so an equal reply to another attempt (of a store that
was merged) has the same id: one row in `reply`, and one in `repeated_reply` for each further payment.
"""

from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from recycledb.store import SQLRow, Store, pending
from recycledb.store.rows import ExtractionRow, RatingRow, RepeatedReplyRow, ReplyRow, VariantRow
from recycledb.store.statement import MOST_TOKENS, tokens

IDS = 500  # in one IN list


def add_replies(store: Store, replies: Sequence[ReplyRow], *, wait: bool = True, locked: bool = True) -> None:
    """Commit replies; those that are there already, for another attempt, become rows of `repeated_reply`.

    Without `wait`, AwayError is raised at once where a server is away. Without `locked` they do not wait for claims on a server: for
    stores without a budget, which counts replies in the order in which they are committed.
    """

    def add(conn: Connection) -> None:
        if store.insert(conn, replies) == len(replies):
            return
        there: dict[str, str] = {}
        for start in range(0, len(replies), IDS):
            ids = tuple(reply.text_id for reply in replies[start : start + IDS])
            sql = f"SELECT text_id, attempt_id FROM reply WHERE text_id IN ({', '.join('?' * len(ids))})"
            there.update((row.text_id, row.attempt_id) for row in conn.exec_driver_sql(sql, ids))
        again = [reply for reply in replies if there[reply.text_id] != reply.attempt_id]
        store.insert(conn, [repeated(reply) for reply in again])

    store.transact(add, wait=wait, locked=locked)


def repeated(reply: ReplyRow) -> RepeatedReplyRow:
    """Return the `repeated_reply` row for a reply that is there already."""
    return RepeatedReplyRow(*(getattr(reply, name) for name in RepeatedReplyRow._fields))


def add_readings(
    store: Store,
    extractions: Sequence[ExtractionRow],
    variants: Sequence[VariantRow],
    ratings: Sequence[RatingRow] = (),
) -> None:
    """Commit extractions, one per reply, with their variants and ratings."""
    store.transact(lambda conn: store.insert(conn, [*variants, *extractions, *ratings]), locked=False)


def pending_readings(store: Store, versions: Mapping[str, int], page: int = 500) -> Sequence[SQLRow]:
    """Return a page of complete replies without an extraction by these versions, with the texts that they are about."""
    return store.rows(pending.unread_page(versions), page=page)


def count_unread(store: Store, versions: Mapping[str, int]) -> int:
    """Return how many complete replies have no extraction by these versions; `versions` is by step."""
    return int(store.rows(f"SELECT count(*) FROM ({pending.unread(versions)}) u")[0][0])


def reply_history(store: Store, teachers: Sequence[str]) -> dict[str, SQLRow]:
    """Return, by step, the mean completion tokens and cost of complete replies with known token counts; `teachers` are ids."""
    counted = tokens("completion_tokens")
    among, ids = _among(teachers)
    sql = f"""
        SELECT step, avg({counted}) AS completion_tokens, avg(cost_usd) AS cost_usd
        FROM reply WHERE teacher_id IN ({among}) AND status = 'ok' AND {counted} IS NOT NULL GROUP BY step
    """
    return {row.step: row for row in store.rows(sql, **ids)}


def _among(ids: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return the list of an IN condition, and the values that it binds."""
    values = {f"id_{i}": each for i, each in enumerate(ids)}
    return ", ".join(f":{name}" for name in values), values


def prompt_tokens_seen(store: Store, teachers: Sequence[str]) -> Sequence[SQLRow]:
    """Return, by step, the prompt tokens that the server of these teachers (ids) reported for up to 2,000 replies.

    Columns: step, replies, tokens, and the characters of the variants asked about, without the prompt's own.
    """
    among, ids = _among(teachers)
    sql = f"""
        SELECT r.step, count(*) AS replies, sum(r.prompt_tokens) AS tokens,
            sum(length(v.instruction) + length(v.input) + length(v.output) + coalesce(length(s.context), 0)) AS characters
        FROM (
            SELECT step, variant_id, prompt_tokens FROM reply
            WHERE teacher_id IN ({among}) AND prompt_tokens BETWEEN 1 AND {MOST_TOKENS} ORDER BY text_id LIMIT 2000
        ) r JOIN variant v ON v.variant_id = r.variant_id JOIN sample s ON s.sample_id = v.sample_id GROUP BY r.step
    """
    return store.rows(sql, **ids)


def mean_length(store: Store) -> float:
    """Return the mean number of characters of a sample."""
    return float(store.rows("SELECT avg(length(instruction) + length(input) + length(output)) FROM sample")[0][0] or 0)
