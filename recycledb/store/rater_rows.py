"""The row of measures and judgings by teachers, part of `recycledb.store.rows`."""

from typing import NamedTuple


class TeacherMeasureRow(NamedTuple):
    """A row of `teacher_measure`."""

    measure_id: str
    name: str
    method: str
    teacher_id: str
    prompt_id: str
    first_kind: str
    second_kind: str
    low: float | None
    high: float | None
    created_at: str
