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
from recycledb.store import Store
from recycledb.store.replies import add_readings, add_replies
from recycledb.store.rows import AttemptRow, ExtractionRow, RatingRow, ReplyRow, VariantRow

# What a driver raises where the store, not the row, is at fault, by the names of PEP 249: full, locked, read-only, damaged.
_STORES_FAULT = {"OperationalError", "InternalError", "DatabaseError"}
_ROWS_FAULT = {"DataError", "ProgrammingError", "IntegrityError", "InterfaceError", "NotSupportedError"}


@dataclass(slots=True)
class Arrived:
    """A reply to an attempt; `row` is as it was stored."""

    attempt: AttemptRow
    reply: Reply
    row: ReplyRow | None = None


def reply_row(attempt: AttemptRow, reply: Reply) -> ReplyRow:
    """Return what came back for an attempt as it is stored."""
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
    """Return the content address of a reply: of its question, the attempt's number, and what came back."""
    question = (row.variant_id, row.step, row.teacher_id, row.prompt_id, row.number)
    others = [row.others] if row.others else []
    return content_id("reply", *question, *others, row.status, row.text, row.finish_reason, row.error)


def store_replies(store: Store, arrived: Sequence[Arrived]) -> None:
    """Commit replies; one that could not be stored as it came is replaced by what was stored."""

    def commit(group: Sequence[Arrived]) -> None:
        rows = [reply_row(each.attempt, each.reply) for each in group]
        for each, row in zip(group, rows, strict=True):
            each.row = row
        add_replies(store, rows)

    def commit_least(one: Arrived, error: Exception) -> None:
        one.reply = unstorable(one.reply, error)
        commit([one])

    _commit_what_can_be(arrived, commit, commit_least)


class Readings(NamedTuple):
    """What replies hold: one extraction a reply, the variants and the ratings."""

    extractions: list[ExtractionRow]
    variants: list[VariantRow]
    ratings: list[RatingRow]

    @property
    def unusable(self) -> int:
        """How many replies hold neither a variant nor ratings."""
        return sum(row.reason is not None for row in self.extractions)


def store_readings(store: Store, found: Readings) -> None:
    """Commit what replies hold; what cannot be stored is taken out, and the reason why is stored in its place."""
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


def not_sent(attempt: AttemptRow) -> Arrived:
    """Return the end of an attempt that is on record but was never sent: nothing was paid, and the question is open again."""
    reply = Reply(status=ReplyStatus.ERROR, error="not_sent: the run ended before it was sent", cost_usd=0.0)
    return Arrived(attempt, reply)


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
