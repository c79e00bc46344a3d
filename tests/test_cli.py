"""The command itself, in a process of its own: help, outputs, and every error in one line with its exit code."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sound_stores
import stores
import typer
from conftest import Cli, clean_environment
from teacher_server import Fault, TeacherServer

import recycledb
from recycledb.cli.commands import app
from recycledb.store import Store
from recycledb.store.measures import add_facts

CLI_PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
KEY = "sk-this-is-a-secret-0123456789"


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command by its full name."""

    def walk(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(command, f"{prefix}{name} ")
            else:
                yield prefix + name, command

    yield from walk(typer.main.get_command(app), "")


COMMANDS = dict(commands())


def one_line(told: str) -> str:
    """Return what stderr says, which is one line and no traceback."""
    assert told.startswith("recycledb: ") and told.count("\n") == 1 and told.endswith("\n"), told
    return told


def one_object(told: str) -> dict[str, Any]:
    """Return the JSON object that is all of stdout."""
    found = json.loads(told)
    assert isinstance(found, dict) and told.count("\n") == 1
    return found


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.json"
    rows = [{"instruction": f"Explain {i}.", "input": "", "output": f"{i} it is."} for i in range(3)]
    path.write_text(json.dumps([*rows, rows[0], "bad"]))
    return path


@pytest.fixture
def filled(sqlite_url: str) -> str:
    """The URL of a store with two samples, every variant of them, and scores."""
    with Store.open(sqlite_url) as store:
        stores.fill(store)
    return sqlite_url


# --- help -----------------------------------------------------------------------------------------

PROMISED = (
    *("init", "add", "sync", "status", "query", "select", "compare", "show", "export", "import-scores", "merge"),
    *("db upgrade", "db current", "db check", "demo"),
)


def test_every_promised_command_is_there() -> None:
    assert set(PROMISED) <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_help_an_example_and_its_place_in_the_docs(name: str) -> None:
    command = COMMANDS[name]
    assert "Example" in (command.help or ""), "its docstring lacks an example"
    assert re.search(rf"recycledb (--store \S+ )?{name}\b", command.help), "its example shows another command"
    assert f"\n## recycledb {name}\n" in CLI_PAGE.read_text(encoding="utf-8")
    assert all(one.help for one in command.params if not one.hidden and one.name != "help"), "an option lacks its help"


@pytest.mark.parametrize("name", ["add", "sync", "status", "select", "compare", "show"])
def test_results_can_be_had_as_json(name: str) -> None:
    assert "--json" in [flag for one in COMMANDS[name].params for flag in one.opts]


def test_help_and_version(cli: Cli) -> None:
    assert "sync" in cli("--help").stdout and "--dry-run" in cli("sync", "-h").stdout
    assert cli("--version").stdout == f"{recycledb.__version__}\n"


# --- wrong usage: 2 -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"], ["add"], ["show"], ["sync", "--nonsense"], ["sync", "--limit", "0"], ["sync", "--limit", "x"],
        ["sync", "--only", "rest"], ["sync", "--max-cost", "-1"], ["add", "x.json", "--format", "csv"], ["db", "nonsense"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_wrong_usage(arguments: list[str], cli: Cli) -> None:
    told = cli(*arguments, code=2)
    assert told.stdout == "" and "Traceback" not in told.stderr and "Usage" in told.stderr


# --- errors: 1, one line --------------------------------------------------------------------------

NO_STORE = [
    *(["status"], ["sync"], ["query", "SELECT 1"], ["select", "cherry"], ["compare", "a", "b"], ["show", "abcd"]),
    *(["db", "upgrade"], ["db", "current"], ["db", "check"]),
]


@pytest.mark.parametrize("arguments", NO_STORE, ids=" ".join)
def test_without_a_store_the_command_that_makes_one_is_named(arguments: list[str], cli: Cli, tmp_path: Path) -> None:
    told = cli(*arguments, code=1)
    assert "recycledb init" in one_line(told.stderr) and told.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("recycle.db", "is not a store's URL"),
        ("sqlite:///none/x.db", "there is no folder none"),
        ("postgresql://localhost:1/x", "connection"),
        ("sqlite:///data.json", "is not a SQLite file"),
        ("duckdb:///data.json", "is not a DuckDB file"),
    ],
)
def test_a_store_that_cannot_be_opened(url: str, message: str, cli: Cli, data: Path) -> None:
    before = data.read_bytes()
    told = cli("--store", url, "add", data, code=1)
    assert message in one_line(told.stderr) and data.read_bytes() == before


@pytest.mark.long
def test_a_store_that_another_process_has_open(cli: Cli, tmp_path: Path) -> None:
    with Store.open(f"duckdb:///{tmp_path}/x.duckdb", create=True):
        told = cli("--store", "duckdb:///x.duckdb", "status", code=1)
    assert "another process has x.duckdb open" in one_line(told.stderr)


@pytest.mark.long
def test_a_damaged_store(cli: Cli, filled: str) -> None:
    path = Path(filled.removeprefix("sqlite:///"))
    whole = path.read_bytes()
    page = len(whole) // 2 // 4096 * 4096
    path.write_bytes(whole[:page] + b"\xff" * 4096 + whole[page + 4096 :])
    told = cli("--store", filled, "db", "check", code=1)
    assert "Traceback" not in told.stderr and told.stderr.count("\n") == 1


@pytest.mark.parametrize("content", ["", "[", "not json\n", '[{"question": "x"}]'])
def test_a_file_that_cannot_be_added(content: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text(content)
    told = cli("add", "bad.json", "--json", code=1)
    assert "bad.json" in one_line(told.stderr) and told.stdout == ""


def test_a_file_that_is_not_there(cli: Cli) -> None:
    assert "missing.json" in one_line(cli("add", "missing.json", code=1).stderr)


@pytest.mark.parametrize(
    ("text", "message"),
    [("[stor]\n", "stor: unknown key"), ("[store\n", "line 1"), ("[sync]\nteacher = 'x'\n", "teachers.x")],
)
def test_a_wrong_configuration(text: str, message: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "recycledb.toml").write_text(text)
    told = one_line(cli("status", code=1).stderr)
    assert message in told and "recycledb.toml" in told


@pytest.mark.default_cases(
    "sync --student x=./nowhere",
    "show zz",
    "select nonsense",
    "query SELECT nonsense",
    "compare 7b nobody",
    "import-scores",
)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sync", "--teacher", "nobody"], "no teacher 'nobody'"),
        (["sync", "--student", "nobody"], "no student 'nobody'"),
        (["sync", "--student", "x=./nowhere"], "nowhere"),
        (["sync", "--student", "x=org/model"], "org/model"),
        (["sync", "--student", "x=org/model", "--dtype", "int8"], "dtype"),
        (["sync", "--student", "x=org/model", "--template", "chatml"], "template: Input should be 'vicuna'"),
        (["sync", "--student", "x=org/model", "--prompt", "chatml"], "template: Input should be 'vicuna'"),
        (["show", "zz"], "not an id"),
        (["show", "0123456789"], "no sample, variant or reply"),
        (["select", "nonsense"], "nonsense"),
        (["select", "cherry", "--student", "nobody"], "nobody"),
        (["select", "cherry", "--top", "many"], "many"),
        (["query", "SELECT nonsense"], "nonsense"),
        (["query", "DELETE FROM loss"], "only read"),
        (["compare", "7b", "nobody"], "nobody"),
        (["import-scores", "none.jsonl", "--dataset", "d", "--kind", "origin", "--student", "s"], "none.jsonl"),
        (["merge", "sqlite:///none.db"], "none.db"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_one_line(arguments: list[str], message: str, cli: Cli, filled: str) -> None:
    told = cli("--store", filled, *arguments, code=1)
    assert message in one_line(told.stderr) and told.stdout == ""


def test_debug_shows_the_traceback(cli: Cli) -> None:
    told = cli("--debug", "status", code=1)
    assert "Traceback (most recent call last)" in told.stderr and "StoreError" in told.stderr


# --- which store ----------------------------------------------------------------------------------


@pytest.mark.long
def test_the_store_is_the_option_s_then_the_environment_s_then_the_file_s(cli: Cli, data: Path, tmp_path: Path) -> None:
    inner = tmp_path / "project" / "inner"
    inner.mkdir(parents=True)
    cli("add", data, cwd=inner)
    assert (inner / "recycle.db").exists()
    (tmp_path / "project" / "recycledb.toml").write_text('[store]\nurl = "sqlite:///of-file.db"\n')
    cli("add", data, cwd=inner)
    assert (tmp_path / "project" / "of-file.db").exists()
    environment = {"RECYCLEDB_STORE": f"duckdb:///{tmp_path}/of-environment.duckdb"}
    cli("add", data, cwd=inner, env=environment)
    assert (tmp_path / "of-environment.duckdb").exists()
    cli("--store", "sqlite:///of-option.db", "add", data, cwd=inner, env=environment)
    assert (inner / "of-option.db").exists()


@pytest.mark.long
def test_init_writes_what_the_other_commands_go_on_from(cli: Cli, data: Path, tmp_path: Path) -> None:
    told = cli("init", "mine").stdout
    assert "mine/recycledb.toml" in told and (tmp_path / "mine" / "recycle.db").exists()
    cli("add", data, cwd=tmp_path / "mine")
    assert "3 origin" in cli("status", cwd=tmp_path / "mine").stdout
    again = cli("init", "mine", code=1)
    assert "already exists" in one_line(again.stderr)


@pytest.mark.long
def test_init_names_the_store_that_it_made(cli: Cli, tmp_path: Path) -> None:
    cli("--store", "duckdb:///outside.duckdb", "init", "mine")
    assert f'url = "duckdb:///{tmp_path}/outside.duckdb"' in (tmp_path / "mine" / "recycledb.toml").read_text()
    cli("--store", "sqlite:///other/x.db", "init", "other")
    assert 'url = "sqlite:///x.db"' in (tmp_path / "other" / "recycledb.toml").read_text()
    told = cli("--store", "nonsense", "init", "third", code=1)
    assert "not a store's URL" in one_line(told.stderr) and not (tmp_path / "third" / "recycledb.toml").exists()


# --- output ---------------------------------------------------------------------------------------


def test_add_tells_counts_and_what_was_rejected(cli: Cli, data: Path) -> None:
    told = cli("add", data)
    assert "data: 3 added, 1 already there, 1 rejected" in told.stdout
    assert "row 4: not an object but a text" in told.stderr
    again = one_object(cli("add", data, "--json").stdout)
    assert (again["added"], again["already_there"], again["rejected"]) == (0, 4, 1)
    assert again["datasets"][0]["rejections"][0]["position"] == 4


@pytest.mark.long
@pytest.mark.parametrize(
    "arguments",
    [
        ["status"], ["sync", "--dry-run"], ["sync"], ["select", "cherry", "--student", "7b", "--top", "1", "-o", "o.json"],
        ["compare", "7b", "8b"], ["show", "SAMPLE"],
    ],
    ids=lambda value: value[0],
)  # fmt: skip
def test_json_is_one_object_and_all_of_stdout(arguments: list[str], cli: Cli, filled: str) -> None:
    with Store.open(filled) as store:
        sample = store.rows("SELECT sample_id FROM sample")[0][0]
        row = stores.student_row("57d000000008", "8b")
        with store.write() as conn:
            store.insert(conn, [row])
            store.ensure_name(conn, "student", "8b", row.student_id)
        for found in store.rows("SELECT variant_id FROM loss GROUP BY variant_id"):
            add_facts(store, stores.losses(found[0], row.student_id))
    told = cli("--store", filled, *[sample[:8] if one == "SAMPLE" else one for one in arguments], "--json")
    assert one_object(told.stdout)


@pytest.mark.long
def test_status_says_what_there_is(cli: Cli, filled: str) -> None:
    told = one_object(cli("--store", filled, "status", "--json").stdout)
    assert told["samples"] == 2 and told["variants"]["reflect_both"] == 2
    assert {row["step"]: row["ok"] for row in told["teachers"]} == {
        "compress": 1,
        "reflect_instruction": 2,
        "reflect_response": 4,
    }
    assert told["students"][0]["statistics"] == 32 and told["cost_usd"] == pytest.approx(7 * 0.25)
    shown = cli("--store", filled, "status").stdout
    assert "7b" in shown and "gpt" in shown and "missing" in shown


@pytest.mark.long
def test_db_check_finds_a_sound_store_sound_and_a_forged_one_not(cli: Cli, sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        sound_stores.fill(store)
    assert "sound" in cli("--store", sqlite_url, "db", "check").stdout
    with Store.open(sqlite_url) as store, store.write() as conn:
        conn.exec_driver_sql("UPDATE variant SET output = 'forged' WHERE kind = 'reflect_both'")
        [(changed,)] = conn.exec_driver_sql("SELECT count(*) FROM variant WHERE kind = 'reflect_both'").fetchall()
    told = cli("--store", sqlite_url, "db", "check", code=1)
    assert "problems found" in one_line(told.stderr)
    assert changed and told.stdout.count("variant ") >= changed


# --- sync against a server ------------------------------------------------------------------------


def configured(folder: Path, server: TeacherServer) -> None:
    """Write a configuration whose teacher is the server."""
    (folder / "recycledb.toml").write_text(
        f'[teachers.gpt]\nmodel = "gpt-test"\nbase_url = "{server.base_url}"\nmax_attempts = 2\n'
        '[sync]\nsteps = ["reflect_response"]\n'
    )


def holding(folder: Path, what: bytes) -> list[str]:
    """Return the files below a folder that hold these bytes."""
    return [path.name for path in folder.rglob("*") if path.is_file() and what in path.read_bytes()]


@pytest.mark.long
def test_a_sync_in_order_is_0_and_one_that_leaves_rows_missing_is_3(cli: Cli, data: Path, tmp_path: Path) -> None:
    with TeacherServer() as server:
        configured(tmp_path, server)
        cli("add", data)
        some = one_object(cli("sync", "--limit", "1", "--json", code=3, env={"OPENAI_API_KEY": KEY}).stdout)
        assert some["answered"] == 1
        rest = cli("sync", env={"OPENAI_API_KEY": KEY})
        assert "asked 2 questions" in rest.stdout
        assert "nothing to do" in cli("sync", env={"OPENAI_API_KEY": KEY}).stdout
        assert len(server.log) == 3


@pytest.mark.long
def test_secrets_are_never_stored_or_told(cli: Cli, data: Path, tmp_path: Path) -> None:
    """Not even when the server, in an error, repeats the key that it was given."""
    environment = {"OPENAI_API_KEY": KEY}
    with TeacherServer(decide=lambda exchange: Fault.BAD_REQUEST) as server:
        configured(tmp_path, server)
        cli("add", data)
        told = cli("sync", code=3, env=environment)
    with TeacherServer(decide=lambda exchange: Fault.UNAUTHORIZED) as server:
        configured(tmp_path, server)
        refused = cli("sync", "--retry-failed", code=1, env=environment)
    assert "OPENAI_API_KEY" in one_line(refused.stderr.splitlines(keepends=True)[-1])
    assert holding(tmp_path, b"bad_request") or holding(tmp_path, b"failed"), (
        "nothing was stored, so this run showed nothing"
    )
    assert (
        holding(tmp_path, KEY.encode()) == [] and KEY not in told.stdout + told.stderr + refused.stdout + refused.stderr
    )


STARTED = """
import os, signal, sys

class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts its background jobs without
sys.meta_path.insert(0, Interrupted())
from recycledb.cli import main
main()
"""


@pytest.mark.parametrize("module", ["typer", "recycledb.cli.commands", "recycledb.errors"])
def test_ctrl_c_while_the_command_starts_is_one_line(module: str, tmp_path: Path) -> None:
    """A real signal, at the moment when the command's first modules are loaded."""
    done = subprocess.run(
        [sys.executable, "-c", STARTED, module],
        check=False,
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "recycledb: stopped; what was committed is kept\n"
