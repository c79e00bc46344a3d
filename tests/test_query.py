"""Read-only SQL: what is refused, what stops it, how results are written."""

import csv
import io
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import scored_stores as scored
import stores
from conftest import BACKENDS

from recycledb.errors import QueryError, WriteError
from recycledb.formats.arrow import to_table
from recycledb.schema import Texts
from recycledb.selection.query import Result, format_of, query, write_result
from recycledb.store import Store
from recycledb.store.statement import parameters_in, statements_in, with_dollars, with_percentiles, without_comments


def ask(store: Store, sql: str, parameters: dict[str, Any] | None = None, **more: Any) -> list[tuple[Any, ...]]:
    with query(store, sql, parameters, **more) as result:
        return list(result.rows)


def contents(store: Store) -> list[Any]:
    tables = ("sample", "variant", "loss", "name", "selection", "place")
    return [store.rows(f"SELECT count(*) FROM {table}")[0][0] for table in tables]


HOSTILE = [
    "DELETE FROM loss",
    "DELETE FROM losses",
    "UPDATE sample SET output = 'x' RETURNING 1",
    "INSERT INTO dataset VALUES ('x', 'y') RETURNING 1",
    "WITH x AS (SELECT 1) DELETE FROM loss",
    "EXPLAIN DELETE FROM loss",
    "DROP VIEW scores",
    "DROP TABLE loss",
    "ALTER TABLE loss ADD COLUMN x INTEGER",
    "CREATE TABLE x (a INTEGER)",
    "CREATE TEMPORARY TABLE x (a INTEGER)",
    "CREATE TEMPORARY VIEW scores AS SELECT 1",
    "ATTACH 'evil.db' AS evil",
    "ATTACH DATABASE 'evil.db' AS evil",
    "DETACH main",
    "VACUUM",
    "VACUUM INTO 'evil.db'",
    "PRAGMA journal_mode = DELETE",
    "PRAGMA writable_schema = 1",
    "PRAGMA query_only = 0",
    "SELECT load_extension('evil')",
    "SELECT 1; DELETE FROM loss",
    "BEGIN",
    "COMMIT",
    "COPY (SELECT 1) TO 'evil.csv'",
    "COPY loss FROM 'evil.csv'",
    "EXPORT DATABASE 'evil'",
    "IMPORT DATABASE 'evil'",
    "INSTALL httpfs",
    "LOAD httpfs",
    "SET enable_external_access = true",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM read_text('/etc/passwd')",
    "FROM '/etc/passwd'",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM glob('/*')",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO 'evil.csv'",
    "CALL pragma_version()",
    "CREATE SECRET (TYPE s3)",
    "SELECT readfile('/etc/passwd')",
    "SELECT writefile('evil.txt', 'x')",
    "SELECT * FROM force_checkpoint()",
    "SELECT * FROM enable_logging()",
    "SELECT * FROM HOSTILE",
    "",
    ";",
    "-- nothing",
]


def test_no_statement_changes_the_store_or_reaches_a_file(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores.add_samples(store, [stores.texts("a")])
    monkeypatch.chdir(tmp_path)
    before, files = contents(store), files_of_users(tmp_path)
    for sql in HOSTILE:
        with pytest.raises(QueryError) as raised:
            ask(store, sql)
        assert str(raised.value), sql
        assert contents(store) == before, sql
        assert files_of_users(tmp_path) == files, sql


def files_of_users(folder: Path) -> list[str]:
    """Return the files of a folder but for the logs that a database keeps."""
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(("-wal", "-shm", ".wal")))


def test_what_is_refused_is_said_to_be(store: Store) -> None:
    for sql in ("DELETE FROM loss", "ATTACH 'evil.db' AS evil", "DROP VIEW scores", "PRAGMA query_only = 0"):
        with pytest.raises(QueryError, match="refused: a query may only read the store"):
            ask(store, sql)


@pytest.mark.parametrize("store_url", BACKENDS, indirect=True)
def test_external_files_may_be_read_when_the_user_says_so(store: Store, tmp_path: Path) -> None:
    stores.add_samples(store, [stores.texts("a")])
    other = tmp_path / "other.db"
    store.backend.backup(other)
    kind = " (TYPE duckdb, READ_ONLY)" if store.backend.name == "duckdb" else ""
    sql = f"ATTACH '{other}' AS other{kind}; SELECT count(*) FROM other.sample"
    assert ask(store, sql, allow_external=True) == [(1,)]
    for hostile in (
        "DELETE FROM loss",
        "CREATE TABLE x (a INTEGER)",
        f"ATTACH '{store.backend.path}' AS me; DELETE FROM me.loss",
    ):
        with pytest.raises(QueryError):
            ask(store, hostile, allow_external=True)


def test_a_python_variable_is_no_table(store: Store) -> None:
    import pyarrow as pa

    secret = pa.table({"a": [1]})
    with pytest.raises(QueryError):
        ask(store, "SELECT * FROM secret")
    assert secret.num_rows == 1


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 1 AS a",
        "WITH x AS (SELECT 1 AS a) SELECT a FROM x",
        "VALUES (1)",
        "SELECT count(*) FROM scores;",
        "EXPLAIN QUERY PLAN SELECT 1",
        "PRAGMA table_info('scores')",
    ],
)
def test_reading_statements_run(sqlite_url: str, sql: str) -> None:
    with Store.open(sqlite_url) as store:
        assert ask(store, sql)


def test_parameters_are_bound(store: Store) -> None:
    assert ask(store, "SELECT :a AS a, ':b' AS b, :c || 'x' AS c -- :d", {"a": 1, "c": "';"}) == [(1, ":b", "';x")]
    assert ask(store, "SELECT $a AS a", {"a": 1, "unused": 2}) == [(1,)]
    with pytest.raises(QueryError, match="no value for :b; give --param b=…"):
        ask(store, "SELECT :a AS a, :b AS b", {"a": 1})


def test_promised_functions_are_there(store: Store) -> None:
    sql = """
        SELECT exp(1.0), ln(2.0), sqrt(2.0), median(x), quantile(x, 0.5), corr(x, y), stddev(x)
        FROM (SELECT 1.0 AS x, 2.0 AS y UNION ALL SELECT 2.0, 4.5 UNION ALL SELECT 4.0, 7.5) AS t
    """
    [row] = ask(store, sql)
    expected = (math.e, math.log(2), math.sqrt(2), 2.0, 2.0, 0.9908, 1.5275)
    assert row == pytest.approx(expected, abs=1e-3)


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) FROM c"
SLOW_ROWS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c"


def test_a_query_stops_when_its_time_is_up(store: Store) -> None:
    with pytest.raises(QueryError, match=r"stopped after 0.3 s"):
        ask(store, ENDLESS, timeout_s=0.3)
    assert ask(store, "SELECT 1 AS a", timeout_s=60) == [(1,)]


def test_the_clock_runs_while_rows_are_read(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store, pytest.raises(QueryError, match="stopped after"):
        ask(store, SLOW_ROWS, timeout_s=0.3)


def test_rows_come_as_they_are_computed(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store, query(store, SLOW_ROWS) as result:
        assert [next(result.rows)[0] for _ in range(3)] == [1, 2, 3]


def test_a_writer_goes_on_while_a_query_is_open(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        stores.add_samples(store, [stores.texts(word) for word in range(5)])
        with Store.open(sqlite_url) as reader, query(reader, "SELECT sample_id FROM samples") as result:
            first = next(result.rows)
            if getattr(store.backend, "journal", "wal") == "wal":
                stores.add_samples(store, [stores.texts("new")], dataset="later")
            assert len([first, *result.rows]) == 5  # one state, throughout
        assert ask(store, "SELECT count(*) FROM samples")[0][0] >= 5


# -- writing


def result(columns: list[str], *rows: tuple[Any, ...]) -> Result:
    return Result(columns, iter(rows))


def written(found: Result, format: str, **more: Any) -> str:
    text = io.StringIO()
    write_result(found, format, None, text, **more)
    return text.getvalue()


ROWS = [(1, "a\nb", None, 0.5), (2, 'q"ü', math.nan, math.inf)]


def test_json_lines_and_csv() -> None:
    columns = ["n", "text", "nothing", "x"]
    expected = [
        {"n": 1, "text": "a\nb", "nothing": None, "x": 0.5},
        {"n": 2, "text": 'q"ü', "nothing": None, "x": None},
    ]
    assert json.loads(written(result(columns, *ROWS), "json")) == expected
    assert [json.loads(line) for line in written(result(columns, *ROWS), "jsonl").splitlines()] == expected
    assert json.loads(written(result(columns), "json")) == []
    rows = list(csv.reader(io.StringIO(written(result(columns, *ROWS), "csv"))))
    assert rows == [columns, ["1", "a\nb", "", "0.5"], ["2", 'q"ü', "", ""]]


def test_parquet_keeps_types(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    count = write_result(
        result(["n", "t", "x", "none"], (1, "a", 1, None), (None, "b", 0.5, None)), "parquet", path, io.StringIO()
    )
    table = pq.read_table(path)
    assert count == 2
    assert table.to_pylist() == [
        {"n": 1, "t": "a", "x": 1.0, "none": None},
        {"n": None, "t": "b", "x": 0.5, "none": None},
    ]
    with pytest.raises(QueryError, match="give -o FILE"):
        write_result(result(["n"]), "parquet", None, io.StringIO())
    assert to_table(["m"], [(1,), ("x",), (None,)]).to_pylist() == [{"m": "1"}, {"m": "x"}, {"m": None}]


def test_a_table_fits_the_terminal_and_obeys_nothing() -> None:
    found = written(result(["name", "text"], (1.23456789, "\x1b[31mred\x07\u202e" + "long " * 100)), "table", width=40)
    lines = found.splitlines()
    assert all(len(line) <= 40 for line in lines)
    assert "\x1b" not in found
    assert "1.23457" in lines[2]
    assert lines[2].endswith("…")
    wide = written(result(["text"], ("long " * 100,)), "table")
    assert "…" not in wide


def test_a_long_table_says_how_many_rows_are_left_out() -> None:
    found = written(result(["n"], *((i,) for i in range(1_500))), "table", width=80)
    assert found.splitlines()[-1].startswith("… and 500 more rows")


def test_a_file_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    def fails() -> Any:
        yield (1,)
        raise QueryError("gone")

    path = tmp_path / "out.csv"
    path.write_text("before")
    with pytest.raises(QueryError, match="gone"):
        write_result(Result(["n"], fails()), "csv", path, io.StringIO())
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(WriteError, match="cannot be written"):
        write_result(result(["n"]), "csv", tmp_path / "no" / "out.csv", io.StringIO())
    assert [format_of(Path(name)) for name in ("a.csv", "a.JSONL", "a.txt")] == ["csv", "jsonl", "table"]


def test_columns_of_one_name_are_told_apart(store: Store) -> None:
    with query(store, "SELECT 1 AS a, 2 AS a") as found:
        assert found.columns == ["a", "a_2"] or found.columns[0] == "a"
        assert len(set(found.columns)) == 2


def test_hostile_texts_are_texts(store: Store) -> None:
    text = Texts("<script>alert(1)</script>", "'; DROP TABLE loss; --", "\x1b]0;owned\x07 {{7*7}} ${x} %s")
    stores.add_samples(store, [text])
    assert ask(store, "SELECT instruction, input, output FROM samples") == [tuple(text)]
    assert ask(store, "SELECT count(*) FROM samples WHERE input = :text", {"text": text.input}) == [(1,)]


# -- SQL text


def test_quantiles_are_postgresql_s_own_there() -> None:
    written = {
        "SELECT quantile(x, 0.5), Quantile (a + f(b, c), :p) FROM t": "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY x), "
        "percentile_disc(:p) WITHIN GROUP (ORDER BY a + f(b, c)) FROM t",
        "SELECT quantile((SELECT quantile(y, 0.1) FROM u), 1)": "SELECT percentile_disc(1) WITHIN GROUP (ORDER BY "
        "(SELECT percentile_disc(0.1) WITHIN GROUP (ORDER BY y) FROM u))",
        "SELECT 'quantile(x, 1)', \"quantile(x, 1)\" -- quantile(x, 1)": None,
        "SELECT quantile(x), my_quantile(x, 1), quantile(')', /* , */ 0.5)": "SELECT quantile(x), my_quantile(x, 1), "
        "percentile_disc(/* , */ 0.5) WITHIN GROUP (ORDER BY ')')",
        "SELECT quantile(x, 1": None,
    }
    for given, expected in written.items():
        assert with_percentiles(given) == (expected or given)


def test_parameters_are_found_outside_strings_and_comments() -> None:
    sql = """SELECT ':no', "a:no", $$ :no $$, $t$ :no $t$, x::text, :yes, $also /* :no */ -- :no\n, :yes, [1:3]"""
    assert parameters_in(sql) == ["yes", "also"]
    assert with_dollars("SELECT :a, ':a', x::a, y[:b] -- :a", ["a"]) == "SELECT $a, ':a', x::a, y[:b] -- :a"


def test_statements_are_told_apart() -> None:
    assert statements_in("SELECT ';'; -- ;\n SELECT 2; /* ; */ ;") == ["SELECT ';'", "-- ;\n SELECT 2"]
    assert without_comments("a -- b\n/* c */d '-- e'").split() == ["a", "d", "'--", "e'"]


def test_scores_hold_what_was_stored(store: Store) -> None:
    scored.two_students(store)
    [row] = ask(store, "SELECT count(*), count(DISTINCT student), min(ifd_ppl) > 0 FROM scores")
    assert tuple(map(int, row)) == (32, 2, 1)


@pytest.mark.long
def test_duckdb_draws_no_bar_amid_the_output(empty_stores: dict[str, Path], tmp_path: Path) -> None:
    """In an interpreter of its own: DuckDB draws bars where Python runs without a file."""
    shutil.copyfile(empty_stores["duckdb"], tmp_path / "store.duckdb")
    code = """
from recycledb.store import Store
sql = "SELECT current_setting('enable_progress_bar')"
with Store.open("duckdb:///store.duckdb") as store:
    print(store.rows(sql)[0][0])
    with store.write() as conn:
        print(conn.exec_driver_sql(sql).scalar())
    with store.sandbox() as sandbox:
        print([row[0] for row in sandbox.execute(sql, {})[1]])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "[False]"]
