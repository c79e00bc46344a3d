"""Serving the application: address, token, browser, and a clean end."""

import secrets
import socket
import threading
import webbrowser
from collections.abc import Callable
from typing import Any

from recycledb.errors import RecycledbError
from recycledb.marking import login_name
from recycledb.workspace import Workspace

PORT = 8321
LOCAL = ("127.0.0.1", "localhost", "[::1]")


class ViewError(RecycledbError):
    """The server cannot start."""


def serve(
    workspace: Workspace,
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    token: str | None = None,
    started: Callable[[str], None],
    stop: threading.Event | None = None,
    path: str = "/",
    person: str | None = None,
) -> None:
    """Serve the pages of a store until Ctrl-C, or until `stop` is set; `started` gets the address to open, with the token.

    `path` is the page that the address opens; `person` is who marks, by default the login name.

    Without a port the usual one, or a free one if that is in use. ViewError if the address cannot be used.
    """
    import uvicorn

    from recycledb.view.app import make

    listening = listen(host, port)
    number = listening.getsockname()[1]
    token = token or secrets.token_urlsafe(24)
    name = f"[{host}]" if ":" in host else host
    app, end_streams = make(workspace, token, own_hosts(name, number), f"recycledb_{number}", person or login_name())

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            end_streams()  # uvicorn waits for open answers
            await super().shutdown(sockets)

    settings = uvicorn.Config(app, log_level="error", lifespan="off", timeout_graceful_shutdown=1, server_header=False)
    server = Server(settings)
    open_at = LOCAL[0] if host in ("0.0.0.0", "::") else name
    separator = "&" if "?" in path else "?"
    started(f"http://{open_at}:{number}{path}{separator}token={token}")
    if stop is not None:
        threading.Thread(target=_stop_when, args=(stop, server), daemon=True).start()
    with listening:
        server.run(sockets=[listening])


def _stop_when(stop: threading.Event, server: Any) -> None:
    stop.wait()
    server.should_exit = True


def own_hosts(name: str, port: int) -> set[str]:
    """Return the values of `Host` that are this server's own; for all interfaces also this machine's names."""
    names = {name.lower(), *LOCAL}
    if name in ("0.0.0.0", "[::]"):
        names |= {socket.gethostname().lower(), socket.getfqdn().lower(), *_addresses()}
    return {f"{each}:{port}" for each in names} | (names if port == 80 else set())


def _addresses() -> set[str]:
    """Return the addresses of this machine."""
    try:
        found = {str(each[4][0]) for each in socket.getaddrinfo(socket.gethostname(), None)}
    except OSError:
        found = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect(("192.0.2.1", 9))  # sends nothing; chooses the interface that reaches other networks
            found.add(str(asking.getsockname()[0]))
        except OSError:
            pass
    return {f"[{each}]" if ":" in each else each for each in found}


def listen(host: str, port: int | None) -> socket.socket:
    """Return a socket that listens at this address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for number in [PORT, 0] if port is None else [port]:
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, number))
            listening.listen(128)
            return listening
        except (OSError, OverflowError, UnicodeError, TypeError) as error:  # TypeError: a NUL in the name
            listening.close()
            if port is None and number:
                continue
            raise ViewError(f"cannot listen at {host}:{number}: {error}; give another --port or --host") from error
    raise AssertionError("unreachable")


def open_browser(address: str) -> None:
    """Open an address in the user's browser, if there is one; without waiting for it."""
    threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
