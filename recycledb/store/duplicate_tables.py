"""The tables of near-duplicates; see `recycledb.store.tables`, which imports this module."""

from sqlalchemy import BigInteger, Double
from sqlmodel import Field, SQLModel


class DuplicateSearch(SQLModel, table=True):
    """A method of finding near-duplicates, with its parameters."""

    __tablename__ = "duplicate_search"

    duplicate_search_id: str = Field(primary_key=True)
    method: str
    version: int
    parameters: str
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class DuplicatePool(SQLModel, table=True):
    """A set of samples of which all pairs were looked for."""

    __tablename__ = "duplicate_pool"

    duplicate_search_id: str = Field(primary_key=True, foreign_key="duplicate_search.duplicate_search_id")
    pool_sha256: str = Field(primary_key=True, description="SHA-256 of the sorted sample ids")
    pool_size: int
    created_at: str
    digest: int | None = Field(default=None, sa_type=BigInteger)


class NearDuplicate(SQLModel, table=True):
    """Two samples whose questions are nearly the same."""

    __tablename__ = "near_duplicate"

    duplicate_search_id: str = Field(primary_key=True, foreign_key="duplicate_search.duplicate_search_id")
    sample_id: str = Field(primary_key=True, foreign_key="sample.sample_id", description="the smaller of the two ids")
    other_id: str = Field(primary_key=True, foreign_key="sample.sample_id", index=True)
    similarity: float = Field(sa_type=Double, description="what share of the two sets of shingles is in both (Jaccard)")
    digest: int | None = Field(default=None, sa_type=BigInteger)
