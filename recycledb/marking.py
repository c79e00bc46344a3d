"""Marking by command and by Python: who marks, what, and what was written."""

import getpass
from typing import Any

from recycledb.store import Store
from recycledb.store.marks import Given, add_marks, find_target


def login_name() -> str:
    """Return the name of the user of this process."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a user id without a name, as in containers
        return "nobody"


def mark(store: Store, identifier: str, word: str, *, note: str = "", by: str | None = None) -> dict[str, Any]:
    """Mark a sample or variant, given by a unique prefix of its id; return the row.

    `word` is keep, drop, unsure, or none, which takes this person's mark back. `by` is the login name unless given.
    """
    target = find_target(store, identifier)
    [row] = add_marks(store, [Given(target, word, note, (by or login_name()).strip(), {"page": "command"})])
    return row._asdict()
