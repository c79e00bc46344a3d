"""What several tests need: stores on every backend, and the command as users run it."""

import fcntl
import json
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


class CommandServer:
    """A process that runs the command in forks of itself: see command_server.py."""

    def __init__(self, folder: Path) -> None:
        self._out, self._err = folder / "out", folder / "err"
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("command_server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=clean_environment(),
            text=True,
        )

    def run(
        self, arguments: list[str], cwd: Path, env: Mapping[str, str], *, full: bool = False
    ) -> subprocess.CompletedProcess[str]:
        """Run the command once, with `full` on a disk that is full."""
        code = self._ask({**self._job(arguments, cwd, env), "full": full})
        out, err = (path.read_bytes().decode() for path in (self._out, self._err))
        return subprocess.CompletedProcess(arguments, code, out, err)

    def start(self, arguments: list[str], cwd: Path, env: Mapping[str, str]) -> int:
        """Start the command; return its process's number. One at a time, until `wait` was called."""
        return self._ask({**self._job(arguments, cwd, env), "start": True})

    def wait(self, process: int) -> tuple[int, str]:
        """Wait for a command that was started; return its exit code and what it wrote to stderr."""
        return self._ask({"wait": process}), self._err.read_text(encoding="utf-8")

    def _job(self, arguments: list[str], cwd: Path, env: Mapping[str, str]) -> dict[str, object]:
        for path in (self._out, self._err):
            path.write_bytes(b"")
        return {"arguments": arguments, "cwd": str(cwd), "env": env, "out": str(self._out), "err": str(self._err)}

    def _ask(self, job: dict[str, object]) -> int:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def run_on_terminal(self, arguments: list[str], cwd: Path, env: Mapping[str, str]) -> tuple[int, bytes]:
        """Run the command once with a terminal for its stdout and stderr; return its exit code and every byte that came."""
        master, terminal = pty.openpty()
        tty.setraw(terminal)  # which leaves newlines as they are
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        came: list[bytes] = []
        end = b"\0the end\0"

        def read() -> None:  # all the while, since a terminal that nobody reads is soon full
            while not b"".join(came[-2:]).endswith(end):
                came.append(os.read(master, 1 << 16))

        reader = threading.Thread(target=read)
        reader.start()
        name = os.ttyname(terminal)
        try:
            code = self._ask({"arguments": arguments, "cwd": str(cwd), "env": env, "out": name, "err": name})
        finally:
            os.write(terminal, end)
            reader.join()
            os.close(master)
            os.close(terminal)
        return code, b"".join(came).removesuffix(end)

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


@pytest.fixture(scope="session")
def command_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandServer]:
    """One process for all runs of the command."""
    server = CommandServer(tmp_path_factory.mktemp("command"))
    yield server
    server.close()


@pytest.fixture
def cli(tmp_path: Path, command_server: CommandServer) -> Cli:
    """Run the real command in a process of its own, in `tmp_path`, and return what came of it.

    `cli("add", "data.json", env={…}, cwd=…, code=1)`: `code` is the exit code that is expected; other options are those of
    subprocess.run, and have an interpreter started for this run alone. With `full` the disk is full.
    """

    def run(
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        cwd: Path = tmp_path,
        code: int = 0,
        full: bool = False,
        **options: Any,
    ) -> subprocess.CompletedProcess[str]:
        words, environment = [str(argument) for argument in arguments], clean_environment(**(env or {}))
        if options:
            command = [*RUN_COMMAND, *words]
            done = subprocess.run(
                command,
                cwd=cwd,
                env=environment,
                capture_output=True,
                encoding="utf-8",
                check=False,
                timeout=120,
                **options,
            )
        else:
            done = command_server.run(words, cwd, environment, full=full)
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run
