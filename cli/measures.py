"""The command that lists measures: what is measured of variants, under whom, and how many numbers there are."""

from typing import Any

from recycledb.cli.app import Json, app, emit, session, stdout
from recycledb.cli.plans import right


@app.command()
def measures(as_json: Json = False) -> None:
    """List every measure of current variants by model: how many have a number, how many do not and why, and its range.

    A measure of an installed method is taken where recycledb.toml has a table for it, as in [bold][measures.NAME][/bold].

    Example: [bold]recycledb measures[/bold]
    """
    with session.open() as db:
        found = db.measures()
    emit({"measures": found}, as_json=as_json, show=lambda: _show(found))


def _show(found: list[dict[str, Any]]) -> None:
    from recycledb.cli.printing import Table

    out = stdout()
    if not found:
        out.print("no measures yet; `recycledb sync` computes what recycledb.toml asks for")
        return
    table = Table("measure", "model", *right("numbers", "least", "mean", "most"), "without a number", box=None)
    for row in found:
        numbers = [_number(row[key]) for key in ("least", "mean", "most")]
        without = ", ".join(f"{count:,} {status}" for status, count in row["without_number"].items())
        table.add_row(row["measure"], row["model"], f"{row['numbers']:,}", *numbers, without)
    out.print(table)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
