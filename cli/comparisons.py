"""The compare command: students, teachers, prompts or measures."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recycledb.cli import completion
from recycledb.cli.app import Json, app, emit, session, stderr, stdout
from recycledb.cli.options import DatasetName, Timeout

if TYPE_CHECKING:
    from recycledb.cli.printing import Table
    from recycledb.selection.compare import Comparison
    from recycledb.selection.matrix import Matrix
    from recycledb.selection.picks import Confusion

LISTED = 6  # pairs of measures; more are shown as a matrix

Students = Annotated[
    list[str],
    typer.Argument(metavar="STUDENT STUDENT…", help="Students to compare.", autocompletion=completion.stored_student),
]
Metric = Annotated[
    str,
    typer.Option(
        help="ifd_ppl, rifd_ppl, ifd_loss, rifd_loss, or ppl_/loss_ followed by a statistic: ppl_A_direct …",
        autocompletion=completion.metric,
    ),
]

OneKind = Annotated[
    str | None,
    typer.Option(help="One kind of variant. Default: all scored kinds.", autocompletion=completion.scored_kind),
]
Teachers = Annotated[
    list[str],
    typer.Option(
        help="Use this teacher's variants; repeat to compare teachers. Default: the only teacher.",
        autocompletion=completion.stored_teacher,
    ),
]
Prompts = Annotated[
    list[str],
    typer.Option(
        metavar="current|ID[+ID…]",
        help="Use variants made with this prompt (a prompt_id prefix, or `current`); repeat to compare prompts.",
    ),
]
Measures = Annotated[
    list[str],
    typer.Option(
        metavar="NAME/MODEL",
        help="Compare measures instead, such as ifd/7b; repeat. Length and a random order stand beside them.",
    ),
]


@app.command()
def compare(
    students: Students = [],  # noqa: B006 — typer copies it
    *,
    metric: Metric = "ifd_ppl",
    kind: OneKind = None,
    top: Annotated[str, typer.Option(metavar="5%|N", help="Count the overlap of the top N or the top share.")] = "5%",
    dataset: DatasetName = None,
    teacher: Teachers = [],  # noqa: B006
    prompt: Prompts = [],  # noqa: B006
    measure: Measures = [],  # noqa: B006
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write plots to one HTML file that works offline.")
    ] = None,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Compare the scores of students: distributions, correlations, top overlap, agreement of picks, largest differences.

    Or compare teachers, or prompts of one teacher, under one student: the variants of samples that both have.

    Example: [bold]recycledb compare 7b 13b --top 5% --plot compare.html[/bold]

    Example: [bold]recycledb compare 7b --teacher gpt --teacher claude[/bold] ·
    [bold]recycledb compare 7b --prompt current --prompt 3fa9c2[/bold]

    Example: [bold]recycledb compare --measure ifd/7b --measure selectit/7b --plot agreement.html[/bold]
    """
    if measure:
        if students or teacher or prompt:
            raise typer.BadParameter("--measure compares measures; leave out students, --teacher and --prompt")
        with session.open() as db:
            matrix = db.compare_measures(
                *measure, kind=kind or "origin", top=top, dataset=dataset, plot=plot, timeout_s=timeout
            )
        _written(plot)
        emit(matrix.as_dict(), as_json=as_json, show=lambda: _show_matrix(matrix))
        return
    with session.open() as db:
        found = db.compare(
            *students,
            metric=metric,
            kind=kind,
            top=top,
            dataset=dataset,
            teachers=teacher,
            prompts=prompt,
            plot=plot,
            timeout_s=timeout,
        )
    _written(plot)
    emit(found.as_dict(), as_json=as_json, show=lambda: _show_comparison(found))


def _written(plot: Path | None) -> None:
    if plot is not None:
        stderr().print(f"wrote {plot}", markup=False, soft_wrap=True)


def _show_matrix(found: "Matrix") -> None:
    out = stdout()
    known = {each.side: each.n for each in found.summaries}
    out.print(f"Spearman's rank correlation of {len(found.measures)} measures over {found.kind} variants", markup=False)
    out.print(_triangle(found.measures, found.spearman, "{:z.2f}".format, ("n", known)))
    out.print()
    if len(found.pairs) <= LISTED:
        table = _table(f"top {found.top}", "n", "k", "in both", "overlap", "chance")
        for pair in found.pairs:
            shares = ("–" if value is None else f"{value:.1%}" for value in (pair.overlap, pair.chance))
            table.add_row(" × ".join(pair.measures), str(pair.n), str(pair.k), str(pair.shared), *shares)
        out.print(table)
    else:
        shares_of = {frozenset(pair.measures): pair.overlap for pair in found.pairs}
        chances = [pair.chance for pair in found.pairs if pair.chance is not None]
        expected = f" ({_range(chances)} by chance)" if chances else ""
        out.print(f"share of the top {found.top} that two measures have in common{expected}", markup=False)
        out.print(_triangle(found.measures, lambda one, other: shares_of[frozenset((one, other))], "{:.0%}".format))
    out.print()
    out.print(f"baselines: {', '.join(found.baselines)}", style="dim", markup=False)
    out.print("most rankings hardly beat a random choice of samples: see docs/measures.md", style="dim")


def _triangle(
    names: Sequence[str],
    value_of: Callable[[str, str], float | None],
    written: Callable[[float], str],
    counts: tuple[str, Mapping[str, int]] | None = None,
) -> "Table":
    """Return a symmetric matrix without its upper half; columns have numbers, since names would make it too wide for a terminal."""
    table = _table("", *((counts[0],) if counts else ()), *(str(i) for i in range(1, len(names))))
    for i, name in enumerate(names):
        values = (value_of(name, other) for other in names[:i])
        cells = ["–" if value is None else written(value) for value in values]
        cells += [""] * (len(names) - 1 - len(cells))
        table.add_row(f"{i + 1:>{len(str(len(names)))}} {name}", *((str(counts[1][name]),) if counts else ()), *cells)
    return table


def _range(values: Sequence[float]) -> str:
    least, most = f"{min(values):.1%}", f"{max(values):.1%}"
    return least if least == most else f"{least} to {most}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _table(*columns: str) -> "Table":
    from recycledb.cli.printing import Table

    table = Table(box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 or column == "kind" else "right")
    return table


def _show_comparison(found: "Comparison") -> None:
    out = stdout()
    under = "" if len(found.students) > 1 else f" under {found.students[0]}"
    teachers = {side.teacher for side in found.sides}
    made = f", teacher {found.sides[0].teacher}" if len(teachers) == 1 and found.sides[0].teacher else ""
    out.print(f"{found.metric} of {' and '.join(found.labels)}{under} on {found.samples} samples{made}", markup=False)
    for side in found.without_values:
        out.print(
            f"{side} has no value of {found.metric}: `recycledb sync` computes those that are missing", style="yellow"
        )
    table = _table("", "kind", "n", "missing", "mean", "median", "sd", "quartiles", "below 1")
    for each in found.summaries:
        quartiles = f"{_number(each.quartile_1)}–{_number(each.quartile_3)}"
        numbers = [_number(value) for value in (each.mean, each.median, each.stddev)]
        table.add_row(each.side, each.kind, str(each.n), str(each.missing), *numbers, quartiles, str(each.below_1))
    out.print(table)
    table = _table("", "kind", "n", "Spearman", "Pearson", "Kendall")
    for row in found.correlations:
        numbers = [_number(value) for value in (row.spearman, row.pearson, row.kendall)]
        table.add_row(" × ".join(row.sides), row.kind, str(row.n), *numbers)
    out.print()
    out.print(table)
    table = _table(f"top {found.top}", "kind", "k", "in both", "overlap", "by chance")
    for overlap in found.top_overlaps:
        shares = ["–" if each is None else f"{each:.1%}" for each in (overlap.overlap, overlap.chance)]
        table.add_row(" × ".join(overlap.sides), overlap.kind, str(overlap.k), str(overlap.shared), *shares)
    out.print()
    out.print(table)
    for confusion in found.confusions:
        _show_confusion(confusion)
    _show_disagreements(found)


def _show_confusion(confusion: "Confusion") -> None:
    out = stdout()
    first, second = confusion.sides
    table = _table(f"{first} ↓  {second} →", *confusion.labels)
    for label, counts in zip(confusion.labels, confusion.counts, strict=True):
        table.add_row(label, *(str(count) for count in counts))
    agreement = "" if confusion.agreement is None else f": equal for {confusion.agreement:.1%} of samples"
    out.print()
    out.print(f"picks of the recipe selective{agreement}")
    out.print(table)


def _show_disagreements(found: "Comparison") -> None:
    out = stdout()
    if found.disagreements:
        out.print()
        out.print("largest differences")
    for each in found.disagreements:
        values = ", ".join(
            f"{name} {value:.3f} (percentile {100 * share:.0f})"
            for name, value, share in zip(found.labels, each.values, each.percentiles, strict=True)
        )
        out.print(f"  {each.sample_id[:12]}  {each.kind}: {values}", markup=False, soft_wrap=not out.is_terminal)
        for words in each.words:
            out.print(f"      {words}", style="dim", no_wrap=True, overflow="ellipsis")
