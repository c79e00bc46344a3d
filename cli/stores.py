"""Commands that create, upgrade and check a store: init, db."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recycledb.cli.app import Json, app, emit, session, stdout
from recycledb.errors import ConfigError

if TYPE_CHECKING:
    from recycledb.store.verify import Checked

TEMPLATE = """\
# The state that `recycledb sync` brings about: it adds the rows that are missing, and never asks or computes twice.
# Secrets (OPENAI_API_KEY) come from the environment, never from this file.

[store]
url = "{url}"                # or duckdb:///recycle.duckdb

# --- Teachers rewrite samples. provider: openai (OpenAI, vLLM, SGLang, llama.cpp, Ollama …), transformers, recorded.
[teachers.gpt]
provider = "openai"
model = "gpt-4o-mini"
# base_url = "http://localhost:8000/v1"      # else $OPENAI_BASE_URL
# concurrency = 32                           # requests in flight
# rpm = 500                                  # requests per minute
# tpm = 200000                               # tokens per minute
# price_in = 0.15                            # USD per million tokens; --max-cost needs both
# price_out = 0.60
# params = {{ temperature = 0, max_tokens = 2048 }}   # "unset" removes a default

# --- Students score variants: the models that you will train, as a Hugging Face id or a folder.
# [students.7b]
# model = "meta-llama/Llama-2-7b-hf"
# template = "vicuna"                        # vicuna | alpaca | wizardlm | none
# max_length = 2048
# dtype = "bfloat16"                         # float32 | bfloat16 | float16

# --- Variants without a model: rules that are true of an answer, several samples in one.
# [augmentations.ruler]
# rate = 0.9                                 # the share of samples that get rules
# rules = 3                                  # at most
# [augmentations.mosaic]
# most = 10                                  # samples in one
# max_tokens = 2000
# tokenizer = "7b"                           # counts tokens; default: four characters a token

# --- Your own prompt for a step (format: `recycledb.reflection.prompts`); a changed file gives new rows.
# [prompts]
# reflect_response = "my_reflect_response.txt"

[sync]
steps = ["compress", "reflect_instruction", "reflect_response", "score"]
teacher = "gpt"
# students = ["7b"]                          # default: all of the above
# budget_usd = 20                            # limit for all requests of this store, over all runs
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
    from recycledb.store.address import is_server, parse_url

    path = folder / FILE_NAME
    if path.exists():
        raise ConfigError(f"{path} already exists; edit it, or remove it first")
    make_folder(folder)
    url = session.store_option or f"sqlite:///{folder / DEFAULT_URL.removeprefix('sqlite:///')}"
    with Store.open(url, create=True) as store:
        made = store.backend.label
    written = (
        (made if is_server(url) else _seen_from(folder, url, parse_url(url)[1]))
        .replace("\\", "\\\\")
        .replace('"', '\\"')
    )
    write_text(path, TEMPLATE.format(url=written))
    out = stdout()
    for line in (f"wrote {path}", f"created {made}", "next: recycledb add FILE, then recycledb sync --dry-run"):
        out.print(line)


def _seen_from(folder: Path, url: str, path: Path) -> str:
    """Return the URL of a store as written in the configuration in `folder`: relative to that folder if inside it."""
    here, there = folder.resolve(), path.resolve()
    return f"{url.partition(':///')[0]}:///{there.relative_to(here) if there.is_relative_to(here) else there}"


db = typer.Typer(help="Upgrade or check the store.", no_args_is_help=True)
app.add_typer(db, name="db")


@db.command()
def upgrade(
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Treat processes that are recorded as at work as dead if they have been silent for two minutes.",
        ),
    ] = False,
) -> None:
    """Upgrade the store to this version's schema, after making a copy of the file. Refused while processes work on it.

    Example: [bold]recycledb --store sqlite:///recycle.db db upgrade[/bold]
    """
    from recycledb.store import upgrade as upgrade_store

    copy = upgrade_store(session.url, force=force)
    current()
    if copy is not None:
        stdout().print(f"copy of the store before the upgrade: {copy}")


@db.command()
def current() -> None:
    """Print the store's schema revision and the newest one.

    Example: [bold]recycledb db current[/bold]
    """
    from recycledb.store import revisions

    found, newest = revisions(session.url)
    note = "" if found == newest else "; run recycledb db upgrade" if (found or "") < newest else "; upgrade recycledb"
    stdout().print(f"{session.shown_url}: schema {found or 'none'}, newest {newest}{note}")


@db.command()
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write; it must not exist.")],
) -> None:
    """Copy the store to a file in one consistent state, also while a sync writes to it; a PostgreSQL store by pg_dump.

    Example: [bold]recycledb db backup recycle-2026-11-22.db[/bold]
    """
    from recycledb.store.address import open_backend

    with session.open() as store:
        del store  # it can be opened, so it is a store
    backend = open_backend(session.url)
    try:
        how = backend.save(file)
    finally:
        backend.close()
    stdout().print(f"wrote {file} ({file.stat().st_size / 1e6:.1f} MB)\n{how}")


@db.command()
def grant(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="A role of the PostgreSQL server.")],
) -> None:
    """Print the SQL that lets a role of a PostgreSQL server read this store and nothing else; its owner runs it with psql.

    Example: [bold]recycledb db grant readers | psql recycle[/bold]
    """
    from recycledb.store.address import is_server, open_backend

    if not is_server(session.url):
        raise ConfigError(
            f"{session.url} is a file: who may read it is a matter of its permissions; `db grant` is for PostgreSQL stores"
        )
    for line in open_backend(session.url).grants(role):
        stdout().print(line)


@db.command()
def check(as_json: Json = False) -> None:
    """Check the store for damage: the file, the schema, the digest and id of each row, and references between rows.

    Example: [bold]recycledb db check[/bold]
    """
    from recycledb.cli.printing import unread
    from recycledb.errors import StoreError

    with session.open() as db:
        checked = db.check()
    with unread():
        emit({"store": session.shown_url, **checked.as_dict()}, as_json=as_json, show=lambda: _show_checked(checked))
    if checked.findings:
        raise StoreError(f"{len(checked.findings)} problems found in {session.shown_url}")


def _show_checked(checked: "Checked") -> None:
    from recycledb.cli.printing import Table

    out = stdout()
    headers = ("rows", "ids checked", "digests checked", "no digest")
    table = Table("table", box=None, header_style="dim")
    for name in headers:
        table.add_column(name, justify="right")
    for walked in checked.tables:
        numbers = (walked.rows, walked.ids, walked.digests, walked.without_digest)
        table.add_row(walked.table, *(f"{number:,}" for number in numbers))
    out.print(table)
    out.print()
    out.print(
        f"also checked: the file (by the database's own check), {checked.schema_objects} tables, indexes and views, "
        f"{checked.references} references, {checked.relations} rules between tables, the picks of each selection, "
        "and what variants of transforms state"
    )
    for remark in checked.remarks:
        out.print(f"note: {remark}", markup=False, soft_wrap=True)
    for finding in checked.findings:
        out.print(finding, markup=False, soft_wrap=True)
    if not checked.findings:
        out.print("sound: no problems found")
