"""The SQLModel table of marks, part of `recycledb.store.tables`."""

from sqlalchemy import BigInteger
from sqlmodel import Field, SQLModel


class Mark(SQLModel, table=True):
    """What a person decided about a sample or one of its variants. Rows are only added: a later one of the same person counts instead."""

    mark_id: str = Field(primary_key=True)
    sample_id: str = Field(foreign_key="sample.sample_id", index=True)
    variant_id: str | None = Field(foreign_key="variant.variant_id", description="NULL for the sample as a whole")
    mark: str
    note: str
    marked_by: str
    created_at: str
    seen: str = Field(description="JSON object: the page and the variants that the person had before them")
    digest: int | None = Field(default=None, sa_type=BigInteger)
