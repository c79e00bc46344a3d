"""recycledb: recycle instruction-tuning data in one incremental SQL store.

    import recycledb

    with recycledb.open("sqlite:///recycle.db", create=True) as db:
        db.add("alpaca.json")
        print(db.plan())

Importing it loads neither torch, transformers, openai nor a database driver; each is loaded when it is first needed.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from recycledb.workspace import Workspace

__version__ = "0.1.0"
__all__ = ["__version__", "open"]


def open(url: str | None = None, *, config: "str | Path | None" = None, create: bool = False) -> "Workspace":
    """Open the store at `url`, else the one that `config` names, else that of the nearest recycledb.toml.

    `config` is the path of a recycledb.toml; without it the nearest is read, if any. With `create`, a store that
    does not exist is created. Raises ConfigError, StoreError, SchemaError.
    """
    from recycledb.workspace import Workspace

    return Workspace.open(url, config=config, create=create)
