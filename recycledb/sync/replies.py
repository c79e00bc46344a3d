"""Storing replies and extractions, so that one row that cannot be stored does not affect the others.

Invariant: a group is one transaction if possible. If it fails, each of its replies is committed separately; one that still fails is
committed as a failed reply with the reason, its text and its cost, so that its question does not stay in flight for ever and its cost
is recorded. An error is raised only where that fails too, or where the store is at fault, not the row (a full disk).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from recycledb.methods.rating import OUT_OF
from recycledb.reflection.teachers.contract import Reply, error_line, fitted
from recycledb.schema import ReplyStatus, content_id, utc_now
from recycledb.store import Store
from recycledb.store.replies import add_readings, add_replies
from recycledb.store.rows import AttemptRow, ExtractionRow, RatingRow, ReplyRow, VariantRow

# The PEP 249 exceptions that a driver raises where the store, not the row, is at fault: full, locked, read-only, damaged.
_STORES_FAULT = {"OperationalError", "InternalError", "DatabaseError"}
_ROWS_FAULT = {"DataError", "ProgrammingError", "IntegrityError", "InterfaceError", "NotSupportedError"}


@dataclass(slots=True)
class Arrived:
    """A reply to an attempt; `row` is the stored row."""

    attempt: AttemptRow
    reply: Reply
    row: ReplyRow | None = None


def reply_row(attempt: AttemptRow, reply: Reply) -> ReplyRow:
    """Return the row of a reply to an attempt."""
    row = ReplyRow(
        text_id="",
        attempt_id=attempt.attempt_id,
        variant_id=attempt.variant_id,
        step=attempt.step,
        teacher_id=attempt.teacher_id,
        prompt_id=attempt.prompt_id,
        number=attempt.number,
        status=reply.status.value,
        text=reply.text,
        finish_reason=reply.finish_reason,
        served_model=reply.served_model,
        request_id=reply.request_id,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        cost_usd=reply.cost_usd,
        error=reply.error,
        duration_ms=reply.duration_ms,
        created_at=utc_now(),
        raw=reply.raw,
        others=attempt.others,
    )
    return row._replace(text_id=reply_id_of(row))


def reply_id_of(row: ReplyRow) -> str:
    """Return the content address of a reply: of its question, the attempt's number, and its content."""
    question = (row.variant_id, row.step, row.teacher_id, row.prompt_id, row.number)
    others = [row.others] if row.others else []
    return content_id("reply", *question, *others, row.status, row.text, row.finish_reason, row.error)


def store_replies(store: Store, arrived: Sequence[Arrived], *, wait: bool = True, locked: bool = True) -> None:
    """Commit replies; one that cannot be stored as it arrived is replaced by the failed reply that was stored.

    Without `wait`, AwayError is raised at once where a server is away; nothing is lost by that. `locked` as in `add_replies`.
    """

    def commit(group: Sequence[Arrived]) -> None:
        rows = [reply_row(each.attempt, each.reply) for each in group]
        for each, row in zip(group, rows, strict=True):
            each.row = row
        add_replies(store, rows, wait=wait, locked=locked)

    def commit_least(one: Arrived, error: Exception) -> None:
        one.reply = unstorable(one.reply, error)
        commit([one])

    _commit_what_can_be(arrived, commit, commit_least)


class Readings(NamedTuple):
    """The results of replies: one extraction per reply, the variants and the ratings."""

    extractions: list[ExtractionRow]
    variants: list[VariantRow]
    ratings: list[RatingRow]

    @property
    def numbers(self) -> int:
        """The number of ratings, without the scales that some of them name: 4.5/5 is one."""
        return sum(row.name != OUT_OF for row in self.ratings)

    @property
    def unusable(self) -> int:
        """The number of replies with neither a variant nor ratings."""
        return sum(row.reason is not None for row in self.extractions)


def store_readings(store: Store, found: Readings) -> None:
    """Commit the results of replies; a result that cannot be stored is removed, and the reason is stored instead."""
    variants = {variant.variant_id: variant for variant in found.variants}
    ratings: dict[str, list[RatingRow]] = {}
    for rating in found.ratings:
        ratings.setdefault(rating.text_id, []).append(rating)

    def commit(group: Sequence[ExtractionRow]) -> None:
        add_readings(
            store,
            group,
            [variants[row.variant_id] for row in group if row.variant_id in variants],
            [rating for row in group for rating in ratings.get(row.text_id, ())],
        )

    def commit_least(row: ExtractionRow, error: Exception) -> None:
        if row.variant_id in variants:
            found.variants.remove(variants.pop(row.variant_id))
        for rating in ratings.pop(row.text_id, ()):
            found.ratings.remove(rating)
        reason = error_line("unstorable", f"{type(error).__name__}: {error}")
        commit([row._replace(variant_id=None, reason=reason)])

    _commit_what_can_be(found.extractions, commit, commit_least)


def _commit_what_can_be(
    group: Sequence[Any], commit: Callable[[Sequence[Any]], None], commit_least: Callable[[Any, Exception], None]
) -> None:
    try:
        commit(group)
        return
    except Exception as error:  # an error of the driver or of ours on one row must not affect the others
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
    except Exception as second:  # the first error says what is wrong
        raise error from second


def unstorable(reply: Reply, error: Exception) -> Reply:
    """Return a reply that cannot be stored as a failed one that can: why, the text, and what it cost."""
    fields = {"text": reply.text, "prompt_tokens": reply.prompt_tokens, "completion_tokens": reply.completion_tokens}
    kept = fitted({**fields, "cost_usd": reply.cost_usd, "served_model": reply.served_model})
    why = error_line("unstorable", f"{type(error).__name__}: {error}")
    return replace(Reply(status=ReplyStatus.FAILED, error=why), **kept)


def not_sent(attempt: AttemptRow) -> Arrived:
    """Return the reply of an attempt that is stored but was never sent: it cost nothing, and the question is open again."""
    reply = Reply(status=ReplyStatus.ERROR, error="not_sent: the run ended before it was sent", cost_usd=0.0)
    return Arrived(attempt, reply)


def is_rows_fault(error: BaseException) -> bool:
    """Return whether an error is about the row to be stored rather than about the store."""
    found: BaseException | None = error
    while found is not None:
        names = [kind.__name__ for kind in type(found).__mro__]
        if isinstance(found, OSError | MemoryError) or (
            _STORES_FAULT.intersection(names) and not _ROWS_FAULT.intersection(names)
        ):
            return False
        found = getattr(found, "orig", None) or found.__cause__
    return True
