"""A PostgreSQL server for tests, started from whatever binaries are installed, on a temporary folder, never as root.

Binaries: the folder $RECYCLEDB_TEST_POSTGRES, else that of `initdb` on PATH, else Debian's newest. Root starts them as `postgres`
or `nobody`.
"""

import atexit
import ctypes
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import cache
from pathlib import Path
from typing import Any

OWNER = "recycler"  # the role that owns the stores, no superuser
WAIT_S = 60


def binaries() -> Path | None:
    """Return the folder of PostgreSQL's programs; None if there is none."""
    if found := os.environ.get("RECYCLEDB_TEST_POSTGRES"):
        return Path(found)
    debian = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if debian:
        return debian[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


def end_with_parent() -> None:
    """Let the server shut down when the process that started it is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGINT)


class Server:
    """A running server."""

    def __init__(self, folder: Path | None = None, **settings: str) -> None:
        programs = binaries()
        if programs is None:
            raise RuntimeError("no PostgreSQL is installed: apt-get install postgresql")
        self.programs = programs
        self.as_user: dict[str, Any] = {}
        if os.geteuid() == 0:
            names = {each.pw_name for each in pwd.getpwall()}
            entry = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
            self.as_user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        self.folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: the path of a socket has at most 107 bytes
        self.folder.chmod(0o711)
        if self.as_user:
            os.chown(self.folder, self.as_user["user"], self.as_user["group"])
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")} | {
            "HOME": str(self.folder)
        }
        self.settings = {
            "fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "shared_buffers": "64MB", "max_connections": "100",
            "unix_socket_directories": str(self.folder), "listen_addresses": "", "autovacuum_naptime": "5min", **settings,
        }  # fmt: skip
        self.process: subprocess.Popen[bytes] | None = None
        initialize = [programs / "initdb", "-D", self.folder / "data", "-U", "test", "-A", "trust", "-E", "UTF8"]
        self._run([*initialize, "--locale=C", "--no-sync", "--no-instructions"])
        self.start()
        with self.connect() as connection:
            connection.execute(f"CREATE ROLE {OWNER} LOGIN")

    def _run(self, command: list[Any]) -> None:
        subprocess.run(
            command, check=True, cwd=self.folder, env=self.environment, stdout=subprocess.DEVNULL, **self.as_user
        )

    def start(self) -> None:
        """Start the server and wait until it takes connections."""
        import psycopg

        # The signal comes when the thread that started the server ends.
        is_main = threading.current_thread() is threading.main_thread()
        at_start = end_with_parent if is_main else None
        arguments = [f"-c{key}={value}" for key, value in self.settings.items()]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.programs / "postgres", "-D", self.folder / "data", *arguments],
                cwd=self.folder, env=self.environment, stdout=log, stderr=log, start_new_session=True, preexec_fn=at_start,  # noqa: PLW1509 - it only sets what signal the server gets
                **self.as_user,
            )  # fmt: skip
        end = time.monotonic() + WAIT_S
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                if self.process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError((self.folder / "log").read_text()) from None
                time.sleep(0.02)

    def connect(self, database: str = "postgres", user: str = "test") -> Any:
        """Open a connection of the driver, as the superuser unless told otherwise."""
        import psycopg

        return psycopg.connect(host=str(self.folder), user=user, dbname=database, autocommit=True)

    def create(self, template: str | None = None) -> str:
        """Create a database, a copy of `template` if given, and return its name."""
        name = f"t{secrets.token_hex(6)}"
        with self.connect() as connection:
            copied = f"TEMPLATE {template} STRATEGY file_copy" if template else "TEMPLATE template0"
            connection.execute(f"CREATE DATABASE {name} OWNER {OWNER} {copied}")
        if template is None:
            with self.connect(name) as connection:
                connection.execute(f"ALTER SCHEMA public OWNER TO {OWNER}")
        return name

    def drop(self, url: str) -> None:
        """Drop the database of a URL, also while it is used."""
        name = url.partition("@/")[2].partition("?")[0]
        with self.connect() as connection:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def url(self, database: str, user: str = OWNER) -> str:
        """Return the URL of a store in a database."""
        return f"postgresql://{user}@/{database}?host={self.folder}"

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the server: SIGINT ends its connections, SIGQUIT crashes it."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(WAIT_S)
            self.process = None

    def close(self) -> None:
        """Stop the server and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


@cache
def server() -> Server:
    """Return this process's server, which ends with it."""
    started = Server()
    owner = os.getpid()

    def close() -> None:
        if os.getpid() == owner:  # not in forks
            started.close()

    atexit.register(close)
    return started
