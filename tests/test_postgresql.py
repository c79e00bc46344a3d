"""PostgreSQL: what only a server does. The tests of the store, of queries and selections run on it too (`store_url` in conftest.py)."""

import json
import math
import os
import shutil
import subprocess
from contextlib import closing
from pathlib import Path

import postgres_server
import pytest
import scored_stores as scored
import stores
from conftest import Cli
from postgres_server import OWNER
from stores import STUDENT
from templates import drop, new_url

from recycledb.config import load
from recycledb.errors import ConfigError, QueryError, SchemaError, StoreError
from recycledb.selection.query import query
from recycledb.selection.recipes import get_recipe
from recycledb.selection.select import select
from recycledb.store import Store, verify
from recycledb.store.address import open_backend, shown
from recycledb.store.merge import merge, open_source

pytestmark = pytest.mark.skipif(postgres_server.binaries() is None, reason="no PostgreSQL: apt-get install postgresql")


# --- addresses, passwords and roles -----------------------------------------------------------------


def test_passwords_are_not_in_the_file_and_in_no_message(tmp_path: Path) -> None:
    for written in ("postgresql://me:secret@db.lab/store", "postgresql://db.lab/store?password=secret"):
        (tmp_path / "recycledb.toml").write_text(f'[store]\nurl = "{written}"\n')
        with pytest.raises(ConfigError, match=r"~/\.pgpass or \$PGPASSWORD") as raised:
            load(tmp_path / "recycledb.toml")
        assert "secret" not in str(raised.value)
    assert shown("postgresql://me:secret@localhost/store") == "postgresql://me:***@localhost/store"
    with pytest.raises(StoreError) as raised_there:
        Store.open("postgresql://me:secret@localhost:1/store")
    assert "secret" not in str(raised_there.value) and "localhost" in str(raised_there.value)


def test_a_server_elsewhere_is_asked_for_tls_that_verifies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PGSSLMODE", raising=False)
    monkeypatch.delenv("PGHOST", raising=False)
    assert "sslmode=verify-full" in open_backend("postgresql://db.lab.example/store").label
    for address in ("postgresql://localhost/s", "postgresql:///s?host=/var/run/pg", "postgres://127.0.0.1:5433/s"):
        assert "sslmode" not in open_backend(address).label
    assert "sslmode=require" in open_backend("postgresql://db.lab.example/store?sslmode=require").label


def test_a_database_that_is_missing_is_one_line_with_the_command(pg_url: str) -> None:
    missing = pg_url.replace(pg_url.partition("@/")[2].partition("?")[0], "nowhere")
    with pytest.raises(StoreError, match=r"there is no database 'nowhere' .* `createdb nowhere` creates it"):
        Store.open(missing)


def test_a_schema_of_another_program_is_refused(tmp_path: Path) -> None:
    server = postgres_server.server()
    name = server.create()
    with closing(server.connect(name, OWNER)) as connection:
        connection.execute("CREATE TABLE theirs (a integer)")
    with pytest.raises(SchemaError, match="another program's database"):
        Store.open(server.url(name), create=True)
    drop(server.url(name))


def test_a_store_newer_than_this_release_is_refused(pg: Store, pg_url: str) -> None:
    with pg.write() as conn:
        conn.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(SchemaError, match=r"newer than this recycledb"):
        Store.open(pg_url, create=True)


def test_what_a_readers_role_may_do(pg: Store, pg_url: str) -> None:
    scored.two_students(pg)
    server = postgres_server.server()
    database = pg_url.partition("@/")[2].partition("?")[0]
    role = f"reader_{database}"
    with closing(server.connect(database)) as connection:
        connection.execute(f"CREATE ROLE {role} LOGIN")
        for statement in pg.backend.grants(role):
            connection.execute(statement)
    with Store.open(server.url(database, role)) as reader:
        with query(reader, "SELECT count(*) AS n FROM scores") as found:
            assert next(found.rows)[0] > 0
        with pytest.raises(StoreError, match="db grant ROLE"), reader.write() as conn:
            conn.exec_driver_sql("DELETE FROM loss")
    with closing(server.connect(database)) as connection:
        connection.execute(f"DROP OWNED BY {role}")
        connection.execute(f"DROP ROLE {role}")


REFUSED = [
    "INSERT INTO prompt SELECT * FROM prompt",
    "WITH gone AS (DELETE FROM loss RETURNING 1) SELECT * FROM gone",
    "SELECT 1; COMMIT; DELETE FROM loss",
    "COPY loss TO PROGRAM 'true'",
    "DO $$ BEGIN DELETE FROM loss; END $$",
    "SET TRANSACTION READ WRITE",
    "SELECT 1 INTO TEMP TABLE x",
    "CREATE TEMP TABLE x AS SELECT 1",
    "SELECT * FROM loss FOR UPDATE",
    "SELECT pg_read_file('/etc/passwd')",
    "EXPLAIN ANALYZE DELETE FROM loss",
    "COMMIT",
    "NOTIFY x",
    "SELECT set_config('transaction_read_only', 'off', false)",
    "LOCK TABLE loss",
    # Where a string or a comment ends is not the same for PostgreSQL and for other databases.
    r"SELECT E'\''; COMMIT; BEGIN; DELETE FROM student; COMMIT; BEGIN; --'",
    r"EXPLAIN SELECT E'\''; COMMIT; BEGIN; DELETE FROM student; COMMIT; BEGIN; --'",
    "SELECT 1 /* /* */ */; COMMIT; BEGIN; DELETE FROM student; COMMIT; BEGIN",
]


def test_a_query_can_only_read(pg: Store) -> None:
    with pg.write() as conn:
        pg.insert(conn, [stores.student_row(STUDENT, "7b")])
    for sql in REFUSED:
        with pytest.raises(QueryError) as raised, query(pg, sql) as found:
            list(found.rows)
        assert len(str(raised.value).splitlines()) == 1, sql
    assert pg.rows("SELECT count(*) FROM student")[0][0] == 1
    with query(pg, "SELECT 1 AS a", {}) as found:  # an error before it ended no transaction of others
        assert list(found.rows) == [(1,)]
    for how in ("", "ANALYZE ", "(FORMAT JSON) ", "(FORMAT XML) "):
        with query(pg, f"EXPLAIN {how}SELECT * FROM scores") as found:
            assert all(isinstance(value, str | list) for row in found.rows for value in row)


def test_a_superuser_s_queries_are_refused_unless_asked_for(
    pg: Store, pg_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(pg_url.replace(f"{OWNER}@", "test@")) as store:
        with pytest.raises(QueryError, match="superuser"), query(store, "SELECT 1 AS a"):
            pass
        monkeypatch.setenv("RECYCLEDB_AS_SUPERUSER", "1")
        with query(store, "SELECT 1 AS a") as found:
            assert list(found.rows) == [(1,)]


# --- numbers and names --------------------------------------------------------------------------------


def test_numbers_at_the_ends_of_the_range(pg: Store) -> None:
    sql = "SELECT recycledb_exp(-1000) AS a, recycledb_exp(1000) AS b, recycledb_exp(NULL) AS c, round(avg(x), 1) AS d, sum(x) AS e"
    with query(pg, f"{sql} FROM (VALUES (1), (2)) AS t(x)") as found:
        assert list(found.rows) == [(0.0, math.inf, None, 1.5, 3)]


def test_columns_have_their_documented_names(pg: Store) -> None:
    scored.two_students(pg)
    documented = ["ppl_Q_direct", "loss_A_condition", "ifd_ppl"]
    sql = f"SELECT {', '.join(documented)} FROM scores"
    with query(pg, sql) as found:
        assert found.columns == documented
    assert pg.rows(sql)[0]._mapping["ppl_Q_direct"] > 0


def test_a_statistic_is_removed_through_the_view(pg: Store) -> None:
    scored.two_students(pg)
    before = pg.rows("SELECT count(*) FROM loss")[0][0]
    with pg.write() as conn:
        conn.exec_driver_sql("DELETE FROM losses WHERE stat = 'Q_direct'")
    assert pg.rows("SELECT count(*) FROM loss")[0][0] == before * 3 / 4


# --- stores of three backends ---------------------------------------------------------------------------


def chosen(store: Store, path: Path, recipe: str) -> bytes:
    """Return the file that a recipe writes."""
    select(store, get_recipe(recipe), {"student": "7b"}, output=path)
    return path.read_bytes()


@pytest.mark.long
def test_a_selection_is_the_same_bytes_on_three_backends(tmp_path: Path) -> None:
    first = new_url("sqlite", tmp_path / "a.db")
    with Store.open(first) as store:
        scored.two_students(store, [f"word {i}" for i in range(12)])
    others = [
        new_url("postgresql", tmp_path),
        new_url("duckdb", tmp_path / "b.duckdb"),
        new_url("sqlite", tmp_path / "c.db"),
    ]
    files: dict[str, list[bytes]] = {}
    for number, (source, there) in enumerate(zip([first, *others], [*others, None], strict=True)):
        with Store.open(source) as store:  # SQLite, PostgreSQL, DuckDB, SQLite
            for recipe in ("selective", "cherry"):
                files.setdefault(recipe, []).append(chosen(store, tmp_path / f"{recipe}{number}.json", recipe))
            assert verify.check(store).findings == []
            if there is not None:
                with Store.open(there) as target_store:
                    new = sum(merge(target_store, store).rows.values())
                    assert new > 100
                    assert sum(merge(target_store, store).rows.values()) == 0
    for recipe, written in files.items():
        assert len(set(written)) == 1, recipe
    assert json.loads(files["selective"][0])
    drop(others[0])


def test_a_store_is_not_merged_into_itself(pg: Store, pg_url: str) -> None:
    with open_source(pg_url) as source, pytest.raises(StoreError, match="into itself"):
        merge(pg, source)


@pytest.mark.long
def test_a_backup_is_restored(pg: Store, pg_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scored.two_students(pg)
    server = postgres_server.server()
    monkeypatch.setenv("PATH", f"{server.programs}:{os.environ['PATH']}")
    file = tmp_path / "copy.dump"
    assert "pg_restore" in pg.backend.save(file)
    with pytest.raises(StoreError, match="already exists"):
        pg.backend.save(file)
    name = server.create()
    command = [server.programs / "pg_restore", "-h", server.folder, "-U", OWNER, "--no-owner", "-d", name, file]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False
    )  # it cannot make the schema that is there
    with Store.open(server.url(name)) as restored:
        sql = "SELECT median(ifd_ppl), min(ifd_ppl), max(ifd_ppl), count(*) FROM scores"
        assert restored.rows(sql) == pg.rows(sql), done.stderr
    drop(server.url(name))


def test_without_pg_dump_the_command_is_named(pg: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(StoreError, match="pg_dump -Fc"):
        pg.backend.save(tmp_path / "copy.dump")
    assert list(tmp_path.glob("*dump*")) == []


@pytest.mark.long
def test_the_commands_work_on_a_server(pg_url: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps([{"instruction": f"Say {i}", "output": f"{i}"} for i in range(5)]))
    store = ("--store", pg_url)
    assert "5" in cli(*store, "add", "data.json").stdout
    status = json.loads(cli(*store, "status", "--json").stdout)
    assert status["backend"] == "postgresql" and status["samples"] == 5
    assert json.loads(cli(*store, "query", "SELECT count(*) AS n FROM samples", "--format", "json").stdout) == [
        {"n": 5}
    ]
    assert "no problems" in cli(*store, "db", "check").stdout or "0" in cli(*store, "db", "check").stdout
    assert "GRANT SELECT" in cli(*store, "db", "grant", "readers").stdout
    assert "0009" in cli(*store, "db", "current").stdout
    assert "is a file" in cli("--store", "sqlite:///x.db", "db", "grant", "readers", code=1).stderr
