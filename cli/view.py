"""The view command: the live pages."""

from typing import Annotated

import typer

from recycledb.cli.app import app, session


@app.command()
def view(
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, metavar="N", help="The port. Default: 8321, or a free one if that is in use."),
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="The address to listen at; 0.0.0.0 is every network of this machine.")
    ] = "127.0.0.1",
    queue: Annotated[
        str | None,
        typer.Option(
            metavar="SQL", help="Review what this query returns as sample_id or variant_id, one by one, by keyboard."
        ),
    ] = None,
    person: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="Who marks. Default: your login name.")
    ] = None,
    open_it: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
) -> None:
    """Open the store in the browser: see, search, compare and mark its samples, also while a sync runs.

    The printed address contains a token; without it there is no access. Ctrl-C ends it.

    A list to review: [bold]recycledb view --queue "SELECT sample_id FROM scores WHERE ifd_ppl > 1" --as ann[/bold]

    Example: [bold]recycledb view[/bold], or on a server [bold]recycledb view --no-open --port 8321[/bold] and, where the browser is,
    [bold]ssh -L 8321:127.0.0.1:8321 SERVER[/bold]
    """
    from urllib.parse import urlencode

    from recycledb.cli.printing import tell
    from recycledb.view.server import LOCAL, open_browser, serve

    def started(address: str) -> None:
        if host not in LOCAL:
            tell(
                f"warning: everybody who reaches {host} and has this address can read the store and mark its samples; it is not encrypted"
            )
        tell(f"the pages: {address}")
        tell("Ctrl-C ends it")
        if open_it:
            open_browser(address)

    with session.open() as db:
        path = "/" if queue is None else f"/review?{urlencode({'sql': queue})}"
        serve(db, host=host, port=port, started=started, path=path, person=person)
