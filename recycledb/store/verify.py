"""Whether a store is sound: references hold, and ids are the addresses of their content.

SQLite enforces references when rows are written; DuckDB's tables have none, so they are looked at here on every backend.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from sqlalchemy import Connection, text

from recycledb.schema import Kind, Texts, sample_id, variant_id
from recycledb.store.tables import metadata

REPORTED = 20  # of each kind


def references(rows: Callable[..., Sequence[Any]]) -> Iterator[str]:
    """Yield a line for each foreign key that rows of a table break."""
    for table in metadata.sorted_tables:
        for column in table.columns:
            for key in column.foreign_keys:
                other, name = key.target_fullname.split(".")
                count = rows(
                    f"SELECT count(*) FROM {table.name} t WHERE t.{column.name} IS NOT NULL "
                    f"AND NOT EXISTS (SELECT 1 FROM {other} o WHERE o.{name} = t.{column.name})"
                )[0][0]
                if count:
                    yield f"{count} rows of {table.name} name a {column.name} that {other} does not have"


def addresses(read: Callable[[], AbstractContextManager[Connection]]) -> Iterator[str]:
    """Yield a line for each sample and variant whose id is not the hash of its content."""
    with read() as conn:
        wrong = 0
        for row in conn.execute(text("SELECT sample_id, instruction, input, output FROM sample")):
            if sample_id(Texts(*row[1:])) != row[0] and (wrong := wrong + 1) <= REPORTED:
                yield f"sample {row[0]} does not hold the content that its id is the address of"
    with read() as conn:
        wrong = 0
        sql = "SELECT variant_id, sample_id, kind, parent_id, text_id, instruction, input, output FROM variant"
        for row in conn.execute(text(sql)):
            expected = variant_id(row[1], Kind(row[2]), Texts(*row[5:]), row[3], row[4])
            if expected != row[0] and (wrong := wrong + 1) <= REPORTED:
                yield f"variant {row[0]} does not hold the content that its id is the address of"
