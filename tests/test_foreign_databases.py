"""What is not a store of ours is refused in one line, by whatever would open it, and not a byte of it changes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pysqlite3.dbapi2 as pysqlite3
import pytest
import stores
from conftest import BACKENDS, Cli

from recycledb.errors import SchemaError, StoreError
from recycledb.store import Store, revisions, upgrade, verify
from recycledb.store.merge import open_source

pytestmark = pytest.mark.both_backends

Make = Callable[[Any], None]


def a_table(connection: Any) -> None:
    connection.execute("CREATE TABLE bookmark (url VARCHAR)")
    connection.execute("INSERT INTO bookmark VALUES ('https://example.org')")


def a_view_only(connection: Any) -> None:
    connection.execute("CREATE VIEW one AS SELECT 1 AS one")


def another_alembic(connection: Any) -> None:
    a_table(connection)
    connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
    connection.execute("INSERT INTO alembic_version VALUES ('ae1027a6acf')")


def alembic_with_our_numbers(connection: Any) -> None:
    a_table(connection)
    connection.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
    connection.execute("INSERT INTO alembic_version VALUES ('0003')")


def another_table_of_that_name(connection: Any) -> None:
    connection.execute("CREATE TABLE alembic_version (migrated_at VARCHAR)")


def a_user_version(connection: Any) -> None:
    connection.execute("PRAGMA user_version = 7")


def an_application_id(connection: Any) -> None:
    connection.execute("PRAGMA application_id = 42")


FOREIGN: tuple[Make, ...] = (
    a_table,
    a_view_only,
    another_alembic,
    alembic_with_our_numbers,
    another_table_of_that_name,
)
MARKED: tuple[Make, ...] = (a_user_version, an_application_id)


def made(folder: Path, backend: str, make: Make) -> Path:
    path = folder / f"other.{backend}"
    library: Any = pysqlite3 if backend == "sqlite" else duckdb
    connection = library.connect(str(path))
    make(connection)
    connection.commit()
    connection.close()
    return path


def refused_by_all(url: str) -> None:
    for open_it in (
        lambda: Store.open(url),
        lambda: Store.open(url, create=True),
        lambda: upgrade(url),
        lambda: open_source(url),
        lambda: revisions(url),
    ):
        with pytest.raises(SchemaError, match=r"another program's database|holds no recycledb store") as raised:
            open_it()
        assert "\n" not in str(raised.value)


@pytest.mark.default_cases("sqlite", "duckdb-a_view_only")
@pytest.mark.parametrize(
    ("backend", "make"),
    [*((backend, make) for backend in BACKENDS for make in FOREIGN), *(("sqlite", make) for make in MARKED)],
)
def test_someone_else_s_database_is_left_alone(backend: str, make: Make, tmp_path: Path) -> None:
    path = made(tmp_path, backend, make)
    before = path.read_bytes()
    refused_by_all(f"{backend}:///{path}")
    assert path.read_bytes() == before and [other.name for other in tmp_path.iterdir()] == [path.name]


def test_someone_else_s_log_is_not_worked_into_the_file(tmp_path: Path) -> None:
    """Left by a program that was killed: whoever closes such a database last would move the log's rows over."""
    for backend, library, log in (("sqlite", pysqlite3, "-wal"), ("duckdb", duckdb, ".wal")):
        folder = tmp_path / backend
        folder.mkdir()
        path = folder / "other.db"
        connection: Any = library.connect(str(path))
        if backend == "sqlite":
            connection.execute("PRAGMA journal_mode = wal")
        a_table(connection)
        connection.commit()
        left = tmp_path / f"left.{backend}"
        for ending in ("", log):
            shutil.copyfile(f"{path}{ending}", f"{left}{ending}")
        connection.close()
        before = [Path(f"{left}{ending}").read_bytes() for ending in ("", log)]
        assert before[1]
        refused_by_all(f"{backend}:///{left}")
        assert [Path(f"{left}{ending}").read_bytes() for ending in ("", log)] == before


ODD: dict[str, tuple[str, ...]] = {
    "two rows": ("INSERT INTO alembic_version VALUES ('0001')",),
    "no row": ("DELETE FROM alembic_version",),
    "an empty text": ("UPDATE alembic_version SET version_num = ''",),
    "a revision that is none": ("UPDATE alembic_version SET version_num = '0000'",),
    "letters": ("UPDATE alembic_version SET version_num = 'head'",),
    "NULL": (
        "DROP TABLE alembic_version",
        "CREATE TABLE alembic_version (version_num VARCHAR)",
        "INSERT INTO alembic_version VALUES (NULL)",
    ),
    "a number": (
        "DROP TABLE alembic_version",
        "CREATE TABLE alembic_version (version_num INTEGER)",
        "INSERT INTO alembic_version VALUES (5)",
    ),
    "without the table": ("DROP TABLE alembic_version",),
}


@pytest.mark.default_cases("sqlite", "without the table-duckdb")
@pytest.mark.parametrize("store_url", BACKENDS, indirect=True)
@pytest.mark.parametrize("statements", ODD.values(), ids=ODD)
def test_an_odd_alembic_version_is_one_line(store_url: str, statements: tuple[str, ...], tmp_path: Path) -> None:
    backend, path = store_url.partition(":")[0], Path(store_url.partition(":///")[2])
    library: Any = pysqlite3 if backend == "sqlite" else duckdb
    connection = library.connect(str(path))
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    before = path.read_bytes()
    refused_by_all(store_url)
    assert path.read_bytes() == before and [other.name for other in tmp_path.iterdir()] == [path.name]


@pytest.mark.long
def test_commands_refuse_it_in_one_line(tmp_path: Path, cli: Cli) -> None:
    path = made(tmp_path, "sqlite", alembic_with_our_numbers)
    before, url = path.read_bytes(), f"sqlite:///{path}"
    (tmp_path / "d.json").write_text('[{"instruction": "x", "output": "y"}]')
    for command in (
        ["db", "upgrade"],
        ["db", "current"],
        ["db", "check"],
        ["add", "d.json"],
        ["init", "new"],
        ["status"],
    ):
        told = cli("--store", url, *command, code=1)
        assert told.stderr.count("\n") == 1 and "another program's database" in told.stderr, command
    told = cli("--store", f"sqlite:///{tmp_path}/mine.db", "merge", url, code=1)
    assert told.stderr.count("\n") == 1 and "another program's database" in told.stderr
    assert path.read_bytes() == before and not (tmp_path / "mine.db").exists()


@pytest.mark.long
@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_file_may_become_a_store(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    path.touch()
    with pytest.raises(StoreError, match="recycledb init"):
        Store.open(f"{backend}:///{path}")
    assert path.read_bytes() == b""
    with Store.open(f"{backend}:///{path}", create=True) as store:
        stores.add_samples(store, [stores.texts(1)])
        assert verify.check(store).findings == []
