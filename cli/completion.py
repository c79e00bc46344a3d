"""The names that a shell offers after Tab: of the store, of recycledb.toml, and of what is installed.

Invariant: it never fails and never prints, since what it printed would be taken for a name; without a store or with a broken file
there are fewer names. It reads the store through the database's own driver, read-only: opening it as commands do takes a second.
"""

import os
import tomllib
from collections.abc import Callable, Iterable
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import Any

import typer

Complete = Callable[[typer.Context, str], list[str]]
Names = Callable[[typer.Context], Iterable[str]]

FILE_NAME = "recycledb.toml"
TEMPLATES = ("vicuna", "alpaca", "wizardlm", "none")
DTYPES = ("float32", "bfloat16", "float16")
PATIENCE_S = 0.5  # for a store that another process writes to
_TABLES = {
    "student": "SELECT student FROM students",
    "teacher": "SELECT teacher FROM teachers",
    "dataset": "SELECT dataset FROM dataset",
    "selection": "SELECT selection FROM selections",
}


def _offered(names: Names) -> Complete:
    """Return a function for typer: the names that begin like the word before the cursor."""

    def complete(context: typer.Context, incomplete: str) -> list[str]:
        try:
            found = sorted({name for name in names(context) if name.startswith(incomplete)})
        except Exception:  # whatever is wrong, there is nothing to offer
            return []
        return [name for name in found if name.isprintable()]

    return complete


def _stored(what: str) -> Names:
    return lambda context: _in_store(context, _TABLES[what])


def _configured(table: str) -> list[str]:
    _, data = _configuration()
    return list(data.get(table, {}))


def _configuration() -> tuple[Path, dict[str, Any]]:
    """Return the folder and the content of the nearest recycledb.toml, unchecked; nothing if it cannot be read."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / FILE_NAME).is_file():
            try:
                return folder, tomllib.loads((folder / FILE_NAME).read_text(encoding="utf-8-sig"))
            except (OSError, ValueError):
                break
    return here, {}


def _in_store(context: typer.Context, sql: str) -> list[str]:
    try:
        return [str(row[0]) for row in _read(context.find_root().params.get("store"), sql)]
    except Exception:  # no store, a store of another revision, one that is locked
        return []


def _read(store: str | None, sql: str) -> list[Any]:
    folder, url = Path(), store or os.environ.get("RECYCLEDB_STORE")
    if not url:
        folder, data = _configuration()
        url = data.get("store", {}).get("url", "sqlite:///recycle.db")
    scheme, _, name = url.partition(":///")
    path = (folder / Path(name).expanduser()).resolve(strict=True)
    if scheme == "duckdb":
        import duckdb

        with duckdb.connect(str(path), read_only=True) as connection:
            return connection.execute(sql).fetchall()
    import sqlite3

    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=PATIENCE_S)) as connection:
        return connection.execute(sql).fetchall()


def _kinds(context: typer.Context) -> Iterable[str]:
    from recycledb import methods

    return methods.kinds()


def _scored_kinds(context: typer.Context) -> Iterable[str]:
    from recycledb.methods import scored_kinds

    return scored_kinds()


def _metrics(context: typer.Context) -> Iterable[str]:
    from recycledb.methods.ifd import METRICS

    return METRICS


def _recipes(context: typer.Context) -> Iterable[str]:
    folder = files("recycledb.selection") / "recipes"
    return [entry.name.removesuffix(".sql") for entry in folder.iterdir() if entry.name.endswith(".sql")]


def _formats_in(context: typer.Context) -> Iterable[str]:
    from recycledb.formats import FORMATS

    return FORMATS


def _formats_out(context: typer.Context) -> Iterable[str]:
    from recycledb.formats import OUT_FORMATS

    return OUT_FORMATS


stored_student, stored_teacher = _offered(_stored("student")), _offered(_stored("teacher"))
dataset, selection = _offered(_stored("dataset")), _offered(_stored("selection"))
configured_student = _offered(lambda context: _configured("students"))
configured_teacher = _offered(lambda context: _configured("teachers"))
measure = _offered(lambda context: _configured("measures"))
kind, scored_kind = _offered(_kinds), _offered(_scored_kinds)
metric, recipe = _offered(_metrics), _offered(_recipes)
format_in, format_out = _offered(_formats_in), _offered(_formats_out)
format_query = _offered(lambda context: ("table", "json", "jsonl", "csv", "parquet"))
template, dtype = _offered(lambda context: TEMPLATES), _offered(lambda context: DTYPES)
