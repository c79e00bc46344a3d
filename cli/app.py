"""The command line's frame: global options, the store in use, errors as one line, output to the right place.

Commands live in the modules beside this one. Each parses, calls one library function and prints; results that a program
may read go to stdout (one JSON object with --json), everything else to stderr.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recycledb.terminal import json_visible

if TYPE_CHECKING:
    from recycledb.cli.printing import Terminal
    from recycledb.config import Config
    from recycledb.workspace import Workspace

app = typer.Typer(
    name="recycledb",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Recycle instruction-tuning data: a teacher rewrites it, students score it, SQL chooses.

    Start with [bold]recycledb demo[/bold], or with your own data:

    [bold]recycledb init && recycledb add data.json && recycledb sync --dry-run[/bold]""",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; everything else goes to stderr.")]


@dataclass
class Session:
    """What the global options say."""

    store_option: str | None = None
    debug: bool = False

    @cached_property
    def config(self) -> "Config":
        """The nearest recycledb.toml, or defaults."""
        from recycledb.config import load

        return load()

    def forget(self) -> None:
        """Read the configuration anew: the folder has changed."""
        self.__dict__.pop("config", None)

    @property
    def url(self) -> str:
        """The store: --store or $RECYCLEDB_STORE, else the configuration's."""
        return self.store_option or self.config.store.url

    def open(self, *, create: bool = False) -> "Workspace":
        """Open the store in use; the configuration is read only when it is needed."""
        from recycledb.store import Store
        from recycledb.workspace import Workspace

        return Workspace(Store.open(self.url, create=create), self.__dict__.get("config"))


session = Session()


@app.callback()
def options(
    store: Annotated[
        str | None,
        typer.Option(
            envvar="RECYCLEDB_STORE",
            metavar="URL",
            help="sqlite:///PATH or duckdb:///PATH. Default: \\[store] url of the nearest recycledb.toml, "
            "else sqlite:///recycle.db here.",
        ),
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and leave.", is_eager=True, callback=lambda on: on and _version()
        ),
    ] = False,
) -> None:
    """Set the global options."""
    session.store_option = store
    session.debug = debug


def _version() -> None:
    from importlib.metadata import version

    print(version("recycledb"))
    raise typer.Exit


def stderr() -> "Terminal":
    """Return the console that people read; plain text when stderr is no terminal."""
    from recycledb.cli.printing import Terminal

    return Terminal(stderr=True)


def stdout() -> "Terminal":
    """Return the console for results that people read."""
    from recycledb.cli.printing import Terminal

    return Terminal()


def emit(result: Any, *, as_json: bool, show: Callable[[], None]) -> None:
    """Print a command's result: as JSON for programs, else as `show` does.

    The JSON escapes what a terminal would obey, which is the same value to whoever parses it.
    """
    if as_json:
        print(json_visible(json.dumps(result, ensure_ascii=False, allow_nan=False)))
    else:
        show()
