"""Measures: the facts that they need of a student, and their values, which are derived from facts without a model.

Invariant: a value depends only on facts and on the measure's version and options, which are part of its id; so a new formula or
option gives a new measure whose values are missing, and no fact is computed again for it.
"""

import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from recycledb import methods
from recycledb.config import Config, StudentConfig
from recycledb.errors import ConfigError, MethodError
from recycledb.methods import Readout, StudentMeasure, Vector
from recycledb.options import MeasureConfig
from recycledb.schema import IDENTITY_LENGTH, LossStatus, Texts, canonical_json, content_id, utc_now
from recycledb.store import Store
from recycledb.store import measures as stored
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
    for samples in iter_places(store, PAGE, need.scope.datasets):
        if stop.is_set():
            break
        rows = list(_values(store, measured, need, samples))
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


def _values(store: Store, measured: Measured, need: Need, samples: Sequence[str]) -> Iterator[ValueRow]:
    lacking = stored.lacking_values(store, need, measured.measure_id, samples)
    facts = stored.facts_of(store, need, {row.variant_id: row.reference_id for row in lacking})
    for row in lacking:
        found = facts[row.variant_id]
        value, status = _value(measured, found, Texts.of(row))
        yield ValueRow(measured.measure_id, need.student_id, row.variant_id, row.reference_id, value, status)


def _value(measured: Measured, found: Facts, texts: Texts) -> tuple[float | None, str]:
    """Return a measure's value and status; the value is None where the status is not "ok"."""
    try:
        value = measured.method.value(_facts(measured, found, texts), measured.options)
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
        for row in (*found.losses.values(), *found.readouts.values(), *found.vectors.values())
        if row.status not in ("ok", "imported")
    ]
    return None, wrong[0] if wrong else UNUSABLE


def _facts(measured: Measured, found: Facts, texts: Texts) -> methods.Facts:
    losses = {
        name: None if row.loss_sum is None else (row.loss_sum / row.n_tokens, row.n_tokens)
        for name, row in found.losses.items()
    }
    vectors = {key: None if row.vector is None else decoded(row.vector) for key, row in found.vectors.items()}
    return methods.Facts(losses, dict(_readouts(measured, found.readouts)), texts, vectors)


def _readouts(measured: Measured, rows: Mapping[str, Any]) -> Iterator[tuple[str, tuple[float, ...] | None]]:
    for readout in measured.readouts:
        row = rows[readout.prompt_id]
        first = row._fields.index("lp0")
        known = tuple(row[first : first + len(readout.choices)])
        yield readout.name, known if row.status == LossStatus.OK else None
