"""Which of the store's open questions is asked next.

Invariant: whatever the plan's size, only a page of questions is in memory, and those that follow from the latest replies. The order:
questions that failed and may be asked again now, those about new variants (so that samples are finished), then the datasets in order.
The methods that query the store (`load`, `following`, `rewind`) are meant to run in a thread; nothing here waits.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from recycledb import methods
from recycledb.reflection.prompts import render
from recycledb.reflection.teachers import Teacher
from recycledb.schema import Texts
from recycledb.store import SQLRow, Store
from recycledb.store.pending import Wanted
from recycledb.store.places import iter_places
from recycledb.store.questions import count_questions, pending_questions, texts_beside
from recycledb.store.rows import VariantRow
from recycledb.store.workers import end_dead
from recycledb.sync.target import Target

PAGE = 200  # samples whose questions are fetched at once; the next page is fetched when half of it is used up


@dataclass(slots=True)
class Candidate:
    """A question that may be asked, with its messages, and how often it was asked in this run."""

    row: SQLRow
    shown: tuple[Texts, ...]
    messages: Any
    tokens: int
    tries: int = 0

    @property
    def step(self) -> str:
        """Its teacher step."""
        return str(self.row.step)

    @property
    def stop(self) -> tuple[str, ...]:
        """The texts at which the teacher may stop."""
        return methods.steps()[self.step].stop


class Questions:
    """The open questions of one run to one teacher."""

    def __init__(self, store: Store, teacher: Teacher, target: Target, wanted: Wanted) -> None:
        self.store, self.teacher, self.target, self.wanted = store, teacher, target, wanted
        self._pages: Iterator[list[str]] = iter_places(store, PAGE, wanted.datasets)
        self._walked, self._found = False, 0  # whether all pages are loaded, and how many questions they held
        self._fresh: deque[Candidate] = deque()  # in dataset order
        self._next: deque[Candidate] = deque()  # about new variants
        self._late: list[tuple[float, int, Candidate]] = []  # to be asked again, a heap by time
        self._order = itertools.count()

    @property
    def low(self) -> bool:
        """Whether the next page should be loaded."""
        return len(self._fresh) < PAGE // 2 and not self._walked

    @property
    def none_left(self) -> bool:
        """Whether all pages are loaded and no question waits."""
        return self._walked and not (self._late or self._next or self._fresh)

    def late(self, now: float) -> Candidate | None:
        """Return a question to be asked again, if one is due."""
        return heapq.heappop(self._late)[2] if self._late and self._late[0][0] <= now else None

    def next(self) -> Candidate | None:
        """Return a question that was not asked yet; None where the next page is not loaded yet, or no page is left."""
        waiting = self._next or self._fresh
        return waiting.popleft() if waiting else None

    def until_late(self, now: float) -> float | None:
        """Return the seconds until the next retry is due; None where there is none."""
        return max(0.001, self._late[0][0] - now) if self._late else None

    def ask_again(self, candidate: Candidate, at: float) -> None:
        """Schedule a question to be asked again at a time."""
        heapq.heappush(self._late, (at, next(self._order), candidate))

    def add(self, following: Sequence[Candidate]) -> None:
        """Add questions about new variants."""
        self._next.extend(following)

    def put_back(self, candidates: Sequence[Candidate]) -> None:
        """Put questions that could not be asked at the front."""
        self._next.extendleft(reversed(candidates))

    def load(self) -> None:
        """Fetch the open questions about the next page of samples."""
        samples = next(self._pages, None)
        if samples is None:
            self._walked = True
        else:
            page = self._prepared(pending_questions(self.store, self.wanted, samples))
            self._fresh.extend(page)
            self._found += len(page)

    def following(self, variants: Sequence[VariantRow]) -> list[Candidate]:
        """Return the questions about new variants."""
        new = {variant.variant_id: variant.sample_id for variant in variants}
        found = pending_questions(self.store, self.wanted, list(set(new.values()))) if new else ()
        return self._prepared(
            [row for row in found if not new.keys().isdisjoint((row.variant_id, *row.others.split(",")))]
        )

    def rewind(self) -> bool:
        """Start over if questions have become open in the meantime: another process died, or samples were added."""
        if not self._found:
            return False
        end_dead(self.store)
        if not count_questions(self.store, self.wanted):
            return False
        self._pages, self._walked, self._found = iter_places(self.store, PAGE, self.wanted.datasets), False, 0
        return True

    def _prepared(self, rows: Sequence[SQLRow]) -> list[Candidate]:
        beside = texts_beside(self.store, rows)
        found = []
        for row in rows:
            shown = (Texts.of(row), *beside[row.others])
            messages = render(self.target.prompts[row.step], shown)
            found.append(Candidate(row, shown, messages, self.teacher.estimate(messages)))
        return found
