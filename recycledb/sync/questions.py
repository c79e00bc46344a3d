"""Which question is asked next, of all that the store has open.

Invariant: whatever the plan's size, a page of questions is held, and what follows from replies that have just come. In order: what failed
and may be asked again now, what follows from new variants (so that samples are finished), and the datasets from their beginning.
The methods that look into the store (`load`, `following`, `rewind`) are for a thread; nothing here waits.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from recycledb.reflection.prompts import render
from recycledb.reflection.teachers import Teacher
from recycledb.schema import Texts
from recycledb.store import SQLRow, Store
from recycledb.store.pending import Wanted
from recycledb.store.places import iter_places
from recycledb.store.questions import count_questions, pending_questions, texts_beside
from recycledb.store.rows import VariantRow
from recycledb.store.workers import beat
from recycledb.sync.target import Target

PAGE = 200  # samples whose questions are drawn at once; the next page is fetched when half of it is used up


@dataclass(slots=True)
class Candidate:
    """A question that may be asked, with the messages it would send, and how often it was in this run."""

    row: SQLRow
    shown: tuple[Texts, ...]
    messages: Any
    tokens: int
    tries: int = 0

    @property
    def step(self) -> str:
        """The step it belongs to."""
        return str(self.row.step)


class Questions:
    """The open questions of one run to one teacher."""

    def __init__(self, store: Store, teacher: Teacher, target: Target, wanted: Wanted) -> None:
        self.store, self.teacher, self.target, self.wanted = store, teacher, target, wanted
        self._pages: Iterator[list[str]] = iter_places(store, PAGE)
        self._walked, self._found = False, 0  # whether the pages are at their end, and what this walk has brought
        self._fresh: deque[Candidate] = deque()  # in order of the datasets
        self._next: deque[Candidate] = deque()  # what new variants bring
        self._late: list[tuple[float, int, Candidate]] = []  # to be asked again, by time
        self._order = itertools.count()

    @property
    def low(self) -> bool:
        """Whether the next page should be loaded."""
        return len(self._fresh) < PAGE // 2 and not self._walked

    @property
    def none_left(self) -> bool:
        """Whether the store was walked to its end and nothing waits to be asked."""
        return self._walked and not (self._late or self._next or self._fresh)

    def late(self, now: float) -> Candidate | None:
        """Return a question that is to be asked again, if its time has come."""
        return heapq.heappop(self._late)[2] if self._late and self._late[0][0] <= now else None

    def next(self) -> Candidate | None:
        """Return a question that was not asked yet; None where the next page is not there yet, or no page is left."""
        waiting = self._next or self._fresh
        return waiting.popleft() if waiting else None

    def until_late(self, now: float) -> float | None:
        """Return the seconds until one is to be asked again; None where there is none."""
        return max(0.001, self._late[0][0] - now) if self._late else None

    def ask_again(self, candidate: Candidate, at: float) -> None:
        """Let a question come back at a moment."""
        heapq.heappush(self._late, (at, next(self._order), candidate))

    def add(self, following: Sequence[Candidate]) -> None:
        """Add what follows from new variants."""
        self._next.extend(following)

    def put_back(self, candidates: Sequence[Candidate]) -> None:
        """Let questions that could not be asked be the next."""
        self._next.extendleft(reversed(candidates))

    def load(self) -> None:
        """Draw the next page of samples, and what is open about them."""
        samples = next(self._pages, None)
        if samples is None:
            self._walked = True
        else:
            page = self._prepared(pending_questions(self.store, self.wanted, samples))
            self._fresh.extend(page)
            self._found += len(page)

    def following(self, variants: Sequence[VariantRow]) -> list[Candidate]:
        """Return what can be asked about new variants."""
        new = {variant.variant_id: variant.sample_id for variant in variants}
        found = pending_questions(self.store, self.wanted, list(set(new.values()))) if new else ()
        return self._prepared(
            [row for row in found if not new.keys().isdisjoint((row.variant_id, *row.others.split(",")))]
        )

    def rewind(self, worker: str) -> bool:
        """Begin anew where questions have become open meanwhile: another process died, or samples were added."""
        if not self._found:
            return False
        beat(self.store, worker)  # ends the workers that are dead by now
        if not count_questions(self.store, self.wanted):
            return False
        self._pages, self._walked, self._found = iter_places(self.store, PAGE), False, 0
        return True

    def _prepared(self, rows: Sequence[SQLRow]) -> list[Candidate]:
        beside = texts_beside(self.store, rows)
        found = []
        for row in rows:
            shown = (Texts(row.instruction, row.input, row.output), *beside[row.others])
            messages = render(self.target.prompts[row.step], shown)
            found.append(Candidate(row, shown, messages, self.teacher.estimate(messages)))
        return found
