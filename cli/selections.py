"""Commands for recipes and selections: recipes, select, selections, diff."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    Params,
    Prompt,
    Seed,
    Student,
    Teacher,
    Timeout,
    WithExtra,
    goes_to_stdout,
    parse_params,
    target,
)

if TYPE_CHECKING:
    from recycledb.cli.printing import Terminal
    from recycledb.selection.diff import Diff
    from recycledb.selection.output import HeldOut
    from recycledb.selection.select import Selected

# -- recipes

recipes_app = typer.Typer(invoke_without_command=True, help="List the shipped recipes; `recipes show NAME` prints one.")
app.add_typer(recipes_app, name="recipes")


@recipes_app.callback()
def recipes(context: typer.Context) -> None:
    """List the shipped recipes; `recipes show NAME` prints one, as a start for your own.

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
    out.print("every recipe, also your own", style="bold")
    near = "near_duplicates: keep | drop = keep  drop picks one of each group that `recycledb duplicates` has found, the best ranked"
    out.print(f"    {near}", style="dim", markup=False)
    marks = "marks: respect | ignore = respect  respect leaves out what people marked drop, on the pages or by `recycledb mark`"
    out.print(f"    {marks}", style="dim", markup=False)
    out.print("    prompt: text = current  use variants made with an older prompt", style="dim", markup=False)


@recipes_app.command("show")
def recipes_show(
    name: Annotated[str, typer.Argument(help="The recipe's name.", autocompletion=completion.recipe)],
) -> None:
    """Print a recipe's SQL.

    Example: [bold]recycledb recipes show selective > mine.sql[/bold]
    """
    from recycledb.selection.recipes import get_recipe

    print(get_recipe(name).sql.rstrip("\n"))  # a shipped file: no escaping needed


# -- select


@app.command()
def select(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="A shipped recipe; `recycledb recipes` lists them.",
            autocompletion=completion.recipe,
        ),
    ] = None,
    *,
    sql: Annotated[Path | None, typer.Option("--sql", metavar="FILE", help="Your own recipe.")] = None,
    student: Student = None,
    teacher: Teacher = None,
    prompt: Prompt = None,
    dataset: DatasetName = None,
    top: Annotated[
        str | None, typer.Option(metavar="5%|N", help="How many to pick: a share of the samples, or a number.")
    ] = None,
    marks: Marks = None,
    param: Params = [],  # noqa: B006 — typer copies it
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The file to write; - is stdout.")] = None,
    format: OutFormat = "alpaca",
    with_extra: WithExtra = False,
    holdout: Holdout = None,
    seed: Seed = 0,
    name: Annotated[str | None, typer.Option(help="The selection's name. Default: RECIPE-STUDENT.")] = None,
    timeout: Timeout = None,
    llama_factory: LlamaFactory = None,
    card: Card = None,
    as_json: Json = False,
) -> None:
    """Run a recipe: pick variants, record the selection, and write it to a file (Alpaca JSON by default).

    Example: [bold]recycledb select selective --student 7b -o recycled.json[/bold]
    """
    named = {"student": student, "teacher": teacher, "prompt": prompt, "dataset": dataset, "top": top, "marks": marks}
    given = {**named, **parse_params(param)}
    given = {key: value for key, value in given.items() if value is not None}
    chosen = _recipe(recipe, sql)
    if output is None and card is not None and llama_factory is None:
        raise typer.BadParameter("--card needs a file to describe: add -o FILE")
    to = target(output, as_json=as_json)
    with session.open() as db:
        selected = db.select(
            chosen,
            given,
            name=name,
            out=to,
            format=format,
            with_extra=with_extra,
            holdout=holdout,
            seed=seed,
            llama_factory=llama_factory,
            card=card,
            timeout_s=timeout,
        )
    tell_selected(selected, as_json=as_json, quiet_stdout=goes_to_stdout(to))


def tell_selected(selected: "Selected", *, as_json: bool, quiet_stdout: bool) -> None:
    """Print a selection; on stderr if the rows went to stdout."""
    tell_written(selected.beside)
    out = stderr() if quiet_stdout else stdout()
    emit(selected.as_dict(), as_json=as_json, show=lambda: _show_selected(selected, out))
    for message in (selected.note, selected.warning):
        if message:
            stderr().print(f"recycledb: {message}", markup=False, soft_wrap=True)
    if selected.not_recorded:
        stderr().print(f"recycledb: selection not recorded: {selected.not_recorded}", markup=False, soft_wrap=True)


def tell_written(paths: Sequence[str]) -> None:
    """Print the names of the additional files that were written, and the command that trains with them."""
    from recycledb.selection.training import train_command

    for path in paths:
        stderr().print(f"wrote {path}", markup=False, soft_wrap=True)
        if path.endswith(".yaml"):
            stderr().print(f"  train with: {train_command(Path(path))}", markup=False, soft_wrap=True)


def show_files(out: "Terminal", held_out: "HeldOut | None", unpaired: int, contexts_left_out: int = 0) -> None:
    """Print what is not in the first file: rows that are held out, picks without a pair."""
    if contexts_left_out:
        what = (
            f"the context of {contexts_left_out:,} rows (system prompt, earlier turns), for which Alpaca has no place"
        )
        out.print(f"  left out {what}: --format sharegpt, messages or llamafactory has one")
    if unpaired:
        out.print(f"  left out {unpaired}: the origin itself, or its very answer, is no pair")
    if held_out is not None:
        to = f" in {held_out.file}" if held_out.file else ""
        out.print(f"  held out {held_out.rows}{to} (samples: {held_out.samples})", markup=False, soft_wrap=True)
        if held_out.near_duplicates:
            out.print(
                f"  with a near-duplicate among those: {held_out.near_duplicates}; "
                "`recycledb select … --param near_duplicates=drop` avoids that",
                markup=False,
                soft_wrap=True,
            )


def _recipe(name: str | None, sql: Path | None) -> str | Path:
    from recycledb.selection.recipes import recipe_names

    if sql is not None and name is None:
        return sql
    if name is not None and sql is None:
        return name
    raise typer.BadParameter(f"give either a recipe ({', '.join(recipe_names())}) or --sql FILE")


def _show_selected(selected: "Selected", out: "Terminal") -> None:
    from recycledb.methods.ifd import spelled

    share = f" ({selected.share:.1%})" if selected.share is not None else ""
    out.print(selected.selection, style="bold", end="")
    out.print(f": {selected.rows} of {selected.samples} samples{share}")
    for kind, count in selected.counts.items():
        out.print(f"  {kind:<20} {count:>8}  {count / selected.rows:6.1%}")
    for name, mean in selected.means.items():
        out.print(f"  mean {spelled(name):<15} {mean:>8.4f}")
    if selected.near_duplicates:
        out.print(f"  near-duplicates left out {selected.near_duplicates}")
    if selected.marked_drop:
        out.print(f"  marked drop, left out    {selected.marked_drop}")
    out.print(f"  id     {selected.selection_id}")
    out.print(f"  sha256 {selected.file_sha256 or selected.output_sha256}")
    if selected.file:
        out.print(f"  wrote  {selected.file}", markup=False, soft_wrap=True)
    elif not selected.not_recorded:
        out.print("  recorded; add -o FILE to write it")
    show_files(out, selected.held_out, selected.unpaired, selected.contexts_left_out)


@app.command()
def selections(as_json: Json = False) -> None:
    """List the recorded selections.

    Example: [bold]recycledb selections[/bold]
    """
    with session.open() as db:
        found = db.selections()
    emit({"selections": found}, as_json=as_json, show=lambda: _show_selections(found))


def _show_selections(found: list[dict[str, Any]]) -> None:
    out = stdout()
    if not found:
        out.print("no selections yet; run recycledb select RECIPE")
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
    a: Annotated[
        str, typer.Argument(metavar="A", help="A selection's name or id.", autocompletion=completion.selection)
    ],
    b: Annotated[
        str,
        typer.Argument(metavar="B", help="Another selection's name or id.", autocompletion=completion.selection),
    ],
    as_json: Json = False,
) -> None:
    """Compare two selections: samples in both or in one only, by kind and by reason.

    Example: [bold]recycledb diff selective-7b selective-13b[/bold]
    """
    with session.open() as db:
        found = db.diff(a, b)
    emit(found.as_dict(), as_json=as_json, show=lambda: _show_diff(found))


def _show_diff(found: "Diff") -> None:
    from recycledb.methods.ifd import spelled

    out = stdout()
    out.print(f"{found.a}: {found.rows_a} rows; {found.b}: {found.rows_b} rows", markup=False)
    out.print(f"same variant in both: {found.same} samples")
    out.print(f"different variants: {sum(found.changed.values())} samples")
    for change, count in found.changed.items():
        out.print(f"  {count:>8}  {change}", markup=False)
    for name, total, kinds, reasons in (
        (found.a, found.only_a, found.only_a_kinds, found.only_a_reasons),
        (found.b, found.only_b, found.only_b_kinds, found.only_b_reasons),
    ):
        out.print(f"only in {name}: {total} samples", markup=False)
        for label, counts in (("kind", kinds), ("reason", reasons)):
            for key, count in counts.items():
                out.print(f"  {count:>8}  {label}: {spelled(key) if label == 'reason' else key}", markup=False)
