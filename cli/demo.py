"""The demo command: the whole pipeline on shipped data."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from recycledb.cli.app import app, session, stderr, stdout


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to create.")] = Path("recycledb-demo"),
) -> None:
    """Run the whole pipeline on shipped data: no API key, no GPU, no network.

    recycledb.toml and the store stay in DIR, so that you can try every other command there.

    Example: [bold]recycledb demo && cd recycledb-demo && recycledb status[/bold]
    """
    from recycledb.demo import lay_out, worth_showing

    written = lay_out(folder)
    os.environ.pop("RECYCLEDB_STORE", None)  # the demo uses the store in its folder, not the user's
    before = Path.cwd()
    os.chdir(folder)
    try:
        _tour(worth_showing)
    finally:
        os.chdir(before)
    _close(folder, written)


def _tour(worth_showing: Any) -> None:
    _say("Forty samples and one duplicate; a recorded teacher; two tiny students, small and large.")
    _run("add", "samples.json")
    _say("The plan: questions, tokens and cost.")
    _run("sync", "--dry-run")
    _say("Ask the teacher, extract variants, score them. Each reply and each loss is a row, committed as it arrives.")
    _run("sync")
    _say("Run it again: nothing is missing, so nothing is asked or computed.")
    _run("sync")
    _run("status")
    _say("Selective Reflection-Tuning: each student selects which variant of a sample to keep.")
    _run("select", "selective", "--student", "small", "-o", "selective-small.json")
    _run("select", "selective", "--student", "large", "-o", "selective-large.json")
    _run("compare", "small", "large")
    with session.open() as db:
        sample = worth_showing(db.store)
    _say(
        "The history of one sample: the teacher's replies, the students' scores, the selections that include it and why."
    )
    _run("show", sample[:12])
    _say("All of it can be queried in SQL.")
    _run(
        "query",
        "SELECT kind, student, count(*) AS n, round(avg(ifd_ppl), 3) AS mean_ifd FROM scores GROUP BY kind, student",
    )


def _say(text: str) -> None:
    out = stdout()
    out.print()
    out.print(f"# {text}", style="dim")


def _run(*arguments: str) -> None:
    """Print a command as a user would type it, then run it."""
    import shlex

    out = stdout()
    out.print("$ ", style="bold green", end="")
    out.print(f"recycledb {shlex.join(arguments)}", style="bold")
    session.forget()
    code = app(list(arguments), standalone_mode=False)
    if code:
        raise typer.Exit(code)


def _close(folder: Path, written: list[str]) -> None:
    out = stdout()
    made = ["recycle.db", "selective-small.json", "selective-large.json"]
    out.print()
    out.print(f"files in {folder}/", style="bold")
    for name in (*written, *made):
        path = folder / name
        size = path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        out.print(f"  {name:<24} {size / 1e6:8.2f} MB")
    stderr().print()
    stderr().print(
        f"next: cd {folder} && recycledb view opens the pages of this store; for your own data, recycledb init in another folder"
    )
