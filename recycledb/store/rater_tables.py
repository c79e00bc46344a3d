"""The SQLModel table of measures and judgings by teachers, part of `recycledb.store.tables`."""

from sqlalchemy import BigInteger, Double
from sqlmodel import Field, SQLModel


class TeacherMeasure(SQLModel, table=True):
    """A measure that a teacher takes: ratings of single variants, or judgements of ordered pairs of variants of a sample."""

    __tablename__ = "teacher_measure"

    measure_id: str = Field(primary_key=True)
    name: str
    method: str = Field(description="`judging` for pairs, else the method of the measure")
    teacher_id: str = Field(foreign_key="teacher.teacher_id")
    prompt_id: str = Field(foreign_key="prompt.prompt_id")
    first_kind: str = Field(description="for pairs the first kind, or `answer/AUTHOR`; else ''")
    second_kind: str = Field(description="for pairs the second kind; else that of the reference, '' for none")
    low: float | None = Field(sa_type=Double, description="the lowest number of the scale; NULL for pairs")
    high: float | None = Field(sa_type=Double)
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)
