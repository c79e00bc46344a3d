"""Commands about judgements and what they are about: judge report, judge import, judge data, add-answers, import-values."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recycledb.cli import completion
from recycledb.cli.app import Json, app, emit, session, stdout
from recycledb.cli.plans import right

if TYPE_CHECKING:
    from recycledb.reviews import ImportedReviews
    from recycledb.selection.imported import AddedAnswers, ImportedValues
    from recycledb.selection.judge_data import JudgeData
    from recycledb.selection.judged import JudgeReport, Tally

judge = typer.Typer(help="What teachers judge in pairs.", no_args_is_help=True)
app.add_typer(judge, name="judge")

Rows = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="A JSON list, JSON lines, CSV, TSV or Parquet: one row for each position."),
]
Dataset = Annotated[
    str,
    typer.Option(help="The dataset that the rows of FILE belong to, in its order.", autocompletion=completion.dataset),
]
Field = Annotated[str | None, typer.Option(help="The field of the rows to read. Default: the first that is known.")]


@judge.command("report")
def report(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A judging in recycledb.toml.")], as_json: Json = False
) -> None:
    """Show how often one kind of answers wins against another, and how far the judge contradicts itself.

    The winning score is (wins − losses) / pairs + 1: 1 is a draw. A flipped pair is one whose two orders contradict each other.

    Example: [bold]recycledb judge report gpt4[/bold]
    """
    with session.open() as db:
        found = db.judge_report(name)
    emit(found.as_dict(), as_json=as_json, show=lambda: _show_report(found))


def _show_report(found: "JudgeReport") -> None:
    from recycledb.cli.printing import Table

    out, tally = stdout(), found.all
    out.print(f"{found.judging}: {found.first} against {found.second}, judged by {found.teacher}", markup=False)
    table = Table("dataset", *right("win", "tie", "lose", "score", "flipped", "undecided"), box=None)
    parts = dict(found.datasets) if len(found.datasets) != 1 else {}
    for dataset, part in parts.items():
        table.add_row(dataset, *_numbers(part))
    table.add_row("all", *_numbers(tally))
    out.print(table)
    if tally.readings:
        share = f" ({tally.flipped / tally.pairs:.1%} of the pairs flipped)" if tally.pairs else ""
        out.print(
            f"net for the answer shown first: {tally.first_net:+,} of {tally.readings:,} readings{share}", markup=False
        )


def _numbers(tally: "Tally") -> list[str]:
    score = "–" if tally.score is None else f"{tally.score:.4f}"
    counts = [f"{number:,}" for number in (tally.wins, tally.ties, tally.losses)]
    return [*counts, score, f"{tally.flipped:,}", f"{tally.undecided:,}"]


@judge.command("import")
def import_logs(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE", help="Logs such as vicuna_wrap_reviews_gpt4.json, each of one test set."),
    ],
    *,
    judge: Annotated[str, typer.Option(help="The name that the judge gets here, such as gpt-4.")],
    first: Annotated[str, typer.Option(metavar="AUTHOR", help="The model that Answer1 is by.")],
    second: Annotated[str, typer.Option(metavar="AUTHOR", help="The model that Answer2 is by.")],
    name: Annotated[str | None, typer.Option(help="The name of the judging. Default: the judge's.")] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            help="The test set, where there is one FILE. Default: from the file's name; created if missing.",
            autocompletion=completion.dataset,
        ),
    ] = None,
    prompt: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The prompt that was asked, for the record.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Import published reviews of two models' answers, in both orders. Safe to re-run.

    The questions become a dataset, the answers variants of kind answer, the reviews replies of the judge; no teacher is asked.

    Example: [bold]recycledb judge import *_reviews_gpt4.json --judge gpt-4 --first cherry --second alpaca[/bold]
    """
    with session.open() as db:
        found = db.import_reviews(
            *files, judge=judge, first=first, second=second, name=name, dataset=dataset, prompt=prompt
        )
    emit(found.as_dict(), as_json=as_json, show=lambda: _show_imported(found))


def _show_imported(found: "ImportedReviews") -> None:
    out = stdout()
    there = f" ({found.reviews_present:,} already there)" if found.reviews_present else ""
    of = ", ".join(each.dataset for each in found.files)
    out.print(
        f"imported {found.reviews_new:,} reviews of {found.pairs:,} pairs by {found.judge}{there}: {of}", markup=False
    )
    for count, what in (
        (found.without_review, "are missing: their pairs are undecided"),
        (found.unreadable, "have no two scores on their first line: their pairs are undecided"),
        (found.read_otherwise, "are read otherwise than the scores in the file say"),
    ):
        if count:
            out.print(f"  {count:,} reviews {what}", markup=False)
    out.print(f"`recycledb judge report {found.judging}` sums them up", markup=False)


@judge.command("data")
def data(
    *,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="The folder to write to; created if missing.")
    ],
    rating: Annotated[
        str, typer.Option(metavar="NAME/MODEL", help="The measure whose numbers are learnt, such as quality/gpt-4.")
    ],
    kind: Annotated[
        str | None,
        typer.Option(help="The kind of variant to judge, or answer/AUTHOR. Default: all that have a number."),
    ] = None,
    reference: Annotated[
        str, typer.Option(help="The kind whose answer is shown as the reference, or answer/AUTHOR.")
    ] = "origin",
    cosine: Annotated[
        str | None,
        typer.Option(
            metavar="NAME/STUDENT",
            help='Count the likeness to the reference too: a measure with method = "embedding", part = "answer".',
        ),
    ] = None,
    scale: Annotated[
        tuple[float, float] | None,
        typer.Option(metavar="LOW HIGH", help="The scale of the measure. Default: as configured."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="Only samples of this dataset.", autocompletion=completion.dataset)
    ] = None,
    as_json: Json = False,
) -> None:
    """Write training files for a judge of your own (Self-J): rated answers with and without a reference, with equal ids.

    The trained judge comes back as a student: a table students.judge, and a measure with method = "expected".

    Example: [bold]recycledb judge data --rating quality/gpt-4 --kind reflect_response -o judge/[/bold]
    """
    with session.open() as db:
        found = db.write_judge_data(
            output, rating=rating, kind=kind, reference=reference, cosine=cosine, scale=scale, dataset=dataset
        )
    emit(found.as_dict(), as_json=as_json, show=lambda: _show_data(found))


def _show_data(found: "JudgeData") -> None:
    out = stdout()
    names = ", ".join([*(each["file"] for each in found.files.values()), "training.json"])
    out.print(f"wrote {found.items:,} items to {found.folder}: {names}", markup=False, soft_wrap=True)
    digits = "  ".join(f"{digit}: {count:,}" for digit, count in found.digits.items())
    out.print(f"  digits {digits}", markup=False)
    if found.without_reference:
        out.print(f"  {found.without_reference:,} rated variants left out: no reference beside them")
    if found.without_vector:
        out.print(f"  {found.without_vector:,} left out: no vector of the answer or of the reference")


@app.command("add-answers")
def add_answers(
    file: Rows,
    *,
    author: Annotated[str, typer.Option(help="The model's name; in a judging its answers are answer/AUTHOR.")],
    dataset: Dataset,
    field: Field = None,
    as_json: Json = False,
) -> None:
    """Add a model's answers to the questions of a dataset, as variants of kind answer. Safe to re-run.

    Example: [bold]recycledb add-answers outputs.json --author my-7b --dataset test[/bold]
    """
    with session.open() as db:
        added = db.add_answers(file, author=author, dataset=dataset, field=field)
    emit(added.as_dict(), as_json=as_json, show=lambda: _show_answers(added))


def _show_answers(added: "AddedAnswers") -> None:
    there = f" ({added.answers_present:,} already there)" if added.answers_present else ""
    again = added.rows - added.answers_new - added.answers_present
    left = f"; {again:,} rows repeat a question, and its first answer counts" if again else ""
    stdout().print(
        f"added {added.answers_new:,} answers of {added.author} to {added.dataset}{there}{left}", markup=False
    )


@app.command("import-values")
def import_values(
    file: Rows,
    *,
    measure: Annotated[str, typer.Option(help="The name of the measure that the numbers are of.")],
    model: Annotated[str, typer.Option(help="Whose numbers they are: a student, a teacher, or a new name.")],
    dataset: Dataset,
    kind: Annotated[
        str, typer.Option(help="The kind of variant that has the numbers: origin, reflect_both …")
    ] = "origin",
    teacher: Annotated[
        str | None, typer.Option(help="The teacher that made the variants, if there are several.")
    ] = None,
    field: Field = None,
    as_json: Json = False,
) -> None:
    """Import published numbers, one for each position of a dataset, as values of a measure. Safe to re-run.

    Example: [bold]recycledb import-values quality.csv --measure deita_quality --model paper --dataset alpaca --kind origin[/bold]
    """
    with session.open() as db:
        imported = db.import_values(
            file, measure=measure, model=model, dataset=dataset, kind=kind, teacher=teacher, field=field
        )
    emit(imported.as_dict(), as_json=as_json, show=lambda: _show_values(imported))


def _show_values(found: "ImportedValues") -> None:
    there = f" ({found.values_present:,} already there)" if found.values_present else ""
    stdout().print(f"imported {found.values_new:,} values of {found.measure} under {found.model}{there}", markup=False)
    if found.without_number:
        stdout().print(f"  {found.without_number:,} rows have no number")
    if found.without_variant:
        stdout().print(
            f"  {found.without_variant:,} rows are at positions without a {found.kind} variant", markup=False
        )
