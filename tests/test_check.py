"""`db check`: what is wrong in a store is found, whatever table it is in, and what was looked at is said."""

import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pysqlite3.dbapi2 as pysqlite3
import pytest
import sound_stores
from conftest import BACKENDS, Cli
from stores import loss_row

from recycledb.integrity import check
from recycledb.store import Store, parse_url
from recycledb.store.digest import COLUMN, digests_of
from recycledb.store.measures import add_facts
from recycledb.store.tables import metadata
from recycledb.store.verify import REPORTED


@pytest.fixture(scope="module")
def sound_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sound")
    files = {backend: folder / f"store.{backend}" for backend in BACKENDS}
    for backend, path in files.items():
        sound_stores.make(f"{backend}:///{path}")
    return files


@pytest.fixture(params=BACKENDS)
def url(request: pytest.FixtureRequest, sound_files: dict[str, Path], tmp_path: Path) -> str:
    """The URL of a sound store with a row in every table."""
    path = tmp_path / f"store.{request.param}"
    shutil.copyfile(sound_files[request.param], path)
    return f"{request.param}:///{path}"


def by_hand(url: str, *statements: str) -> None:
    """Change a store with another tool, which enforces nothing."""
    library: Any = pysqlite3 if url.startswith("sqlite") else duckdb
    connection = library.connect(str(parse_url(url)[1]))
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def findings(url: str) -> list[str]:
    with Store.open(url) as store:
        return check(store).findings


@pytest.mark.long
def test_a_sound_store_is_sound_and_every_row_was_looked_at(url: str) -> None:
    with Store.open(url) as store:
        checked, counted = check(store), sound_stores.counted(store)
    assert checked.findings == [] and checked.remarks == []
    assert {walked.table: walked.rows for walked in checked.tables} == counted and min(counted.values()) > 0
    for walked in checked.tables:
        operational = walked.table in ("worker", "lease")
        assert walked.digests == (0 if operational else walked.rows) and walked.without_digest == 0
    addressed = {walked.table for walked in checked.tables if walked.ids == walked.rows}
    assert addressed == {
        *(
            "sample",
            "variant",
            "prompt",
            "teacher",
            "student",
            "ordering",
            "teacher_measure",
            "mark",
            "reply",
            "selection",
            "measure",
            "augmentation",
            "derivation",
            "duplicate_search",
        ),
    }
    assert checked.schema_objects > 30 and checked.references > 20 and checked.relations > 10


@pytest.mark.long
@pytest.mark.parametrize("table", [name for name, table in metadata.tables.items() if COLUMN in table.columns])
def test_a_change_in_any_column_of_any_table_is_found(table: str, sound_files: dict[str, Path], tmp_path: Path) -> None:
    """Each column that is no key, in one row; digests alone must tell, so the ids are left out of it."""
    path = tmp_path / "store.db"
    shutil.copyfile(sound_files["sqlite"], path)
    url = f"sqlite:///{path}"
    columns = [
        column.name for column in metadata.tables[table].columns if not column.primary_key and column.name != COLUMN
    ]
    with Store.open(url) as store:
        before = store.rows(f"SELECT * FROM {table}")
    connection = pysqlite3.connect(str(path))
    for column in columns:
        connection.execute("SAVEPOINT one")
        changed = f"""CASE WHEN typeof({column}) = 'text' THEN {column} || '.' WHEN typeof({column}) = 'blob' THEN X'00'
            WHEN {column} IS NULL THEN '.' ELSE {column} + 2 END"""
        connection.execute(
            f"UPDATE {table} SET {column} = {changed} WHERE rowid = (SELECT min(rowid) FROM {table})"
        ) if (table != "loss") else connection.execute(
            f"UPDATE loss SET {column} = {changed} WHERE (variant_id, stat) = (SELECT variant_id, stat FROM loss LIMIT 1)"
        )
        digest = digests_of(metadata.tables[table])
        rows = connection.execute(f"SELECT {', '.join(metadata.tables[table].columns.keys())} FROM {table}").fetchall()
        assert sum(not _holds(digest, row) for row in rows) == 1, column
        connection.execute("ROLLBACK TO one")
    connection.close()
    with Store.open(url) as store:
        assert store.rows(f"SELECT * FROM {table}") == before


def _holds(digest: Callable[[Any], int], row: Any) -> bool:
    try:
        return digest(row[:-1]) == row[-1]
    except (TypeError, ValueError):
        return False


# Without digests, as rows from before revision 0005 are: what ids and the rules between rows tell.
CHANGES: dict[str, tuple[str, str]] = {
    "a reply's text": ("UPDATE reply SET text = text || '.' WHERE status = 'ok'", "does not match its content"),
    "a reply's error": ("UPDATE reply SET error = 'x' WHERE status = 'error'", "does not match its content"),
    "a prompt": ("UPDATE prompt SET text = text || '.'", "does not match its content"),
    "a teacher": ("UPDATE teacher SET parameters = replace(parameters, 'temperature', 'heat')", "does not match its content"),
    "a teacher's model": ("UPDATE teacher SET model = 'other'", "has another provider or model"),
    "a student": ("UPDATE student SET max_length = max_length + 1", "does not match its content"),
    "a variant": ("UPDATE variant SET output = output || '.' WHERE kind = 'reflect_both'", "does not match its content"),
    "a variant's kind": ("UPDATE variant SET kind = 'reflect_nothing' WHERE kind = 'reflect_both'", "does not match its content"),
    "a variant's teacher": ("UPDATE variant SET prompt_id = NULL WHERE kind = 'reflect_both'", "does not say what it was made from"),
    "a selection's recipe": ("UPDATE selection SET sql = sql || ' '", "does not match its content"),
    "a pick's reason": ("UPDATE selection_item SET reason = 'x'", "does not match its content"),
    "a pick's rank": ("UPDATE selection_item SET rank = 0.25", "does not match its content"),
    "a pick that is gone": ("DELETE FROM selection_item WHERE position = 0", "picks"),
    "counts": ("UPDATE selection SET counts = '{}' WHERE rows > 0", "by kind"),
    "parameters": ("UPDATE selection SET parameters = '{'", "not a JSON object"),
    "a status": ("UPDATE reply SET status = 'good' WHERE status = 'ok'", "has the unknown status 'good'"),
    "a loss": ("UPDATE loss SET loss_sum = NULL WHERE status = 'ok'", "is ok, with the sum None"),
    "tokens of a loss": ("UPDATE loss SET n_tokens = 0 WHERE status = 'ok'", "over 0 tokens"),
    "a loss that is none": ("UPDATE loss SET loss_sum = 1.5 WHERE status = 'too_long'", "but has a sum"),
    "a place's fields": ("UPDATE place SET extra = '['", "not a JSON object"),
    "a name's meaning": ("UPDATE name SET id = 'nobody' WHERE kind = 'student'", "mean a student that does not exist"),
    "a name's kind": ("UPDATE name SET kind = 'pupil' WHERE kind = 'student'", "has the unknown kind 'pupil'"),
    "an attempt": ("UPDATE attempt SET step = 'compress' WHERE step = 'reflect_response'", "another question than their attempt"),
    "an attempt that is gone": ("DELETE FROM attempt", "an attempt that does not exist"),
    "an extraction": ("UPDATE extraction SET reason = 'x' WHERE variant_id IS NOT NULL", "both a variant and a reason"),
    "a closing": ("UPDATE closing SET turn = turn + 7", "close a place that does not exist"),
    "an open place": ("DELETE FROM closing", "are open although a later row has their position"),
    "a worker": ("UPDATE worker SET pid = -1", "has values that no process writes"),
    "an origin that is gone": ("DELETE FROM variant WHERE kind = 'origin'", "have no origin"),
    "a reply that is gone": ("DELETE FROM reply WHERE status = 'ok'", "made from a reply that does not exist"),
}  # fmt: skip


@pytest.mark.default_cases("tokens of a loss")
@pytest.mark.parametrize(("statement", "message"), CHANGES.values(), ids=CHANGES)
def test_a_change_is_found_without_digests_too(
    statement: str, message: str, sound_files: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "store.db"
    shutil.copyfile(sound_files["sqlite"], path)
    url = f"sqlite:///{path}"
    old = [f"UPDATE {name} SET digest = NULL" for name, table in metadata.tables.items() if COLUMN in table.columns]
    by_hand(url, *old)
    assert findings(url) == []
    by_hand(url, statement)
    found = findings(url)
    assert any(message in line for line in found), found


@pytest.mark.long
def test_the_same_is_found_on_duckdb(sound_files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "store.duckdb"
    shutil.copyfile(sound_files["duckdb"], path)
    url = f"duckdb:///{path}"
    statements = [statement for statement, _ in CHANGES.values() if not statement.startswith("DELETE")]
    by_hand(url, *statements[:6], "UPDATE loss SET kernel = 'other'", "DELETE FROM selection_item WHERE position = 0")
    found = "\n".join(findings(url))
    for table in ("reply", "prompt", "teacher", "student", "loss"):
        assert f"{table} " in found and "its digest does not match" in found, table
    assert "picks" in found


SCHEMA: dict[str, tuple[str, ...]] = {
    "a view that says something else": ("DROP VIEW batches", "CREATE VIEW batches AS SELECT 1 AS batch_id"),
    "a view that is gone": ("DROP VIEW batches",),
    "a table with another column": ("ALTER TABLE closing RENAME COLUMN closed_at TO ended_at",),
}


@pytest.mark.long
@pytest.mark.parametrize("statements", SCHEMA.values(), ids=SCHEMA)
def test_another_schema_is_found(url: str, statements: tuple[str, ...]) -> None:
    by_hand(url, *statements)
    found = findings(url)
    assert any("differs from schema revision" in line or "is missing" in line for line in found), found


def test_what_is_not_ours_is_remarked_on_and_no_more(url: str) -> None:
    by_hand(url, "CREATE VIEW mine AS SELECT 1 AS one", "CREATE TABLE notes (x VARCHAR)")
    with Store.open(url) as store:
        checked = check(store)
    assert checked.findings == [] and "table notes" in checked.remarks[0] and "view mine" in checked.remarks[0]


def test_an_index_that_is_gone_or_another_is_found(sound_files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    shutil.copyfile(sound_files["sqlite"], path)
    by_hand(f"sqlite:///{path}", "DROP INDEX ix_place_sample_id", "CREATE INDEX ix_place_sample_id ON place (extra)")
    by_hand(f"sqlite:///{path}", "DROP INDEX ix_attempt_worker_id", "DROP TRIGGER delete_losses")
    found = findings(f"sqlite:///{path}")
    assert [line.split()[:2] for line in found] == [
        ["index", "ix_attempt_worker_id"], ["index", "ix_place_sample_id"], ["trigger", "delete_losses"],
    ]  # fmt: skip


def test_many_findings_are_counted_not_listed(url: str) -> None:
    by_hand(url, "UPDATE loss SET kernel = 'other'")
    found = findings(url)
    assert len(found) == REPORTED + 1 and found[-1].startswith("loss: ") and "more findings like these" in found[-1]


def damaged(url: str, old: bytes, new: bytes) -> None:
    path = parse_url(url)[1]
    content = path.read_bytes()
    assert old in content and len(old) == len(new)
    path.write_bytes(content.replace(old, new))


def test_text_that_is_not_utf_8_is_a_finding(sound_files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    shutil.copyfile(sound_files["sqlite"], path)
    damaged(f"sqlite:///{path}", b"This is why.", b"This is why\xff")
    found = findings(f"sqlite:///{path}")
    assert any(line.startswith("reply: ") and "UTF-8" in line for line in found) and all(
        "\n" not in line for line in found
    )


@pytest.mark.long
def test_a_block_that_duckdb_cannot_read_is_a_finding(sound_files: dict[str, Path], tmp_path: Path, cli: Cli) -> None:
    path = tmp_path / "store.duckdb"
    shutil.copyfile(sound_files["duckdb"], path)
    damaged(f"duckdb:///{path}", b"This is why.", b"This is why\xff")
    told = cli("--store", f"duckdb:///{path}", "db", "check", code=1)
    assert "hecksum" in told.stdout and told.stderr.count("\n") == 1 and "Traceback" not in told.stderr


@pytest.mark.long
@pytest.mark.both_backends
def test_the_command_says_what_it_looked_at(url: str, cli: Cli) -> None:
    told = cli("--store", url, "db", "check").stdout
    assert "sound: no problems found" in told
    lines = {line.split()[0]: line.split()[1:] for line in told.splitlines() if line.strip()}
    assert lines["reply"] == ["18", "18", "18", "0"] and lines["worker"] == ["1", "0", "0", "0"]
    checked = json.loads(cli("--store", url, "db", "check", "--json").stdout)
    assert (
        checked["sound"]
        and {"table": "loss", "rows": 64, "ids": 0, "digests": 64, "without_digest": 0} in checked["tables"]
    )
    by_hand(url, "UPDATE reply SET cost_usd = cost_usd / 2 WHERE status = 'ok'")
    told = cli("--store", url, "db", "check", "--json", code=1)
    checked = json.loads(told.stdout)
    assert not checked["sound"] and len(checked["findings"]) == 14 and "14 problems found" in told.stderr


# --- digests ----------------------------------------------------------------------------------------


def rows_of(store: Store, table: str) -> Iterator[Any]:
    yield from store.rows(f"SELECT {', '.join(metadata.tables[table].columns.keys())} FROM {table}")


def test_a_row_has_one_digest_on_every_backend(sound_files: dict[str, Path], tmp_path: Path) -> None:
    """The rows of the one were read from SQLite, in other types, and written to the other."""
    with Store.open(f"sqlite:///{sound_files['sqlite']}") as one:
        copies = {name: digests_of(table) for name, table in metadata.tables.items() if COLUMN in table.columns}
        for table, digest in copies.items():
            for row in rows_of(one, table):
                assert digest(row[:-1]) == row[-1]
    assert struct.calcsize("q") == 8 and all(0 <= row[-1] < 1 << 63 for row in [(1 << 62,)])


ODD_ROWS = [
    (-0.0, 4, False),
    (0.0, 4, True),
    (float("nan"), 4, False),
    (3, 4, True),
    (None, 0, False),
    (1e308, 1, True),
]


@pytest.mark.long
def test_numbers_that_a_database_gives_back_otherwise_keep_their_digest(url: str) -> None:
    with Store.open(url) as store:
        student, variant = store.rows("SELECT student_id, variant_id FROM loss LIMIT 1")[0]
        rows = [
            loss_row(student, variant, f"odd {i}", value, tokens, truncated=flag)
            for i, (value, tokens, flag) in enumerate(ODD_ROWS)
        ]
        add_facts(store, rows)
        assert not [line for line in check(store).findings if "digest" in line]
