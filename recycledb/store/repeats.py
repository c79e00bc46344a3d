"""Equal answers to two attempts: one row of `reply`, and one of `repeated_reply` for each further payment.

Invariant: an attempt that was answered has a row in one of the two tables, whichever store it was asked from. A reply's id is the hash of
its question, its number and its content, so an equal answer to another attempt (of a store that was merged in) has the same id.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

from sqlalchemy import Connection

from recycledb.store.backend import Backend, Row
from recycledb.store.tables import metadata

IDS = 500  # of one IN list
_REPLY = [column.name for column in metadata.tables["reply"].columns]

# What `repeated_reply` has of a reply; its digest is its own.
COLUMNS = tuple(column.name for column in metadata.tables["repeated_reply"].columns if column.name != "digest")

# The attempts that were answered, one row each.
ATTEMPTS = "(SELECT attempt_id FROM reply UNION ALL SELECT attempt_id FROM repeated_reply)"


def unanswered(attempt: str) -> str:
    """Return the condition that an attempt, the alias of a row of `attempt`, has no answer."""
    return f"""
        NOT EXISTS (SELECT 1 FROM reply answer WHERE answer.attempt_id = {attempt}.attempt_id)
        AND NOT EXISTS (SELECT 1 FROM repeated_reply again WHERE again.attempt_id = {attempt}.attempt_id)
    """


class Inserting(Protocol):
    """What is needed of a store here."""

    backend: Backend

    def insert(self, conn: Connection, table: str, rows: Iterable[Row]) -> int:
        """Insert rows unless they are there; return how many were new."""


def insert_replies(store: Inserting, conn: Connection, replies: Sequence[Row]) -> None:
    """Insert rows of `reply`; those that are there already, for another attempt, become rows of `repeated_reply`."""
    if store.insert(conn, "reply", replies) == len(replies):
        return
    attempt = _REPLY.index("attempt_id")
    there: dict[str, str] = {}
    for start in range(0, len(replies), IDS):
        ids = tuple(row[0] for row in replies[start : start + IDS])
        sql = f"SELECT text_id, attempt_id FROM reply WHERE text_id IN ({', '.join('?' * len(ids))})"
        there.update((row[0], row[1]) for row in conn.exec_driver_sql(sql, ids))
    again = [row for row in replies if there[row[0]] != row[attempt]]
    at = [_REPLY.index(name) for name in COLUMNS]
    store.insert(conn, "repeated_reply", [tuple(row[i] if i < len(row) else None for i in at) for row in again])
