"""What all commands share: the Typer app, global options, opening the store, and output.

The commands are in the other modules of this package. Each parses its options, calls one library function and prints. Results go
to stdout (one JSON object with --json), everything else to stderr.
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
    help="""Recycle instruction-tuning data: a teacher rewrites it, students score it, SQL selects.

    Start with [bold]recycledb demo[/bold], or with your own data:

    [bold]recycledb init && recycledb add data.json && recycledb sync --dry-run[/bold]""",
)

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; everything else goes to stderr.")]


@dataclass
class Session:
    """The values of the global options."""

    store_option: str | None = None
    debug: bool = False

    @cached_property
    def config(self) -> "Config":
        """The nearest recycledb.toml; defaults if there is none."""
        from recycledb.config import load

        return load()

    def forget(self) -> None:
        """Drop the cached configuration: the working directory has changed."""
        self.__dict__.pop("config", None)

    @property
    def url(self) -> str:
        """The URL of the store: --store or $RECYCLEDB_STORE, else the one in the configuration."""
        return self.store_option or self.config.store.url

    @property
    def shown_url(self) -> str:
        """The URL of the store without its password."""
        from recycledb.store.address import shown

        return shown(self.url)

    def open(self, *, create: bool = False) -> "Workspace":
        """Open the store; the configuration is read only when needed."""
        from recycledb.store import Store
        from recycledb.workspace import Workspace

        config = self.__dict__.get("config")
        wait_s = None if config is None else config.store.wait_s
        return Workspace(Store.open(self.url, create=create, wait_s=wait_s), config)


session = Session()


@app.callback()
def options(
    store: Annotated[
        str | None,
        typer.Option(
            envvar="RECYCLEDB_STORE",
            metavar="URL",
            help="The store: sqlite:///PATH, duckdb:///PATH or postgresql://HOST/DATABASE. Default: "
            "\\[store] url in the nearest recycledb.toml, "
            "else sqlite:///recycle.db.",
        ),
    ] = None,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the traceback of an error, and the warnings of other libraries.")
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", is_eager=True, callback=lambda on: on and _version()
        ),
    ] = False,
) -> None:
    """Set the global options."""
    from recycledb.cli.printing import hide_libraries, show_libraries

    (show_libraries if debug else hide_libraries)()
    session.store_option = store
    session.debug = debug


def _version() -> None:
    from importlib.metadata import version

    print(version("recycledb"))
    raise typer.Exit


def stderr() -> "Terminal":
    """Return the console for messages and progress; plain text if stderr is not a terminal."""
    from recycledb.cli.printing import Terminal

    return Terminal(stderr=True)


def stdout() -> "Terminal":
    """Return the console for results in readable form."""
    from recycledb.cli.printing import Terminal

    return Terminal()


def warn_of_params(config: "Config") -> None:
    """Print a line for each parameter of a teacher that its API does not know."""
    from recycledb.cli.printing import tell
    from recycledb.suggestions import unknown_params

    for teacher in config.teachers.values():
        for each in unknown_params(teacher.provider, teacher.params):
            tell(f"warning: [teachers.{teacher.name}] {each}")


def emit(result: Any, *, as_json: bool, show: Callable[[], None]) -> None:
    """Print a command's result: as JSON, or by calling `show`.

    Control characters are escaped in the JSON; a parser gets the same value.
    """
    if as_json:
        print(json_visible(json.dumps(result, ensure_ascii=False, allow_nan=False)))
    else:
        show()
