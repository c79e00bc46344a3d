"""Merge a store and be killed in the middle: `python killed_merge.py TARGET_URL SOURCE_URL COMMITS`, before the commit after so many."""

import os
import signal
import sys

from sqlalchemy import Engine, event

from recycledb.store import Store
from recycledb.store.merge import merge, open_source


def main() -> None:
    """Arrange the end, then merge."""
    target, source, commits = sys.argv[1:]
    left = int(commits)
    with Store.open(target) as into, open_source(source) as opened:

        @event.listens_for(Engine, "commit")
        def count(_: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)

        merge(into, opened)


if __name__ == "__main__":
    main()
