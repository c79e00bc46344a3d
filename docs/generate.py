"""Write cli.md, configuration.md and schema.md: `python docs/generate.py`; with --check, only say which are stale.

The commands' help, the settings' descriptions and a migrated store are the sources; what schema.md says of views and their
columns is in schema.toml beside this file. Nothing here is kept by hand twice.
"""

import re
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import typer
from pydantic import BaseModel
from sqlalchemy import inspect
from sqlmodel import SQLModel

from recycledb.cli.commands import app
from recycledb.config import (
    AugmentationConfig,
    Config,
    MeasureConfig,
    StoreSettings,
    StudentConfig,
    SyncSettings,
    TeacherConfig,
)
from recycledb.store import Store, tables

FOLDER = Path(__file__).parent
NOTE = "<!-- Made by `python docs/generate.py`; change the sources that it names. -->"


# --- cli.md ---------------------------------------------------------------------------------------


def cli() -> str:
    """Return every command with its help and options."""
    group: Any = typer.main.get_command(app)
    parts = [
        "# Commands",
        NOTE,
        _plain(group.help),
        "Exit codes: 0 done; 1 an error, told in one line (`--debug` shows its traceback); 2 wrong usage; 3 a sync that ended in "
        "order while rows are still missing.",
        "Options of every command, before its name:",
        _parameters(group),
    ]
    for name, command in _commands(group):
        parts += [
            f"## recycledb {name}",
            _usage(f"recycledb {name}", command),
            _plain(command.help),
            _parameters(command),
        ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        inner = getattr(command, "commands", None)
        if inner is None or command.invoke_without_command:
            yield prefix + name, command
        if inner is not None:
            yield from _commands(command, f"{prefix}{name} ")


def _usage(path: str, command: Any) -> str:
    usage = command.get_usage(typer.Context(command, info_name=path)).removeprefix("Usage:")
    return f"```\n{' '.join(usage.split())}\n```"


def _plain(text: str | None) -> str:
    """Return help as Markdown: its bold commands as code, what looks like HTML or escapes as it is meant."""
    return re.sub(r"\[bold\](.*?)\[/bold\]", r"`\1`", (text or "").replace("\\[", "["), flags=re.S).strip()


def _parameters(command: Any) -> str:
    rows = [_parameter(one) for one in command.params if not one.hidden and one.help]
    return _table(("option", "meaning", "default"), rows)


def _parameter(one: Any) -> tuple[str, str, str]:
    if one.opts[0].startswith("-"):
        name = ", ".join(f"`{flag}`" for flag in one.opts)
        name += "" if one.is_flag else f" `{one.metavar or one.name.upper()}`"
    else:
        name = f"`{one.metavar or one.name.upper()}`"
    default = "required" if one.required else "" if one.default in (None, False, [], ()) else f"`{one.default}`"
    if one.envvar:
        default = f"${one.envvar}"
    return name, _plain(one.help), default


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [header, ("---",) * len(header), *(tuple(cell.replace("|", "\\|") for cell in row) for row in rows)]
    return "\n".join(f"| {' | '.join(' '.join(cell.split()) for cell in line)} |" for line in lines)


# --- configuration.md -----------------------------------------------------------------------------

TABLES: tuple[tuple[str, type[BaseModel]], ...] = (
    ("store", StoreSettings),
    ("teachers.NAME", TeacherConfig),
    ("students.NAME", StudentConfig),
    ("measures.NAME", MeasureConfig),
    ("augmentations.NAME", AugmentationConfig),
    ("sync", SyncSettings),
)


def configuration() -> str:
    """Return every table of recycledb.toml with its settings."""
    parts = [
        "# recycledb.toml",
        NOTE,
        "The state that `recycledb sync` brings about. The file is looked for in this folder, then in its parents; `recycledb init` writes "
        "one with comments. Paths are seen from its folder. An unknown setting or a wrong type is an error. Secrets are never read "
        "from it: they come from the environment.",
    ]
    for table, model in TABLES:
        parts += [
            f"## [{table}]",
            str(model.__doc__),
            _table(("setting", "value", "meaning", "default"), _settings(model)),
        ]
    parts += ["## [prompts]", str(Config.model_fields["prompts"].description)]
    return "\n\n".join(parts) + "\n"


def _settings(model: type[BaseModel]) -> list[tuple[str, ...]]:
    schema = model.model_json_schema()
    required = schema.get("required", [])
    return [
        (
            f"`{name}`",
            _value(value, schema.get("$defs", {})),
            value["description"],
            "required" if name in required else _default(value.get("default")),
        )
        for name, value in schema["properties"].items()
        if name != "name"
    ]


def _value(value: dict[str, Any], shared: dict[str, Any]) -> str:
    if "$ref" in value:
        return _value(shared[value["$ref"].rpartition("/")[2]], shared)
    if "anyOf" in value:
        return _value(next(one for one in value["anyOf"] if one.get("type") != "null"), shared)
    if "enum" in value:
        return ", ".join(f"`{one}`" for one in value["enum"])
    if value["type"] == "array":
        return f"list of {_value(value['items'], shared)}"
    return {
        "string": "text",
        "integer": "whole number",
        "number": "number",
        "boolean": "true, false",
        "object": "table",
    }[value["type"]]


def _default(value: Any) -> str:
    if value in (None, "", [], {}):
        return ""
    text = (
        str(value).lower() if isinstance(value, bool) else ", ".join(value) if isinstance(value, list) else str(value)
    )
    return f"`{text}`"


# --- schema.md ------------------------------------------------------------------------------------


def schema() -> str:
    """Return every view and table with its columns; KeyError for a column without a sentence, or one that is gone."""
    sentences = tomllib.loads((FOLDER / "schema.toml").read_text(encoding="utf-8"))
    everywhere = sentences.pop("everywhere")
    columns = _view_columns()
    if gone := set(sentences) - set(columns):
        raise KeyError(f"schema.toml describes {', '.join(sorted(gone))}, which the store does not have")
    parts = [
        "# The SQL surface",
        NOTE,
        "Query these views, by `recycledb query`, in a recipe, or with any tool that reads SQLite or DuckDB. Ids are "
        "content addresses: the same content has the same id in every store. Nothing in them changes in place; where a "
        "better text, prompt or student comes, rows are added, and names move.",
    ]
    order = [name for name in sentences if name in columns]
    for name in [*order, *sorted(set(columns) - set(order))]:
        described = sentences[name]
        parts += [
            f"## {name}",
            f"One row is {described['']}.",
            _table(("column", "meaning"), _view(name, columns, described, everywhere)),
        ]
    parts += [
        "## Tables",
        "What the views are made of. A table may change from one version to the next; the views keep their columns.",
    ]
    for cls in _table_classes():
        parts += _table_of(cls)
    return "\n\n".join(part for part in parts if part) + "\n"


def _table_classes() -> list[Any]:
    found = (cls for cls in vars(tables).values() if isinstance(cls, type) and issubclass(cls, SQLModel))
    return [cls for cls in found if cls is not SQLModel]


def _table_of(cls: Any) -> list[str]:
    table = tables.metadata.tables[cls.__tablename__]
    key = ", ".join(f"`{column.name}`" for column in table.columns if column.primary_key)
    rest = ", ".join(f"`{column.name}`" for column in table.columns if not column.primary_key)
    notes = [(f"`{name}`", field.description) for name, field in cls.model_fields.items() if field.description]
    return [
        f"### {table.name}",
        " ".join(str(cls.__doc__).split()),
        f"Key: {key}." + (f" Columns: {rest}." if rest else ""),
        _table(("column", "note"), notes),
    ]


def _view_columns() -> dict[str, list[str]]:
    with (
        TemporaryDirectory() as folder,
        Store.open(f"sqlite:///{folder}/x.db", create=True) as store,
        store.read() as conn,
    ):
        looked = inspect(conn)
        return {name: [column["name"] for column in looked.get_columns(name)] for name in looked.get_view_names()}


def _view(
    name: str, columns: dict[str, list[str]], own: dict[str, str], everywhere: dict[str, str]
) -> list[tuple[str, ...]]:
    if gone := set(own) - {"", *columns[name]}:
        raise KeyError(f"schema.toml describes {name}.{', '.join(sorted(gone))}, which the view does not have")
    lacking = [column for column in columns[name] if column not in own and column not in everywhere]
    if lacking:
        raise KeyError(f"docs/schema.toml says nothing of {name}.{', '.join(lacking)}")
    return [(f"`{column}`", own.get(column) or everywhere[column]) for column in columns[name]]


# --- all ------------------------------------------------------------------------------------------

PAGES: dict[str, Callable[[], str]] = {"cli.md": cli, "configuration.md": configuration, "schema.md": schema}


def main() -> int:
    """Write the pages, or with --check name those that are stale; return the exit code."""
    stale = []
    for name, make in PAGES.items():
        path, text = FOLDER / name, make()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(name)
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
    if stale and "--check" in sys.argv:
        print(f"stale: {', '.join(stale)}; run `python docs/generate.py`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
