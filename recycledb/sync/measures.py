"""Measures: the facts that they need of a student, and their values, which are derived from facts without a model.

Invariant: a value depends only on facts and on the measure's version and options, which are part of its id; so a new formula or
option gives a new measure whose values are missing, and no fact is computed again for it.
"""

import hashlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from recycledb import methods
from recycledb.config import Config, StudentConfig
from recycledb.errors import ConfigError, MethodError
from recycledb.methods import Readout, StudentMeasure, Vector
from recycledb.options import MeasureConfig
from recycledb.schema import IDENTITY_LENGTH, ORIGIN, LossStatus, Texts, canonical_json, content_id, utc_now
from recycledb.store import Store, datasets
from recycledb.store import measures as stored
from recycledb.store.datasets import origins_of
from recycledb.store.measures import Facts, Need
from recycledb.store.pending import Scope, Wanted
from recycledb.store.places import iter_places
from recycledb.store.rows import MeasureRow, PromptRow, ValueRow
from recycledb.suggestions import did_you_mean
from recycledb.sync.progress import Listener, Progress
from recycledb.sync.student import Student
from recycledb.vectors import decoded

PAGE = 2_000  # samples whose values are computed at once

UNUSABLE = "unusable"  # the facts are there, and the method derives no number from them


@dataclass(frozen=True)
class Measured:
    """A configured measure: its method and options, and the students under which it is computed.

    What follows from these is computed once: it is needed for every value.
    """

    config: MeasureConfig
    students: tuple[Student, ...]
    queries: tuple[str, ...] = ()  # the ids of the origins of the query dataset, once `within` a store

    def within(self, store: Store) -> "Measured":
        """Return the measure for a store, with the queries that are there; ConfigError where there are none."""
        if not self.dataset:
            return self
        found = origins_of(store, self.dataset)
        if not found:
            known = datasets.names(store)
            meant = did_you_mean(self.dataset, known)
            raise ConfigError(
                f"measure {self.config.name}: there are no samples in the dataset {self.dataset!r}{meant}; "
                f"add its queries: `recycledb add FILE --dataset {self.dataset}`"
            )
        return replace(self, queries=tuple(sorted(found)))

    @property
    def dataset(self) -> str:
        """The name of the dataset of its queries, "" for none."""
        return self.method.queries(self.options)

    @property
    def method(self) -> StudentMeasure:
        """The student measure that computes it."""
        return methods.measures()[self.config.method]

    @cached_property
    def options(self) -> dict[str, Any]:
        """The method's options, as configured."""
        return self.config.options(self.method.options)

    @cached_property
    def readouts(self) -> tuple[Readout, ...]:
        """The readouts that the method needs with these options."""
        return self.method.readouts(self.options)

    @cached_property
    def vectors(self) -> tuple[Vector, ...]:
        """The vectors that the method needs with these options."""
        return self.method.vectors(self.options)

    @cached_property
    def parameters(self) -> str:
        """Everything that changes its values besides the method's version, as JSON: options and facts."""
        facts: dict[str, Any] = {
            "prompts": [readout.prompt_id for readout in self.readouts],
            "statistics": [each.name for each in self.method.statistics],
        }
        if self.vectors:
            facts["vectors"] = [vector.key for vector in self.vectors]
        if self.dataset:
            facts["queries_sha256"] = hashlib.sha256(canonical_json(self.queries).encode()).hexdigest()
        return canonical_json({**facts, "options": self.options})

    @cached_property
    def measure_id(self) -> str:
        """The content address of its name, method, version and parameters."""
        return measure_id_of(self.config.name, self.method.name, self.method.version, self.parameters)

    def need(
        self,
        student_id: str,
        wanted: Wanted | None,
        augmentations: tuple[str, ...] = (),
        datasets: tuple[str, ...] = (),
    ) -> Need:
        """Return the facts that it needs of a student, also for variants from the teacher and from these augmentations (ids).

        With `datasets`, only for variants of samples in these.
        """
        return Need(
            Scope(wanted, self.config.kinds, augmentations, datasets),
            student_id,
            tuple(each.name for each in self.method.statistics),
            tuple(readout.prompt_id for readout in self.readouts),
            tuple(vector.key for vector in self.vectors),
            self.method.reference(self.options),
        )

    def query_need(self, need: Need) -> Need | None:
        """Return the vectors of queries that are needed besides `need`; None where there are none, or it includes them."""
        scope = need.scope
        kinds = scope.kinds or methods.scored_kinds()
        if not self.dataset or (ORIGIN in kinds and (not scope.datasets or self.dataset in scope.datasets)):
            return None
        scope = Scope(None, (ORIGIN,), (), (self.dataset,))
        return Need(scope, need.student_id, (), vectors=need.vectors)

    def register(self, store: Store, conn: Any) -> None:
        """Write the measure and its prompts, and point its name to it."""
        now = utc_now()
        prompts = [
            PromptRow(each.prompt_id, methods.READOUT, each.text, f"{self.config.method}: {each.name}", now)
            for each in self.readouts
        ]
        row = MeasureRow(
            measure_id=self.measure_id,
            name=self.config.name,
            method=self.method.name,
            version=self.method.version,
            parameters=self.parameters,
            created_at=now,
        )
        store.insert(conn, [*prompts, row])
        store.ensure_name(conn, "measure", self.config.name, self.measure_id)


def measure_id_of(name: str, method: str, version: int, parameters: str) -> str:
    """Return the content address of a measure; `parameters` is JSON as it is stored."""
    return content_id("measure", name, method, version, parameters, length=IDENTITY_LENGTH)


def resolve(
    config: Config, names: Sequence[str], students: Sequence[Student], identified: Callable[[StudentConfig], Student]
) -> tuple[Measured, ...]:
    """Return the configured measures with these names, or all; `students` are those of the sync, the default of a measure.

    Raises ConfigError where a name is not configured.
    """
    for name in names:
        if name not in config.measures:
            known = ", ".join(config.measures) or "none"
            meant = did_you_mean(name, config.measures)
            raise ConfigError(
                f"no measure {name!r} in {config.path}{meant} (configured: {known}); add [measures.{name}]"
            )
    chosen = [each for each in config.measures.values() if not each.by_teacher and (not names or each.name in names)]
    return tuple(
        Measured(each, tuple(identified(config.students[name]) for name in each.students) or tuple(students))
        for each in chosen
    )


@dataclass
class Valued:
    """Counts of the values of one measure under one student."""

    measure: str
    student: str
    values: int = 0
    without_value: dict[str, int] = field(default_factory=dict)  # by status


def fill_values(
    store: Store, measured: Measured, need: Need, student: str, stop: threading.Event, listener: Listener
) -> Valued:
    """Compute and commit the missing values whose facts are stored."""
    result = Valued(measured.config.name, student)
    progress = Progress(
        "measure", f"{measured.config.name}/{student}", stored.count_values(store, need, measured.measure_id)
    )
    queries = _queries(store, measured, need)
    for samples in iter_places(store, PAGE, need.scope.datasets):
        if stop.is_set() or queries is None:
            break
        rows = list(_values(store, measured, need, samples, queries))
        with store.write() as conn:
            store.insert(conn, rows)
        result.values += len(rows)
        for row in rows:
            if row.value is None:
                result.without_value[row.status] = result.without_value.get(row.status, 0) + 1
        progress.done = result.values
        listener(progress)
    progress.ended = True
    listener(progress)
    return result


def _queries(store: Store, measured: Measured, need: Need) -> dict[str, Any] | None:
    """Return the vectors of the queries by key, one row each; None while some are still to be computed."""
    import numpy as np

    facts = stored.facts_of(store, need, dict.fromkeys(measured.queries, ""))
    found: dict[str, list[Any]] = {vector.key: [] for vector in measured.vectors} if measured.dataset else {}
    for key, vectors in found.items():
        for query in measured.queries:
            if (row := facts[query].vectors.get(key)) is None:
                return None
            if row.vector is not None:
                vectors.append(decoded(row.vector))
    return {key: np.array(rows) for key, rows in found.items()}


def _values(
    store: Store, measured: Measured, need: Need, samples: Sequence[str], queries: Mapping[str, Any]
) -> Iterator[ValueRow]:
    lacking = stored.lacking_values(store, need, measured.measure_id, samples)
    facts = stored.facts_of(store, need, {row.variant_id: row.reference_id for row in lacking})
    references = {row.reference_id: "" for row in lacking} if need.pairs else {}
    others = stored.facts_of(store, need, references)
    for row in lacking:
        found = [facts[row.variant_id], *([others[row.reference_id]] if need.pairs else [])]
        value, status = _value(measured, found, Texts.of(row), queries)
        yield ValueRow(measured.measure_id, need.student_id, row.variant_id, row.reference_id, value, status)


def _value(
    measured: Measured, found: Sequence[Facts], texts: Texts, queries: Mapping[str, Any]
) -> tuple[float | None, str]:
    """Return a measure's value and status; the value is None where the status is not "ok".

    `found` are the facts of the variant, and those of the reference where its vectors count too.
    """
    try:
        facts = _facts(measured, found[0], texts)._replace(queries=queries)
        if len(found) > 1:
            facts = facts._replace(references=_vectors(found[1]))
        value = measured.method.value(facts, measured.options)
        number = None if value is None else float(value)
    except Exception as error:  # any error of a package's function is reported with the measure's name
        raise MethodError(
            f"measure {measured.method.name!r} fails: {type(error).__name__}: {error}; facts are kept; fix it, then run sync again"
        ) from error
    if number is not None and math.isfinite(number):
        return number, LossStatus.OK.value
    if number is not None:
        return None, LossStatus.NOT_FINITE.value
    wrong = [
        row.status
        for each in found
        for row in (*each.losses.values(), *each.readouts.values(), *each.vectors.values())
        if row.status not in ("ok", "imported")
    ]
    return None, wrong[0] if wrong else UNUSABLE


def _facts(measured: Measured, found: Facts, texts: Texts) -> methods.Facts:
    losses = {
        name: None if row.loss_sum is None else (row.loss_sum / row.n_tokens, row.n_tokens)
        for name, row in found.losses.items()
    }
    return methods.Facts(losses, dict(_readouts(measured, found.readouts)), texts, _vectors(found))


def _vectors(found: Facts) -> dict[str, Any]:
    return {key: None if row.vector is None else decoded(row.vector) for key, row in found.vectors.items()}


def _readouts(measured: Measured, rows: Mapping[str, Any]) -> Iterator[tuple[str, tuple[float, ...] | None]]:
    for readout in measured.readouts:
        row = rows[readout.prompt_id]
        first = row._fields.index("lp0")
        known = tuple(row[first : first + len(readout.choices)])
        yield readout.name, known if row.status == LossStatus.OK else None
