"""The measures command: all measures by model, with their counts and ranges."""

from typing import Any

from recycledb.cli.app import Json, app, emit, session, stdout
from recycledb.cli.plans import folded, right


@app.command()
def measures(as_json: Json = False) -> None:
    """List every measure of current variants by model: how many have a value, the range, and why others have none.

    recycledb.toml configures the measures of installed methods, one table each: measures.NAME.

    Example: [bold]recycledb measures[/bold]
    """
    with session.open() as db:
        found = db.measures()
    emit({"measures": found}, as_json=as_json, show=lambda: _show(found))


def _show(found: list[dict[str, Any]]) -> None:
    from recycledb.cli.printing import Table

    out = stdout()
    if not found:
        out.print("no measures yet; run `recycledb sync` to compute those in recycledb.toml")
        return
    table = Table("measure", "model", *right("values", "min", "mean", "max"), folded("no value"), box=None)
    for row in found:
        numbers = [_number(row[key]) for key in ("min", "mean", "max")]
        without = ", ".join(f"{count:,} {status}" for status, count in row["without_number"].items())
        table.add_row(row["measure"], row["model"], f"{row['numbers']:,}", *numbers, without)
    out.print(table)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"
