"""Read stored replies: each gets one verdict of the present extractor, and with it a variant or a reason for none.

Invariant: only committed replies are read, and a verdict depends on nothing but the reply and the texts that it is about, so a better
extractor re-reads everything without asking anyone. A reply at which the extractor fails is one without a variant, and costs no other.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from recycledb.reflection.extraction import EXTRACTOR, extract
from recycledb.reflection.teachers.contract import error_line
from recycledb.schema import Kind, Step, Texts, utc_now, variant_id
from recycledb.store import Row, SQLRow, Store
from recycledb.sync.storing import store_readings


class Complete:
    """A reply that was just committed, as `verdicts_on` wants it: its row along with the texts that it is about."""

    __slots__ = (
        "input", "instruction", "kind", "output", "prompt_id", "sample_id", "step", "teacher_id", "text", "text_id", "variant_id"
    )  # fmt: skip

    def __init__(self, reply: Row, read: SQLRow) -> None:
        self.text_id, self.step, self.teacher_id, self.prompt_id, self.text = reply[0], *reply[3:6], reply[8]
        self.variant_id, self.sample_id, self.kind = read.variant_id, read.sample_id, read.kind
        self.instruction, self.input, self.output = read.instruction, read.input, read.output


def kind_of(step: Step, read: Kind) -> Kind:
    """Return the kind of variant that a step makes of one of kind `read`."""
    if step is Step.COMPRESS:
        return Kind.COMPRESSED
    if step is Step.REFLECT_INSTRUCTION:
        return Kind.REFLECT_INSTRUCTION
    return Kind.REFLECT_RESPONSE if read is Kind.ORIGIN else Kind.REFLECT_BOTH


def verdict(reply: SQLRow, now: str) -> tuple[Row, Row | None]:
    """Return the `extraction` row of a reply, and the `variant` row where there is one."""
    step, read = Step(reply.step), Texts(reply.instruction, reply.input, reply.output)
    found = extract(step, reply.text, read)
    if found.texts is None:
        return (reply.text_id, EXTRACTOR, None, found.reason, now), None
    kind = kind_of(step, Kind(reply.kind))
    key = variant_id(reply.sample_id, kind, found.texts, reply.variant_id, reply.text_id)
    made_by = (reply.text_id, reply.teacher_id, reply.prompt_id)
    variant = (key, reply.sample_id, kind.value, reply.variant_id, *made_by, *found.texts, now)
    return (reply.text_id, EXTRACTOR, key, None, now), variant


@dataclass
class Found:
    """What reading brought: replies read, new variants, and replies that hold none."""

    read: int = 0
    variants: int = 0
    unusable: int = 0


def read_all(store: Store, stop: threading.Event | None = None) -> Found:
    """Read every reply that the present extractor has not read, page by page until a stop."""
    found = Found()
    while not (stop and stop.is_set()) and (replies := store.pending_readings(EXTRACTOR)):
        verdicts = verdicts_on(replies)
        store_readings(store, *verdicts)
        found.read += len(replies)
        found.variants += len(verdicts.variants)
    found.unusable = found.read - found.variants
    return found


class Verdicts(NamedTuple):
    """What replies hold: `extraction` rows, one a reply, and `variant` rows."""

    extractions: list[Row]
    variants: list[Row]


def verdicts_on(replies: Sequence[Any]) -> Verdicts:
    """Return what these replies hold, without storing it."""
    now = utc_now()
    verdicts = [_verdict_whatever(reply, now) for reply in replies]
    return Verdicts([row for row, _ in verdicts], [variant for _, variant in verdicts if variant is not None])


def _verdict_whatever(reply: Any, now: str) -> tuple[Row, Row | None]:
    try:
        return verdict(reply, now)
    except MemoryError:
        raise
    except Exception as error:  # a defect that one text brings out must not cost the others
        return (reply.text_id, EXTRACTOR, None, error_line("defect", f"{type(error).__name__}: {error}"), now), None
