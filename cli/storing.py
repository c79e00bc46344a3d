"""Commands that make, fill and mend the store: init, add, db."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recycledb.cli.app import Json, app, emit, session, stderr, stdout
from recycledb.errors import ConfigError

if TYPE_CHECKING:
    from recycledb.adding import Added
    from recycledb.store.verify import Checked

SHOWN_REJECTIONS = 10

TEMPLATE = """\
# What `recycledb sync` brings about. It fills in what is missing and never asks or computes twice.
# Secrets (OPENAI_API_KEY) come from the environment, never from here.

[store]
url = "{url}"                # or duckdb:///recycle.duckdb

# --- Teachers rewrite samples. provider: openai (OpenAI, vLLM, SGLang, llama.cpp, Ollama …), transformers, recorded.
[teachers.gpt]
provider = "openai"
model = "gpt-4o-mini"
# base_url = "http://localhost:8000/v1"      # else $OPENAI_BASE_URL
# concurrency = 32                           # questions under way at once
# rpm = 500                                  # requests a minute
# tpm = 200000                               # tokens a minute
# price_in = 0.15                            # USD per million tokens; --max-cost needs both
# price_out = 0.60
# params = {{ temperature = 0, max_tokens = 2048 }}   # a value "unset" is not sent at all

# --- Students score texts: the models that you will train, by Hugging Face id or folder.
# [students.7b]
# model = "meta-llama/Llama-2-7b-hf"
# prompt = "vicuna"                          # vicuna | alpaca | wizardlm | none
# max_length = 2048
# dtype = "bfloat16"                         # float32 | bfloat16 | float16

# --- Your own wording of a step, if you like (see `recycledb.reflection.prompts`); a changed file makes new rows.
# [prompts]
# reflect_response = "my_reflect_response.txt"

[sync]
steps = ["compress", "reflect_instruction", "reflect_response", "score"]
teacher = "gpt"
# students = ["7b"]                          # default: all of the above
# budget_usd = 20                            # what all requests of the store may cost, over all runs
"""


@app.command()
def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write recycledb.toml.")] = Path(),
) -> None:
    """Write a commented recycledb.toml and create the store at the newest schema.

    Example: [bold]recycledb init my-data[/bold]
    """
    from recycledb.config import DEFAULT_URL, FILE_NAME
    from recycledb.files import make_folder, write_text
    from recycledb.store import Store

    path = folder / FILE_NAME
    if path.exists():
        raise ConfigError(f"{path} is there already; edit it, or remove it first")
    make_folder(folder)
    url = session.store_option or f"sqlite:///{folder / DEFAULT_URL.removeprefix('sqlite:///')}"
    with Store.open(url, create=True) as store:
        made = store.backend.path
    written = _seen_from(folder, url, made).replace("\\", "\\\\").replace('"', '\\"')
    write_text(path, TEMPLATE.format(url=written))
    out = stdout()
    for line in (f"wrote {path}", f"made {made}", "next: recycledb add FILE, then recycledb sync --dry-run"):
        out.print(line)


def _seen_from(folder: Path, url: str, path: Path) -> str:
    """Return a store's URL as the configuration in `folder` names it: its paths are seen from there."""
    here, there = folder.resolve(), path.resolve()
    return f"{url.partition(':///')[0]}:///{there.relative_to(here) if there.is_relative_to(here) else there}"


@app.command()
def add(
    paths: Annotated[list[Path], typer.Argument(metavar="PATH", help="JSON, JSONL or Parquet; plain, gzip or zstd.")],
    dataset: Annotated[str | None, typer.Option(help="The dataset's name. Default: each file's own.")] = None,
    format: Annotated[str, typer.Option(help="auto, alpaca, sharegpt or messages.")] = "auto",
    max_row_mb: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="How large a row may be, unpacked. Default: 64.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Bring samples in; again brings in only what is new.

    Examples: [bold]recycledb add data.json[/bold] · [bold]recycledb add part-*.jsonl.gz --dataset mine[/bold]
    """
    from recycledb.formats import FORMATS

    if format not in FORMATS:
        raise typer.BadParameter(f"{format!r} is not one of {', '.join(FORMATS)}", param_hint="--format")
    console = stderr()
    with session.open(create=True) as db, console.status("reading …") as status:
        reports = db.add(
            *paths,
            dataset=dataset,
            format=format,
            max_row_mb=max_row_mb,
            progress=lambda rows: status.update(f"{rows:,} rows read"),
        )
    for report in reports:
        _tell_rejections(report)
    emit(reports.as_dict(), as_json=as_json, show=lambda: _tell(reports))


def _tell_rejections(report: "Added") -> None:
    console = stderr()
    for rejection in report.rejections[:SHOWN_REJECTIONS]:
        console.print(f"{rejection.source}: row {rejection.position}: {rejection.reason}", markup=False)
    if report.rejected > SHOWN_REJECTIONS:
        console.print(f"… and {report.rejected - SHOWN_REJECTIONS:,} more rejected rows (--json lists them)")


def _tell(reports: "Sequence[Added]") -> None:
    out = stdout()
    for report in reports:
        parts = [f"{report.added:,} added", f"{report.already_there:,} already there", f"{report.rejected:,} rejected"]
        if report.places_closed:
            parts.append(f"{report.places_closed:,} places closed")
        out.print(f"{report.dataset}: {', '.join(parts)}", markup=False)
        if report.cut:
            out.print(f"  {report.cut:,} conversations were longer than one turn pair; the first pair was taken")
        if report.placeholders:
            out.print(f"  {report.placeholders:,} input placeholders (such as “No input”) became an empty input")


db = typer.Typer(help="The store's schema and soundness.", no_args_is_help=True)
app.add_typer(db, name="db")


@db.command()
def upgrade() -> None:
    """Bring the store to this version's schema; a copy of the file is made first.

    Example: [bold]recycledb --store sqlite:///recycle.db db upgrade[/bold]
    """
    from recycledb.store import upgrade as upgrade_store

    copy = upgrade_store(session.url)
    current()
    if copy is not None:
        stdout().print(f"the store as it was: {copy}")


@db.command()
def current() -> None:
    """Print the store's schema revision, and this version's.

    Example: [bold]recycledb db current[/bold]
    """
    from recycledb.store import revisions

    found, newest = revisions(session.url)
    note = "" if found == newest else "; run recycledb db upgrade" if (found or "") < newest else "; upgrade recycledb"
    stdout().print(f"{session.url}: schema {found or 'none'}, newest {newest}{note}")


@db.command()
def check(as_json: Json = False) -> None:
    """Verify the store: the file, the schema, each row by its digest and its id, and what rows say of each other.

    Example: [bold]recycledb db check[/bold]
    """
    from recycledb.errors import StoreError

    with session.open() as db:
        checked = db.check()
    emit({"store": session.url, **checked.as_dict()}, as_json=as_json, show=lambda: _show_checked(checked))
    if checked.findings:
        raise StoreError(f"{len(checked.findings)} problems found in {session.url}")


def _show_checked(checked: "Checked") -> None:
    from recycledb.cli.printing import Table

    out = stdout()
    headers = ("rows", "ids recomputed", "digests compared", "without a digest")
    table = Table("table", box=None, header_style="dim")
    for name in headers:
        table.add_column(name, justify="right")
    for walked in checked.tables:
        numbers = (walked.rows, walked.ids, walked.digests, walked.without_digest)
        table.add_row(walked.table, *(f"{number:,}" for number in numbers))
    out.print(table)
    out.print()
    out.print(
        f"the file by its own database's check, {checked.schema_objects} tables, indexes and views against a new store's, "
        f"{checked.references} references, {checked.relations} rules between tables, selections by their picks"
    )
    for remark in checked.remarks:
        out.print(f"remark: {remark}", markup=False, soft_wrap=True)
    for finding in checked.findings:
        out.print(finding, markup=False, soft_wrap=True)
    if not checked.findings:
        out.print("sound: all of it holds")
