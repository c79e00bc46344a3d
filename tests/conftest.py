"""What several tests need: stores on every backend, and the command as users run it."""

import fcntl
import os
import pty
import shutil
import struct
import subprocess
import sys
import termios
import threading
import tty
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import forks
import postgres_server
import pytest
from forks import clean_environment
from templates import drop, made, new_url

from recycledb.store import Store

BACKENDS = ("sqlite", "duckdb")  # in files
ALL_BACKENDS = (*BACKENDS, *(("postgresql",) if postgres_server.binaries() else ()))
RUN_COMMAND = [sys.executable, "-c", "from recycledb.cli import main; main()"]

Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session", autouse=True)
def own_cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the live pages derive from the tests' stores out of the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def empty_stores() -> dict[str, Path]:
    """An empty store at the newest schema for each backend, to copy."""
    return {backend: made(backend) for backend in BACKENDS}


@pytest.fixture(params=ALL_BACKENDS)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty store, once on each backend."""
    url = new_url(request.param, tmp_path / f"store.{request.param}")
    yield url
    drop(url)


@pytest.fixture
def store(store_url: str) -> Iterator[Store]:
    """An open, empty store, once on each backend."""
    with Store.open(store_url) as opened:
        yield opened


@pytest.fixture
def pg_url(tmp_path: Path) -> Iterator[str]:
    """The URL of an empty store in PostgreSQL."""
    if postgres_server.binaries() is None:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    url = new_url("postgresql", tmp_path)
    yield url
    drop(url)


@pytest.fixture
def pg(pg_url: str) -> Iterator[Store]:
    """An open, empty store in PostgreSQL."""
    with Store.open(pg_url) as opened:
        yield opened


@pytest.fixture
def own_server() -> Iterator[postgres_server.Server]:
    """A server of the test's own, which it may stop."""
    server = postgres_server.Server(fsync="on", synchronous_commit="on", full_page_writes="on")
    yield server
    server.close()


@pytest.fixture
def sqlite_url(empty_stores: dict[str, Path], tmp_path: Path) -> str:
    """The URL of an empty SQLite store."""
    path = tmp_path / "store.db"
    shutil.copyfile(empty_stores["sqlite"], path)
    return f"sqlite:///{path}"


@pytest.hookimpl(tryfirst=True)  # before the deselection by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cases of parametrized tests that are not in the default suite as long.

    `default_cases` names those that are in it, by parts of their ids. Without it a case on DuckDB is long, unless the test is marked
    `both_backends`: the same code runs on SQLite in a third of the time.
    """
    for item in items:
        case = getattr(item, "callspec", None)
        if case is None:
            continue
        named = item.get_closest_marker("default_cases")
        if named is not None:
            chosen = any(part in case.id for part in named.args)
        else:
            elsewhere = any(backend in case.id for backend in ("duckdb", "postgresql"))
            chosen = not elsewhere or item.get_closest_marker("both_backends") is not None
        if not chosen:
            item.add_marker(pytest.mark.long)
            # Each takes a database of its own; the store's and the selections' cases stay among the long ones, and so do those of tests
            # that choose their cases. The rest is `make slow`.
            if (
                named is None
                and "postgresql" in case.id
                and item.path.name not in ("test_store.py", "test_selection.py")
            ):
                item.add_marker(pytest.mark.slow)


@pytest.hookimpl(optionalhook=True)  # xdist's
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With --dist loadfile, give all files that load a model to one worker: torch and transformers take 7 seconds in each process."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return "models" if _loads_models(config.rootpath / file) else file

    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


@cache
def _loads_models(file: Path) -> bool:
    source = file.read_text("utf-8")
    return any(
        sign in source for sign in ("tiny_students", "from late import", "light_demo", "MODELS", "forks.start_worker")
    )


class CommandServer:
    """Runs the command in forks of one process: see forks.py."""

    def run(
        self, arguments: list[str], cwd: Path, env: Mapping[str, str], **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run the command once; `full` and `modules` are those of forks.start."""
        return forks.run([*RUN_COMMAND, *arguments], cwd=cwd, env=env, **options)

    def start(self, arguments: list[str], cwd: Path, env: Mapping[str, str]) -> forks.Forked:
        """Start the command."""
        return forks.start([*RUN_COMMAND, *arguments], cwd=cwd, env=env, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE)

    def run_on_terminal(
        self, arguments: list[str], cwd: Path, env: Mapping[str, str], *, columns: int = 120, code: str | None = None
    ) -> tuple[int, bytes]:
        """Run the command, or `code`, on a terminal for its stdout and stderr; return its exit code and every byte that came."""
        master, terminal = pty.openpty()
        tty.setraw(terminal)  # which leaves newlines as they are
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        came: list[bytes] = []
        end = b"\0the end\0"

        def read() -> None:  # all the while, since a terminal that nobody reads is soon full
            while not b"".join(came[-2:]).endswith(end):
                came.append(os.read(master, 1 << 16))

        reader = threading.Thread(target=read)
        reader.start()
        command = [*RUN_COMMAND, *arguments] if code is None else [sys.executable, "-c", code]
        try:
            with forks.start(command, cwd=cwd, env=env, stdin=DEVNULL, stdout=terminal, stderr=terminal) as process:
                code = process.wait()
        finally:
            os.write(terminal, end)
            reader.join()
            os.close(master)
            os.close(terminal)
        return code, b"".join(came).removesuffix(end)


@pytest.fixture(scope="session")
def command_server() -> CommandServer:
    """One process for all runs of the command."""
    return CommandServer()


@pytest.fixture
def cli(tmp_path: Path, command_server: CommandServer) -> Cli:
    """Run the real command in a process of its own, in `tmp_path`, and return what came of it.

    `cli("add", "data.json", env={…}, cwd=…, code=1)`: `code` is the exit code that is expected; other options are those of forks.start.
    """

    def run(
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path = tmp_path,
        code: int = 0,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        words, environment = [str(argument) for argument in arguments], clean_environment(**(env or {}))
        done = forks.run([*RUN_COMMAND, *words], cwd=cwd, env=environment, **options)
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run
