"""pgbouncer before the test server, in transaction mode: each transaction may be given another connection of the server."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Self

import postgres_server
from postgres_server import OWNER, WAIT_S, Server

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")

SETTINGS = """
[databases]
* = host={server}
[pgbouncer]
pool_mode = transaction
default_pool_size = 3
listen_addr =
listen_port = 5432
unix_socket_dir = {folder}
auth_type = trust
auth_file = {folder}/users
logfile = {folder}/log
"""


class Bouncer:
    """A running pgbouncer."""

    def __init__(self, server: Server) -> None:
        assert PROGRAM is not None
        self.server, self.folder = server, Path(tempfile.mkdtemp(prefix="pb-"))
        (self.folder / "users").write_text(f'"{OWNER}" ""\n"test" ""\n')
        (self.folder / "ini").write_text(SETTINGS.format(server=server.folder, folder=self.folder))
        if server.as_user:  # it does not run as root
            for path in (self.folder, *self.folder.iterdir()):
                os.chown(path, server.as_user["user"], server.as_user["group"])
        self.process = subprocess.Popen(
            [PROGRAM, self.folder / "ini"],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, preexec_fn=postgres_server.end_with_parent,  # noqa: PLW1509 - it only sets what signal it gets
            **server.as_user,
        )  # fmt: skip
        end = time.monotonic() + WAIT_S
        while not (self.folder / ".s.PGSQL.5432").exists():
            assert self.process.poll() is None and time.monotonic() < end, (self.folder / "log").read_text()
            time.sleep(0.02)

    def through(self, url: str) -> str:
        """Return the URL of a store of the server as clients of this program reach it."""
        return url.replace(f"host={self.server.folder}", f"host={self.folder}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(WAIT_S)
        shutil.rmtree(self.folder, ignore_errors=True)
