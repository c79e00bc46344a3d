"""Odd SQL texts, odd values, odd URLs of stores: each gives a sensible result or one clear line."""

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import scored_stores as scored
import stores
from conftest import Cli

from recycledb.errors import QueryError, SelectionError, StoreError
from recycledb.formats.arrow import to_table
from recycledb.selection.query import FORMATS, query, write_result
from recycledb.selection.recipes import bind, guess, parse, read_recipe, values_of
from recycledb.selection.select import select
from recycledb.store import Store

pytestmark = pytest.mark.both_backends


def ask(store: Store, sql: str, parameters: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return a query's rows as JSON has them."""
    text = io.StringIO()
    with query(store, sql, parameters) as result:
        write_result(result, "json", None, text)
    return list(json.loads(text.getvalue()))


@pytest.mark.default_cases(
    "sqlite", "duckdb-SELECT nix", "duckdb-SELECT :a AS a", "postgresql-SELECT nix", "postgresql-SELECT ?"
)
@pytest.mark.parametrize(
    ("sql", "parameters", "message"),
    [
        ("SELECT 'a\0b'", {}, "the SQL contains a NUL character, at 9"),
        ("SELECT '\udcff'", {}, r"the SQL is not valid UTF-8 \('\\udcff' at 8\)"),
        ("SELECT :a AS a", {"a": "x\udcff"}, "the value of parameter a is not valid UTF-8"),
        ("SELECT :a AS a", {"b": "x"}, "no value for :a; give --param a=…"),
        ("SELECT ? AS a", {}, "parameter"),
        ("", {}, "the query is empty"),
        (" ;; ", {}, "the query is empty"),
        ("-- nothing\n/* to see */", {}, "the query is empty"),
        ("SELECT 1; SELECT 2", {}, "one statement at a time"),
        ("SELECT", {}, "."),
        ("SELECT nix FROM nowhere", {}, "nowhere"),
        ("SELECT abs()", {}, "abs"),
    ],
)
def test_odd_sql_is_one_clear_line(store: Store, sql: str, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(QueryError, match=message) as raised:
        ask(store, sql, parameters)
    assert len(str(raised.value).splitlines()) == 1


def test_a_number_of_more_than_64_bits_cannot_be_bound(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store, pytest.raises(QueryError, match="too large"):
        ask(store, "SELECT :a AS a", {"a": 1 << 63})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12),
        ("-1.5", -1.5),
        (".5", 0.5),
        ("1e+3", 1000.0),
        ("1e-3", 0.001),
        ("1.0e3", 1000.0),
        ("0", 0),
        ("9223372036854775807", (1 << 63) - 1),
        ("-9223372036854775808", -1 << 63),
        *((word, word) for word in ("1e10", "12e4", "007", "00")),  # the digits of an id
        *((word, word) for word in ("9223372036854775808", "1_000", "１２", " 12", "1e999", "inf", "nan", "0x10", "")),
    ],
)
def test_a_value_is_a_number_where_sql_would_say_so(text: str, value: Any) -> None:
    found = guess(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.default_cases("sqlite", "duckdb", "postgresql-SELECT :id")
@pytest.mark.parametrize(
    ("sql", "value"),
    [
        ("SELECT :id AS id", 12),
        ("-- @param id text: the first letters of an id\nSELECT :id AS id", "12"),
        ("-- @param id number: how many\nSELECT :id AS id", 12),
    ],
)
def test_a_parameter_has_the_type_that_its_sql_declares(sql: str, value: Any, store: Store) -> None:
    assert ask(store, sql, values_of(sql, {"id": "12"})) == [{"id": value}]
    assert values_of("-- @param n number: it\nSELECT :n", {"n": "1e10"}) == {"n": 1e10}
    recipe = parse("mine", "-- @param id text: of whom\nSELECT variant_id FROM variants WHERE variant_id = :id")
    assert bind(store, recipe, {"id": "12"}).values == {"id": "12"}
    with pytest.raises(SelectionError, match="n is 'many', which is not a number"):
        values_of("-- @param n number: it\nSELECT :n", {"n": "many"})


@pytest.mark.long
@pytest.mark.parametrize("columns", ["1 AS a, 2 AS a", "1 AS a, 2 AS A", "variant_id"])
def test_a_recipe_names_its_columns_apart(columns: str, store: Store) -> None:
    scored.two_students(store)
    recipe = parse("mine", f"SELECT variant_id, {columns} FROM variants LIMIT 2")
    name = columns.rpartition(" ")[2].lower()
    with pytest.raises(SelectionError, match=f"recipe mine returns several columns called {name}: rename them with AS"):
        select(store, recipe)
    assert select(store, parse("mine", "SELECT variant_id, 1 AS a, 2 AS a_1, 3 AS a_2 FROM variants")).means["a_2"] == 3


@pytest.mark.long
def test_sql_files_are_utf8_with_or_without_a_mark(cli: Cli, sqlite_url: str, tmp_path: Path) -> None:
    file = tmp_path / "q.sql"
    for content, said in (
        (b"\xef\xbb\xbfSELECT 'a' AS x, 1 AS y", ""),
        (b"SELECT '\xff'", "q.sql cannot be read"),
        (b"SELECT '\0'", "the SQL contains a NUL character, at 8"),
        (b"", "the query is empty"),
    ):
        file.write_bytes(content)
        done = cli("--store", sqlite_url, "query", "-f", file, "--format", "json", code=1 if said else 0)
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == (1 if said else 0)
        assert bool(said) or json.loads(done.stdout) == [{"x": "a", "y": 1}]
    file.write_bytes("\ufeffSELECT variant_id FROM variants".encode())
    assert read_recipe(file).sql == "SELECT variant_id FROM variants"


def test_no_column_is_lost_to_another_of_its_name(store: Store) -> None:
    sql = 'SELECT 1 AS "a", 2 AS "a", 3 AS "a_2", 4 AS "a", 5 AS ""'
    if store.backend.name != "sqlite":  # they have no column without a name
        sql = sql.replace('5 AS ""', "5 AS x")
    [row] = ask(store, sql)
    assert sorted(row.values()) == [1, 2, 3, 4, 5]
    assert row["a"] == 1
    assert row["a_2"] == 3


# -- values

# An expression, what it is in JSON, and in Parquet where that differs.
DUCKDB_VALUES: list[tuple[str, Any]] = [
    ("TIMESTAMPTZ '1992-01-01 00:00:00+05'", "1991-12-31 19:00:00+00"),
    ("[TIMESTAMPTZ '1992-01-01 00:00:00+05', NULL]", ["1991-12-31 19:00:00+00", None]),
    ("{'at': TIMESTAMPTZ '1992-01-01 00:00:00+05', 'n': 1}", {"at": "1991-12-31 19:00:00+00", "n": 1}),
    ("TIMESTAMP '1992-01-01 00:00:00.5'", "1992-01-01T00:00:00.500000"),
    ("TIMESTAMP '290000-01-01 00:00:00'", "290000-01-01 00:00:00"),
    ("DATE '1992-02-03'", "1992-02-03"),
    ("TIME '01:02:03'", "01:02:03"),
    ("TIMETZ '01:02:03+02'", "01:02:03+02:00"),
    ("INTERVAL 3 DAY", "3 days, 0:00:00"),
    ("[1, NULL, 2]", [1, None, 2]),
    ("{'a': 1, 'b': [1.5]}", {"a": 1, "b": [1.5]}),
    ("MAP {'k': 1}", {"k": 1}),
    ("1.5::DECIMAL(10, 3)", 1.5),
    ("0.1234567890123456789012::DECIMAL(38, 22)", "0.1234567890123456789012"),
    ("'337df735-f447-4ed0-90b9-1e91e9413341'::UUID", "337df735-f447-4ed0-90b9-1e91e9413341"),
    ("['337df735-f447-4ed0-90b9-1e91e9413341'::UUID]", ["337df735-f447-4ed0-90b9-1e91e9413341"]),
    ("'\\xAA'::BLOB", "aa"),
    ("2::HUGEINT ** 100", 2.0**100),
    ("170141183460469231731687303715884105727::HUGEINT", (1 << 127) - 1),
    ("'a'::ENUM('a', 'b')", "a"),
    ("'101'::BIT", "101"),
    ("union_value(a := 1)", 1),
    ("'nan'::DOUBLE", None),
    ("true", True),
    ("chr(0) || 'a'", "\0a"),
    ("'{\"a\": 1}'::JSON", '{"a": 1}'),
]


@pytest.mark.parametrize("format", FORMATS)
def test_every_type_of_duckdb_can_be_written(empty_stores: dict[str, Path], tmp_path: Path, format: str) -> None:
    path = tmp_path / "store.duckdb"
    path.write_bytes(empty_stores["duckdb"].read_bytes())
    names = [f"c{i}" for i in range(len(DUCKDB_VALUES))]
    columns = ", ".join(f"{sql} AS {name}" for name, (sql, _) in zip(names, DUCKDB_VALUES, strict=True))
    out = tmp_path / f"out.{format}"
    expected = dict(zip(names, (value for _, value in DUCKDB_VALUES), strict=True))
    with (
        Store.open(f"duckdb:///{path}") as store,
        query(store, f"SELECT {columns}, now() > TIMESTAMPTZ '2020-01-01' AS later, now() AS now") as result,
    ):
        write_result(result, format, out, io.StringIO())
    if format == "parquet":
        [row] = pq.read_table(out).to_pylist()
        assert row["c16"] == b"\xaa"
        assert (row["c9"], row["c7"], str(row["c12"])) == ([1, None, 2], "01:02:03+02:00", "1.500")
    elif format == "csv":
        header, cells = csv.reader(io.StringIO(out.read_text()))
        row = dict(zip(header, cells, strict=True))
        assert (row["c9"], row["c10"]) == ("[1, null, 2]", '{"a": 1, "b": [1.5]}')
    elif format != "table":
        [row] = [json.loads(line) for line in out.read_text().strip("[]\n").splitlines()]
        map_ = row.pop("c11")  # DuckDB's driver had its own form of it before 2.0
        assert "k" in json.dumps(map_)
        assert row.pop("later") is True
        assert row.pop("now").endswith("+00")
        assert row == {name: value for name, value in expected.items() if name != "c11"}


@pytest.mark.long
def test_a_column_of_many_types_and_sizes_is_parquet(tmp_path: Path) -> None:
    from decimal import Decimal

    many = 65_536
    rows = [(1 << 100, [1], Decimal("1.5"))] + [(1, [2], Decimal("2.25"))] * many + [(2, ["x"], Decimal("1000.125"))]
    table = to_table(["big", "list", "decimal"], iter(rows))
    assert table.num_rows == len(rows)
    assert table["big"][0].as_py() == str(1 << 100)
    assert table["list"][many + 1].as_py() in ('["x"]', ["x"])
    assert table["decimal"][0].as_py() == Decimal("1.5")
    assert table["decimal"][many + 1].as_py() == Decimal("1000.125")


def test_bytes_that_are_no_text_are_said_to_be(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        with pytest.raises(QueryError, match=r"column 'x' contains a text that is not UTF-8; hex\(…\)"):
            ask(store, "SELECT CAST(x'ff0a1b' AS TEXT) AS x")
        found = ask(store, "SELECT x'00ff' AS b, 9223372036854775807 + 1 AS big, 1e999 AS more")
        assert found == [{"b": "00ff", "big": 2.0**63, "more": None}]


# -- URLs of stores


@pytest.mark.parametrize("backend", ["sqlite", "duckdb"])
@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ("//relative.db", "is not a store's URL"),
        ("", "is not a store's URL"),
        ("///", "has no path"),
        ("///:memory:", "has no path"),
        ("///FOLDER", "is a folder; a store is a file, for example .*recycle.db"),
        ("///FOLDER/store.db?mode=ro", "a store's URL takes no options; leave out .mode=ro|contains a question mark"),
        ("///FOLDER/no/store.db", "there is no folder"),
        ("///FOLDER/file.txt/store.db", "there is no folder"),
        ("///FOLDER/file.txt", "is not a (SQLite|DuckDB) file"),
        ("///FOLDER/" + "a" * 300, "cannot be opened: File name too long"),
        ("///~nobody-of-this-name/store.db", "no home folder of ~nobody-of-this-name"),
        ("///FOLDER/a\0b", "a path cannot contain a NUL character"),
    ],
)
def test_odd_urls_are_one_clear_line(tmp_path: Path, backend: str, rest: str, message: str) -> None:
    (tmp_path / "file.txt").write_text("this is no database, but longer than its head")
    url = f"{backend}:{rest.replace('FOLDER', str(tmp_path))}"
    with pytest.raises(StoreError, match=message) as raised:
        Store.open(url, create=True)
    assert len(str(raised.value).splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.txt"]


@pytest.mark.default_cases("sqlite", "duckdb-100%")
@pytest.mark.parametrize(
    ("backend", "name"),
    [
        *(
            (backend, name)
            for backend in ("sqlite", "duckdb")
            for name in ("100% #1.db", "sp ace;&'\".db", "file:x.db")
        ),
        ("sqlite", "what?.db"),
        ("sqlite", "a\udcffb.db"),
    ],
)
def test_odd_paths_work(empty_stores: dict[str, Path], tmp_path: Path, backend: str, name: str) -> None:
    (tmp_path / name).write_bytes(empty_stores[backend].read_bytes())
    for before in ("", "//"):  # two slashes at the start of a path are not a host
        with Store.open(f"{backend}:///{before}{tmp_path}/{name}") as store:
            stores.add_samples(store, [stores.texts("a")])
            assert ask(store, "SELECT count(*) AS n FROM samples") == [{"n": 1}]
