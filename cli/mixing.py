"""Commands: mix, which draws from several selections, and duplicates, which finds near-duplicates."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recycledb.cli.app import Json, app, emit, session, stdout
from recycledb.cli.options import (
    Card,
    DatasetName,
    Holdout,
    LlamaFactory,
    OutFormat,
    Seed,
    Timeout,
    WithExtra,
    goes_to_stdout,
    target,
)
from recycledb.cli.progress import counted
from recycledb.cli.selections import tell_selected

if TYPE_CHECKING:
    from recycledb.selection.duplicates import Duplicates


@app.command()
def mix(
    parts: Annotated[list[str], typer.Argument(metavar="NAME=SHARE…", help="Recorded selections with their shares.")],
    *,
    rows: Annotated[
        int | None, typer.Option(min=1, help="How many to draw. Default: as many as the shares allow.")
    ] = None,
    seed: Seed = 0,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The file to write; - is stdout.")] = None,
    format: OutFormat = "alpaca",
    with_extra: WithExtra = False,
    holdout: Holdout = None,
    name: Annotated[str, typer.Option(help="The name of the new selection.")] = "mix",
    timeout: Timeout = None,
    llama_factory: LlamaFactory = None,
    card: Card = None,
    as_json: Json = False,
) -> None:
    """Draw from several selections by share, record the result as a selection, and write it to a file.

    A variant that is in several selections is drawn once. The same seed draws the same variants, whatever the order.

    Example: [bold]recycledb mix selective-7b=60% cherry-7b=40% --rows 10000 -o mixed.json[/bold]
    """
    shares = dict(_part(text) for text in parts)
    if len(shares) < len(parts):
        raise typer.BadParameter("name each selection once")
    to = target(output, as_json=as_json)
    with session.open() as db:
        mixed = db.mix(
            shares,
            rows=rows,
            seed=seed,
            out=to,
            format=format,
            with_extra=with_extra,
            holdout=holdout,
            name=name,
            llama_factory=llama_factory,
            card=card,
            timeout_s=timeout,
        )
    tell_selected(mixed, as_json=as_json, quiet_stdout=goes_to_stdout(to))


def _part(text: str) -> tuple[str, str]:
    name, equals, share = text.rpartition("=")
    if not (name and equals and share):
        raise typer.BadParameter(
            f"{text}: give a selection's name and its share, such as {text.strip('=') or 'cherry'}=60%"
        )
    return name, share


@app.command()
def duplicates(
    *,
    threshold: Annotated[
        float,
        typer.Option(
            help="How similar two questions must be, from 0 to 1: the share of their shingles that both have."
        ),
    ] = 0.8,
    words: Annotated[int, typer.Option(min=1, help="The number of words in a shingle.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="The seed of the MinHash functions.")] = 0,
    dataset: DatasetName = None,
    as_json: Json = False,
) -> None:
    """Find samples whose instruction and input are nearly the same, and store the pairs. Safe to re-run.

    Then [bold]select … --param near_duplicates=drop[/bold] picks one of each group. The pairs and groups are in the views
    near_duplicates and duplicate_groups.

    Example: [bold]recycledb duplicates --threshold 0.7[/bold]
    """
    with session.open() as db, counted() as progress:
        found = db.duplicates(threshold=threshold, words=words, seed=seed, dataset=dataset, progress=progress)
    emit(found.as_dict(), as_json=as_json, show=lambda: _show_duplicates(found))


def _show_duplicates(found: "Duplicates") -> None:
    out = stdout()
    new = "the same samples as before" if found.searched_before else f"{found.new:,} new"
    out.print(
        f"{found.samples:,} samples; pairs with a similarity of {found.threshold:g} or more: {found.pairs:,} ({new})"
    )
    if found.pairs:
        out.print(
            f"  samples with near-duplicates: {found.in_groups:,}, in groups: {found.groups:,}, the largest of {found.largest:,}"
        )
        out.print("  `recycledb select … --param near_duplicates=drop` picks one of each group", markup=False)
