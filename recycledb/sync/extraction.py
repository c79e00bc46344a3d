"""Extraction: the current version of a step's reader gives each stored reply one result: a variant, ratings, or a reason for none.

Invariant: only committed replies are read, and a result depends on nothing but the reply and the texts that its question showed, so a
new version reads all replies again without a request. A reply on which the reader fails gets a reason, and affects no other reply.
"""

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from recycledb import methods
from recycledb.reflection.teachers.contract import error_line
from recycledb.schema import Texts, utc_now, variant_id
from recycledb.store import SQLRow, Store
from recycledb.store.questions import texts_beside
from recycledb.store.replies import pending_readings
from recycledb.store.rows import ExtractionRow, RatingRow, ReplyRow, VariantRow
from recycledb.sync.replies import Readings, store_readings


class Complete(NamedTuple):
    """A complete reply, and the variants that its question showed."""

    text_id: str
    step: str
    teacher_id: str
    prompt_id: str
    text: str
    variant_id: str
    sample_id: str
    kind: str
    others: str
    shown: tuple[Texts, ...]


@dataclass
class Found:
    """Counts of an extraction: replies read, new variants, ratings, and replies with neither."""

    read: int = 0
    variants: int = 0
    ratings: int = 0
    unusable: int = 0

    def add(self, verdicts: Readings) -> None:
        """Add the counts of stored results."""
        self.read += len(verdicts.extractions)
        self.variants += len(verdicts.variants)
        self.ratings += verdicts.numbers
        self.unusable += verdicts.unusable


def read_all(store: Store, stop: threading.Event | None = None) -> Found:
    """Read every reply that the current readers have not read, page by page until a stop."""
    found = Found()
    while not (stop and stop.is_set()) and (replies := pending_readings(store, methods.versions())):
        beside = texts_beside(store, replies)
        verdicts = results_of(_complete(reply, beside[reply.others]) for reply in replies)
        store_readings(store, verdicts)
        found.add(verdicts)
    return found


def _complete(row: SQLRow, beside: tuple[Texts, ...]) -> Complete:
    return complete_of(row, row, (Texts.of(row), *beside))


def complete_of(reply: ReplyRow | SQLRow, question: SQLRow, shown: tuple[Texts, ...]) -> Complete:
    """Return a committed reply with the texts that its question showed."""
    return Complete(
        text_id=reply.text_id,
        step=reply.step,
        teacher_id=reply.teacher_id,
        prompt_id=reply.prompt_id,
        text=reply.text or "",
        variant_id=question.variant_id,
        sample_id=question.sample_id,
        kind=question.kind,
        others=question.others,
        shown=shown,
    )


def results_of(replies: Iterable[Complete]) -> Readings:
    """Return the results of these replies, without storing them."""
    now = utc_now()
    found = Readings([], [], [])
    for reply in replies:
        try:
            _add_verdict(found, reply, now)
        except MemoryError:
            raise
        except Exception as error:  # a bug that one reply triggers must not affect the others
            reason = error_line("defect", f"{type(error).__name__}: {error}")
            found.extractions.append(ExtractionRow(reply.text_id, methods.versions()[reply.step], None, reason, now))
    return found


def _add_verdict(found: Readings, reply: Complete, now: str) -> None:
    step = methods.steps()[reply.step]
    result = step.read(reply.text, reply.shown)
    about = (reply.variant_id, *filter(None, reply.others.split(",")))
    ratings = [
        RatingRow(reply.text_id, step.version, about[each.about], each.name, float(each.value), now)
        for each in result.ratings
    ]
    kind = step.gives(reply.kind)
    if result.texts is None or kind is None:
        reason = result.reason or (None if ratings else "empty: the reply holds neither texts nor ratings")
        found.extractions.append(ExtractionRow(reply.text_id, step.version, None, reason, now))
    else:
        key = variant_id(reply.sample_id, kind, result.texts, reply.variant_id, reply.text_id)
        variant = VariantRow(
            variant_id=key,
            sample_id=reply.sample_id,
            kind=kind,
            parent_id=reply.variant_id,
            text_id=reply.text_id,
            teacher_id=reply.teacher_id,
            prompt_id=reply.prompt_id,
            **result.texts._asdict(),
            created_at=now,
        )
        found.variants.append(variant)
        found.extractions.append(ExtractionRow(reply.text_id, step.version, key, None, now))
    found.ratings.extend(ratings)
