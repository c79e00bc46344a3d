"""Every command, gathered on one app in the order in which `--help` lists them."""

from recycledb.cli import demonstrating, reporting, selecting, showing, storing, syncing
from recycledb.cli.app import app, session

COMMANDS = (
    storing,
    syncing,
    selecting,
    showing,
    reporting,
    demonstrating,
)  # importing a module puts its commands on the app

__all__ = ["COMMANDS", "app", "session"]
