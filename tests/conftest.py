"""What several tests need: stores on every backend, and the command as users run it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from recycledb.store import Store

BACKENDS = ("sqlite", "duckdb")
RUN_COMMAND = [sys.executable, "-c", "from recycledb.cli import main; main()"]
# What a developer's shell may hold and a test must not see.
FOREIGN_VARIABLES = ("RECYCLEDB_", "OPENAI_", "HF_", "COLUMNS", "FORCE_COLOR", "NO_COLOR", "TERM")

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def empty_stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An empty store at the newest schema for each backend, to copy: copying is faster than migrating."""
    folder = tmp_path_factory.mktemp("empty_stores")
    paths = {backend: folder / f"empty.{backend}" for backend in BACKENDS}
    for backend, path in paths.items():
        Store.open(f"{backend}:///{path}", create=True).close()
    return paths


@pytest.fixture(params=BACKENDS)
def store_url(request: pytest.FixtureRequest, empty_stores: dict[str, Path], tmp_path: Path) -> str:
    """The URL of an empty store, once on each backend."""
    path = tmp_path / f"store.{request.param}"
    shutil.copyfile(empty_stores[request.param], path)
    return f"{request.param}:///{path}"


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """An open, empty store, once on each backend."""
    with Store.open(store_url) as opened:
        yield opened


@pytest.fixture
def sqlite_url(empty_stores: dict[str, Path], tmp_path: Path) -> str:
    """The URL of an empty SQLite store."""
    path = tmp_path / "store.db"
    shutil.copyfile(empty_stores["sqlite"], path)
    return f"sqlite:///{path}"


def clean_environment(**more: str) -> dict[str, str]:
    """Return this process's environment without what would change a command's behaviour."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN_VARIABLES)}
    return {**kept, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "error", **more}


@pytest.fixture
def cli(tmp_path: Path) -> Cli:
    """Run the real command in a process of its own, in `tmp_path`, and return what came of it.

    `cli("add", "data.json", env={…}, cwd=…, code=1)`: `code` is the exit code that is expected.
    """

    def run(
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path = tmp_path,
        code: int = 0,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*RUN_COMMAND, *map(str, arguments)],
            cwd=cwd,
            env=clean_environment(**(env or {})),
            capture_output=True,
            encoding="utf-8",
            check=False,
            timeout=120,
            **options,
        )
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run
