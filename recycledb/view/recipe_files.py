"""Recipes to start from and to save to: those that ship, recorded selections, and the folder `recipes` beside the store.

Invariant: files are read from and written to that folder only, under plain names; an existing file is replaced only if that was asked for.
No message names the folder's path.
"""

import json
import re
from functools import cache
from pathlib import Path

from recycledb.config import Config
from recycledb.errors import ConfigError, SelectionError, StoreError, WriteError
from recycledb.files import make_folder, write_text
from recycledb.selection.recipes import Recipe, get_recipe, iter_recipes
from recycledb.store import Store
from recycledb.store.address import open_backend
from recycledb.workspace import Workspace

FOLDER = "recipes"
MOST = 200  # files and selections that are offered
_NAME = re.compile(r"\w[\w.-]{0,79}")


class RecipeExistsError(SelectionError):
    """A recipe file of that name exists, with another text."""


@cache
def shipped() -> tuple[Recipe, ...]:
    """Return the recipes that ship."""
    return tuple(iter_recipes())


def folder_of(workspace: Workspace) -> Path:
    """Return the folder for recipe files: beside the configuration if that is the store's, else beside the store's file, else here."""
    backend = workspace.store.backend
    try:
        config = workspace.config
    except ConfigError:  # which is no reason to refuse a query
        config = Config()
    if config.path is not None and _store_of(config) == backend.identity:
        return config.path.resolve().parent / FOLDER
    return (backend.folder or Path()).resolve() / FOLDER


def _store_of(config: Config) -> str | None:
    try:
        return open_backend(config.store.url).identity
    except StoreError:
        return None


def names(folder: Path) -> list[str]:
    """Return the names of the recipe files, without their suffix."""
    found = sorted(path.stem for path in folder.glob("*.sql") if _NAME.fullmatch(path.stem) and path.is_file())
    return found[:MOST]


def read(folder: Path, name: str) -> str:
    """Return the text of a recipe file."""
    path = folder / f"{_checked(name)}.sql"
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SelectionError(f"{FOLDER}/{path.name} cannot be read: {reason}") from error


def save(folder: Path, name: str, text: str, *, replace: bool) -> str:
    """Write a recipe file and return its name with the folder's; RecipeExistsError if it would be replaced unasked."""
    path = folder / f"{_checked(name.removesuffix('.sql'))}.sql"
    shown = f"{FOLDER}/{path.name}"
    text = text.rstrip() + "\n"
    if not replace and path.exists() and read(folder, path.stem) != text:
        raise RecipeExistsError(
            f"{shown} exists with another text: tick “replace” to write this one in its place, or give another name"
        )
    try:
        make_folder(folder)
        write_text(path, text)
    except WriteError as error:
        raise WriteError(str(error).replace(f"{folder}/", f"{FOLDER}/").replace(str(folder), FOLDER)) from error
    return shown


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise SelectionError(
            f"{name!r} cannot be the name of a recipe file: use up to 80 letters, digits, dots, dashes and underscores"
        )
    return name


def recorded(store: Store) -> list[tuple[str, str]]:
    """Return the name and the id of the recorded selections, newest first."""
    sql = f"SELECT selection, selection_id FROM selections ORDER BY created_at DESC, selection_id LIMIT {MOST}"
    return [(row[0], row[1]) for row in store.rows(sql)]


def start(workspace: Workspace, source: str) -> tuple[str, dict[str, str]]:
    """Return the text and the parameters of a source: `recipe:NAME`, `file:NAME` or `selection:ID`."""
    kind, _, name = source.partition(":")
    match kind:
        case "recipe":
            return get_recipe(name).sql, {}
        case "file":
            return read(folder_of(workspace), name), {}
        case "selection":
            rows = workspace.store.rows("SELECT sql, parameters FROM selections WHERE selection_id = :id", id=name)
            if not rows:
                raise SelectionError(f"no selection {name!r} in the store")
            said = {key: str(value) for key, value in json.loads(rows[0][1]).items() if value is not None}
            return rows[0][0], said
    raise SelectionError(f"{source!r} is no place to start from: give recipe:NAME, file:NAME or selection:ID")
