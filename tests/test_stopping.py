"""Ctrl-C and time limits: SQL that would run for ever ends, whichever command runs it."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import forks
import postgres_server
import pytest
import scored_stores as scored
from conftest import BACKENDS, CommandServer, clean_environment

from recycledb.errors import QueryError
from recycledb.selection.compare import compare
from recycledb.selection.query import query
from recycledb.selection.recipes import parse
from recycledb.selection.select import export, select
from recycledb.store import Store

ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) FROM c"
# Three that never end: before the first row, in an aggregate written in Python (SQLite), over the rows of a cross join.
RECIPES = {
    "aggregate": f"SELECT variant_id FROM scores WHERE 0 < ({ENDLESS})",
    "median": f"SELECT variant_id FROM scores WHERE 0 < ({ENDLESS.replace('max(x)', 'median(x)')})",
    "rows": "SELECT max(a.variant_id) AS variant_id FROM losses a, losses b, losses c, losses d, losses e, losses f, losses g, losses h",
}
# One call of a function, during which no database looks for an interrupt.
LONG = "replace(hex(zeroblob(3000000)), '0', 'a')"
ONE_CALL = {
    "sqlite": f"SELECT instr({LONG}, substr({LONG}, 1, 3000000) || 'b')",
    "duckdb": "SELECT levenshtein(repeat('a', 1000000), repeat('b', 1000000))",
}


@pytest.fixture
def scored_url(store_url: str) -> str:
    """A store on each backend with four samples of every kind, scored by two students."""
    with Store.open(store_url) as store:
        scored.two_students(store)
    return store_url


def make_endless(url: str, view: str) -> None:
    """Put a condition that is never decided in front of a view: as our own SQL is on a store that is large enough."""
    with Store.open(url) as store:
        if store.backend.name == "postgresql":  # other views depend on it
            [(body,)] = store.rows("SELECT pg_get_viewdef(CAST(:n AS regclass))", n=view)
        else:
            sql = "SELECT sql FROM sqlite_master WHERE name = :n"
            if store.backend.name == "duckdb":
                sql = "SELECT sql FROM duckdb_views() WHERE view_name = :n"
            [(text,)] = store.rows(sql, n=view)
            body = text[text.upper().index(" AS") + 3 :]
        body = body.rstrip("; \n")
        with store.write() as conn:
            replaced = "CREATE OR REPLACE VIEW"
            if store.backend.name != "postgresql":
                conn.exec_driver_sql(f"DROP VIEW {view}")
                replaced = "CREATE VIEW"
            conn.exec_driver_sql(f"{replaced} {view} AS SELECT * FROM ({body}) AS whole WHERE 0 < ({ENDLESS})")


def is_at(process: int, url: str) -> bool:
    """Tell whether a process has the file of a store open, or a statement at work in its database."""
    if url.startswith("postgresql"):
        database = url.partition("@/")[2].partition("?")[0]
        with postgres_server.server().connect() as connection:
            sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND state = 'active'"
            return bool(connection.execute(sql, (database,)).fetchone()[0])
    path = url.partition(":///")[2]
    return path in [_target(file) for file in Path(f"/proc/{process}/fd").iterdir()]


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except FileNotFoundError:  # closed since it was listed
        return ""


def interrupted(
    server: CommandServer, url: str, folder: Path, *arguments: str, times: int = 1, limit_s: float = 20
) -> tuple[int, str]:
    """Run a command, send it Ctrl-C once it has been at the store for a while, and return its exit code and what it said."""
    process = server.start(["--store", url, *arguments], folder, clean_environment())
    try:
        seen = 0
        started = time.monotonic()
        while seen < 10:  # opening it takes less
            seen = seen + 1 if is_at(process.pid, url) else 0
            assert time.monotonic() - started < 60, "it never was at the store"
            time.sleep(0.05)
        for _ in range(times):
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        process.kill()
        _, said = process.communicate()
    return process.wait(), said.decode()


def require_stopped(found: tuple[int, str]) -> None:
    assert found == (130, "recycledb: stopped; what was committed is kept\n")


@pytest.mark.long
@pytest.mark.parametrize("kind", RECIPES)
def test_ctrl_c_stops_a_recipe(command_server: CommandServer, scored_url: str, tmp_path: Path, kind: str) -> None:
    if kind == "median" and scored_url.startswith("postgresql"):
        pytest.skip("PostgreSQL has no median()")
    file = tmp_path / "endless.sql"
    file.write_text(RECIPES[kind])
    out = tmp_path / "out.json"
    require_stopped(interrupted(command_server, scored_url, tmp_path, "select", "--sql", str(file), "-o", str(out)))
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".json", ".tmp")]
    with Store.open(scored_url) as store:
        assert not store.rows("SELECT * FROM selection")


@pytest.mark.long
@pytest.mark.both_backends
def test_ctrl_c_stops_a_query(command_server: CommandServer, scored_url: str, tmp_path: Path) -> None:
    require_stopped(interrupted(command_server, scored_url, tmp_path, "query", ENDLESS))


@pytest.mark.long
@pytest.mark.default_cases("sqlite-scores", "sqlite-variants")
@pytest.mark.parametrize(
    ("view", "command"),
    [
        ("scores", ["compare", "one", "two"]),
        ("variants", ["export", "-o", "out.json"]),
        ("scores", ["report", "-o", "out.html"]),
        ("teacher_texts", ["status"]),
        ("teacher_texts", ["show", "SAMPLE"]),
    ],
)
def test_ctrl_c_stops_our_own_sql(
    command_server: CommandServer, scored_url: str, tmp_path: Path, view: str, command: list[str]
) -> None:
    with Store.open(scored_url) as store:
        sample = store.rows("SELECT min(sample_id) FROM samples")[0][0]
        students = [row[0] for row in store.rows("SELECT student FROM students ORDER BY student")]
    words = {"SAMPLE": sample, "one": students[0], "two": students[1]}
    make_endless(scored_url, view)
    require_stopped(interrupted(command_server, scored_url, tmp_path, *(words.get(word, word) for word in command)))
    assert not list(tmp_path.glob("out.*"))


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_what_hears_no_interrupt_is_left_behind(
    command_server: CommandServer, store_url: str, tmp_path: Path, times: int
) -> None:
    if store_url.startswith("postgresql"):
        pytest.skip("PostgreSQL looks for an interrupt in every long function")
    Store.open(store_url).close()
    sql = ONE_CALL[store_url.partition(":")[0]]
    require_stopped(interrupted(command_server, store_url, tmp_path, "query", sql, times=times))


RUNS: dict[str, Callable[[Store, Path, float], object]] = {
    "query": lambda store, out, limit: list(_rows(store, ENDLESS, limit)),
    "select": lambda store, out, limit: select(store, parse("endless", RECIPES["rows"]), output=out, timeout_s=limit),
    "compare": lambda store, out, limit: compare(
        store, [row[0] for row in store.rows("SELECT student FROM students ORDER BY student")], timeout_s=limit
    ),
    "export": lambda store, out, limit: export(store, out, timeout_s=limit),
}


def _rows(store: Store, sql: str, limit: float) -> list[tuple[object, ...]]:
    with query(store, sql, timeout_s=limit) as result:
        return list(result.rows)


@pytest.mark.default_cases("sqlite-select")
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_time_limit_stops_what_ctrl_c_stops(
    empty_stores: dict[str, Path], tmp_path: Path, backend: str, run: str
) -> None:
    path = tmp_path / f"store.{backend}"
    path.write_bytes(empty_stores[backend].read_bytes())
    url, out = f"{backend}:///{path}", tmp_path / "out.json"
    with Store.open(url) as store:
        scored.two_students(store)
    views = {"compare": "scores", "export": "variants"}
    if run in views:
        make_endless(url, views[run])
    with Store.open(url) as store:
        with pytest.raises(QueryError, match=r"stopped after 0.2 s \(--timeout\)"):
            RUNS[run](store, out, 0.2)
        assert not out.exists()
        assert _rows(store, "SELECT count(*) AS n FROM samples", 60) == [(4,)]  # and the store goes on


def test_a_time_limit_is_a_number_above_0(sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        for limit in (0, -1, float("nan")):
            with pytest.raises(QueryError, match="give a number of seconds above 0"):
                _rows(store, "SELECT 1 AS a", limit)
        assert _rows(store, "SELECT 1 AS a", float("inf")) == [(1,)]


# DuckDB raises an error of its own for a Ctrl-C that arrives while it computes, here where SQLAlchemy asks it for its keywords.
INTERRUPTED_WHILE_OPENING = """
import duckdb, os, signal, sys, threading
real = duckdb.connect

def connect(*given, **more):
    connection = real(":memory:", config={"threads": 1})
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    connection.execute("SELECT max(hash(i)) FROM range(1000000000) t(i)")

duckdb.connect = connect
sys.argv = ["recycledb", "--store", "duckdb:///store.duckdb", "status"]
from recycledb.cli import main
main()
"""


def test_ctrl_c_while_duckdb_opens_a_file_is_one_line(tmp_path: Path) -> None:
    done = forks.run([sys.executable, "-c", INTERRUPTED_WHILE_OPENING], cwd=tmp_path, env=clean_environment())
    require_stopped((done.returncode, done.stderr))
