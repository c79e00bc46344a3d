"""The demo command: the whole pipeline on shipped data."""

import os
from pathlib import Path
from typing import Annotated

import typer

from recycledb.cli.app import app, session, stderr, stdout


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to create.")] = Path("recycledb-demo"),
) -> None:
    """Run the whole pipeline on shipped data: no API key, no GPU, no network.

    Then other methods on the same samples: SelectIT, a judge, facility location, mosaics, rules, and how far measures agree.

    recycledb.toml and the store stay in DIR, so that you can try every other command there.

    Example: [bold]recycledb demo && cd recycledb-demo && recycledb status[/bold]
    """
    from recycledb.demo import lay_out

    written = lay_out(folder)
    os.environ.pop("RECYCLEDB_STORE", None)  # the demo uses the store in its folder, not the user's
    before = Path.cwd()
    os.chdir(folder)
    try:
        _tour()
    finally:
        os.chdir(before)
    _close(folder, written)


def _tour() -> None:
    _reflect()
    _measure()
    _choose()


def _reflect() -> None:
    """Show Selective Reflection-Tuning."""
    from recycledb.demo import worth_showing

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


def _measure() -> None:
    """Show measures, judgements and transforms: what a longer configuration adds to the same store."""
    from recycledb.demo import add_measures

    _say("Other methods for the same samples. These tables are now added to recycledb.toml:")
    _show_toml(add_measures(Path()))
    _say("Only what is missing because of them is asked and computed.")
    _run("sync")
    _say("Every measure by model. A number is a row, whatever method it is from.")
    _run("measures")
    _say("Are the teacher's answers better? The judge saw each pair in both orders; flipped: it contradicted itself.")
    _run("judge", "report", "better")
    _say("Two mosaics, and two answers that follow rules; what is stated is true of each of them.")
    _run("query", _MOSAICS, "--format", "jsonl")
    _run("query", _RULED, "--format", "jsonl")


def _choose() -> None:
    """Show recipes that choose by measures, and how far measures agree."""
    _say("SelectIT: what both students rate highest, each weighted by its number of parameters.")
    _run("select", "selectit", "--top", "8", "-o", "selectit.json")
    _say("Facility location: of the harder half, the samples that stand for the most others.")
    _run(
        *("select", "superfilter_d", "--student", "small", "--param", "encoder=small"),
        *("--param", "pool=50%", "--top", "8", "-o", "diverse.json"),
    )
    _say("The ordering is stored. After the first, little is gained: to so small a model all samples look alike.")
    _run("query", _ORDERING)
    _say(
        "Do measures agree? Look at the last two rows: the length of the answer, and a random order. Most rankings hardly beat them, "
        "so hold a selection against `select long` and `select random` (docs/measures.md; arXiv:2410.09335)."
    )
    _run(*("compare", *(word for name in _MEASURES for word in ("--measure", name)), "--top", "20%"))


_MEASURES = ("ifd/small", "ifd/large", "selectit/small", "selectit/large", "quality/judge", "ppl/small")
_MOSAICS = (
    "SELECT v.instruction, v.output FROM variants v JOIN derivations d ON d.variant_id = v.variant_id "
    "JOIN derivation_members m ON m.derivation_id = d.derivation_id WHERE v.kind = 'mosaic' AND v.is_current = 1 "
    "GROUP BY v.instruction, v.output HAVING count(*) > 1 ORDER BY length(v.instruction) LIMIT 2"
)
_RULED = "SELECT instruction, output FROM variants WHERE is_current = 1 AND kind = 'ruler' ORDER BY length(instruction) LIMIT 2"
_ORDERING = (
    "SELECT i.rank, round(i.gain, 2) AS gain, v.instruction FROM ordering_items i JOIN variants v "
    "ON v.variant_id = i.variant_id WHERE i.ordering LIKE 'facility%' AND i.rank <= 5 ORDER BY i.rank"
)


def _say(text: str) -> None:
    """Print a comment, wrapped to the terminal with a # before each line."""
    import textwrap

    out = stdout()
    out.print()
    for line in textwrap.wrap(text, max(20, min(out.width, 120) - 2), break_on_hyphens=False):
        out.print(f"# {line}", style="dim")


def _show_toml(text: str) -> None:
    out = stdout()
    for line in text.splitlines():
        out.text(line)


def _run(*arguments: str) -> None:
    """Print a command as a user would type it, then run it."""
    out = stdout()
    out.print("$ ", style="bold green", end="")
    out.print(f"recycledb {' '.join(map(_quoted, arguments))}", style="bold")
    session.forget()
    code = app(list(arguments), standalone_mode=False)
    if code:
        raise typer.Exit(code)


def _quoted(argument: str) -> str:
    """Quote an argument for a shell, in the quotes that a user would take: SQL has single ones of its own."""
    import shlex

    plain = shlex.quote(argument)
    return f'"{argument}"' if "'" in argument and not set('"$`\\!') & set(argument) else plain


def _close(folder: Path, written: list[str]) -> None:
    out = stdout()
    made = ["recycle.db", "selective-small.json", "selective-large.json", "selectit.json", "diverse.json"]
    out.print()
    out.print(f"files in {folder}/", style="bold")
    for name in (*written, *made):
        path = folder / name
        size = path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        out.print(f"  {name:<24} {size / 1e6:8.2f} MB")
    stderr().print()
    stderr().print(f"next: cd {folder} && recycledb view opens the pages of this store", soft_wrap=True, markup=False)
    stderr().print("or, for your own data: recycledb init in another folder, with tables of this recycledb.toml")
