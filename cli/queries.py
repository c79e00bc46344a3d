"""The query command: read-only SQL."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from recycledb.cli import completion
from recycledb.cli.app import app, session, stderr
from recycledb.cli.options import Params, parse_params
from recycledb.errors import SelectionError


@app.command()
def query(
    sql: Annotated[
        str | None,
        typer.Argument(metavar="[SQL]", help="One SELECT in the store's dialect (SQLite, DuckDB or PostgreSQL)."),
    ] = None,
    *,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="Read the SQL from a file, or from stdin (-).")
    ] = None,
    format: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="table, json, jsonl, csv or parquet. Default: by the extension of --output, else table.",
            autocompletion=completion.format_query,
        ),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The file to write; - is stdout.")] = None,
    param: Params = [],  # noqa: B006 — typer copies it
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Abort the query after this time.")] = None,
    allow_external: Annotated[
        bool, typer.Option("--allow-external", help="Allow the SQL to read other files: ATTACH, read_csv …")
    ] = False,
) -> None:
    """Run read-only SQL on the store. docs/schema.md lists the views and their columns.

    Example: [bold]recycledb query "SELECT kind, avg(ifd_ppl) FROM scores GROUP BY kind"[/bold]
    """
    from recycledb.selection import query as queries
    from recycledb.selection.recipes import values_of

    text = _sql_text(sql, file)
    parameters = values_of(text, parse_params(param))
    output = None if output == Path("-") else output
    width = queries.terminal_width() if sys.stdout.isatty() else None
    with (
        session.open() as db,
        queries.query(db.store, text, parameters, timeout_s=timeout, allow_external=allow_external) as result,
    ):
        chosen = format or queries.format_of(output)
        rows = queries.write_result(result, chosen, output, queries.shown_on(sys.stdout, chosen), width=width)
    if output is not None:
        stderr().print(f"wrote {rows} rows to {output}", markup=False, soft_wrap=True)


def _sql_text(sql: str | None, file: Path | None) -> str:
    if (sql is None) == (file is None):
        raise typer.BadParameter('give either SQL, as in recycledb query "SELECT …", or -f FILE')
    if file is None:
        return str(sql)
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SelectionError(f"{file} cannot be read: {error}") from error
