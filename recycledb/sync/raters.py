"""Measures and judgings by teachers: who is asked what about which variants.

Invariant: a question is asked once for each variant, or ordered pair of variants, with the same teacher and prompt, whichever measure
or judging asks; the scale is no part of it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from recycledb import methods
from recycledb.config import Config, TeacherConfig
from recycledb.errors import ConfigError
from recycledb.methods.judging import COMPARE
from recycledb.options import JudgingConfig, MeasureConfig
from recycledb.reflection import prompts
from recycledb.schema import IDENTITY_LENGTH, content_id, utc_now
from recycledb.store import Meaning, Store
from recycledb.store.rater_rows import TeacherMeasureRow

JUDGING = "judging"
RATING = "rating"


@dataclass(frozen=True)
class Rater:
    """A configured rating measure or judging; `first` and `second` as in `recycledb.store.subjects.Subjects`."""

    name: str
    method: str
    teacher: TeacherConfig
    prompt: prompts.PromptText
    kinds: tuple[str, ...]
    first: str = ""
    second: str = ""
    scale: tuple[float, float] | None = None

    @property
    def what(self) -> str:
        """The kind of its name in the store."""
        return JUDGING if self.method == JUDGING else RATING

    @property
    def prompt_name(self) -> str:
        """The name of its prompt in the store."""
        return f"{self.prompt.step}/{self.name}"

    def _row(self, teacher_id: str) -> TeacherMeasureRow:
        low, high = self.scale or (None, None)
        return TeacherMeasureRow(
            measure_id="",
            name=self.name,
            method=self.method,
            teacher_id=teacher_id,
            prompt_id=self.prompt.prompt_id,
            first_kind=self.first,
            second_kind=self.second,
            low=low,
            high=high,
            created_at=utc_now(),
        )

    def meaning(self, teacher_id: str) -> Meaning:
        """Return its name with the id that it has when this teacher is asked."""
        return Meaning(self.what, self.name, teacher_measure_id_of(self._row(teacher_id)))

    def register(self, store: Store, conn: Connection, teacher_id: str) -> None:
        """Write the measure, and point its name to it; its teacher and prompt are there."""
        row = self._row(teacher_id)
        key = teacher_measure_id_of(row)
        store.insert(conn, [row._replace(measure_id=key)])
        store.ensure_name(conn, self.what, self.name, key)


def teacher_measure_id_of(row: TeacherMeasureRow) -> str:
    """Return the content address of a teacher's measure."""
    scale = [None if each is None else f"{each:g}" for each in (row.low, row.high)]
    question = (row.teacher_id, row.prompt_id, row.first_kind, row.second_kind)
    return content_id("teacher_measure", row.name, row.method, *question, *scale, length=IDENTITY_LENGTH)


def rating_measures(config: Config, names: Sequence[str]) -> tuple[Rater, ...]:
    """Return the configured measures by teachers with these names, or all. Raises ConfigError."""
    chosen = [each for each in config.measures.values() if each.by_teacher and (not names or each.name in names)]
    return tuple(_rater(config, each) for each in chosen)


def _rater(config: Config, measure: MeasureConfig) -> Rater:
    method = methods.teacher_measures()[measure.method]
    options = measure.options(method.options)
    source = f"measures.{measure.name}"
    return Rater(
        name=measure.name,
        method=method.name,
        teacher=config.get_teacher(measure.teacher),
        prompt=prompts.parse(methods.steps()[method.step], method.template(options), source),
        kinds=measure.kinds,
        second=method.reference(options),
        scale=method.scale(options),
    )


def judgings(config: Config) -> tuple[Rater, ...]:
    """Return the configured judgings. Raises ConfigError."""
    return tuple(_judging(config, each) for each in config.judgings.values())


def _judging(config: Config, judging: JudgingConfig) -> Rater:
    step = methods.steps()[COMPARE]
    prompt = prompts.parse(step, judging.prompts or step.wording(), f"judgings.{judging.name}")
    for names in (("{answer_1}", "{answer}", "{output}"), ("{answer_2}", "{output_2}")):
        if not any(name in prompt.text for name in names):
            raise ConfigError(f"judgings.{judging.name}: the prompt has no {names[0]}, which the judge must see")
    first, second = judging.between
    return Rater(
        judging.name, JUDGING, config.get_teacher(judging.teacher), prompt, judging.kinds, first=first, second=second
    )
