"""Identical refusals from the first: the key, the model or a parameter is wrong, not the questions.

Invariant: a server that refuses every request (status 400 from a proxy that does not know the model, say) does not make questions fail
permanently. Until a first request is accepted, refusals are held back, unstored, and their questions stay in flight. The first accepted
request shows that refusals are about their questions: those held back are stored as failed. `SAME` identical ones without an accepted
request end the run: they are stored as retriable errors, so the next run asks their questions again. A run that is stopped earlier stores
what it holds as retriable errors too; one that has asked all its questions, fewer than `SAME`, as failed.
A kill loses at most the refusals held back: no text, and their reservations stay charged.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Generic, TypeVar

from recycledb.reflection.teachers.contract import Reply
from recycledb.schema import ReplyStatus

SAME = 20  # identical refusals, without an accepted request, that end a run
HELD_MOST = 200  # of different refusals: then they are about the questions

REFUSED = "bad_request"  # refusals for their own reasons (content_filter, too_long) are about their question
_ACCEPTED = frozenset({"cut_off", "empty", "refusal"})  # failures of requests that the server accepted
_VARYING = re.compile(r"[0-9a-f]{8}[0-9a-f-]*|\d+", re.IGNORECASE)  # ids of requests, counts, times

T = TypeVar("T")


def same_error(error: str) -> str:
    """Return an error without the parts that differ from request to request."""
    return _VARYING.sub("#", error)


def is_refusal(reply: Reply) -> bool:
    """Return whether a server refused a request without a reason that is the question's own."""
    return reply.status is ReplyStatus.FAILED and reply.kind == REFUSED


def is_accepted(reply: Reply) -> bool:
    """Return whether a server accepted a request: key, model and parameters are right."""
    return reply.status is ReplyStatus.OK or reply.kind in _ACCEPTED


def retriable(reply: Reply) -> Reply:
    """Return a refusal as an error after which its question is asked again."""
    return replace(reply, status=ReplyStatus.ERROR)


def all_refused(replies: Iterable[Reply]) -> Reply | None:
    """Return an example where `SAME` identical refusals are among these replies and no request was accepted; None otherwise."""
    counts: Counter[str] = Counter()
    example: dict[str, Reply] = {}
    for reply in replies:
        if is_accepted(reply):
            return None
        if is_refusal(reply):
            key = same_error(reply.error or "")
            counts[key] += 1
            example.setdefault(key, reply)
    commonest = counts.most_common(1)
    return example[commonest[0][0]] if commonest and commonest[0][1] >= SAME else None


def message(teacher: str, reply: Reply) -> str:
    """Return the message that ends a run, with the server's own sentence."""
    said = (reply.error or "").partition(": ")[2]
    return (
        f"teacher {teacher!r} refused each of the first {SAME} questions alike ({said}); no question was marked as failed: "
        f"correct its key, base_url, model or params, then run sync again"
    )


class Refusals(Generic[T]):
    """Holds back refusals of one run until they can be judged; `reply_of` and `judge` read and replace an item's reply.

    With `judged`, for teachers that are no server, nothing is held back.
    """

    def __init__(self, reply_of: Callable[[T], Reply], judge: Callable[[T, Reply], None], *, judged: bool) -> None:
        self._reply_of, self._judge = reply_of, judge
        self._held: list[T] = []
        self._counts: Counter[str] = Counter()
        self._accepted = judged
        self.example: Reply | None = None  # once the run has to end

    def sift(self, items: Sequence[T]) -> tuple[list[T], list[T]]:
        """Return the items to store now, and those that were held back before."""
        now: list[T] = []
        released: list[T] = []
        for item in items:
            reply = self._reply_of(item)
            if not self._accepted and self.example is None:
                if is_refusal(reply):
                    if self._hold(item, reply):
                        released += self.release(failed=self._accepted)
                    continue
                if is_accepted(reply):
                    self._accepted = True
                    released += self.release(failed=True)
            if self.example is not None and is_refusal(reply):
                self._judge(item, retriable(reply))
            now.append(item)
        return now, released

    def release(self, *, failed: bool) -> list[T]:
        """Return what is held back: as failed, else as retriable errors."""
        held, self._held = self._held, []
        if not failed:
            for item in held:
                self._judge(item, retriable(self._reply_of(item)))
        return held

    def _hold(self, item: T, reply: Reply) -> bool:
        """Hold an item back; return whether all that are held can be judged now."""
        self._held.append(item)
        key = same_error(reply.error or "")
        self._counts[key] += 1
        if self._counts[key] >= SAME:
            self.example = reply
        elif len(self._held) >= HELD_MOST:
            self._accepted = True
        return self.example is not None or self._accepted
