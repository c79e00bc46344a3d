"""A PostgreSQL for benchmarks: started from the binaries that are installed, with everything on that keeps data, as for real work."""

import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
SETTINGS = {
    "fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "shared_buffers": "512MB", "max_wal_size": "4GB",
    "autovacuum_naptime": "1min",
}  # fmt: skip


class Places:
    """Where new stores of a backend can be: files in temporary folders, or databases of a server of our own."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self._ending = ExitStack()

    @cached_property
    def _server(self) -> Any:
        from postgres_server import Server

        started = Server(**SETTINGS)
        self._ending.callback(started.close)
        return started

    @contextmanager
    def new(self) -> Iterator[str]:
        """Yield the URL of a store to create."""
        if self.backend == "postgresql":
            url = self._server.url(self._server.create())
            yield url
            self._server.drop(url)
        else:
            with tempfile.TemporaryDirectory() as folder:
                yield f"{self.backend}:///{folder}/store.db"

    def close(self) -> None:
        """Stop the server."""
        self._ending.close()
