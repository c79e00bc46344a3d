"""A store in PostgreSQL is upgraded: while processes are at work on it, while others read it, and where users' views read ours."""

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from subprocess import PIPE
from typing import Any

import forks
import postgres_server
import pytest
import stores
from alembic import command
from alembic.config import Config
from conftest import RUN_COMMAND, clean_environment
from postgres_server import OWNER
from sync_runs import disagreements, make_store, rows
from teacher_server import TeacherServer
from templates import drop, new_url
from test_sync_kills import start_sync, wait_for

from recycledb.errors import StoreError
from recycledb.schema import utc_now
from recycledb.store import Store, revisions, upgrade, verify
from recycledb.store.address import open_backend
from recycledb.store.liveness import process_start, this_host
from recycledb.store.migrate import HEAD

pytestmark = pytest.mark.skipif(postgres_server.binaries() is None, reason="no PostgreSQL: apt-get install postgresql")

OLD = "0006"  # later revisions change tables and create views anew


def migrate_to(url: str, revision: str) -> None:
    """Create a store of an older schema."""
    backend = open_backend(url)
    config = Config()
    config.set_main_option("script_location", str(files("recycledb.migrations")))
    with backend.begin(locked=True) as conn:
        config.attributes["connection"] = conn
        command.upgrade(config, revision)
    backend.close()


@pytest.fixture
def database() -> Iterator[str]:
    """The name of a database with a store of an older schema."""
    server = postgres_server.server()
    name = server.create()
    migrate_to(server.url(name), OLD)
    yield name
    drop(server.url(name))


@pytest.fixture
def url(database: str) -> str:
    """The URL of a store of an older schema."""
    return postgres_server.server().url(database)


def connect(database: str, user: str = OWNER) -> Any:
    """Open a connection of some other program."""
    return closing(postgres_server.server().connect(database, user))


def refused(url: str) -> str:
    """Return the one line by which an upgrade is refused; nothing is changed."""
    with pytest.raises(StoreError) as raised:
        upgrade(url)
    assert "\n" not in str(raised.value) and revisions(url) == (OLD, HEAD)
    assert not [each for each in threading.enumerate() if each.name == "blockers"]
    return str(raised.value)


# --- what is in its way -------------------------------------------------------------------------------


@pytest.mark.long
def test_who_reads_the_store_is_named_instead_of_waited_for(database: str, url: str) -> None:
    with connect(database, "test") as reader:
        reader.execute("SET application_name = 'dashboard'")
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM scores")
        pid = reader.info.backend_pid
        said = refused(url)
        assert f"process {pid} of the server (dashboard, role test) uses the store" in said
        assert f"SELECT pg_terminate_backend({pid});" in said and "db upgrade" in said
        with connect(database) as later:  # nobody waits behind the upgrade any more
            later.execute("SET lock_timeout = '1s'")
            later.execute("SELECT count(*) FROM scores")
    upgrade(url)
    with Store.open(url) as store:
        assert verify.check(store).findings == []


@pytest.mark.parametrize("kind", ["VIEW", pytest.param("MATERIALIZED VIEW", marks=pytest.mark.long)])
def test_a_view_that_reads_ours_is_named_with_what_to_type(database: str, url: str, kind: str) -> None:
    with connect(database, "test") as theirs:
        theirs.execute("CREATE SCHEMA reports")
        theirs.execute(f"CREATE {kind} reports.hard AS SELECT * FROM public.scores WHERE ifd_ppl > 0.9")
        said = refused(url)
        assert f"{kind.lower()} reports.hard of role test reads scores" in said
        [text] = theirs.execute(said.split("`")[1]).fetchone()  # the commands that it names, as they stand there
        assert "ifd_ppl" in text
        theirs.execute(said.split("`")[3])
        upgrade(url)
        theirs.execute(f"CREATE {kind} reports.hard AS {text}")


@pytest.mark.long
def test_a_function_that_reads_a_view_of_ours_is_named(database: str, url: str) -> None:
    with connect(database) as ours:
        ours.execute(
            "CREATE FUNCTION how_many() RETURNS bigint LANGUAGE SQL BEGIN ATOMIC SELECT count(*) FROM scores; END"
        )
    assert "function how_many() depends on view scores" in refused(url)


@pytest.mark.long
def test_a_view_beside_ours_is_kept(database: str, url: str) -> None:
    with connect(database) as ours:
        ours.execute("CREATE VIEW a_hard AS SELECT * FROM scores WHERE ifd_ppl > 0.9")
        ours.execute("CREATE VIEW a_count AS SELECT count(*) AS n FROM a_hard")
        upgrade(url)
        assert ours.execute("SELECT n FROM a_count").fetchone() == (0,)


# --- processes that work --------------------------------------------------------------------------------


@pytest.mark.long
def test_no_store_is_upgraded_under_four_processes(database: str, url: str) -> None:
    workers = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=PIPE) for _ in range(4)]
    sql = (
        "INSERT INTO worker (worker_id, host, pid, process_started, started_at, heartbeat_at) "
        "VALUES (%s, %s, %s, %s, %s, %s)"
    )
    with connect(database) as ours:
        for i, each in enumerate(workers):
            values = [f"{i:032x}", str(this_host()), each.pid, process_start(str(each.pid)), utc_now(), utc_now()]
            ours.execute(sql, values)
    said = refused(url)
    assert "4 processes on 1 host at work on" in said and f"(pid {workers[0].pid})" in said
    for each in workers:
        each.kill()
        each.communicate()
    upgrade(url)
    assert revisions(url) == (HEAD, HEAD)


@pytest.mark.long
def test_four_processes_stop_in_order_once_their_store_is_upgraded(tmp_path: Path) -> None:
    """By force, or by a release that does not ask: their schema is no longer the store's."""
    url = make_store(tmp_path, 200, "postgresql")
    with TeacherServer(delay_s=0.3) as teacher:
        options = ("--concurrency", "8", "--cluster", json.dumps({"lease_s": 3}))
        processes = [start_sync(url, teacher.base_url, *options) for _ in range(4)]
        wait_for(lambda: len(teacher.log) >= 20 and len(rows(url, "SELECT * FROM worker WHERE ended_at IS NULL")) == 4)
        with Store.open(url) as store, store.write() as conn:
            conn.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
        for each in processes:
            output, errors = each.communicate(timeout=120)
            assert each.returncode == 0, errors
            told = json.loads(output)
            assert not told["complete"] and "upgraded the store to schema 9999" in str(told["stopped"])
        with closing(postgres_server.server().connect(url.partition("@/")[2].partition("?")[0])) as conn:
            conn.execute(f"UPDATE alembic_version SET version_num = '{HEAD}'")
        assert disagreements(url, teacher.log) == []
        assert len(teacher.log) < 600 and rows(url, "SELECT * FROM lease") == []
    assert rows(url, "SELECT * FROM worker WHERE ended_at IS NULL") == []
    drop(url)


@pytest.mark.long
def test_six_processes_that_upgrade_at_once_upgrade_once(url: str, tmp_path: Path) -> None:
    started = [
        forks.start([*RUN_COMMAND, "--store", url, "db", "upgrade"], cwd=tmp_path, stdout=PIPE, stderr=PIPE, text=True,
                    env=clean_environment())
        for _ in range(6)
    ]  # fmt: skip
    for each in started:
        errors = each.communicate(timeout=120)[1]
        assert each.returncode == 0, errors
    assert revisions(url) == (HEAD, HEAD)
    with Store.open(url) as store:
        stores.register(store)
        assert verify.check(store).findings == []


@pytest.mark.long
def test_six_processes_that_create_a_store_at_once_create_one(tmp_path: Path) -> None:
    server = postgres_server.server()
    url = server.url(server.create())
    (tmp_path / "data.json").write_text(json.dumps([{"instruction": f"Say {i}", "output": f"{i}"} for i in range(5)]))
    started = [
        forks.start([*RUN_COMMAND, "--store", url, "add", "data.json"], cwd=tmp_path, stdout=PIPE, stderr=PIPE, text=True,
                    env=clean_environment())
        for _ in range(6)
    ]  # fmt: skip
    for each in started:
        errors = each.communicate(timeout=120)[1]
        assert each.returncode == 0, errors
    assert rows(url, "SELECT count(*) AS n FROM dataset_samples") == [{"n": 5}]
    with Store.open(url) as store, Store.open(new_url("postgresql", tmp_path)) as usual:
        assert verify.check(store).findings == []
        with store.read() as one, usual.read() as other:
            assert store.backend.schema(one) == usual.backend.schema(other)
    drop(url)
