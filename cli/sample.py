"""The show command: the history of one sample."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recycledb.cli.app import Json, app, emit, session, stdout
from recycledb.schema import context_messages
from recycledb.terminal import visible_line

if TYPE_CHECKING:
    from rich.text import Text

SCORES = {"ifd_ppl": "IFD", "rifd_ppl": "rIFD"} | {
    name: name for name in ("ppl_A_condition", "ppl_A_direct", "ppl_Q_condition", "ppl_Q_direct")
}  # columns and their headings


@app.command()
def mark(
    identifier: Annotated[
        str,
        typer.Argument(metavar="ID", help="The id of a sample or variant, or a unique prefix of one."),
    ],
    word: Annotated[str, typer.Argument(metavar="keep|drop|unsure|none", help="none takes your mark back.")],
    *,
    note: Annotated[str, typer.Option(help="Why.")] = "",
    by: Annotated[str | None, typer.Option(metavar="NAME", help="Who decided. Default: your login name.")] = None,
    as_json: Json = False,
) -> None:
    """Mark a sample or one of its variants keep, drop or unsure; recipes leave out what is marked drop.

    The newest mark counts, whoever made it; `select --marks ignore` picks as if there were none. The view marks has all of them:
    [bold]recycledb query "SELECT * FROM marks" -o marks.csv[/bold]

    Example: [bold]recycledb mark 3dd72b drop --note "the answer is cut off"[/bold]
    """
    with session.open() as db:
        row = db.mark(identifier, word, note=note, by=by)
    what = f"variant {row['variant_id'][:12]} of sample" if row["variant_id"] else "sample"
    said = "no longer marked" if row["mark"] == "none" else f"marked {row['mark']}"
    line = f"{what} {row['sample_id'][:12]}: {said} by {row['marked_by']}"
    emit(row, as_json=as_json, show=lambda: stdout().print(visible_line(line), markup=False))


@app.command()
def show(
    identifier: Annotated[
        str,
        typer.Argument(metavar="ID", help="The id of a sample, variant or reply (text_id), or a unique prefix of one."),
    ],
    as_json: Json = False,
) -> None:
    """Show one sample: variants, raw replies, scores, cost, and the selections that include it and why.

    Example: [bold]recycledb show 3dd72b[/bold]
    """
    with session.open() as db:
        found = db.show(identifier)
    emit(found, as_json=as_json, show=lambda: _show(found))


def _show(found: dict[str, Any]) -> None:
    out = stdout()
    out.print(f"sample {found['sample_id']}", style="bold")
    for place in found["places"]:
        extra = json.loads(place["extra"])
        note = f"  {json.dumps(extra, ensure_ascii=False)}" if extra else ""
        out.print(f"  {place['dataset']} at {place['position']}{note}", markup=False)
    for role, text in context_messages(found["context"]):
        out.print(f"context, {role}", style="dim")
        out.text(text)
    for variant in found["variants"]:
        _show_variant(variant, found["scores"], found["losses"])
        _show_measures([row for row in found["measures"] if row["variant_id"] == variant["variant_id"]])
    _show_derivations(found)
    for near in found["near_duplicates"]:
        out.print(f"near-duplicate of sample {near['sample_id'][:12]}, {near['similarity']:.0%} the same", markup=False)
    for text in found["teacher_texts"]:
        _show_text(text)
    _show_marks(found)
    out.print()
    out.print(_costs(found["teacher_texts"]))
    _show_selections(found)


def _show_variant(variant: dict[str, Any], scores: list[dict[str, Any]], losses: list[dict[str, Any]]) -> None:
    out = stdout()
    by = f" · {variant['teacher']}" if variant["teacher"] else ""
    old = "" if variant["is_current"] else " · superseded"
    rest = f"{by}{old} · {variant['variant_id'][:12]}"
    out.heading(_title(variant["kind"], rest))
    for label in ("instruction", "input", "output"):
        if variant[label]:
            out.print(label, style="dim")
            out.text(variant[label])
    rows = [row for row in scores if row["variant_id"] == variant["variant_id"]]
    if rows:
        out.print(_score_table(rows))
    for loss in losses:
        if loss["variant_id"] == variant["variant_id"] and loss["loss_sum"] is None:
            out.print(f"no {loss['stat']} under {loss['student']}: {loss['status']}", style="dim", markup=False)


def _show_measures(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        value = _number(row["value"]) if row["value"] is not None else row["status"]
        old = "" if row["is_current"] else " (superseded)"
        stdout().print(f"{row['measure']} {value} by {row['model']}{old}", markup=False)


def _title(name: str, rest: str) -> "Text":
    """Return a title with the name in bold."""
    from rich.text import Text

    return Text.assemble((visible_line(name), "bold"), visible_line(rest))


def _score_table(rows: list[dict[str, Any]]) -> Any:
    from rich.table import Column

    from recycledb.cli.printing import Table

    headers = [Column(SCORES[name], justify="right") for name in SCORES]
    table = Table("student", *headers, box=None, header_style="dim")
    for row in rows:
        table.add_row(row["student"], *(_number(row[name]) for name in SCORES))
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}" if value < 1000 else f"{value:,.0f}"


def _show_derivations(found: dict[str, Any]) -> None:
    """Print what transforms made of this sample's variants, the other members, and the parameters."""
    out = stdout()
    for derivation in found["derivations"]:
        old = "" if derivation["is_current"] else " · superseded"
        rest = f" · round {derivation['round']}{old} · {derivation['derivation_id'][:12]}"
        out.heading(_title(derivation["augmentation"], rest), "┄")
        if derivation["reason"] is not None:
            out.print(f"no variant: {derivation['reason']}", markup=False)
        else:
            what = f"{derivation['kind']} {derivation['variant_id'][:12]}"
            own = derivation["sample_id"] == found["sample_id"]
            out.print(what if own else f"{what} of sample {derivation['sample_id'][:12]}", markup=False)
        for member in derivation["members"]:
            own = member["sample_id"] == found["sample_id"]
            whose = "this sample" if own else f"sample {member['sample_id'][:12]}"
            line = f"  {member['ordinal'] + 1}. {member['kind']} {member['variant_id'][:12]} of {whose}"
            out.print(line, markup=False)
        out.print(f"parameters {derivation['parameters']}", style="dim", markup=False)


def _show_marks(found: dict[str, Any]) -> None:
    kinds = {variant["variant_id"]: variant["kind"] for variant in found["variants"]}
    for row in found["marks"]:
        if row["is_current"]:
            what = f"{kinds[row['variant_id']]} " if row["variant_id"] else ""
            words = f": {row['note']}" if row["note"] else ""
            line = f"{what}marked {row['mark']} by {row['marked_by']} on {row['created_at'][:10]}{words}"
            stdout().print(visible_line(line), markup=False, soft_wrap=True)


def _show_text(text: dict[str, Any]) -> None:
    out = stdout()
    extraction = text["extraction"] or ""
    if text["reason"]:
        extraction = f"{extraction}: {text['reason']}"
    title = f"{text['step']} · {text['teacher']} · attempt {text['attempt']} · {text['status']}"
    out.heading(_title(title, f" · {text['text_id'][:12]}"), "┄")
    paid = [
        f"{text[key]:,} {what} tokens"
        for key, what in (("prompt_tokens", "prompt"), ("completion_tokens", "completion"))
        if text[key]
    ]
    if text["cost_usd"] is not None:
        paid.append(f"${text['cost_usd']:.6f}")
    asked = f"about {text['variant_id'][:12]}"
    facts = [asked, text["created_at"], *paid, f"extraction {extraction}" if extraction else ""]
    out.print(" · ".join(fact for fact in facts if fact), style="dim", markup=False)
    if text["error"]:
        out.print(text["error"], style="red")
    if text["text"]:
        out.text(text["text"])


def _costs(texts: list[dict[str, Any]]) -> str:
    tokens = sum((text["prompt_tokens"] or 0) + (text["completion_tokens"] or 0) for text in texts)
    known = [text["cost_usd"] for text in texts if text["cost_usd"] is not None]
    lacking = len(texts) - len(known)
    dollars = f"${sum(known):.6f}" + (f" + {lacking} of unknown cost" if lacking else "")
    if not any(known) and (lacking or not texts):
        dollars = "cost unknown"
    return f"cost of this sample: {len(texts)} requests, {tokens:,} tokens, {dollars}"


def _show_selections(found: dict[str, Any]) -> None:
    from recycledb.methods.ifd import spelled

    out = stdout()
    kinds = {variant["variant_id"]: variant["kind"] for variant in found["variants"]}
    for item in found["selections"]:
        reason = f": {spelled(item['reason'])}" if item["reason"] else ""
        kind = kinds[item["variant_id"]]
        out.print(
            f"picked by {item['selection']} ({item['recipe']}) at position {item['position']} as {kind}{reason}",
            markup=False,
        )
    for explanation in found["explanations"]:
        out.text(explanation["text"], soft_wrap=False)
