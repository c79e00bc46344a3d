"""Files: complete or not at all, whatever stands at their place and whatever goes wrong, by every command that writes one."""

import ast
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import scored_stores as scored
from conftest import Cli, clean_environment

from recycledb.errors import RecycledbError, WriteError
from recycledb.files import write_bytes, write_text, writing, writing_text
from recycledb.reporting.report import write_report
from recycledb.store import Store

ROOT = Path(__file__).parents[1]
TEMPORARY = re.compile(r"\.recycledb-[0-9a-f]{32}\.tmp")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- complete or not at all -----------------------------------------------------------------------


def test_a_file_is_made_or_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    write_text(path, "one\r\né🙂")
    assert path.read_bytes() == "one\r\né🙂".encode()
    write_bytes(path, b"two")
    assert path.read_bytes() == b"two" and names(tmp_path) == ["out.txt"]


@pytest.mark.parametrize("error", [RecycledbError("x"), KeyboardInterrupt(), SystemExit(1)])
def test_what_goes_wrong_within_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "out.txt"
    path.write_text("before")
    for target in (path, tmp_path / "new.txt"):
        with pytest.raises(type(error)), writing(target) as file:
            file.write(b"x" * 1_000_000)
            raise error
    assert path.read_text() == "before" and names(tmp_path) == ["out.txt"]
    with pytest.raises(WriteError, match="lone surrogate"), writing_text(path) as text:
        text.write("\ud800")
    assert path.read_text() == "before" and names(tmp_path) == ["out.txt"]


def test_until_then_the_file_has_another_name_that_nobody_can_guess(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("before")
    path.chmod(0o640)
    seen = set()
    for _ in range(3):
        with writing(path) as file:
            file.write(b"secret")
            file.flush()
            (other,) = set(names(tmp_path)) - {"out.txt"}
            assert TEMPORARY.fullmatch(other) and path.read_text() in ("before", "secret")
            assert stat.S_IMODE((tmp_path / other).stat().st_mode) == 0o640  # never wider than the file's
            seen.add(other)
    assert len(seen) == 3


def test_a_planted_link_is_not_followed(tmp_path: Path, sqlite_url: str) -> None:
    """A report was once written under a name that whoever may write into the folder could foresee."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f".report.html.{os.getpid()}.new").symlink_to(victim)
    with Store.open(sqlite_url) as store:
        write_report(store, tmp_path / "out" / "report.html")
    assert victim.read_text() == "precious"
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")


# --- what stands there already --------------------------------------------------------------------


def test_links_are_written_through(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "old.txt").write_text("before")
    (tmp_path / "link").symlink_to("data/old.txt")
    (tmp_path / "second").symlink_to(tmp_path / "link")
    (tmp_path / "to-nothing").symlink_to("data/new.txt")
    (tmp_path / "folder").symlink_to("data")
    for name in ("second", "to-nothing", "folder/inner.txt"):
        write_text(tmp_path / name, name)
    assert all((tmp_path / name).is_symlink() for name in ("link", "second", "to-nothing", "folder"))
    assert {path.name: path.read_text() for path in (tmp_path / "data").iterdir()} == {
        "old.txt": "second",
        "new.txt": "to-nothing",
        "inner.txt": "folder/inner.txt",
    }
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(WriteError, match=r"round cannot be written: Too many levels of symbolic links"):
        write_text(tmp_path / "round", "x")


def test_modes_and_owners_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    before = os.umask(0o027)
    try:
        write_text(path, "new")
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        path.chmod(0o604)
        write_text(path, "again")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o604
    if os.geteuid() == 0:
        os.chown(path, 12_345, 23_456)
        path.chmod(0o4755)
        write_text(path, "theirs")
        assert (path.stat().st_uid, path.stat().st_gid) == (12_345, 23_456)
        assert stat.S_IMODE(path.stat().st_mode) == 0o4755


def test_devices_pipes_and_descriptors_are_written_to(tmp_path: Path) -> None:
    write_text(Path("/dev/null"), "gone")
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)
    with pytest.raises(WriteError, match="/dev/full cannot be written: No space left on device"):
        write_text(Path("/dev/full"), "x")
    reader, writer = os.pipe()
    write_text(Path(f"/dev/fd/{writer}"), "through a pipe")  # as a process substitution is named
    assert os.read(reader, 100) == b"through a pipe"
    log = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)  # as `>> log` opens it
    os.write(log, b"first, ")
    (tmp_path / "link").symlink_to(f"/proc/self/fd/{log}")
    write_text(Path(f"/dev/fd/{log}"), "second, ")
    write_text(tmp_path / "link", "third, ")
    os.write(log, b"last")
    assert (tmp_path / "log").read_text() == "first, second, third, last"
    for number in (reader, writer, log):
        os.close(number)
    assert names(tmp_path) == ["link", "log"]


@pytest.mark.long
def test_stdout_is_written_to_and_not_replaced(sqlite_url: str, cli: Cli, tmp_path: Path) -> None:
    with (tmp_path / "log").open("ab") as log:
        log.write(b"first\n")
        log.flush()
        command = [sys.executable, "-c", "from recycledb.cli import main; main()", "--store", sqlite_url]
        done = subprocess.run(
            [*command, "query", "SELECT 1 AS n", "--format", "csv", "-o", "/dev/stdout"],
            stdout=log,
            env=clean_environment(),
            check=True,
        )
    assert done.returncode == 0 and (tmp_path / "log").read_text() == "first\nn\n1\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "is a directory: name a file in it"),
        ("none/out.txt", "cannot be written: No such file or directory"),
        ("file/out.txt", "cannot be written: Not a directory"),
        ("x" * 300, "cannot be written: File name too long"),
    ],
)
def test_where_no_file_can_be(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").write_text("before")
    with pytest.raises(WriteError, match=message) as caught:
        write_text(tmp_path / name, "x")
    assert "\n" not in str(caught.value) and names(tmp_path) == ["file"]


AS_ANYBODY = """
import os, sys
from pathlib import Path
from recycledb.errors import WriteError
from recycledb.files import write_text
if os.geteuid() == 0:
    os.setgid(65534); os.setuid(65534)
for name in sys.argv[1:]:
    try:
        write_text(Path(name), "x")
    except WriteError as error:
        print(error)
"""


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user may look into."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)
        (Path(name) / "closed").chmod(0o755)


def test_permissions_are_those_of_the_file_and_of_its_folder(open_folder: Path) -> None:
    closed, opened = open_folder / "closed", open_folder / "open"
    for folder in (closed, opened):
        folder.mkdir()
        for name, mode in (("any.txt", 0o666), ("protected.txt", 0o444)):
            (folder / name).write_text("before")
            (folder / name).chmod(mode)
            if os.geteuid() == 0:
                os.chown(folder / name, 65_534, 65_534)
    opened.chmod(0o777)
    closed.chmod(0o555)
    paths = [closed / "any.txt", closed / "new.txt", opened / "protected.txt", opened / "any.txt", opened / "new.txt"]
    done = subprocess.run(
        [sys.executable, "-c", AS_ANYBODY, *map(str, paths)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines() == [
        f"{paths[0]} cannot be written: no file can be created in its folder {closed} (Permission denied)",
        f"{paths[1]} cannot be written: no file can be created in its folder {closed} (Permission denied)",
        f"{paths[2]} cannot be written: Permission denied",
    ]
    assert [path.read_text() for path in (paths[0], paths[2])] == ["before"] * 2
    assert [path.read_text() for path in paths[3:]] == ["x"] * 2
    assert names(closed) == ["any.txt", "protected.txt"] and len(names(opened)) == 3


# --- killed writers -------------------------------------------------------------------------------

HANGING = """
import sys, time
from pathlib import Path
from recycledb.files import writing
with writing(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("under way", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_writer_left_is_removed_by_the_next_and_a_living_one_s_is_not(tmp_path: Path) -> None:
    path = tmp_path / "out.txt"
    path.write_text("before")
    with subprocess.Popen(
        [sys.executable, "-c", HANGING, str(path)], stdout=subprocess.PIPE, cwd=ROOT, env=clean_environment()
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"under way\n"
        (left,) = set(names(tmp_path)) - {"out.txt"}
        write_text(tmp_path / "other.txt", "x")
        assert left in names(tmp_path), "the other process is still writing it"
        process.send_signal(signal.SIGKILL)
    assert path.read_text() == "before" and left in names(tmp_path)
    foreign = [".recycledb-1234.tmp", ".out.txt.tmp", ".recycledb-" + "0" * 32 + ".tmp.txt"]
    for name in foreign:
        (tmp_path / name).write_text("somebody's")
    (tmp_path / f".recycledb-{'1' * 32}.tmp").symlink_to(path)
    with writing(tmp_path / "one.txt"):  # in this very process too, a file that is being written is let be
        write_text(tmp_path / "other.txt", "y")
    assert names(tmp_path) == sorted([*foreign, f".recycledb-{'1' * 32}.tmp", "one.txt", "other.txt", "out.txt"])


# --- every command --------------------------------------------------------------------------------

OUTPUTS = {  # by what is written: the arguments that write it, OUT being the file
    "export": ["export", "-o", "OUT"],
    "parquet": ["export", "--format", "parquet", "-o", "OUT"],
    "query": ["query", "SELECT 1 AS n", "--format", "csv", "-o", "OUT"],
    "query parquet": ["query", "SELECT 1 AS n", "--format", "parquet", "-o", "OUT"],
    "report": ["report", "-o", "OUT"],
    "compare": ["compare", "7b", "13b", "--plot", "OUT"],
    "card": ["export", "-o", "/dev/null", "--card", "OUT"],
    "dataset_info.json": ["export", "-o", "../rows.json", "--llama-factory", "."],
}


@pytest.fixture(scope="module")
def scored_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a store that every command finds something in."""
    url = f"sqlite:///{tmp_path_factory.mktemp('scored')}/store.db"
    with Store.open(url, create=True) as store:
        scored.two_students(store)
    return url


@pytest.mark.long
@pytest.mark.parametrize("what", OUTPUTS)
def test_every_command_writes_through_links_and_keeps_the_mode(
    what: str, cli: Cli, scored_store: str, tmp_path: Path
) -> None:
    out = tmp_path / (what if what.endswith(".json") else "out")
    target = tmp_path / "kept" / "target"
    target.parent.mkdir()
    target.write_text("{}")
    target.chmod(0o640)
    out.symlink_to(target)
    cli("--store", scored_store, *[str(out) if one == "OUT" else one for one in OUTPUTS[what]])
    assert out.is_symlink() and names(target.parent) == ["target"] and names(tmp_path) == sorted(["kept", out.name])
    assert stat.S_IMODE(target.stat().st_mode) == 0o640 and target.read_bytes() != b"{}"


@pytest.mark.long
@pytest.mark.parametrize("what", OUTPUTS)
def test_a_full_disk_destroys_nothing(what: str, cli: Cli, scored_store: str, tmp_path: Path) -> None:
    out = tmp_path / (what if what.endswith(".json") else "out")
    out.write_text("{}")
    arguments = [str(out) if one == "OUT" else one for one in OUTPUTS[what]]
    told = cli("--store", scored_store, *arguments, code=1, full=True)
    assert told.stderr == f"recycledb: {told.stderr[11:-1]}\n" and "No space left on device" in told.stderr
    assert out.read_text() == "{}" and names(tmp_path) == [out.name]


@pytest.mark.parametrize("what", ["export", "query", "report", "card"])
def test_a_directory_is_no_file(what: str, cli: Cli, scored_store: str, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    told = cli("--store", scored_store, *["out" if one == "OUT" else one for one in OUTPUTS[what]], code=1)
    assert told.stderr == "recycledb: out is a directory: name a file in it\n" and names(tmp_path / "out") == []


def test_init_and_demo_say_in_one_line_where_they_cannot_write(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for command in ("init", "demo"):
        told = cli(command, "file/inner", code=1).stderr
        assert told == "recycledb: file/inner cannot be created: Not a directory\n"


# --- nobody else ----------------------------------------------------------------------------------

# Who else writes, and what: what a batch uploads (its own temporary file), copies of stores, a child's pipe.
OTHERS = {"files.py", "batches.py", "worker.py"}
STORES = ROOT / "recycledb" / "store"
WRITERS = {"write_text", "write_bytes", "rename", "mkstemp", "NamedTemporaryFile", "copyfile", "copytree", "copy2"}


def writes(tree: ast.Module) -> Iterator[str]:
    """Yield the calls by which a module writes files."""
    ours = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "recycledb.files"
        for alias in node.names
    }
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        modes = [one.value for one in (*node.args, *(k.value for k in node.keywords)) if isinstance(one, ast.Constant)]
        opens = name in ("open", "fdopen") and any(str(mode)[:1] in "wxa" and len(str(mode)) < 4 for mode in modes)
        if (name in WRITERS and name not in ours) or opens:
            yield f"{ast.unparse(node)[:60]} in line {node.lineno}"


@pytest.mark.long
def test_nobody_writes_files_another_way() -> None:
    found = {
        path.name: calls
        for folder in ("recycledb", "cli")
        for path in (ROOT / folder).rglob("*.py")
        if path.name not in OTHERS and STORES not in path.parents
        if (calls := list(writes(ast.parse(path.read_text(encoding="utf-8")))))
    }
    assert found == {}


def test_a_store_that_is_filled_is_not_what_the_full_disk_hits(cli: Cli, scored_store: str) -> None:
    """The disk of the tests above is full for files only; with room the same commands succeed."""
    assert "7b" in cli("--store", scored_store, "status", full=True).stdout
