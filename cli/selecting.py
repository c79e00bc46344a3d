"""Commands that ask the store: recipes, select, selections, diff, query, compare, export, import-scores."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recycledb.cli.app import Json, app, emit, session, stderr, stdout
from recycledb.errors import SelectionError

if TYPE_CHECKING:
    from recycledb.cli.printing import Table
    from recycledb.selection.compare import Comparison, Confusion
    from recycledb.selection.diff import Diff
    from recycledb.selection.published import Imported
    from recycledb.selection.recipes import Recipe
    from recycledb.selection.select import Exported, Selected
    from recycledb.selection.training import Written
    from recycledb.store import Store

Params = Annotated[
    list[str],
    typer.Option(
        "--param",
        metavar="K=V",
        help="A parameter of the SQL; may be given several times. 1e10 is text, 1e+10 a number.",
    ),
]
Student = Annotated[
    str | None, typer.Option(help="The student's name in the store. Default: the only one.", metavar="NAME")
]
Teacher = Annotated[
    str | None, typer.Option(help="The teacher's name, or best where a recipe allows it. Default: the only one.")
]
Prompt = Annotated[
    str | None,
    typer.Option(
        metavar="ID[+ID…]",
        help="See what older prompts made, as if they were in use: the first letters of a prompt_id; of several steps, joined by +.",
    ),
]
DatasetName = Annotated[str | None, typer.Option("--dataset", help="Only samples of this dataset.")]
LlamaFactory = Annotated[
    Path | None,
    typer.Option("--llama-factory", metavar="DIR", help="Add the data to LLaMA-Factory's dataset_info.json in DIR."),
]
Card = Annotated[
    Path | None, typer.Option("--card", metavar="README.md", help="Write a Hugging Face dataset card with the lineage.")
]
Timeout = Annotated[float | None, typer.Option(metavar="SECONDS", help="Stop the SQL after so long.")]
OutFormat = Annotated[str, typer.Option("--format", help="alpaca, sharegpt, jsonl or parquet.")]


def parse_params(texts: list[str]) -> dict[str, str]:
    """Return K=V options as a mapping."""
    found = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not (name and separator):
            raise SelectionError(f"--param {text}: give NAME=VALUE")
        found[name] = value
    return found


# -- recipes

recipes_app = typer.Typer(invoke_without_command=True, help="List the shipped recipes; `recipes show NAME` prints one.")
app.add_typer(recipes_app, name="recipes")


@recipes_app.callback()
def recipes(context: typer.Context) -> None:
    """List the shipped recipes; `recipes show NAME` prints one to start one's own from.

    Example: [bold]recycledb recipes show selective > mine.sql[/bold], then [bold]recycledb select --sql mine.sql[/bold]
    """
    if context.invoked_subcommand is not None:
        return
    from recycledb.selection.recipes import iter_recipes

    out = stdout()
    for recipe in iter_recipes():
        out.print(recipe.name, style="bold", end="")
        out.print(f"  {recipe.description}")
        for parameter in recipe.parameters:
            kind = " | ".join(parameter.choices) or parameter.type
            default = f" = {parameter.default}" if parameter.default is not None else ""
            out.print(f"    {parameter.name}: {kind}{default}  {parameter.help}", style="dim", markup=False)


@recipes_app.command("show")
def recipes_show(name: Annotated[str, typer.Argument(help="The recipe's name.")]) -> None:
    """Print a recipe's SQL, to read or to start one's own from.

    Example: [bold]recycledb recipes show selective > mine.sql[/bold]
    """
    from recycledb.selection.recipes import get_recipe

    print(get_recipe(name).sql.rstrip("\n"))  # a shipped file, as it is


# -- select


@app.command()
def select(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="A shipped recipe; see `recipes`.")] = None,
    *,
    sql: Annotated[Path | None, typer.Option("--sql", metavar="FILE", help="A recipe of one's own.")] = None,
    student: Student = None,
    teacher: Teacher = None,
    prompt: Prompt = None,
    dataset: DatasetName = None,
    top: Annotated[
        str | None, typer.Option(metavar="5%|N", help="How many: a share of the samples, or a number.")
    ] = None,
    param: Params = [],  # noqa: B006 — typer copies it
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The file to write.")] = None,
    format: OutFormat = "alpaca",
    name: Annotated[str | None, typer.Option(help="The selection's name. Default: RECIPE-STUDENT.")] = None,
    timeout: Timeout = None,
    llama_factory: LlamaFactory = None,
    card: Card = None,
    as_json: Json = False,
) -> None:
    """Run a recipe: pick variants, record the selection, write Alpaca JSON.

    Example: [bold]recycledb select selective --student 7b -o recycled.json[/bold]
    """
    from recycledb.selection.select import select as run
    from recycledb.selection.training import Written

    named = {"student": student, "teacher": teacher, "prompt": prompt, "dataset": dataset, "top": top}
    given = {**named, **parse_params(param)}
    given = {key: value for key, value in given.items() if value is not None}
    chosen = _recipe(recipe, sql)
    if output is None and card is not None and llama_factory is None:
        raise typer.BadParameter("--card describes a file: give -o FILE too")
    with session.open() as store:
        selected = run(
            store, chosen, given, name=name, output=output or llama_factory, format=format, timeout_s=timeout
        )
        if selected.file is not None and selected.file_sha256 is not None:
            written = Written(
                name=selected.selection,
                file=Path(selected.file),
                format=format,
                rows=selected.rows,
                counts=selected.counts,
                sha256=selected.file_sha256,
                recipe=selected.recipe,
                parameters=selected.parameters,
            )
            _hand_over(store, written, llama_factory, card, selected.parameters.get("student"))
    emit(selected.as_dict(), as_json=as_json, show=lambda: _show_selected(selected))
    if selected.note:
        stderr().print(f"recycledb: {selected.note}", markup=False)
    if selected.not_recorded:
        stderr().print(f"recycledb: not recorded: {selected.not_recorded}", markup=False, soft_wrap=True)


def _hand_over(
    store: "Store", written: "Written", llama_factory: Path | None, card: Path | None, student: str | None
) -> None:
    from recycledb.selection.training import write_card, write_llama_factory

    paths = write_llama_factory(store, llama_factory, written, student) if llama_factory is not None else []
    if card is not None:
        write_card(card, written)
        paths.append(card)
    for path in paths:
        stderr().print(f"wrote {path}", markup=False, soft_wrap=True)


def _recipe(name: str | None, sql: Path | None) -> "Recipe":
    from recycledb.selection.recipes import get_recipe, read_recipe, recipe_names

    if sql is not None and name is None:
        return read_recipe(sql)
    if name is not None and sql is None:
        return get_recipe(name)
    raise typer.BadParameter(f"name a recipe ({', '.join(recipe_names())}) or give --sql FILE")


def _show_selected(selected: "Selected") -> None:
    out = stdout()
    share = f" ({selected.share:.1%})" if selected.share is not None else ""
    out.print(selected.selection, style="bold", end="")
    out.print(f": {selected.rows} of {selected.samples} samples{share}")
    for kind, count in selected.counts.items():
        out.print(f"  {kind:<20} {count:>8}  {count / selected.rows:6.1%}")
    for name, mean in selected.means.items():
        out.print(f"  mean {name:<15} {mean:>8.4f}")
    out.print(f"  id     {selected.selection_id}")
    out.print(f"  sha256 {selected.file_sha256 or selected.output_sha256}")
    if selected.file:
        out.print(f"  wrote  {selected.file}", markup=False, soft_wrap=True)
    elif not selected.not_recorded:
        out.print("  recorded; -o FILE writes it")


@app.command()
def selections(as_json: Json = False) -> None:
    """List the recorded selections.

    Example: [bold]recycledb selections[/bold]
    """
    import json

    with session.open() as store:
        rows = store.rows("""
            SELECT selection, recipe, rows, counts, parameters, created_at, output_sha256, store_revision, selection_id
            FROM selections ORDER BY created_at, selection_id
        """)
    found: list[dict[str, Any]] = [dict(row._mapping) for row in rows]
    for row in found:
        row["counts"], row["parameters"] = json.loads(row["counts"]), json.loads(row["parameters"])
    emit({"selections": found}, as_json=as_json, show=lambda: _show_selections(found))


def _show_selections(found: list[dict[str, Any]]) -> None:
    out = stdout()
    if not found:
        out.print("no selection is recorded yet; `recycledb select RECIPE` makes one")
    for row in found:
        parameters = " ".join(f"{key}={value}" for key, value in row["parameters"].items() if value is not None)
        counts = ", ".join(f"{kind} {count}" for kind, count in row["counts"].items())
        out.print(
            f"{row['selection']}  {row['rows']} rows  {row['created_at'][:19]}  {row['recipe']} {parameters}",
            markup=False,
        )
        out.print(f"    {counts}  sha256 {row['output_sha256'][:12]}", style="dim", markup=False)


@app.command("diff")
def diff_(
    a: Annotated[str, typer.Argument(metavar="A", help="A selection's name or id.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another's.")],
    as_json: Json = False,
) -> None:
    """Say what only one of two selections took, by kind and by reason.

    Example: [bold]recycledb diff selective-7b selective-13b[/bold]
    """
    from recycledb.selection.diff import diff

    with session.open() as store:
        found = diff(store, a, b)
    emit(found.as_dict(), as_json=as_json, show=lambda: _show_diff(found))


def _show_diff(found: "Diff") -> None:
    out = stdout()
    out.print(f"{found.a}: {found.rows_a} rows; {found.b}: {found.rows_b} rows", markup=False)
    out.print(f"the same variant in both: {found.same} samples")
    out.print(f"another variant of the same sample: {sum(found.changed.values())} samples")
    for change, count in found.changed.items():
        out.print(f"  {count:>8}  {change}", markup=False)
    for name, total, kinds, reasons in (
        (found.a, found.only_a, found.only_a_kinds, found.only_a_reasons),
        (found.b, found.only_b, found.only_b_kinds, found.only_b_reasons),
    ):
        out.print(f"only {name}: {total} samples", markup=False)
        for label, counts in (("kind", kinds), ("reason", reasons)):
            for key, count in counts.items():
                out.print(f"  {count:>8}  {label}: {key}", markup=False)


# -- query


@app.command()
def query(
    sql: Annotated[str | None, typer.Argument(metavar="[SQL]", help="One SELECT in the store's own dialect.")] = None,
    *,
    file: Annotated[Path | None, typer.Option("-f", "--file", help="Read the SQL from a file; - is stdin.")] = None,
    format: Annotated[
        str | None, typer.Option("--format", help="table, json, jsonl, csv or parquet. Default: by the file's name.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The file to write.")] = None,
    param: Params = [],  # noqa: B006 — typer copies it
    timeout: Annotated[float | None, typer.Option(metavar="SECONDS", help="Stop the query after so long.")] = None,
    allow_external: Annotated[
        bool, typer.Option("--allow-external", help="Let the SQL read other files: ATTACH, read_csv and the like.")
    ] = False,
) -> None:
    """Run read-only SQL on the store; views and columns are in docs/schema.md.

    Example: [bold]recycledb query "SELECT kind, avg(ifd_ppl) FROM scores GROUP BY kind"[/bold]
    """
    from recycledb.selection import query as asking
    from recycledb.selection.recipes import values_of

    text = _sql_text(sql, file)
    parameters = values_of(text, parse_params(param))
    width = asking.terminal_width() if sys.stdout.isatty() else None
    with (
        session.open() as store,
        asking.query(store, text, parameters, timeout_s=timeout, allow_external=allow_external) as result,
    ):
        chosen = format or asking.format_of(output)
        rows = asking.write_result(result, chosen, output, asking.shown_on(sys.stdout, chosen), width=width)
    if output is not None:
        stderr().print(f"wrote {rows} rows to {output}", markup=False, soft_wrap=True)


def _sql_text(sql: str | None, file: Path | None) -> str:
    if (sql is None) == (file is None):
        raise typer.BadParameter('give the SQL, as in: recycledb query "SELECT …", or -f FILE')
    if file is None:
        return str(sql)
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SelectionError(f"{file} cannot be read: {error}") from error


# -- compare


@app.command()
def compare(
    students: Annotated[
        list[str], typer.Argument(metavar="STUDENT STUDENT…", help="Two or more students in the store.")
    ] = [],  # noqa: B006 — typer copies it
    *,
    metric: Annotated[
        str, typer.Option(help="ifd_ppl, rifd_ppl, ifd_loss, rifd_loss, or ppl_/loss_ and a statistic.")
    ] = "ifd_ppl",
    kind: Annotated[str | None, typer.Option(help="One kind of variant. Default: every scored kind.")] = None,
    top: Annotated[str, typer.Option(metavar="5%|N", help="The top share whose overlap is counted.")] = "5%",
    dataset: DatasetName = None,
    teacher: Annotated[
        list[str],
        typer.Option(help="Whose reflections; several times to compare teachers. Default: the only one."),
    ] = [],  # noqa: B006
    prompt: Annotated[
        list[str],
        typer.Option(
            metavar="current|ID[+ID…]",
            help="By which prompts they were made; several times to compare prompts. The first letters of a prompt_id.",
        ),
    ] = [],  # noqa: B006
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.html", help="Write pictures: one file that works offline.")
    ] = None,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Put students' scores side by side: distributions, correlations, overlap, what each would pick, where they differ.

    Likewise two teachers, or two prompts of one, under a student: by what they made of the same samples.

    Example: [bold]recycledb compare 7b 13b --top 5% --plot compare.html[/bold]

    Example: [bold]recycledb compare 7b --teacher gpt --teacher claude[/bold], or
    [bold]recycledb compare 7b --prompt current --prompt 3fa9c2[/bold]
    """
    from recycledb.selection.compare import compare as run

    with session.open() as store:
        found = run(
            store,
            students,
            metric=metric,
            kind=kind,
            top=top,
            dataset=dataset,
            teachers=teacher,
            prompts=prompt,
            pictures=plot is not None,
            timeout_s=timeout,
        )
    if plot is not None:
        _plot(found, plot)
    emit(found.as_dict(), as_json=as_json, show=lambda: _show_comparison(found))


def _plot(found: "Comparison", path: Path) -> None:
    from recycledb.files import write_text
    from recycledb.reporting.plots import comparison_html

    write_text(path, comparison_html(found))
    stderr().print(f"wrote {path}", markup=False, soft_wrap=True)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _table(*columns: str) -> "Table":
    from recycledb.cli.printing import Table

    table = Table(box=None, pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _show_comparison(found: "Comparison") -> None:
    out = stdout()
    under = "" if len(found.students) > 1 else f" under {found.students[0]}"
    teachers = {side.teacher for side in found.sides}
    made = f", teacher {found.sides[0].teacher}" if len(teachers) == 1 and found.sides[0].teacher else ""
    out.print(f"{found.metric} of {' and '.join(found.labels)}{under} on {found.samples} samples{made}", markup=False)
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
    table = _table(f"top {found.top}", "kind", "k", "in both", "overlap")
    for overlap in found.top_overlaps:
        share = "–" if overlap.overlap is None else f"{overlap.overlap:.1%}"
        table.add_row(" × ".join(overlap.sides), overlap.kind, str(overlap.k), str(overlap.shared), share)
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
    agreement = "" if confusion.agreement is None else f": the same for {confusion.agreement:.1%} of samples"
    out.print()
    out.print(f"what selective picks{agreement}")
    out.print(table)


def _show_disagreements(found: "Comparison") -> None:
    out = stdout()
    if found.disagreements:
        out.print()
        out.print("where they differ most")
    for each in found.disagreements:
        values = ", ".join(
            f"{name} {value:.3f} (above {share:.0%})"
            for name, value, share in zip(found.labels, each.values, each.percentiles, strict=True)
        )
        out.print(f"  {each.sample_id[:12]}  {each.kind}: {values}", markup=False, soft_wrap=True)
        for words in each.words:
            out.print(f"      {words}", style="dim", no_wrap=True, overflow="ellipsis")


# -- out and in


@app.command()
def export(
    *,
    output: Annotated[Path, typer.Option("-o", "--output", help="The file to write.")],
    kind: Annotated[str, typer.Option(help="Which variants: origin, compressed, reflect_instruction …")] = "origin",
    teacher: Teacher = None,
    prompt: Prompt = None,
    dataset: DatasetName = None,
    format: OutFormat = "alpaca",
    student: Annotated[str | None, typer.Option(help="For whom --llama-factory writes the training file.")] = None,
    timeout: Timeout = None,
    llama_factory: LlamaFactory = None,
    card: Card = None,
    as_json: Json = False,
) -> None:
    """Write every current variant of one kind, in dataset order.

    Example: [bold]recycledb export --kind reflect_both -o reflected.json[/bold]
    """
    from recycledb.selection.identities import find_student
    from recycledb.selection.select import export as run
    from recycledb.selection.training import Written

    with session.open() as store:
        named = find_student(store, student).name if student is not None else None
        exported = run(
            store, output, kind=kind, teacher=teacher, prompt=prompt, dataset=dataset, format=format, timeout_s=timeout
        )
        written = Written(
            name=output.name.split(".")[0],
            file=output,
            format=format,
            rows=exported.rows,
            counts={kind: exported.rows},
            sha256=exported.sha256,
            recipe=f"every {kind}",
            parameters={"teacher": exported.teacher, "dataset": exported.dataset},
        )
        _hand_over(store, written, llama_factory, card, named)
    emit(exported.as_dict(), as_json=as_json, show=lambda: _show_exported(exported))


def _show_exported(exported: "Exported") -> None:
    out = stdout()
    out.print(f"wrote {exported.rows} {exported.kind} to {exported.file}", markup=False, soft_wrap=True)
    out.print(f"  sha256 {exported.sha256}")


@app.command("import-scores")
def import_scores(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON lines or Parquet, or a folder with the Hub's files.")
    ],
    *,
    dataset: Annotated[str, typer.Option(help="The dataset that the scores follow, row by row.")],
    kind: Annotated[str, typer.Option(help="Which variants they are of: origin, reflect_both …")],
    student: Annotated[str, typer.Option(help="A name for the student that they become.")],
    teacher: Teacher = None,
    prompt: Annotated[str, typer.Option(help="The template that they were computed with.")] = "vicuna",
    max_length: Annotated[int, typer.Option(min=1, help="The tokens that they were cut to.")] = 2048,
    as_json: Json = False,
) -> None:
    """Bring published scores in, as a student of their own; again brings in nothing.

    Example: [bold]recycledb import-scores origin.jsonl --dataset alpaca --kind origin --student paper-7b[/bold]
    """
    from recycledb.selection.published import import_scores as run

    with session.open() as store:
        imported = run(
            store,
            file,
            dataset=dataset,
            kind=kind,
            student=student,
            teacher=teacher,
            prompt=prompt,
            max_length=max_length,
        )
    emit(imported.as_dict(), as_json=as_json, show=lambda: _show_imported(imported))


def _show_imported(imported: "Imported") -> None:
    out = stdout()
    out.print(
        f"{imported.student}: {imported.variants} {imported.kind} of {imported.dataset}, "
        f"{imported.statistics_new} statistics new, {imported.statistics_present} already there, {imported.invalid} invalid",
        markup=False,
    )
    if imported.without_variant:
        out.print(
            f"  {imported.without_variant} rows have no {imported.kind} in the store and were left out", markup=False
        )
