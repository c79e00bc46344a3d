"""What a query may do with other files: read them where it is allowed to, and never write one."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import stores
from conftest import BACKENDS

from recycledb.errors import QueryError
from recycledb.selection.query import query
from recycledb.store import Store

READS, REFUSED, WRONG = "reads", "refused", "wrong"  # wrong: not this backend's SQL, or no such file

# Statement, what becomes of it with --allow-external on SQLite, and on DuckDB. Without it none reads anything outside the store.
EXTERNAL = [
    ("ATTACH 'other.db' AS o; SELECT count(*) FROM o.t", READS, READS),
    ("attach database 'other.db' as o ; -- and so on\nSELECT count(*) FROM o.t;", READS, READS),
    ('ATTACH \'other.db\' AS "my o"; SELECT count(*) FROM "my o".t; ', READS, READS),
    ("ATTACH :file AS o; SELECT count(*) FROM o.t", READS, REFUSED),
    ("ATTACH 'file:other.db' AS o; SELECT count(*) FROM o.t", READS, WRONG),
    ("ATTACH 'file:other.db?immutable=1' AS o; SELECT count(*) FROM o.t", READS, WRONG),
    ("ATTACH 'other.db' AS o (READ_ONLY); SELECT count(*) FROM o.t", REFUSED, READS),
    ("ATTACH 'other.db' AS o (TYPE duckdb, READ_ONLY true); SELECT count(*) FROM o.t", REFUSED, READS),
    ("ATTACH 'other.db' AS o; INSERT INTO o.t VALUES (2)", REFUSED, REFUSED),
    ("ATTACH 'other.db' AS o; DELETE FROM o.t RETURNING 1", REFUSED, REFUSED),
    ("ATTACH 'other.db' AS o; CREATE TABLE o.u (a INTEGER)", REFUSED, REFUSED),
    ("ATTACH 'other.db' AS o; WITH x AS (SELECT 1) INSERT INTO o.t SELECT * FROM x", REFUSED, REFUSED),
    ("ATTACH 'other.db' AS o (READ_WRITE); INSERT INTO o.t VALUES (2)", REFUSED, REFUSED),
    ("ATTACH 'other.db' AS o (READ_ONLY false); INSERT INTO o.t VALUES (2)", REFUSED, REFUSED),
    ("ATTACH 'file:other.db?mode=rw' AS o; INSERT INTO o.t VALUES (2)", REFUSED, WRONG),
    ("ATTACH 'file:other.db?vfs=unix-none' AS o; SELECT * FROM o.t", REFUSED, WRONG),
    ("ATTACH 'new.db' AS n; SELECT 1", WRONG, WRONG),
    ("ATTACH 'file:new.db?mode=rwc' AS n; SELECT 1", WRONG, WRONG),
    ("ATTACH 'file:new.db?mode=memory&cache=shared' AS n; SELECT 1", REFUSED, WRONG),
    ("ATTACH 'file:new.db?%6dode=rwc' AS n; SELECT 1", REFUSED, WRONG),
    ("ATTACH 'new.db' AS n (READ_WRITE); SELECT 1", REFUSED, REFUSED),
    ("ATTACH 'n' || 'ew.db' AS n; SELECT 1", REFUSED, WRONG),
    ("ATTACH ':memory:' AS n; CREATE TABLE n.t AS SELECT 1", REFUSED, WRONG),
    ("ATTACH '' AS n; SELECT 1", REFUSED, WRONG),
    ("VACUUM INTO 'new.db'", REFUSED, WRONG),
    ("ATTACH 'other.db' AS o; VACUUM o INTO 'new.db'", REFUSED, WRONG),
    ("DETACH main", WRONG, WRONG),
    ("SELECT count(*) FROM read_csv('data.csv')", WRONG, READS),
    ("SELECT content FROM read_text('/etc/passwd')", WRONG, READS),
    ("SELECT last_modified FROM read_blob('data.csv')", WRONG, READS),
    ("SELECT * FROM 'data.csv'", WRONG, READS),
    ("DESCRIBE FROM 'data.csv'", WRONG, READS),
    ("SUMMARIZE FROM 'data.csv'", WRONG, READS),
    ("EXPLAIN ANALYZE SELECT * FROM 'data.csv'", WRONG, READS),
    ("EXPLAIN (ANALYZE, FORMAT json) SELECT * FROM 'data.csv'", WRONG, READS),
    ("COPY (SELECT 1) TO 'new.csv'", WRONG, REFUSED),
    ("COPY FROM DATABASE store TO other", WRONG, REFUSED),
    ("EXPLAIN COPY (SELECT 1) TO 'new.csv'", WRONG, REFUSED),
    ("EXPLAIN ANALYZE COPY (SELECT 1) TO 'new.csv'", WRONG, REFUSED),
    ("/* a */ EXPLAIN /* b */ ANALYZE /* c */ COPY (SELECT 1) TO 'new.csv'", WRONG, REFUSED),
    ("EXPLAIN (ANALYZE) COPY (SELECT 1) TO 'new.csv'", WRONG, REFUSED),
    ("EXPLAIN (FORMAT json, ANALYZE) COPY (SELECT 1) TO 'new.csv'", WRONG, REFUSED),
    ("/* /* */ EXPLAIN SELECT 1 AS a --\n */ */ EXPLAIN ANALYZE COPY (SELECT 1) TO 'new.csv'", WRONG, WRONG),
    ("EXPLAIN ANALYZE EXECUTE plan", WRONG, REFUSED),
    ("EXPLAIN ANALYZE CHECKPOINT", WRONG, REFUSED),
    ("WITH x AS (COPY (SELECT 1) TO 'new.csv') SELECT * FROM x", WRONG, REFUSED),
    ("EXPLAIN ANALYZE WITH x AS (COPY (SELECT 1) TO 'new.csv') SELECT * FROM x", WRONG, REFUSED),
    ("SELECT * FROM query('WITH x AS (COPY (SELECT 1) TO ''new.csv'') SELECT * FROM x')", WRONG, WRONG),
    (
        "SELECT * FROM json_execute_serialized_sql(json_serialize_sql("
        "'WITH x AS (COPY (SELECT 1) TO ''new.csv'') SELECT * FROM x'))",
        WRONG,
        REFUSED,
    ),
    ("SELECT * FROM enable_logging(storage = 'file', storage_path = 'logs')", WRONG, REFUSED),
    ("SELECT * FROM force_checkpoint()", WRONG, REFUSED),
    ("EXPORT DATABASE 'new'", WRONG, REFUSED),
    ("IMPORT DATABASE 'new'", WRONG, REFUSED),
    ("INSTALL httpfs", WRONG, REFUSED),
    ("LOAD httpfs", WRONG, REFUSED),
    ("CREATE SECRET (TYPE s3)", WRONG, REFUSED),
    ("CREATE PERSISTENT SECRET s (TYPE s3)", WRONG, REFUSED),
    ("SET temp_directory = 'new'", WRONG, REFUSED),
    ("PRAGMA enable_profiling = 'json'", REFUSED, REFUSED),
    ("PRAGMA profiling_output = 'new.json'", REFUSED, REFUSED),
    ("PRAGMA journal_mode = DELETE", REFUSED, REFUSED),
    ("CALL enable_logging()", WRONG, REFUSED),
    ("PREPARE plan AS COPY (SELECT 1) TO 'new.csv'", WRONG, REFUSED),
    ("USE other", WRONG, REFUSED),
    ("CHECKPOINT", WRONG, REFUSED),
    ("CREATE TEMP TABLE x AS SELECT 1", REFUSED, REFUSED),
    ("CREATE TEMP TRIGGER x AFTER INSERT ON sample BEGIN SELECT 1; END", WRONG, WRONG),
]


def tree(folder: Path) -> dict[str, str]:
    """Return every file's hash; a database that is read may have a log and its index beside it."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in folder.rglob("*")
        if not path.name.endswith(("-wal", "-shm", ".wal"))
    }


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, empty_stores: dict[str, Path]) -> dict[str, Path]:
    """A folder for each backend with a store, another database and a CSV file: nothing may change there."""
    import duckdb

    from recycledb.store.sqlite import driver

    made = {}
    for backend, path in empty_stores.items():
        folder = made[backend] = tmp_path_factory.mktemp(backend)
        (folder / f"store.{backend}").write_bytes(path.read_bytes())
        (folder / "data.csv").write_text("a,b\n1,2\n")
        other: Any = (driver if backend == "sqlite" else duckdb).connect(str(folder / "other.db"))
        other.execute("CREATE TABLE t (a INTEGER)")
        other.execute("INSERT INTO t VALUES (1)")
        other.commit() if backend == "sqlite" else None
        other.close()
    return made


@pytest.mark.long
@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("backend", ["sqlite", "duckdb"])
def test_other_files_are_read_at_most(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, backend: str, allowed: bool
) -> None:
    folder = folders[backend]
    monkeypatch.chdir(folder)
    with Store.open(f"{backend}:///store.{backend}") as store:
        before = tree(folder)
        assert len(before) == 3
        for sql, *expected in EXTERNAL:
            outcome = expected[backend == "duckdb"]
            try:
                with query(store, sql, {"file": "other.db"}, allow_external=allowed) as result:
                    rows = list(result.rows)
            except QueryError as error:
                assert len(str(error).splitlines()) == 1, sql
                assert not (allowed and outcome == READS), f"{sql}: {error}"
                assert not allowed or outcome == WRONG or str(error).startswith("refused:"), f"{sql}: {error}"
            else:
                assert allowed and outcome == READS and rows, sql
            assert tree(folder) == before, sql


@pytest.mark.parametrize("store_url", BACKENDS, indirect=True)
def test_a_path_with_odd_characters_is_attached(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stores.add_samples(store, [stores.texts("a")])
    monkeypatch.chdir(tmp_path)
    other = tmp_path / "it's 100% #1?.db" if store.backend.name == "sqlite" else tmp_path / "it's 100% #1.db"
    store.backend.backup(other)
    name = other.name.replace("'", "''")
    for file in (name, str(other).replace("'", "''")):
        with query(store, f"ATTACH '{file}' AS o; SELECT count(*) AS n FROM o.sample", allow_external=True) as result:
            assert list(result.rows) == [(1,)]
