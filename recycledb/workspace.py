"""The library's front door: a store and its configuration, with what the commands do as methods.

Invariant: a method does what the command of its name does, and returns as an object what the command prints.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from recycledb.adding import Added, add
from recycledb.config import Config, load
from recycledb.formats.arrow import to_table
from recycledb.inspecting import show, spending_of, status
from recycledb.store import Row, Store
from recycledb.sync import Listener, Outcome, Plan, Sync, Target, resolve
from recycledb.sync.progress import silent

if TYPE_CHECKING:
    import pandas
    import polars
    import pyarrow

    from recycledb.selection.compare import Comparison
    from recycledb.selection.select import Selected


@dataclass(frozen=True)
class Answer:
    """A query's columns and rows, and conversions to the data frames that people use."""

    columns: list[str]
    rows: list[Row]

    def to_arrow(self) -> "pyarrow.Table":
        """Return a pyarrow Table; a column of mixed types is text."""
        return to_table(self.columns, self.rows)

    def to_pandas(self) -> "pandas.DataFrame":
        """Return a pandas DataFrame; pandas must be installed."""
        return self.to_arrow().to_pandas()

    def to_polars(self) -> "polars.DataFrame":
        """Return a polars DataFrame; polars must be installed."""
        import polars

        return polars.DataFrame(polars.from_arrow(self.to_arrow()))


class Workspace:
    """An open store with its configuration. Close it, or use it in a `with` block."""

    def __init__(self, store: Store, config: Config) -> None:
        self.store, self.config = store, config

    @classmethod
    def open(cls, url: str | None = None, *, config: str | Path | None = None, create: bool = False) -> Self:
        """See `recycledb.open`."""
        read = load(None if config is None else Path(config))
        return cls(Store.open(url or read.store.url, create=create), read)

    def close(self) -> None:
        """Close the store."""
        self.store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, *paths: str | Path, dataset: str | None = None, format: str = "auto") -> list[Added]:
        """Bring samples in from files; again brings in only what is new. One report a dataset.

        >>> db.add("samples.json")[0].added
        40
        """
        return add(self.store, [Path(path) for path in paths], dataset, format)

    def plan(self, *, only: str | None = None, teacher: str | None = None, students: Sequence[str] = ()) -> Plan:
        """Count what is missing for the configured state; nothing is written or asked.

        >>> db.plan(only="reflect").calls > 100
        True
        """
        return Sync(self.store, self._target(only, teacher, students)).plan()

    def sync(
        self,
        *,
        only: str | None = None,
        teacher: str | None = None,
        students: Sequence[str] = (),
        lazy: bool = False,
        limit: int | None = None,
        max_cost: float | None = None,
        retry_failed: bool = False,
        listener: Listener = silent,
    ) -> Outcome:
        """Fill in what is missing; `listener` is told of progress. Students are names of the configuration, or NAME=MODEL.

        >>> db.sync().complete
        True
        """
        target = self._target(only, teacher, students, lazy=lazy)
        run = Sync(self.store, target, limit=limit, max_cost=max_cost, retry_failed=retry_failed, listener=listener)
        return run.run()

    def _target(self, only: str | None, teacher: str | None, students: Sequence[str], *, lazy: bool = False) -> Target:
        chosen = self.config.get_students(tuple(students)) if students else None
        return resolve(self.config, only=only, teacher=teacher, students=chosen, lazy=lazy)

    def query(self, sql: str, *, timeout_s: float | None = None, **parameters: Any) -> Answer:
        """Run read-only SQL in the store's own dialect; `:name` is bound from the keyword of that name.

        >>> db.query("SELECT count(*) AS n FROM samples").rows
        [(40,)]
        >>> db.query("SELECT kind, count(*) AS n FROM variants GROUP BY kind").to_arrow().num_rows
        5
        """
        from recycledb.selection.query import query

        with query(self.store, sql, parameters, timeout_s=timeout_s) as result:
            return Answer(result.columns, list(result.rows))

    def select(
        self,
        recipe: str | Path,
        *,
        out: str | Path | None = None,
        name: str | None = None,
        format: str = "alpaca",
        timeout_s: float | None = None,
        **parameters: Any,
    ) -> "Selected":
        """Run a recipe (a shipped one's name, or the Path of a .sql file), record the selection, write its rows to `out`.

        >>> db.select("selective", student="small", out="recycled.json").counts["reflect_both"] > 0
        True
        """
        from recycledb.selection.recipes import get_recipe, read_recipe
        from recycledb.selection.select import select

        found = read_recipe(recipe) if isinstance(recipe, Path) else get_recipe(recipe)
        output = None if out is None else Path(out)
        return select(self.store, found, parameters, name=name, output=output, format=format, timeout_s=timeout_s)

    def compare(self, *students: str, **options: Any) -> "Comparison":
        """Put two or more students side by side, or teachers, or prompts; options as in `recycledb.selection.compare.compare`.

        >>> round(db.compare("small", "large").correlations[0].spearman, 1) > 0
        True
        """
        from recycledb.selection.compare import compare

        return compare(self.store, students, **options)

    def show(self, identifier: str) -> dict[str, Any]:
        """Return everything known of one sample, by a unique prefix of an id.

        >>> sample = db.query("SELECT sample_id FROM samples LIMIT 1").rows[0][0]
        >>> db.show(sample[:12])["sample_id"] == sample
        True
        """
        return show(self.store, identifier)

    def status(self) -> dict[str, Any]:
        """Return what there is and what is missing.

        >>> db.status()["samples"]
        40
        """
        return status(self.store, resolve(self.config), spending=spending_of(self.store, self.config))
