"""What a query returns in Python: columns and rows, with conversions to data frames."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from recycledb.formats.arrow import to_table
from recycledb.store import Row

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow


@dataclass(frozen=True)
class Answer:
    """A query's columns and rows, with conversions to data frames."""

    columns: list[str]
    rows: list[Row]

    def _repr_html_(self) -> str:
        from recycledb.selection.notebook import answer_html

        return answer_html(self.columns, self.rows)

    def to_arrow(self) -> "pyarrow.Table":
        """Return a pyarrow Table; a column of mixed types is text.

        >>> db.query("SELECT 1 AS a UNION ALL SELECT 'x' ORDER BY 1").to_arrow()["a"].to_pylist()
        ['1', 'x']
        """
        return to_table(self.columns, self.rows)

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a pandas DataFrame; pandas must be installed."""
        return self.to_arrow().to_pandas()

    def to_polars(self) -> "polars.DataFrame":
        """Return a polars DataFrame; polars must be installed."""
        import polars

        return polars.DataFrame(polars.from_arrow(self.to_arrow()))
