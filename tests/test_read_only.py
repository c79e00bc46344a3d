"""A store that may only be read: by another user, in a folder of another user, as a killed process left it."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import forks
import pysqlite3.dbapi2 as pysqlite3
import pytest
import sound_stores
from conftest import BACKENDS, clean_environment

from recycledb.store import Store

PLAIN = Path(__file__).with_name("plain_user.py")


@pytest.fixture(scope="module", params=BACKENDS)
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("filled")
    path = folder / f"store.{request.param}"
    sound_stores.make(f"{request.param}:///{path}")
    return path


@pytest.fixture
def shared(filled: Path, tmp_path: Path) -> Iterator[Path]:
    """A store that may be read, but not written, in a folder of that kind."""
    folder = tmp_path / "shared"
    folder.mkdir()
    path = folder / filled.name
    shutil.copyfile(filled, path)
    path.chmod(0o444)
    folder.chmod(0o555)
    yield path
    folder.chmod(0o755)


def as_plain_user(commands: list[list[str]], cwd: Path) -> list[tuple[int, str]]:
    """Run commands one after the other as a user whom permissions bind; return their exit codes and what they printed."""
    with (cwd / "said").open("w+b") as said, (cwd / "commands").open("w+b") as given:
        given.write("".join(json.dumps(command) + "\n" for command in commands).encode())
        given.seek(0)
        command = [sys.executable, str(PLAIN)]
        with forks.start(command, stdin=given, stdout=said, stderr=said, cwd=cwd, env=clean_environment()) as process:
            process.wait(300)
        said.seek(0)
        told = said.read().decode()
    if told.startswith("CANNOT"):
        pytest.skip("root cannot give up its powers here")
    *parts, rest = told.split("CODE ")
    assert len(parts) == len(commands) and rest[1:] == "\n", told
    codes = [int(part[0]) for part in (*parts[1:], rest)]
    return list(zip(codes, [parts[0], *(part[2:] for part in parts[1:])], strict=True))


@pytest.fixture
def own_folder(tmp_path: Path) -> Path:
    """A folder in which this user may write."""
    folder = tmp_path / "own"
    folder.mkdir()
    return folder


def reading_commands(url: str, out: Path) -> list[list[str]]:
    first = ["--store", url]
    return [
        [*first, "query", "SELECT count(*) AS n FROM losses"],
        [*first, "status"],
        [*first, "select", "cherry", "--top", "2", "-o", str(out / "picked.json")],
        [*first, "export", "-o", str(out / "all.json")],
        [*first, "selections"],
        [*first, "report", "-o", str(out / "report.html")],
        [*first, "diff", "cherry-7b", "selective-7b"],
        [*first, "db", "check"],
        [*first, "db", "current"],
        ["--store", f"sqlite:///{out}/mine.db", "merge", url],
    ]


@pytest.mark.long
def test_all_that_reads_works_on_a_colleague_s_store(shared: Path, own_folder: Path) -> None:
    url = f"{shared.suffix[1:]}:///{shared}"
    before = shared.read_bytes()
    commands = reading_commands(url, own_folder)
    for command, (code, said) in zip(commands, as_plain_user(commands, own_folder), strict=True):
        assert code == 0, (command, said)
        if "select" in command:
            assert "not recorded: " in said and "is read-only" in said
    assert (own_folder / "picked.json").stat().st_size > 2 and (own_folder / "report.html").exists()
    assert shared.read_bytes() == before and [other.name for other in shared.parent.iterdir()] == [shared.name]
    with Store.open(f"sqlite:///{own_folder}/mine.db") as mine, Store.open(url) as theirs:
        assert sound_stores.counted(mine)["loss"] == sound_stores.counted(theirs)["loss"]


@pytest.mark.long
def test_all_that_writes_says_why_not(shared: Path, own_folder: Path) -> None:
    url = f"{shared.suffix[1:]}:///{shared}"
    (own_folder / "d.json").write_text('[{"instruction": "x", "output": "y"}]')
    before = shared.read_bytes()
    commands = [["--store", url, "add", "d.json"], ["--store", url, "merge", url]]
    for code, said in as_plain_user(commands, own_folder):
        assert code == 1 and said.count("\n") == 1, said
    assert "is read-only" in as_plain_user(commands[:1], own_folder)[0][1]
    assert shared.read_bytes() == before and [other.name for other in shared.parent.iterdir()] == [shared.name]


@pytest.mark.long
def test_a_file_of_another_user_in_a_folder_of_ours_gets_nothing_beside_it(shared: Path, own_folder: Path) -> None:
    """A -shm of this user's would keep the owner from writing."""
    shared.parent.chmod(0o755)
    url = f"{shared.suffix[1:]}:///{shared}"
    commands = [["--store", url, "status"], ["--store", url, "select", "cherry", "--top", "2"]]
    assert [code for code, _ in as_plain_user(commands, own_folder)] == [0, 0]
    assert [other.name for other in shared.parent.iterdir()] == [shared.name]


@pytest.mark.parametrize("filled", ["sqlite"], indirect=True)
def test_a_log_beside_a_store_that_may_only_be_read(shared: Path, own_folder: Path) -> None:
    """With SQLite's -shm the log is read along; without it nothing can be trusted."""
    path = own_folder / "store.db"
    shutil.copyfile(shared, path)
    connection = pysqlite3.connect(str(path))
    connection.execute("DELETE FROM loss WHERE stat = 'Q_direct'")
    connection.commit()
    folder = own_folder / "left"  # as a process that was killed leaves them
    folder.mkdir()
    for ending in ("", "-wal", "-shm"):
        shutil.copyfile(f"{path}{ending}", folder / f"store.db{ending}")
        (folder / f"store.db{ending}").chmod(0o444)
    connection.close()
    folder.chmod(0o555)
    query = [
        "--store",
        f"sqlite:///{folder}/store.db",
        "query",
        "SELECT count(*) AS n FROM losses",
        "--format",
        "jsonl",
    ]
    [(code, said)] = as_plain_user([query], own_folder)
    assert (code, said) == (0, '{"n": 48}\n')
    folder.chmod(0o755)
    (folder / "store.db-shm").unlink()
    folder.chmod(0o555)
    [(code, said)] = as_plain_user([query], own_folder)
    folder.chmod(0o755)
    assert code == 1 and said.count("\n") == 1 and "store.db-wal next to it holds rows" in said


# Reads a store as a user who may not write it, says so, and goes on when it is told to.
READER = """
import sys
sys.path.insert(0, sys.argv[2])
from plain_user import give_up_powers
from recycledb.errors import StoreError
from recycledb.store import Store
if not give_up_powers():
    print("CANNOT", flush=True)
    sys.exit()
try:
    with Store.open(f"sqlite:///{sys.argv[1]}") as store, store.sandbox() as sandbox:
        print("READING", next(iter(sandbox.execute("SELECT count(*) FROM losses")[1]))[0], flush=True)
        sys.stdin.readline()
except StoreError as error:
    print("REFUSED", error, flush=True)
else:
    print("READ", flush=True)
"""


@pytest.mark.parametrize("filled", ["sqlite"], indirect=True)
@pytest.mark.parametrize("written", [False, True])
def test_what_is_read_without_locks_is_refused_where_a_writer_came(shared: Path, written: bool) -> None:
    command = [sys.executable, "-c", READER, str(shared), str(PLAIN.parent)]
    with forks.start(command, stdin=forks.PIPE, stdout=forks.PIPE, text=True) as reading:
        assert reading.stdin is not None and reading.stdout is not None
        begun = reading.stdout.readline()
        if begun.startswith("CANNOT"):
            pytest.skip("root cannot give up its powers here")
        assert begun == "READING 64\n"
        if written:
            shared.parent.chmod(0o755)
            shared.chmod(0o644)
            with Store.open(f"sqlite:///{shared}") as store, store.write() as conn:
                conn.exec_driver_sql("DELETE FROM loss")
        reading.stdin.write("\n")
        reading.stdin.flush()
        said = reading.stdout.readline()
    assert ("was changed while it was read" in said) if written else (said == "READ\n"), said
