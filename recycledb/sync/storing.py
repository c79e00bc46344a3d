"""Storing what came back, so that one reply that cannot be stored costs no other.

Invariant: a group is one transaction where it can be. Where it cannot, each of its replies is committed by itself; one that cannot be
even so is committed as a failed reply that says why, with its text and what it cost, so that its question is not under way for ever
and its payment is on record. Only where that fails too, or the disk is at fault, it is the store's failure, which is raised.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from recycledb.reflection.teachers.contract import Reply, error_line, fitted
from recycledb.schema import ReplyStatus, content_id, utc_now
from recycledb.store import Row, Store

# What a driver raises where the store, not the row, is at fault, by the names of PEP 249: full, locked, read-only, damaged.
_STORES_FAULT = {"OperationalError", "InternalError", "DatabaseError"}
_ROWS_FAULT = {"DataError", "ProgrammingError", "IntegrityError", "InterfaceError", "NotSupportedError"}


@dataclass(slots=True)
class Arrived:
    """A reply to an attempt; `question` is variant, step, teacher, prompt and number, `others` the further variants shown.

    `row` is as it was stored.
    """

    attempt_id: str
    question: Row
    reply: Reply
    row: Row = ()
    others: str = ""


def reply_row(attempt_id: str, question: Row, reply: Reply, others: str = "") -> Row:
    """Return the `reply` row of what came back for an attempt; see `Arrived`."""
    content = (reply.status.value, reply.text, reply.finish_reason)
    text_id = reply_id_of(question, *content, reply.error, others)
    served = (reply.served_model, reply.request_id)
    paid = (reply.prompt_tokens, reply.completion_tokens, reply.cost_usd)
    return (
        text_id,
        attempt_id,
        *question,
        *content,
        *served,
        *paid,
        reply.error,
        reply.duration_ms,
        utc_now(),
        reply.raw,
        others or None,
    )


def reply_id_of(
    question: Row, status: str, text: str | None, finish_reason: str | None, error: str | None, others: str = ""
) -> str:
    """Return the content address of a reply to a question; see `Arrived`."""
    return content_id("reply", *question, *([others] if others else []), status, text, finish_reason, error)


def store_replies(store: Store, arrived: Sequence[Arrived]) -> None:
    """Commit replies; one that could not be stored as it came is replaced by what was stored."""

    def commit(group: Sequence[Arrived]) -> None:
        for each in group:
            each.row = reply_row(each.attempt_id, each.question, each.reply, each.others)
        store.add_replies([each.row for each in group])

    def commit_least(one: Arrived, error: Exception) -> None:
        one.reply = unstorable(one.reply, error)
        commit([one])

    _commit_what_can_be(arrived, commit, commit_least)


class Readings(NamedTuple):
    """What replies hold: `extraction` rows, one a reply, `variant` rows and `rating` rows."""

    extractions: list[Row]
    variants: list[Row]
    ratings: list[Row]

    @property
    def unusable(self) -> int:
        """How many replies hold neither a variant nor ratings."""
        return sum(row[3] is not None for row in self.extractions)


def store_readings(store: Store, found: Readings) -> None:
    """Commit what replies hold; what cannot be stored is taken out, and the reason why is stored in its place."""
    variants = {variant[0]: variant for variant in found.variants}
    ratings: dict[str, list[Row]] = {}
    for rating in found.ratings:
        ratings.setdefault(rating[0], []).append(rating)

    def commit(group: Sequence[Row]) -> None:
        store.add_readings(
            group,
            [variants[row[2]] for row in group if row[2] in variants],
            [rating for row in group for rating in ratings.get(row[0], ())],
        )

    def commit_least(row: Row, error: Exception) -> None:
        if row[2] in variants:
            found.variants.remove(variants.pop(row[2]))
        for rating in ratings.pop(row[0], ()):
            found.ratings.remove(rating)
        commit([(*row[:2], None, error_line("unstorable", f"{type(error).__name__}: {error}"), row[4])])

    _commit_what_can_be(found.extractions, commit, commit_least)


def _commit_what_can_be(
    group: Sequence[Any], commit: Callable[[Sequence[Any]], None], commit_least: Callable[[Any, Exception], None]
) -> None:
    try:
        commit(group)
        return
    except Exception as error:  # whatever one row makes of the driver or of us must not cost the others
        if not is_rows_fault(error):
            raise
    for one in group:
        try:
            commit([one])
        except Exception as error:  # as above
            if not is_rows_fault(error):
                raise
            _commit_least(one, error, commit_least)


def _commit_least(one: Any, error: Exception, commit_least: Callable[[Any, Exception], None]) -> None:
    try:
        commit_least(one, error)
    except Exception as second:  # the first error is the one that says what is wrong
        raise error from second


def unstorable(reply: Reply, error: Exception) -> Reply:
    """Return a reply that cannot be stored as a failed one that can: why, the text, and what it cost."""
    fields = {"text": reply.text, "prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
    kept = fitted({**fields, "cost_usd": reply.cost_usd, "served_model": reply.served_model})
    why = error_line("unstorable", f"{type(error).__name__}: {error}")
    return replace(Reply(status=ReplyStatus.FAILED, error=why), **kept)


def not_sent(attempt_id: str, question: Row, others: str = "") -> Arrived:
    """Return the end of an attempt that is on record but was never sent: nothing was paid, and the question is open again."""
    reply = Reply(status=ReplyStatus.ERROR, error="not_sent: the run ended before it was sent", cost_usd=0.0)
    return Arrived(attempt_id, question, reply, others=others)


def is_rows_fault(error: BaseException) -> bool:
    """Say whether an error is about what was to be stored, rather than about the store."""
    found: BaseException | None = error
    while found is not None:
        names = [kind.__name__ for kind in type(found).__mro__]
        if isinstance(found, OSError | MemoryError) or (
            _STORES_FAULT.intersection(names) and not _ROWS_FAULT.intersection(names)
        ):
            return False
        found = getattr(found, "orig", None) or found.__cause__
    return True
