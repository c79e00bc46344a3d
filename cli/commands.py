"""All commands on one app, sorted for `--help` in the order in which they are used."""

from recycledb.cli import (
    adding,
    comparisons,
    datasets,
    demo,
    exports,
    judging,
    measures,
    mixing,
    queries,
    report,
    sample,
    selections,
    status,
    stores,
    sync,
    view,
)
from recycledb.cli.app import app, session

COMMANDS = (
    demo,
    stores,
    adding,
    datasets,
    sync,
    status,
    selections,
    queries,
    comparisons,
    exports,
    measures,
    judging,
    mixing,
    sample,
    report,
    view,
)  # importing a module registers its commands
ORDER = (
    "demo",
    "init",
    "add",
    "sync",
    "status",
    "show",
    "mark",
    "query",
    "select",
    "selections",
    "mix",
    "duplicates",
    "diff",
    "compare",
    "export",
    "import-scores",
    "import-values",
    "add-answers",
    "measures",
    "merge",
    "report",
    "batches",
)

__all__ = ["COMMANDS", "app", "session"]


def _rank(name: str | None) -> int:
    return ORDER.index(name) if name in ORDER else len(ORDER)


app.registered_commands.sort(key=lambda command: _rank(command.name or getattr(command.callback, "__name__", None)))
