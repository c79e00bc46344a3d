"""Commands that export variants and import published scores: export, import-scores."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recycledb.cli import completion
from recycledb.cli.app import Json, app, emit, session, stderr, stdout
from recycledb.cli.options import (
    Card,
    DatasetName,
    Holdout,
    LlamaFactory,
    Marks,
    OutFormat,
    Prompt,
    Seed,
    Teacher,
    Timeout,
    WithExtra,
    goes_to_stdout,
    target,
)
from recycledb.cli.selections import show_files, tell_written

if TYPE_CHECKING:
    from recycledb.cli.printing import Terminal
    from recycledb.selection.published import Imported
    from recycledb.selection.select import Exported


@app.command()
def export(
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write; - is stdout.")],
    kind: Annotated[
        str,
        typer.Option(
            help="The kind of variant: origin, compressed, reflect_instruction …; answer/AUTHOR for one model's answers.",
            autocompletion=completion.kind,
        ),
    ] = "origin",
    teacher: Teacher = None,
    prompt: Prompt = None,
    dataset: DatasetName = None,
    format: OutFormat = "alpaca",
    with_extra: WithExtra = False,
    holdout: Holdout = None,
    seed: Seed = 0,
    marks: Marks = None,
    student: Annotated[
        str | None,
        typer.Option(
            help="The student to train; used by --llama-factory only.",
            autocompletion=completion.stored_student,
        ),
    ] = None,
    timeout: Timeout = None,
    llama_factory: LlamaFactory = None,
    card: Card = None,
    as_json: Json = False,
) -> None:
    """Write every current variant of one kind, in dataset order, but what people marked drop.

    Example: [bold]recycledb export --kind reflect_both -o reflected.json[/bold]
    """
    to = target(output, as_json=as_json) or output
    with session.open() as db:
        exported = db.export(
            to,
            kind=kind,
            teacher=teacher,
            prompt=prompt,
            dataset=dataset,
            format=format,
            with_extra=with_extra,
            holdout=holdout,
            seed=seed,
            marks=marks or "respect",
            student=student,
            llama_factory=llama_factory,
            card=card,
            timeout_s=timeout,
        )
    tell_written(exported.beside)
    out = stderr() if goes_to_stdout(to) else stdout()
    emit(exported.as_dict(), as_json=as_json, show=lambda: _show_exported(exported, out))


def _show_exported(exported: "Exported", out: "Terminal") -> None:
    out.print(f"wrote {exported.rows} {exported.kind} to {exported.file}", markup=False, soft_wrap=True)
    out.print(f"  sha256 {exported.sha256}")
    if exported.marked_drop:
        out.print(f"  left out {exported.marked_drop}: marked drop (--marks ignore exports them)")
    show_files(out, exported.held_out, exported.unpaired, exported.contexts_left_out)


@app.command("import-scores")
def import_scores(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="JSON lines or Parquet, or a folder of files as published on the Hub."),
    ],
    *,
    dataset: Annotated[
        str,
        typer.Option(
            help="The dataset that the rows of FILE belong to, in its order.",
            autocompletion=completion.dataset,
        ),
    ],
    kind: Annotated[
        str,
        typer.Option(
            help="The kind of variant that was scored: origin, reflect_both …",
            autocompletion=completion.scored_kind,
        ),
    ],
    student: Annotated[str, typer.Option(help="The name of the student to create.")],
    teacher: Teacher = None,
    template: Annotated[
        str,
        typer.Option(
            "--template",
            "--prompt",
            help="The template that the scores were computed with.",
            autocompletion=completion.template,
        ),
    ] = "vicuna",
    max_length: Annotated[int, typer.Option(min=1, help="The number of tokens that texts were truncated to.")] = 2048,
    as_json: Json = False,
) -> None:
    """Import published scores under a new student name. Safe to re-run.

    Example: [bold]recycledb import-scores origin.jsonl --dataset alpaca --kind origin --student paper-7b[/bold]
    """
    with session.open() as db:
        imported = db.import_scores(
            file,
            dataset=dataset,
            kind=kind,
            student=student,
            teacher=teacher,
            template=template,
            max_length=max_length,
        )
    emit(imported.as_dict(), as_json=as_json, show=lambda: _show_imported(imported))


def _show_imported(imported: "Imported") -> None:
    out = stdout()
    out.print(
        f"{imported.student}: {imported.variants} {imported.kind} of {imported.dataset}, "
        f"{imported.statistics_new} statistics added, {imported.statistics_present} already there, {imported.invalid} invalid",
        markup=False,
    )
    if imported.without_variant:
        out.print(
            f"  {imported.without_variant} rows skipped: the store has no {imported.kind} of their sample", markup=False
        )
