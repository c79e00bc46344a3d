"""The errors recycledb raises.

    RecycledbError
    ├── ConfigError         recycledb.toml or an option is wrong
    ├── FormatError         a file cannot be read as samples; nothing of it is stored
    ├── WriteError          a file cannot be written; what stood in its place still does
    ├── StoreError          the store cannot be opened, is busy, is full or is damaged
    │   ├── SchemaError     the store is older or newer than this code, or the file is none
    │   └── ReadOnlyError   the store may be read, but not written: by this user, or for want of space
    ├── TeacherError        the run cannot go on: no key, unknown model, no quota, server down
    ├── StudentError        a model cannot be found, identified or loaded
    ├── MethodError         an installed method failed, or gave what it must not
    └── SelectionError      a recipe, its parameters or a query is wrong
        └── QueryError      SQL was refused or failed

A bad *run* raises; a bad *item* (an unreadable row, an unusable reply, a text too long to score) is data: a row with a
status. Every message names the value that is wrong and, where there is one, the command that mends it; a password in an
address is never part of it (`without_password`).
"""

import re

_USER_IN_ADDRESS = re.compile(r"(?<=://)[^\s\"'<>]*@")


def without_password(text: str) -> str:
    """Return `text` with the user and password of every address in it as `***`; rather too much is hidden than too little."""
    return _USER_IN_ADDRESS.sub("***@", text)


class RecycledbError(Exception):
    """Base of every error that recycledb raises on purpose; its message is one line for the user."""


class ConfigError(RecycledbError):
    """The configuration file or an option names something that cannot be."""


class FormatError(RecycledbError):
    """A file cannot be read as samples; nothing of it was stored."""


class WriteError(RecycledbError):
    """A file cannot be written; what stood in its place still does."""


class StoreError(RecycledbError):
    """The store cannot be opened, read or written."""


class SchemaError(StoreError):
    """The store's schema is older or newer than this code, or the file is no store."""


class ReadOnlyError(StoreError):
    """The store may only be read: its file or folder may not be written, or its disk is full."""


class TeacherError(RecycledbError):
    """No further question can be asked: bad key, unknown model, no quota, server gone."""


class StudentError(RecycledbError):
    """A student model cannot be found, identified or loaded."""


class MethodError(RecycledbError):
    """A method's own code failed, or gave what it must not."""


class SelectionError(RecycledbError):
    """A recipe or its parameters are wrong, or name something that the store lacks."""


class QueryError(SelectionError):
    """A query was refused (it would write, or reach other files) or failed."""
