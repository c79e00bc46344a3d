"""Facts: load a student once, run the variants that lack statistics, readouts or vectors through it, commit pack by pack.

Invariant: facts are committed as soon as their pack is computed, so a kill loses only the packs being computed.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import TYPE_CHECKING

import numpy as np

from recycledb.config import StudentConfig
from recycledb.methods import Readout, Vector
from recycledb.schema import LossStatus, Texts
from recycledb.scoring.cluster import Cluster
from recycledb.scoring.requests import Request, Result
from recycledb.store import Store
from recycledb.store.known import KnownFacts
from recycledb.store.losses import known_pairs
from recycledb.store.measures import Need, add_facts, facts_of, lacking_facts
from recycledb.store.places import iter_places, samples_of_bucket
from recycledb.store.rows import EmbeddingRow, LossRow, ReadoutRow
from recycledb.sync.progress import Listener, Progress
from recycledb.sync.sharing import Groups, Sharing
from recycledb.sync.student import Student
from recycledb.vectors import decoded, encoded

if TYPE_CHECKING:
    from recycledb.scoring.outputs import Output
    from recycledb.scoring.requests import Progress as EngineProgress
    from recycledb.scoring.scorer import Scorer
    from recycledb.scoring.spans import Span

PAGE = 2_000  # samples whose variants are fetched at once

WITHOUT_VALUE = (LossStatus.NOT_FINITE, LossStatus.TOO_LONG, LossStatus.TOO_SHORT)  # where there is a text


@dataclass
class Scored:
    """Counts of scoring under one student."""

    student: str
    statistics: int = 0
    without_value: dict[str, int] = field(default_factory=dict)  # by status
    tokens: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    warning: str | None = None  # what to do about statistics that are not finite


def not_finite(student: str, count: int, dtype: str) -> str:
    """Return one line about statistics that are not finite: the student, how many, and what to do."""
    return f"{student}: {count:,} statistics are NaN or infinite and have no value; {_remedy(student, dtype)}"


def mostly_without_value(config: StudentConfig, statuses: Mapping[str, int]) -> str | None:
    """Return one line where most of a student's statistics, by status, have no value though there is a text; else None."""
    without = {status: statuses.get(status, 0) for status in WITHOUT_VALUE}
    count = sum(without.values())
    total = count + statuses.get(LossStatus.OK, 0)
    if 2 * count <= total:
        return None
    commonest = max(WITHOUT_VALUE, key=without.__getitem__)
    reasons = {
        LossStatus.NOT_FINITE: _remedy(config.name, config.dtype),
        LossStatus.TOO_LONG: f"max_length = {config.max_length} is reached before the target; "
        f"set a larger one under [students.{config.name}]",
        LossStatus.TOO_SHORT: "the target is a single token or none: either the texts are that short, or the tokenizer is not the one "
        "that the model was trained with",
    }
    return f"{config.name}: {count:,} of {total:,} statistics have no value, most of them {commonest.value}: {reasons[commonest]}"


def _remedy(student: str, dtype: str) -> str:
    """Return what to do about losses that are not finite."""
    if dtype == "float16":
        return f'float16 overflows in this model: set dtype = "bfloat16" or "float32" under [students.{student}]'
    return f"its weights hold NaN or overflow {dtype}: check or download the model again"


def load_engine(
    student: Student, cluster: Cluster | None = None, stopped: Callable[[], bool] = lambda: False
) -> "Scorer | None":
    """Load a student's model, in this process or in a cluster; StudentError when that fails, None if the run is `stopped` before."""
    config = student.config
    if cluster is not None and cluster.used:
        return cluster.load(config, student.identity, stopped)
    revision = None if student.identity.local else student.identity.revision
    if config.encoder:
        from recycledb.scoring.encoder import Encoder

        return Encoder.load(
            config.model, revision=revision, max_length=config.max_length, dtype=config.dtype, device=config.device
        )
    from recycledb.scoring.engine import Engine

    return Engine.load(
        config.model,
        revision=revision,
        prompt=config.prompt,
        max_length=config.max_length,
        dtype=config.dtype,
        device=config.device,
    )


class StudentRun:
    """One run that computes statistics and readouts under one student."""

    def __init__(
        self,
        store: Store,
        student: Student,
        needs: Sequence[Need],
        readouts: Sequence[Readout] = (),
        vectors: Sequence[Vector] = (),
        *,
        sharing: Sharing,
        total: int,
        limit: int | None,
        stop: threading.Event,
        listener: Listener,
        cluster: Cluster | None = None,
    ) -> None:
        """Set up a run over `needs`, in their order; `readouts` and `vectors` are those whose prompt ids and keys the needs hold."""
        self.groups = Groups(sharing, student.student_id, needs)
        self.store, self.student, self.needs = store, student, needs
        self.readouts = {readout.prompt_id: readout for readout in readouts}
        self.vectors = {vector.key: vector for vector in vectors}
        self.limit, self.stop, self.listener, self.cluster = limit, stop, listener, cluster
        self.result = Scored(student.config.name)
        self.total = total
        self.progress = Progress("score", student.config.name, total)

    def run(self) -> Scored:
        """Compute and commit the missing facts that no other process computes; return the counts."""
        with closing(self._parts()) as parts:
            first = next(parts, None)
            opened = None if first is None else load_engine(self.student, self.cluster, self.stop.is_set)
            if first is not None and opened is not None:  # else a model would be loaded for nothing
                with opened as engine, closing(KnownFacts(self.store, self.student.student_id)) as known:
                    for part in chain([first], parts):
                        self._score(engine, known, part)
        self.progress.total = self.total - self.groups.elsewhere
        if self.stop.is_set():
            self.result.stopped = "stopped on request"
        self.result.seconds = self.progress.seconds
        if count := self.result.without_value.get(LossStatus.NOT_FINITE.value):
            self.result.warning = not_finite(self.result.student, count, self.student.config.dtype)
        self.progress.ended = True
        self.listener(self.progress)
        return self.result

    def _parts(self) -> Generator[Sequence[str]]:
        """Yield the buckets to score, group by group; none for a few variants in dataset order, whose buckets are leased as they come."""
        if self.limit is None or not self.groups.digits:
            yield from self.groups
            return
        try:
            yield []
        finally:
            self.groups.give()

    def _score(self, engine: "Scorer", known: KnownFacts, buckets: Sequence[str]) -> None:
        """Compute and commit what the samples of these buckets lack."""
        before = self.result.tokens
        found = lambda spans: dict(self._known(known, spans))  # noqa: E731
        note = lambda progress: self._note(progress, before)  # noqa: E731
        for results in engine.score(self._requests(buckets), found, note, self.stop.is_set):
            rows = [self._row(result) for result in results]
            add_facts(self.store, sorted(rows, key=lambda row: type(row).__name__))  # inserted table by table
            known.note(rows)
            self._count(results)

    def _known(self, known: KnownFacts, spans: "Sequence[Span]") -> "Iterator[tuple[str, Output]]":
        """Yield what the store has of these token sequences, by the spans' keys."""
        by_name: dict[str, dict[str, str]] = {}  # of a readout, a pooling or "" for losses: keys by pair_id
        for span in spans:
            name = span.pooling or (span.stat if span.choices else "")
            by_name.setdefault(name, {})[str(span.pair_id)] = span.key
        for name, keys in by_name.items():
            pairs = list(keys)
            if not name:
                for pair, (total, _) in known_pairs(self.store, self.student.student_id, pairs).items():
                    yield keys[pair], np.array([total])
            elif name in self.readouts:
                number = len(self.readouts[name].choices)
                for pair, row in known.readouts(name, pairs).items():
                    yield keys[pair], np.array([getattr(row, f"lp{i}") for i in range(number)])
            else:
                for pair, row in known.vectors(name, pairs).items():
                    yield keys[pair], np.append(decoded(row.vector).astype(np.float64), row.norm)

    def _requests(self, buckets: Sequence[str]) -> Iterator[Request]:
        """Yield requests for the variants that lack facts, need by need, fetched page by page."""
        left = self.limit
        for need in self.needs:
            for samples in self._pages(need, buckets):
                for request in self._lacking(need, samples):
                    if self.stop.is_set():
                        return
                    if left is not None:
                        if left <= 0:
                            self.result.stopped = f"the limit of {self.limit} variants is reached"
                            return
                        left -= 1
                    yield request

    def _pages(self, need: Need, buckets: Sequence[str]) -> Iterator[list[str]]:
        """Yield the samples of these buckets; in dataset order where it is one bucket of all samples, or none."""
        if "" in buckets or not buckets:
            yield from iter_places(self.store, PAGE, need.scope.datasets)
            return
        for bucket in buckets:
            samples = iter(samples_of_bucket(self.store, bucket, need.scope.datasets))
            while page := list(islice(samples, PAGE)):
                yield page

    def _lacking(self, need: Need, samples: Sequence[str]) -> Iterator[Request]:
        rows = [row for row in lacking_facts(self.store, need, samples) if self.groups.has(row.sample_id)]
        there = facts_of(self.store, need, {row.variant_id: row.reference_id for row in rows})
        for row in rows:
            facts = there[row.variant_id]
            stats = tuple(stat for stat in need.stats if stat not in facts.losses)
            readouts = tuple(self.readouts[prompt] for prompt in need.prompts if prompt not in facts.readouts)
            vectors = tuple(self.vectors[key] for key in need.vectors if key not in facts.vectors)
            key = (row.variant_id, row.reference_id)
            yield Request(key, Texts.of(row), stats, readouts, vectors, row.reference)

    def _row(self, result: Result) -> LossRow | ReadoutRow | EmbeddingRow:
        if result.stat in self.readouts:
            return self._readout(result)
        return self._embedding(result) if result.stat in self.vectors else self._loss(result)

    def _loss(self, result: Result) -> LossRow:
        return LossRow(
            student_id=self.student.student_id,
            variant_id=result.key[0],
            stat=result.stat,
            loss_sum=result.loss_sum,
            n_tokens=result.n_tokens,
            truncated=result.truncated,
            merged=result.merged,
            status=result.status.value,
            pair_id=result.pair_id,
            kernel=result.kernel,
        )

    def _readout(self, result: Result) -> ReadoutRow:
        """Return the row of a readout: all log-probabilities, or none and the status that says why."""
        logs: list[float | None] = [None] * 10
        if result.output is not None:
            logs[: len(result.output)] = result.output.tolist()
        return ReadoutRow(
            student_id=self.student.student_id,
            prompt_id=result.stat,
            variant_id=result.key[0],
            reference_id=result.key[1] if self.readouts[result.stat].has_reference else "",
            lp0=logs[0], lp1=logs[1], lp2=logs[2], lp3=logs[3], lp4=logs[4],
            lp5=logs[5], lp6=logs[6], lp7=logs[7], lp8=logs[8], lp9=logs[9],
            n_tokens=result.n_tokens,
            merged=result.merged,
            status=result.status.value,
            pair_id=result.pair_id,
            kernel=result.kernel,
        )  # fmt: skip

    def _embedding(self, result: Result) -> EmbeddingRow:
        vector = self.vectors[result.stat]
        return EmbeddingRow(
            student_id=self.student.student_id,
            pooling=vector.pooling,
            part=vector.part,
            variant_id=result.key[0],
            vector=None if result.output is None else encoded(result.output[:-1]),
            norm=None if result.output is None else float(result.output[-1]),
            n_tokens=result.n_tokens,
            truncated=result.truncated,
            status=result.status.value,
            pair_id=result.pair_id,
            kernel=result.kernel,
        )

    def _count(self, results: Sequence[Result]) -> None:
        self.result.statistics += len(results)
        self.progress.done += len(results)
        self.progress.total = self.total - self.groups.elsewhere
        for result in results:
            if result.output is None:
                status = result.status.value
                self.result.without_value[status] = self.result.without_value.get(status, 0) + 1
        self.listener(self.progress)

    def _note(self, engine: "EngineProgress", before: int) -> None:
        self.result.tokens = self.progress.tokens = before + engine.tokens
        self.progress.utilisation = engine.utilisation
        self.listener(self.progress)
