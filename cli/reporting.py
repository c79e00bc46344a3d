"""Commands that look at the store as a whole or bring stores together: report, merge."""

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
        typer.Option(min=0, metavar="N", help="Put in the texts of the first N samples only. Default: of all."),
    ] = None,
    json: Json = False,
) -> None:
    """Write one HTML file that shows what is in the store; it opens offline and holds every text.

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
    """Bring every row of another store in that this one lacks; again brings only what is new.

    Any backend to any other, also while the source is being written. Names keep the meaning that they have here.

    Example, a SQLite store in DuckDB's SQL: [bold]recycledb --store duckdb:///lens.duckdb merge sqlite:///recycle.db[/bold]
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
        out.print(f"nothing new: every row of {source} is here already", markup=False)
    for clash in merged.clashes:
        out.print(
            f"{clash.kind} {clash.name!r} means {clash.here} here and {clash.there} in {source}: it keeps its meaning here",
            style="yellow",
            markup=False,
        )
