"""Score: load a student once, stream the variants that lack statistics through it, commit batch by batch.

Invariant: a statistic is committed as its batch finishes, so a kill costs the batches in flight and nothing else.
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from recycledb.schema import LossStatus, Stat, Texts
from recycledb.scoring.requests import Request, Result
from recycledb.store import Store
from recycledb.store.losses import add_losses, known_pairs, pending_scores, present_stats
from recycledb.store.pending import Wanted
from recycledb.store.places import iter_places
from recycledb.store.rows import LossRow
from recycledb.sync.progress import Listener, Progress
from recycledb.sync.target import Student

if TYPE_CHECKING:
    from recycledb.scoring.engine import Engine
    from recycledb.scoring.requests import Progress as EngineProgress


@dataclass
class Scored:
    """What came of scoring under one student."""

    student: str
    statistics: int = 0
    without_value: dict[str, int] = field(default_factory=dict)  # by status
    tokens: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    warning: str | None = None  # what to do about statistics that are no numbers


def not_finite(student: str, count: int, dtype: str) -> str:
    """Return one line about statistics that are no numbers: whose, how many, and what to do."""
    remedy = (
        f'float16 overflows in this model: set dtype = "bfloat16" or "float32" under [students.{student}]'
        if dtype == "float16"
        else f"its weights hold NaN or overflow {dtype}: check or download the model again"
    )
    return f"{student}: {count:,} statistics are NaN or infinite and have no value; {remedy}"


def load_engine(student: Student) -> "Engine":
    """Load a student's model; StudentError when it cannot be."""
    from recycledb.scoring.engine import Engine

    config = student.config
    return Engine.load(
        config.model,
        revision=None if student.identity.local else student.identity.revision,
        prompt=config.prompt,
        max_length=config.max_length,
        dtype=config.dtype,
        device=config.device,
    )


class Scoring:
    """One run of statistics under one student."""

    def __init__(
        self,
        store: Store,
        student: Student,
        wanted: Wanted | None,
        *,
        total: int,
        limit: int | None,
        stop: threading.Event,
        listener: Listener,
    ) -> None:
        self.store, self.student, self.wanted = store, student, wanted
        self.limit, self.stop, self.listener = limit, stop, listener
        self.result = Scored(student.config.name)
        self.progress = Progress("score", student.config.name, total)

    def run(self) -> Scored:
        """Compute and commit what is missing; return what came of it."""
        known = lambda pairs: known_pairs(self.store, self.student.student_id, pairs)  # noqa: E731
        with load_engine(self.student) as engine:
            for results in engine.score(self._requests(), known, self._note, self.stop.is_set):
                add_losses(self.store, [self._row(result) for result in results])
                self._count(results)
        if self.stop.is_set():
            self.result.stopped = "stopped on request"
        self.result.seconds = self.progress.seconds
        if count := self.result.without_value.get(LossStatus.NOT_FINITE.value):
            self.result.warning = not_finite(self.result.student, count, self.student.config.dtype)
        self.progress.ended = True
        self.listener(self.progress)
        return self.result

    def _requests(self) -> Iterator[Request]:
        """Yield the variants that lack statistics, in dataset order, drawn page by page."""
        left = self.limit
        for samples in iter_places(self.store, page=2_000):
            rows = pending_scores(self.store, self.wanted, self.student.student_id, self.student.stats, samples)
            present = present_stats(self.store, self.student.student_id, [row.variant_id for row in rows])
            for row in rows:
                if self.stop.is_set():
                    return
                if left is not None:
                    if left <= 0:
                        self.result.stopped = f"the limit of {self.limit} variants is reached"
                        return
                    left -= 1
                missing = tuple(Stat(stat) for stat in self.student.stats if (row.variant_id, stat) not in present)
                yield Request(row.variant_id, Texts(row.instruction, row.input, row.output), missing)

    def _row(self, result: Result) -> LossRow:
        return LossRow(
            student_id=self.student.student_id,
            variant_id=result.key,
            stat=result.stat.value,
            loss_sum=result.loss_sum,
            n_tokens=result.n_tokens,
            truncated=result.truncated,
            merged=result.merged,
            status=result.status.value,
            pair_id=result.pair_id,
            kernel=result.kernel,
        )

    def _count(self, results: Sequence[Result]) -> None:
        self.result.statistics += len(results)
        self.progress.done += len(results)
        for result in results:
            if result.loss_sum is None:
                status = result.status.value
                self.result.without_value[status] = self.result.without_value.get(status, 0) + 1
        self.listener(self.progress)

    def _note(self, engine: "EngineProgress") -> None:
        self.result.tokens = self.progress.tokens = engine.tokens
        self.progress.utilisation = engine.utilisation
        self.listener(self.progress)
