"""Every command, gathered on one app in the order in which `--help` lists them."""

from recycledb.cli.app import app, session

__all__ = ["app", "session"]
