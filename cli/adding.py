"""The command that fills a store: add."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from recycledb.cli import completion
from recycledb.cli.app import Json, app, emit, session, stderr, stdout

if TYPE_CHECKING:
    from recycledb.additions import Added, ReadFile

SHOWN_REJECTIONS = 10


Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATH", help="JSON, JSONL, CSV, TSV or Parquet; plain, gzip or zstd. Or hf://datasets/OWNER/NAME."
    ),
]
Name = Annotated[
    str | None,
    typer.Option(help="The dataset's name. Default: the name of each file.", autocompletion=completion.dataset),
]
Format = Annotated[
    str,
    typer.Option(
        help="The shape of the rows: auto, alpaca, sharegpt, messages, lima, dolly, fields, self-instruct or oasst.",
        autocompletion=completion.format_in,
    ),
]
Fields = Annotated[
    str | None,
    typer.Option(
        "--map", metavar="NAME=FIELD,…", help="The fields of the texts: instruction=prompt,output=completion."
    ),
]
Turns = Annotated[
    str | None,
    typer.Option(
        help="Which answers of a conversation are samples: first, last or all. Default: first, or as the dataset was read before."
    ),
]
Context = Annotated[
    str | None,
    typer.Option(
        help="System prompts and earlier turns: keep or drop. Default: keep, or as the dataset was read before."
    ),
]
Encoding = Annotated[
    str | None, typer.Option(metavar="NAME", help="The files' encoding, if not UTF-8: latin-1, cp1252, utf-16 …")
]
MaxRow = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Largest row accepted, unpacked, in MiB. Default: 64.")
]
Append = Annotated[bool, typer.Option("--append", help="Add the files to those that the dataset was made from.")]
Replace = Annotated[
    bool, typer.Option("--replace", help="Put the files in the place of those that the dataset was made from.")
]


@app.command()
def add(
    paths: Paths,
    dataset: Name = None,
    format: Format = "auto",
    mapping: Fields = None,
    turns: Turns = None,
    context: Context = None,
    encoding: Encoding = None,
    max_row_mb: MaxRow = None,
    append: Append = False,
    replace: Replace = False,
    as_json: Json = False,
) -> None:
    """Add samples from files. Re-running adds only new samples.

    A file that has changed replaces its own earlier content. Other files than a dataset was made from need --append or --replace.

    Examples: [bold]recycledb add data.json[/bold] · [bold]recycledb add part-*.jsonl.gz --dataset mine[/bold] ·
    [bold]recycledb add more.json --dataset mine --append[/bold] · [bold]recycledb add chats.jsonl --turns all[/bold] ·
    [bold]recycledb add hf://datasets/databricks/databricks-dolly-15k[/bold]
    """
    from recycledb.formats import CONTEXTS, FORMATS, TURNS, mapping_of

    for name, value, known in (("format", format, FORMATS), ("turns", turns, TURNS), ("context", context, CONTEXTS)):
        if value is not None and value not in known:
            raise typer.BadParameter(f"{value!r} is not one of {', '.join(known)}", param_hint=f"--{name}")
    fields = mapping_of(mapping) if mapping is not None else None
    console = stderr()
    with session.open(create=True) as db, console.status("reading …") as status:
        reports = db.add(
            *paths,
            dataset=dataset,
            format=format,
            mapping=fields,
            turns=turns,
            context=context,
            encoding=encoding,
            max_row_mb=max_row_mb,
            append=append,
            replace=replace,
            progress=lambda rows: status.update(f"{rows:,} rows read"),
        )
    for report in reports:
        _tell_files(report)
        _tell_rejections(report)
    emit(reports.as_dict(), as_json=as_json, show=lambda: _tell(reports))


def _tell_files(report: "Added") -> None:
    """Say on stderr what was guessed about the files, and what was left out of them."""
    console = stderr()
    for note in report.notes:
        console.print(f"{report.dataset}: {note}", markup=False, soft_wrap=True)
    for file in report.files:
        for said in (*file.notes, *_left_out(file, report)):
            console.print(f"{file.source}: {said}", markup=False, soft_wrap=True)


def _left_out(file: "ReadFile", report: "Added") -> list[str]:
    from recycledb.formats import LEFT_OUT

    parts = [f"{file.left_out[name]:,} {what}" for name, what in LEFT_OUT.items() if name in file.left_out]
    if not parts:
        return []
    remedies = []
    if report.turns == "first" and "later_turns" in file.left_out:
        remedies.append("--turns all makes a sample of each answer")
    if report.context == "drop" and file.left_out.keys() & {"system", "earlier_turns"}:
        remedies.append("--context keep carries what stands before a question")
    return ["; ".join([f"left out: {', '.join(parts)}", *remedies])]


def _tell_rejections(report: "Added") -> None:
    console = stderr()
    for rejection in report.rejections[:SHOWN_REJECTIONS]:
        console.print(f"{rejection.source}: row {rejection.position}: {rejection.reason}", markup=False, soft_wrap=True)
    if report.rejected > SHOWN_REJECTIONS:
        console.print(f"… and {report.rejected - SHOWN_REJECTIONS:,} more rejected rows (--json lists them)")


def _tell(reports: "Sequence[Added]") -> None:
    out = stdout()
    for report in reports:
        parts = [f"{report.added:,} added", f"{report.already_there:,} already there", f"{report.rejected:,} rejected"]
        out.print(f"{report.dataset}: {', '.join(parts)}", markup=False)
        if report.samples_left:
            what, whose = (
                ("1 sample", "its") if report.samples_left == 1 else (f"{report.samples_left:,} samples", "their")
            )
            out.print(f'  {what} left the dataset "{report.dataset}"; {whose} rows stay', markup=False)
        contexts = sum(file.contexts for file in report.files)
        if contexts:
            out.print(f"  {contexts:,} with a context (system prompt, earlier turns), which is part of the sample")
        if report.cut:
            what = "1 conversation has" if report.cut == 1 else f"{report.cut:,} conversations have"
            out.print(f"  {what} turns that are left out")
        if report.placeholders:
            out.print(f"  {report.placeholders:,} input placeholders (like “No input”) are stored as an empty input")
