"""A stand-in for the Hugging Face Hub on loopback: as much of its HTTP API as listing and downloading a data set takes."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(repos: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Serve data sets, by name: `files` maps paths to bytes, `card` is the card's header, `refuses` an (HTTP status, X-Error-Code)."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(body=True)

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, body: bool) -> None:
            path = self.path.partition("?")[0].strip("/")
            name = "/".join(path.removeprefix("api/").split("/")[1:3])
            repo = repos.get(name)
            if repo is None or "refuses" in repo:
                status, code = (401, "RepoNotFound") if repo is None else repo["refuses"]
                self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code}, body)
            elif path.startswith("api/"):
                files = [{"rfilename": file} for file in repo["files"]]
                found = {"id": name, "sha": COMMIT, "siblings": files, "cardData": repo.get("card"), "tags": []}
                self._send(200, json.dumps(found).encode(), {}, body)
            else:
                content = repo["files"][path.split(f"/resolve/{COMMIT}/")[1]]
                etag = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
                self._send(200, content, etag, body)

        def _send(self, status: int, content: bytes, headers: Mapping[str, str], body: bool) -> None:
            self.send_response(status)
            for key, value in {
                "Content-Length": str(len(content)),
                "Content-Type": "application/json",
                **headers,
            }.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
