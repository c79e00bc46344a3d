"""Processes for tests that start at once, as forks of one that has the libraries loaded (fork_server.py).

    with start([sys.executable, "-c", "print(1)"], stdout=PIPE) as process: ...

`start` takes what `subprocess.Popen` takes, as far as tests use it, for commands that run this interpreter.
"""

import atexit
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import IO, Any, Self

TESTS = Path(__file__).resolve().parent
# Set for the libraries by a command that ran in this process.
VERBOSITIES = ("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY", "TORCH_LOGS")
# What a developer's shell may hold and a test must not see.
FOREIGN_VARIABLES = ("RECYCLEDB_", "OPENAI_", "HF_", "COLUMNS", "FORCE_COLOR", "NO_COLOR", "TERM", *VERBOSITIES)
# All that most commands import: a fork that imports 60 modules of its own takes twice as long.
COMMAND = (
    *("recycledb.cli.commands", "recycledb.additions", "recycledb.inspection", "recycledb.sync", "recycledb.selection.query"),
    *("recycledb.selection.select", "recycledb.store.duckdb", "recycledb.store.sqlite", "recycledb.reflection.teachers.chat"),
    *("recycledb.workspace", "recycledb.integrity", "recycledb.cli.printing", "recycledb.selection.compare", "typer.rich_utils"),
    *("recycledb.reporting.report", "recycledb.store.batches", "rich.markdown", "rich.progress"),
    *("rich.status", "rich._emoji_codes", "alembic.command", "alembic.config", "recycledb.migrations", "genai_prices", "getpass"),
    *(f"recycledb.methods.{file.stem}" for file in (TESTS.parent / "recycledb" / "methods").glob("[a-z]*.py")),
)  # fmt: skip
MODELS = (*COMMAND, "recycledb.scoring.engine", "transformers:LlamaForCausalLM", "transformers:AutoTokenizer")


def clean_environment(**more: str) -> dict[str, str]:
    """Return this process's environment without what would change a command's behaviour."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN_VARIABLES)}
    return {**kept, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "error", **more}


class ForkServer:
    """The process whose forks are started."""

    def __init__(self, modules: Sequence[str]) -> None:
        self._line, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._lock = threading.Lock()
        with theirs:
            command = [sys.executable, str(TESTS / "fork_server.py"), str(theirs.fileno()), *modules]
            self._process = subprocess.Popen(command, env=clean_environment(), pass_fds=[theirs.fileno()])

    def ask(self, job: Mapping[str, Any], descriptors: Sequence[int] = ()) -> int:
        """Send a message; return the answer."""
        with self._lock:
            socket.send_fds(self._line, [json.dumps(job).encode()], descriptors)
            answer = self._line.recv(64)
        assert answer, "the fork server is gone"
        return int(answer)

    def close(self) -> None:
        """End it; what it started goes on."""
        self._line.close()
        self._process.wait()


@cache
def server(modules: tuple[str, ...] = COMMAND) -> ForkServer:
    """Return this process's server that has these modules loaded, started when it is first asked for."""
    started = ForkServer(modules)
    atexit.register(started.close)
    return started


class Forked:
    """A process that a fork server started, with the methods of a subprocess.Popen."""

    def __init__(
        self, home: ForkServer, pid: int, stdin: IO[Any] | None, stdout: IO[Any] | None, stderr: IO[Any] | None
    ):
        self.pid, self.stdin, self.stdout, self.stderr = pid, stdin, stdout, stderr
        self.returncode: int | None = None
        self._home, self._handle, self._lock = home, os.pidfd_open(pid), threading.Lock()

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit code."""
        with self._lock:
            if self.returncode is None:
                if not select.select([self._handle], [], [], timeout)[0]:
                    raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
                self.returncode = self._home.ask({"wait": self.pid})
                os.close(self._handle)
            return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[Any, Any]:
        """Close stdin, read all that it says, and wait for the end."""
        if self.stdin is not None:
            self.stdin.close()
        said: dict[int, Any] = {}
        readers = [
            threading.Thread(target=lambda n=n, stream=stream: said.update({n: stream.read()}), daemon=True)
            for n, stream in enumerate((self.stdout, self.stderr))
            if stream is not None and not stream.closed
        ]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
            if reader.is_alive():  # a child of its own holds the pipe
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        self._close()
        return said.get(0), said.get(1)

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it is known to have ended."""
        with self._lock:
            if self.returncode is None:
                signal.pidfd_send_signal(self._handle, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it."""
        self.send_signal(signal.SIGKILL)

    def _close(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self.wait()


def start(
    command: Sequence[str | Path],
    *,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: int | IO[Any] | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
    text: bool = False,
    full: bool = False,
    modules: tuple[str, ...] = COMMAND,
) -> Forked:
    """Start `command`, [sys.executable, "-c", CODE, …] or [sys.executable, FILE, …]; with `full` on a disk that is full."""
    assert command[0] == sys.executable, "only this interpreter can be forked"
    theirs, ours = [], []
    for number, stream in enumerate((stdin, stdout, stderr)):
        mine = None
        if stream == PIPE:
            ends = os.pipe()
            theirs.append(ends[number > 0])
            mode, encoding = ("r" if number else "w", "utf-8") if text else ("rb" if number else "wb", None)
            mine = os.fdopen(ends[number == 0], mode, encoding=encoding)
        elif stream == DEVNULL:
            theirs.append(os.open(os.devnull, os.O_RDWR))
        else:
            theirs.append(os.dup(number if stream is None else stream if isinstance(stream, int) else stream.fileno()))
        ours.append(mine)
    home = server(modules)
    job = {"arguments": [str(word) for word in command[1:]], "cwd": str(cwd or Path.cwd()), "full": full}
    try:
        pid = home.ask({**job, "env": dict(os.environ if env is None else env)}, theirs)
    finally:
        for descriptor in theirs:
            os.close(descriptor)
    return Forked(home, pid, *ours)


def run(
    command: Sequence[str | Path], *, timeout: float = 120, input: str | None = None, **options: Any
) -> "subprocess.CompletedProcess[str]":
    """Run `command` to its end; return its exit code and what it wrote, character by character."""
    given = DEVNULL if input is None else PIPE
    with start(command, **{"stdin": given, "stdout": PIPE, "stderr": PIPE, **options}) as process:
        if input is not None and process.stdin is not None:
            process.stdin.write(input.encode())
        try:
            said = process.communicate(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        out, err = ((text or b"").decode() for text in said)
        return subprocess.CompletedProcess([str(word) for word in command], process.wait(), out, err)


def start_worker() -> Forked:
    """Start a scoring process, in which torch is loaded already; it is spoken to in frames."""
    code = "from recycledb.scoring.worker import main; main()"
    return start([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, modules=MODELS)
