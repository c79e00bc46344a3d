"""The errors recycledb raises.

    RecycledbError
    ├── ConfigError         recycledb.toml or an option is wrong
    ├── FormatError         a file cannot be read as samples; nothing of it is stored
    ├── WriteError          a file cannot be written; an existing one is unchanged
    ├── StoreError          the store cannot be opened, is busy, is full or is damaged
    │   ├── AwayError       the server of the store cannot be reached, or asks to try again
    │   ├── SchemaError     the store is older or newer than this code, or not a store
    │   └── ReadOnlyError   the store can be read but not written: no permission, or the disk is full
    ├── TeacherError        the run cannot continue: no key, unknown model, no quota, server down
    ├── StudentError        a model cannot be found, identified or loaded
    ├── MethodError         an installed method failed, or gave what it must not
    └── SelectionError      a recipe, its parameters or a query is wrong
        └── QueryError      SQL was refused or failed

A bad *run* raises; a bad *item* (an unreadable row, an unusable reply, a text too long to score) is data: a row with a status. A
message names the value that is wrong and, if there is one, the command that fixes it. It never contains a password
(`without_password`).
"""

import re

_USER_IN_ADDRESS = re.compile(r"(?<=://)[^\s\"'<>]*@")


def without_password(text: str) -> str:
    """Return `text` with the user and password in each URL replaced by `***`; in doubt it hides more."""
    return _USER_IN_ADDRESS.sub("***@", text)


class RecycledbError(Exception):
    """Base of every error that recycledb raises on purpose; its message is one line for the user."""


class ConfigError(RecycledbError):
    """The configuration file or an option has an invalid value."""


class FormatError(RecycledbError):
    """A file cannot be read as samples; nothing of it was stored."""


class WriteError(RecycledbError):
    """A file cannot be written; an existing file of that name is unchanged."""


class StoreError(RecycledbError):
    """The store cannot be opened, read or written."""


class AwayError(StoreError):
    """The server of the store is away for the moment, or ended a transaction that may be tried again; nothing of it was stored."""


class SchemaError(StoreError):
    """The store's schema is older or newer than this code, or the file is not a store."""


class ReadOnlyError(StoreError):
    """The store can only be read: no permission to write its file or folder, or the disk is full."""


class TeacherError(RecycledbError):
    """No more questions can be asked: bad key, unknown model, no quota, server down."""


class StudentError(RecycledbError):
    """A student model cannot be found, identified or loaded."""


class MethodError(RecycledbError):
    """A method's own code failed, or gave what it must not."""


class SelectionError(RecycledbError):
    """A recipe or its parameters are wrong, or name something that the store does not have."""


class QueryError(SelectionError):
    """A query was refused (it writes, or reads other files) or failed."""


def is_interrupt(error: BaseException) -> bool:
    """Tell whether an error is what DuckDB makes of a Ctrl-C that arrives while it computes, opens or closes a database."""
    return isinstance(error, RuntimeError) and str(error) == "Query interrupted"
