"""What commands print while they work, into outputs that take no text, and side by side for many measures."""

import re
from pathlib import Path

import pytest
import scored_stores as scored
from conftest import CommandServer, clean_environment

from recycledb.selection.duplicates import find_duplicates
from recycledb.store import Store

MEASURES = ("ifd", "rifd", "ppl")


@pytest.fixture
def url(sqlite_url: str) -> str:
    """A store with four samples of every kind, scored by two students."""
    with Store.open(sqlite_url) as store:
        scored.two_students(store)
    return sqlite_url


def students(url: str) -> list[str]:
    with Store.open(url) as store:
        return [row[0] for row in store.rows("SELECT student FROM students ORDER BY student")]


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "progress"),
    [
        (["select", "random", "--top", "2"], "random: variants put in order: "),
        (["duplicates"], " of "),
    ],
)
def test_progress_is_shown_on_a_terminal_only(
    command_server: CommandServer, url: str, tmp_path: Path, command: list[str], progress: str
) -> None:
    env = clean_environment(RECYCLEDB_STORE=url, TERM="xterm")
    piped = command_server.run(command, tmp_path, env)
    assert (piped.returncode, piped.stderr) == (0, "")
    with Store.open(url) as store, store.write() as conn:
        for table in ("ordering_item", "ordering", "near_duplicate", "duplicate_pool", "duplicate_search"):
            conn.exec_driver_sql(f"DELETE FROM {table}")
    code, shown = command_server.run_on_terminal(command, tmp_path, env)
    assert code == 0
    assert progress in shown.decode()


def test_progress_ends_at_the_total(url: str) -> None:
    told: list[tuple[str, int, int]] = []
    with Store.open(url) as store:
        find_duplicates(store, progress=lambda *each: told.append(each))
    assert [what for what, done, _ in told if done == 0] == [
        "questions read",
        "signatures computed",
        "questions compared",
    ]
    what, done, total = told[-1]
    assert (what, done) == ("questions compared", total)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["status"], ["query", "SELECT 1 AS a", "--format", "json"], ["--help"]])
def test_an_output_that_takes_no_text_is_one_line_and_an_exit_code(
    command_server: CommandServer, url: str, tmp_path: Path, command: list[str], unbuffered: str
) -> None:
    env = clean_environment(RECYCLEDB_STORE=url, PYTHONUNBUFFERED=unbuffered)
    with Path("/dev/full").open("w") as full:
        done = command_server.run(command, tmp_path, env, stdout=full)
    assert done.returncode == 1
    assert done.stderr == (
        "recycledb: the output cannot be written: No space left on device; "
        "free some space or send it elsewhere, then run the command again\n"
    )


@pytest.mark.long
def test_a_matrix_of_many_measures_fits_80_columns(command_server: CommandServer, url: str, tmp_path: Path) -> None:
    names = [f"{measure}/{student}" for measure in MEASURES for student in students(url)]
    options = [word for name in names for word in ("--measure", name)]
    code, shown = command_server.run_on_terminal(
        ["compare", *options], tmp_path, clean_environment(RECYCLEDB_STORE=url), columns=80
    )
    lines = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode()).splitlines()

    assert code == 0
    assert all(len(line) <= 80 for line in lines)
    every = [*names, f"length/{students(url)[0]}", "random/0"]
    rows = {
        number: [line for line in lines if line.startswith(f"{number} {name} ")] for number, name in enumerate(every, 1)
    }
    assert all(len(found) == 2 for found in rows.values()), lines  # correlations, and shares in common
    assert [len(rows[number][0].split()) for number in (1, 2, 8)] == [
        3,
        4,
        10,
    ]  # number, name, n, and half of the matrix
    assert "-0.00" not in "\n".join(lines)
    assert "hardly beat" in lines[-1]
