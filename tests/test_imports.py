"""Imports flow downward only, as the table of docs/architecture.md says, and heavy libraries come late."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import sound_stores
from conftest import clean_environment
from packaging.requirements import Requirement

import recycledb
from recycledb.store import Store

ROOT = Path(__file__).parents[1]
FOLDERS = {"recycledb": ROOT / "recycledb", "recycledb.cli": ROOT / "cli", "recycledb.migrations": ROOT / "migrations"}
LINE = re.compile(r"^\| `(?P<path>[^`]+)`(?: \(installed as `(?P<installed>[^`]+)`\))? \|.*\| (?P<may>[^|]+) \|$", re.M)
HEAVY = ("torch", "transformers", "openai", "datasketch", "ray")


def layers() -> dict[str, set[str]]:
    """Return, by package or module, what it may import, as the documentation's table says."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("## Layout")[2].partition("\n## ")[0]
    found: dict[str, set[str]] = {}
    for line in LINE.finditer(table):
        path = line["path"].removesuffix("/").removesuffix(".py").removesuffix("/__init__")
        name = line["installed"] or path.replace("/", ".")
        words = [word.strip() for word in line["may"].split(",")]
        if words == ["all above"]:
            found[name] = set(found)
        else:
            found[name] = {f"recycledb.{word}" for word in words if word != "nothing"}
    return found


def modules() -> Iterator[tuple[str, Path]]:
    """Yield every module of the package with its file."""
    for package, folder in FOLDERS.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join([package, *parts]).removesuffix(".__init__")
            yield name, path


MODULES = dict(modules())


@cache
def tree_of(name: str) -> ast.Module:
    """Return a module's syntax tree."""
    return ast.parse(MODULES[name].read_text(encoding="utf-8"))


@cache
def imported(module: str) -> frozenset[str]:
    """Return the full names of what a module imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "no relative imports"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found.update(name if name in MODULES else str(node.module) for name in names)
    return frozenset(found)


def layer(name: str, table: dict[str, set[str]]) -> str:
    """Return the table's line that a module belongs to: the longest that fits."""
    fitting = [line for line in table if name == line or name.startswith(f"{line}.")]
    # The package itself stands for its __init__ only; a module that no other line names has been forgotten.
    fitting = [line for line in fitting if line != "recycledb" or name == "recycledb"]
    assert fitting, f"docs/architecture.md says nothing of {name}"
    return max(fitting, key=len)


@pytest.mark.parametrize("name", MODULES)
def test_imports_flow_downward(name: str) -> None:
    table = layers()
    own = layer(name, table)
    wrong = [
        other
        for other in imported(name)
        if other.split(".")[0] == "recycledb" and layer(other, table) not in {own, *table[own]}
    ]
    assert wrong == [], f"{name} ({own}) may import {sorted(table[own])}"


def test_the_table_names_what_there_is() -> None:
    for line in layers():
        path = ROOT / line.replace("recycledb.cli", "cli").replace("recycledb.migrations", "migrations").replace(
            ".", "/"
        )
        assert path.is_dir() or path.with_suffix(".py").is_file(), line


@pytest.mark.parametrize(
    ("library", "allowed"),
    [
        ("torch", r"recycledb\.scoring\..*|recycledb\.pretrained\.loader|recycledb\.reflection\.teachers\.local"),
        (
            "transformers",
            r"recycledb\.scoring\..*|recycledb\.pretrained\.loader|recycledb\.reflection\.teachers\.local",
        ),
        ("openai", r"recycledb\.reflection\.teachers\..*"),
        ("sqlmodel", r"recycledb\.store\.(duplicate_|rater_|mark_|worker_)?tables"),
        ("ray", r"recycledb\.scoring\.ray_lanes"),
        ("datasketch", r"recycledb\.selection\.duplicates"),
        ("pysqlite3", r"recycledb\.store\.sqlite"),
        ("alembic", r"recycledb\.store\..*|recycledb\.migrations(\..*)?"),
    ],
)
def test_a_library_has_its_place(library: str, allowed: str) -> None:
    users = {name for name in MODULES for other in imported(name) if other.split(".")[0] == library}
    assert users and {name for name in users if not re.fullmatch(allowed, name)} == set()


MOST_LINES_OF_A_FILE = 500
MOST_LINES_OF_A_FUNCTION = 60


def test_files_and_functions_are_short() -> None:
    """Migrations apart, which are what they were when they were released."""
    own = {name: tree_of(name) for name in MODULES if not name.startswith("recycledb.migrations")}
    last_lines = {
        name: max((getattr(node, "end_lineno", 0) or 0 for node in ast.walk(tree)), default=0)
        for name, tree in own.items()
    }
    assert {name for name, line in last_lines.items() if line > MOST_LINES_OF_A_FILE} == set()
    functions = {
        f"{name}.{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for name, tree in own.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: lines for name, lines in functions.items() if lines > MOST_LINES_OF_A_FUNCTION} == {}


def loaded(*arguments: str, cwd: Path, code: str = "from recycledb.cli import main; main()") -> set[str]:
    """Return the libraries that a run of the command (or of other code) has loaded in the end."""
    tell = "import atexit, sys; atexit.register(lambda: print('LOADED', *sys.modules, file=sys.stderr)); "
    command = [sys.executable, "-c", tell + code, *arguments]
    done = subprocess.run(command, cwd=cwd, env=clean_environment(), capture_output=True, text=True, check=True)
    return set(done.stderr.rpartition("LOADED ")[2].split())


@pytest.mark.long
def test_help_starts_light(tmp_path: Path) -> None:
    for arguments in (["--help"], ["select", "--help"], ["--version"]):
        heavy = loaded(*arguments, cwd=tmp_path) & {*HEAVY, "sqlalchemy", "duckdb", "pyarrow", "numpy"}
        assert heavy == set(), arguments


@pytest.mark.long
def test_looking_and_adding_load_no_model_and_no_vendor(tmp_path: Path, sqlite_url: str) -> None:
    with Store.open(sqlite_url) as store:
        sound_stores.fill(store)
    (tmp_path / "d.json").write_text('[{"instruction": "x", "output": "y"}]')
    (tmp_path / "recycledb.toml").write_text('[teachers.gpt]\nmodel = "gpt-test"\n')
    runs = [["status"], ["add", "d.json"], ["sync", "--dry-run"], ["query", "SELECT 1"], ["db", "check"]]
    words = json.dumps([["--store", sqlite_url, *arguments] for arguments in runs])
    found = loaded(words, cwd=tmp_path, code=ONE_AFTER_THE_OTHER)
    assert "duckdb" in found or "pysqlite3" in found, "no store was opened"
    assert found.isdisjoint(HEAVY)


ONE_AFTER_THE_OTHER = """
import json, sys
from recycledb.cli import commands
for words in json.loads(sys.argv[1]):
    commands.session.forget()
    assert not commands.app(words, standalone_mode=False)
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("names", "too_much"),
    [
        ("recycledb", {"sqlalchemy", "pydantic", "duckdb", "pyarrow", "recycledb.store"}),
        ("recycledb.workspace, recycledb.scoring, recycledb.sync", set()),
    ],
)
def test_importing_the_library_loads_no_model_and_no_vendor(names: str, too_much: set[str], tmp_path: Path) -> None:
    assert loaded(cwd=tmp_path, code=f"import {names}").isdisjoint({*HEAVY, *too_much})


def test_the_public_surface() -> None:
    assert recycledb.__all__ == ["__version__", "open"]
    assert all(hasattr(recycledb, name) for name in recycledb.__all__)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert recycledb.__version__ == project["version"]


def test_constraints_are_versions_that_pip_can_read() -> None:
    """Old releases of pip take a name without a version; current ones reject the whole file."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    assert pins and all([one.operator for one in pin.specifier] == ["=="] for pin in pins)
