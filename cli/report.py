"""Commands on whole stores: report, merge."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recycledb.cli.app import Json, app, emit, session, stderr, stdout

if TYPE_CHECKING:
    from recycledb.store.merge import Merged


@app.command()
def report(
    out: Annotated[Path, typer.Option("-o", "--out", metavar="FILE", help="The HTML file to write.")] = Path(
        "report.html"
    ),
    samples: Annotated[
        int | None,
        typer.Option(
            min=0, metavar="N", help="Include the texts of the first N samples. Default: as many as fit in 15 MB."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write a report of the store as one HTML file, with texts; it works offline.

    Example: [bold]recycledb report -o report.html[/bold]
    """
    with session.open() as db:
        written = db.report(out, samples=samples)
    size = f"{written['bytes'] / 1e6:,.1f} MB"
    some = "" if written["samples"] == written["of"] else f" of {written['of']:,}"
    emit(
        written,
        as_json=json,
        show=lambda: stdout().print(f"{out}: {written['samples']:,}{some} samples, {size}", markup=False),
    )


@app.command()
def merge(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE_URL", help="The other store: sqlite:///PATH or duckdb:///PATH.")
    ],
    json: Json = False,
) -> None:
    """Copy from SOURCE_URL every row that this store does not have. Safe to re-run.

    Works between any two backends, also while a sync writes to the source. A name used in both stores keeps its meaning in this one.

    Example, to query a SQLite store in DuckDB: [bold]recycledb --store duckdb:///lens.duckdb merge sqlite:///recycle.db[/bold]
    """
    from rich.progress import Progress, SpinnerColumn, TextColumn

    from recycledb.store.merge import merge, open_source

    with open_source(source) as there, session.open(create=True) as here:
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False))
        with Progress(*columns, console=stderr(), transient=True, disable=not stderr().is_terminal) as progress:
            task = progress.add_task("comparing")
            merged = merge(
                here.store, there, lambda table, new: progress.update(task, description=f"{table}: {new:,} new")
            )
    emit(merged.as_dict(), as_json=json, show=lambda: _show_merged(merged, source))


def _show_merged(merged: "Merged", source: str) -> None:
    out = stdout()
    new = {table: count for table, count in merged.rows.items() if count}
    for table, count in new.items():
        out.print(f"{count:>12,}  {table}", markup=False)
    if not new:
        out.print(f"nothing new: this store already has every row of {source}", markup=False)
    for clash in merged.clashes:
        out.print(
            f"{clash.kind} {clash.name!r} is {clash.here} here and {clash.there} in {source}; its meaning here is unchanged",
            style="yellow",
            markup=False,
        )
