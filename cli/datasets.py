"""Commands about datasets: dataset list, dataset remove."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from recycledb.cli.app import Json, app, emit, session, stdout

if TYPE_CHECKING:
    from recycledb.store.datasets import Removals

SHOWN_FILES = 3

dataset = typer.Typer(help="List the datasets, or take some out.", no_args_is_help=True)
app.add_typer(dataset, name="dataset")


@dataset.command("list")
def list_(as_json: Json = False) -> None:
    """List the datasets: samples, when they last changed, format, and the files that they were made from.

    Example: [bold]recycledb dataset list[/bold]
    """
    with session.open() as db:
        found = db.datasets()
    emit({"datasets": found}, as_json=as_json, show=lambda: _show_list(found))


@dataset.command()
def remove(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="The datasets to take out.")],
    as_json: Json = False,
) -> None:
    """Take datasets out: their samples are no longer asked about, scored, selected or exported, unless another dataset has them.

    No row is deleted: after adding the same files again, nothing is asked or computed twice.

    Example: [bold]recycledb dataset remove wrong[/bold]
    """
    with session.open() as db:
        removed = db.remove_datasets(*names)
    emit(removed.as_dict(), as_json=as_json, show=lambda: _show_removed(removed))


def _show_list(found: list[dict[str, Any]]) -> None:
    from rich.table import Column

    from recycledb.cli.plans import right
    from recycledb.cli.printing import Table

    out = stdout()
    if not found:
        out.print("no datasets; recycledb add FILE adds one")
        return
    # A name is typed again, so it is never cut; what has to give way is the list of files.
    name = Column("dataset", no_wrap=True)
    table = Table(name, *right("samples"), "last changed", "format", Column("files", overflow="fold"), box=None)
    for row in found:
        files = row["sources"]
        more = f" and {len(files) - SHOWN_FILES:,} more" if len(files) > SHOWN_FILES else ""
        when = row["added_at"][:16].replace("T", " ")
        table.add_row(row["dataset"], f"{row['samples']:,}", when, row["format"], ", ".join(files[:SHOWN_FILES]) + more)
    out.print(table)


def _show_removed(removed: "Removals") -> None:
    out = stdout()
    for each in removed.datasets:
        out.print(f"{each.dataset}: removed with its {_samples(each.samples, each.only_here)}", markup=False)
    if len(removed.datasets) > 1:
        out.print(f"together {_samples(removed.samples, removed.only_here)}")
    if removed.only_here:
        out.print("their rows stay: after adding the same files again, nothing is asked or computed twice")


def _samples(samples: int, only_here: int) -> str:
    return f"{samples:,} sample{'s' * (samples != 1)}, {only_here:,} of them in no other dataset"
