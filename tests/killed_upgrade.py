"""Upgrade a store and be killed at a moment: `python killed_upgrade.py URL MOMENT`.

The moments: `begin` (the copy is made, and empty), `rename` (the copy is complete, under its first name), or a number: before so many
statements of the migration have been run.
"""

import os
import signal
import sys

from sqlalchemy import Engine, event

from recycledb.store import upgrade


def die() -> None:
    """Be killed as by the kernel."""
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Arrange the end, then upgrade."""
    url, moment = sys.argv[1:]
    statements = 0

    def watch(what: str, arguments: tuple[object, ...]) -> None:
        if (what, moment) in (("fcntl.flock", "begin"), ("os.rename", "rename")):
            die()

    @event.listens_for(Engine, "before_cursor_execute")
    def count(conn: object, cursor: object, statement: str, *_: object) -> None:
        nonlocal statements
        statements += statement.lstrip().upper().startswith(("CREATE", "ALTER", "DROP", "UPDATE", "INSERT"))
        if moment.isdecimal() and statements > int(moment):
            die()

    sys.addaudithook(watch)
    upgrade(url)


if __name__ == "__main__":
    main()
