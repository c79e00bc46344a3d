"""Schema revisions: they make what the tables say, upgrade every store that there ever was, and leave a copy from before."""

import ast
import json
import sqlite3
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import Any, get_type_hints

import duckdb
import frozen_selections
import pytest
import stores
import zstandard
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from conftest import BACKENDS, Cli
from sqlalchemy import Table

from recycledb.errors import SchemaError, StoreError
from recycledb.methods.ifd import Stat
from recycledb.methods.reflection import Step
from recycledb.store import Store, parse_url, revisions, upgrade, verify
from recycledb.store.digest import COLUMN
from recycledb.store.losses import count_scores
from recycledb.store.migrate import HEAD
from recycledb.store.migrate import REVISIONS as KNOWN
from recycledb.store.questions import count_questions
from recycledb.store.rows import ROWS, TABLES
from recycledb.store.tables import metadata
from recycledb.store.workers import beat, end_worker, start_worker

VERSIONS = Path(str(files("recycledb.migrations"))) / "versions"
REVISION_FILES = sorted(VERSIONS.glob("rev_*.py"))
REVISIONS = [path.name.split("_")[1] for path in REVISION_FILES]
FROZEN = Path(__file__).with_name("data")
DUCKDB_NAMES = {"DOUBLE PRECISION": "DOUBLE", "BYTEA": "BLOB"}  # as DuckDB names the types that its dialect writes


def thaw(revision: str, backend: str, folder: Path) -> str:
    """Return the URL of a copy of the store that was kept of a revision."""
    path = folder / f"old.{backend}"
    path.write_bytes(zstandard.decompress((FROZEN / f"store-{revision}.{backend}.zst").read_bytes()))
    return f"{backend}:///{path}"


def set_revision(url: str, revision: str) -> None:
    """Let a store say that it is of another revision."""
    with Store.open(url) as store, store.write() as conn:
        conn.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{revision}'")


# --- the files ------------------------------------------------------------------------------------


def test_revisions_are_numbered_in_one_line_and_head_is_the_newest() -> None:
    assert [f"{i:04}" for i in range(1, len(REVISIONS) + 1)] == REVISIONS
    assert list(KNOWN) == REVISIONS and REVISIONS[-1] == HEAD
    for before, path in zip([None, *REVISIONS], REVISION_FILES, strict=False):
        module = ast.parse(path.read_text(encoding="utf-8"))
        values = {
            node.targets[0].id: ast.literal_eval(node.value)
            for node in module.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
            if node.targets[0].id in ("revision", "down_revision")
        }
        assert values == {"revision": path.name.split("_")[1], "down_revision": before}


@pytest.mark.parametrize("path", REVISION_FILES, ids=lambda path: path.stem)
def test_a_migration_says_why_and_imports_nothing_of_the_library(path: Path) -> None:
    module = ast.parse(path.read_text(encoding="utf-8"))
    assert len(ast.get_docstring(module) or "") > 100
    imported = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            if node.module != "recycledb.migrations.versions":  # a released revision, which never changes
                imported.add((node.module or "").split(".")[0])
    assert imported <= {"alembic", "sqlalchemy", "typing", "collections", "re"}


def test_a_store_of_every_revision_is_kept() -> None:
    kept = {path.name for path in FROZEN.glob("store-*.zst")}
    assert kept == {f"store-{revision}.{backend}.zst" for revision in REVISIONS for backend in ("sqlite", "duckdb")}


# --- no drift -------------------------------------------------------------------------------------


def test_tables_and_migrations_agree_on_sqlite(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store, store.read() as conn:
        context = MigrationContext.configure(conn, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


@pytest.mark.parametrize("store_url", ["duckdb"], indirect=True)
def test_tables_and_migrations_agree_on_duckdb(store_url: str) -> None:
    """By hand: Alembic cannot look into DuckDB."""
    with Store.open(store_url) as store:
        sql = "SELECT table_name, column_name, data_type, is_nullable FROM duckdb_columns() WHERE NOT internal"
        made = {(row[0], row[1]): (row[2], row[3]) for row in store.rows(sql)}
        views = {row[0] for row in store.rows("SELECT view_name FROM duckdb_views() WHERE NOT internal")}
        sql = (
            "SELECT table_name, constraint_column_names FROM duckdb_constraints() WHERE constraint_type = 'PRIMARY KEY'"
        )
        keys = {row[0]: list(row[1]) for row in store.rows(sql)}
        with store.write() as conn:
            dialect = conn.dialect
    wanted = {
        (table.name, column.name): (DUCKDB_NAMES.get(kind := column.type.compile(dialect), kind), column.nullable)
        for table in metadata.sorted_tables
        for column in table.columns
    }
    tables = {key: value for key, value in made.items() if key[0] not in {*views, "alembic_version"}}
    assert tables == wanted
    for table in metadata.sorted_tables:
        assert keys[table.name] == [column.name for column in table.primary_key.columns]


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=str)
def test_rows_have_the_columns_of_their_tables(table: Table) -> None:
    """In their order, without digests; trailing columns that may be NULL need not be given."""
    row, columns = ROWS[table.name], [column for column in table.columns if column.name != COLUMN]
    assert TABLES[row] == table.name
    assert list(row._fields) == [column.name for column in columns]
    kinds = {column.name: getattr(column.type, "impl", column.type).python_type for column in columns}
    assert get_type_hints(row) == {c.name: kinds[c.name] | None if c.nullable else kinds[c.name] for c in columns}
    trailing = [column.name for column in takewhile(lambda column: column.nullable, reversed(columns))]
    assert row._field_defaults == dict.fromkeys(trailing)


def test_every_table_has_a_row() -> None:
    assert set(ROWS) == set(metadata.tables)


# --- refusals -------------------------------------------------------------------------------------


OLDER = r"older than this recycledb .* run `recycledb db upgrade`"
NEWER = r"newer than this recycledb .* `pip install --upgrade recycledb`"


@pytest.mark.parametrize("store_url", BACKENDS, indirect=True)
@pytest.mark.parametrize(("revision", "message"), [("0001", OLDER), ("9999", NEWER)])
def test_a_store_of_another_schema_is_refused_and_left_alone(store_url: str, revision: str, message: str) -> None:
    set_revision(store_url, revision)
    path = parse_url(store_url)[1]
    before = path.read_bytes()
    for create in (False, True):
        with pytest.raises(SchemaError, match=message):
            Store.open(store_url, create=create)
    if revision > HEAD:
        with pytest.raises(SchemaError, match=message):
            upgrade(store_url)
    assert path.read_bytes() == before and [other.name for other in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("revision", "mends"), [("0001", "recycledb db upgrade"), ("9999", "pip install --upgrade")])
def test_the_command_says_what_mends_another_schema(sqlite_url: str, revision: str, mends: str, cli: Cli) -> None:
    set_revision(sqlite_url, revision)
    told = cli("--store", sqlite_url, "status", code=1)
    assert told.stderr.count("\n") == 1 and mends in told.stderr and told.stdout == ""
    assert revision in cli("--store", sqlite_url, "db", "current").stdout


def test_a_revision_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """The last view of the second revision is there already, so its making fails after its tables were made."""
    for backend, library in (("sqlite", sqlite3), ("duckdb", duckdb)):
        url = thaw("0001", backend, tmp_path)
        path = parse_url(url)[1]
        connection: Any = library.connect(str(path))  # type: ignore[attr-defined]
        connection.execute("CREATE VIEW batches AS SELECT 1 AS one")
        connection.commit()
        connection.close()
        with pytest.raises(StoreError) as raised:
            upgrade(url)
        assert "\n" not in str(raised.value)
        assert revisions(url) == ("0001", HEAD)
        connection = library.connect(str(path))  # type: ignore[attr-defined]
        tables = "sqlite_master WHERE type = 'table'" if backend == "sqlite" else "duckdb_tables()"
        name = "name" if backend == "sqlite" else "table_name"
        assert "batch" not in {row[0] for row in connection.execute(f"SELECT {name} FROM {tables}").fetchall()}
        connection.close()


# --- upgrades -------------------------------------------------------------------------------------


@pytest.mark.default_cases("0001-sqlite")
@pytest.mark.parametrize("backend", ["sqlite", "duckdb"])
@pytest.mark.parametrize("revision", REVISIONS)
def test_a_store_of_any_revision_is_upgraded_and_then_used(revision: str, backend: str, tmp_path: Path) -> None:
    url = thaw(revision, backend, tmp_path)
    path = parse_url(url)[1]
    assert revisions(url) == (revision, HEAD)
    copy = upgrade(url)
    assert revisions(url) == (HEAD, HEAD) and upgrade(url) is None
    if revision == HEAD:
        assert copy is None and [other.name for other in tmp_path.iterdir()] == [path.name]
    else:
        assert copy is not None and copy.parent == path.parent
        assert revisions(f"{backend}:///{copy}") == (revision, HEAD)
    with Store.open(url) as store:
        use(store)


def use(store: Store) -> None:
    """Work with the store that `freeze_store.py` kept: what was there is there, and what is missing is found and goes in."""
    assert verify.check(store).findings == []
    assert store.rows("SELECT count(*) FROM sample")[0][0] == 3
    assert {row[0] for row in store.rows("SELECT student FROM scores")} == {"7b"}
    assert [row[0] for row in store.rows("SELECT sample_id FROM dataset_samples ORDER BY position")] == [
        row[0] for row in store.rows("SELECT sample_id FROM sample ORDER BY instruction LIMIT 2")
    ]
    want, stats = stores.wanted(), tuple(stat.value for stat in Stat)
    assert set(count_questions(store, want)) == {Step.REFLECT_INSTRUCTION, Step.REFLECT_RESPONSE}
    ids = [row[0] for row in store.rows("SELECT sample_id FROM dataset_samples")]
    assert stores.answer_all(store, want, ids) == 3
    assert count_scores(store, want, [(stores.STUDENT, stats)])[0][:2] == (4, 16)
    worker = start_worker(store)
    beat(store, worker)
    end_worker(store, worker)
    stores.fill(store, "later")
    for view in stores.VIEWS:
        assert store.rows(f"SELECT * FROM {view}"), view
    assert verify.check(store).findings == []


@pytest.mark.default_cases("0001.sqlite")
@pytest.mark.parametrize("path", sorted(FROZEN.glob("store-*.zst")), ids=lambda path: path.name.removesuffix(".zst"))
def test_a_frozen_store_lacks_and_selects_what_it_did(path: Path, tmp_path: Path) -> None:
    """The same rows missing, the same bytes selected by each shipped recipe, as by the code of the time: see frozen_selections.py."""
    expected = json.loads((FROZEN / "selected.json").read_text())[path.name.removesuffix(".zst")]
    assert frozen_selections.of_file(path, tmp_path) == expected


@pytest.mark.default_cases("0001", "0009")
@pytest.mark.parametrize("revision", REVISIONS)
def test_an_upgraded_store_has_the_schema_of_a_new_one(revision: str, tmp_path: Path, sqlite_url: str) -> None:
    url = thaw(revision, "sqlite", tmp_path)
    upgrade(url)
    shown = []
    for one in (url, sqlite_url):
        with Store.open(one) as store, store.read() as conn:
            assert compare_metadata(MigrationContext.configure(conn, opts={"compare_type": True}), metadata) == []
            shown.append(store.rows("SELECT type, name, sql FROM sqlite_master WHERE type <> 'table' ORDER BY name"))
    assert shown[0] == shown[1]


@pytest.mark.parametrize("store_url", BACKENDS, indirect=True)
def test_a_copy_is_a_store_whoever_is_writing(store_url: str, tmp_path: Path) -> None:
    target = tmp_path / "copy.bak"
    with Store.open(store_url) as store:
        stores.add_samples(store, [stores.texts(1)])
        store.backend.backup(target)
        stores.add_samples(store, [stores.texts(1), stores.texts(2)])
    with Store.open(f"{store_url.partition(':')[0]}:///{target}") as copy:
        assert len(copy.rows("SELECT * FROM samples")) == 1 and verify.check(copy).findings == []


def test_upgrade_by_command(tmp_path: Path, cli: Cli) -> None:
    url = thaw(REVISIONS[0], "sqlite", tmp_path)
    told = cli("--store", url, "db", "upgrade").stdout
    assert f"schema {HEAD}, newest {HEAD}" in told
    assert ("copy of the store before the upgrade" in told) == (REVISIONS[0] != HEAD)
    missing = cli("--store", f"sqlite:///{tmp_path}/none.db", "db", "upgrade", code=1)
    assert "recycledb init" in missing.stderr and not (tmp_path / "none.db").exists()
